"""Rows that are lines: JSON Lines, of any bytes and any length."""

from __future__ import annotations

import io
from collections.abc import Iterator

from stages.prepare.reading.record import Record, decode, excerpt, too_large
from stages.prepare.reading.streams import CHUNK, Damaged, garbage

UNTIL_END = -1


def lines(
    stream: io.BufferedReader, name: str, begin: int, end: int, first: int, limit: int
) -> Iterator[Record]:
    """Records of the lines that start between the bytes `begin` and `end`; the stream stands at `begin`.

    `first` is the first line's number, `limit` the longest row in bytes; `end` may be UNTIL_END. Blank
    lines are no rows. Raises Damaged where the stream ends before `end`.
    """
    at, number, readline = begin, first, stream.readline
    while line := readline(limit + 2):
        at += len(line)
        if len(line) <= limit:
            if not line.isspace():
                yield decode(name, number, line)
        else:
            blank, size, skipped = _rest(stream, line)
            at += skipped
            if not blank:
                yield decode(name, number, line) if size <= limit else too_large(name, number, line, size)
        if at >= end >= 0:
            return
        number += 1
    if at < end:
        raise Damaged("was cut while it was read: it ends")


def leftover(stream: io.BufferedReader, name: str) -> Iterator[Record]:
    """One record for whatever followed the end of a gzip file: no rows as gzip sees it, but not nothing."""
    start, size = garbage(stream)
    if size:
        yield Record(name, 0, excerpt(start, size), None, "trailing_garbage")


def _rest(stream: io.BufferedReader, start: bytes) -> tuple[bool, int, int]:
    """Skip what follows the start of a line: is the line blank, its bytes without its end, the bytes skipped."""
    blank, skipped, tail, more = start.isspace(), 0, start[-2:], start
    while not more.endswith(b"\n") and (more := stream.readline(CHUNK)):
        blank, skipped, tail = blank and more.isspace(), skipped + len(more), (tail + more)[-2:]
    return blank, len(start) + skipped - len(tail) + len(tail.rstrip(b"\r\n")), skipped
