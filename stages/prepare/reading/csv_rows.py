"""Rows of CSV and TSV files (RFC 4180): a record may span lines; one that breaks its quotes costs its first line."""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Iterator
from enum import Enum
from itertools import chain

from stages.prepare.reading.record import Record, shown, too_large
from stages.prepare.reading.streams import CHUNK


def csv_rows(stream: io.BufferedReader, name: str, delimiter: str, limit: int) -> Iterator[Record]:
    """Records of a file with a header row; values are texts. Problems: invalid_utf8, invalid_csv, wrong_column_count.

    Where quotes are broken, the record's first line is rejected and reading goes on with its second. Raises
    ValueError for a header without names or with one twice, and for a quote that stays open from a record over
    `limit` bytes to the end of the file.
    """
    lines = _Lines(stream, limit)
    csv.field_size_limit(limit + 3)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header = _header(reader, lines, name)
    while True:
        lines.begin()
        try:
            fields = next(reader, None)
        except _TooLarge:
            yield too_large(name, lines.first, lines.record, lines.skip_record(name, delimiter.encode()))
        except csv.Error:
            lines.keep_first()
            yield Record(name, lines.first, shown(lines.record), None, "invalid_csv")
        else:
            if fields is None:
                return
            if fields:
                yield _record(name, lines, header, fields)


def _header(reader: Iterator[list[str]], lines: _Lines, name: str) -> list[str]:
    """The column names; [] for a file without any row."""
    header: list[str] | None = []
    try:
        while header == []:
            lines.begin()
            header = next(reader, None)
        lines.record.decode()
    except (csv.Error, _TooLarge, UnicodeDecodeError) as error:
        raise ValueError(f"{name}:{lines.first} is no header row of a CSV file: {error}") from error
    if any(not column.strip() for column in header or []):
        raise ValueError(f"{name}:{lines.first} leaves a column without a name: the first row names them all")
    if header and len(set(header)) < len(header):
        twice = next(column for column in header if header.count(column) > 1)
        raise ValueError(f"{name}:{lines.first} names two columns {twice!r}: rename one")
    return header or []


def _record(name: str, lines: _Lines, header: list[str], fields: list[str]) -> Record:
    raw = lines.record
    try:
        text = raw.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        return Record(name, lines.first, shown(raw), None, "invalid_utf8")
    if len(fields) != len(header):
        return Record(name, lines.first, text, None, "wrong_column_count")
    return Record(name, lines.first, text, dict(zip(header, fields, strict=True)), "")


class _TooLarge(Exception):
    """A record over the limit."""


class _Lines:
    """The file's lines for csv.reader; those of the current record are kept, so that they can be read again."""

    def __init__(self, stream: io.BufferedReader, limit: int) -> None:
        self.first = 1
        self._stream, self._limit = stream, limit
        self._again: deque[bytes] = deque()
        self._held: list[bytes] = []
        self._size = self._count = 0

    @property
    def record(self) -> bytes:
        """The current record's bytes; of one that is too large, the first of them."""
        return b"".join(self._held)

    def begin(self) -> None:
        """The next line is a record's first."""
        self.first += self._count
        self._held, self._size, self._count = [], 0, 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._line(self._limit + 3 - self._size)
        if not line:
            raise StopIteration
        self._held.append(line)
        self._size += len(line)
        self._count += 1
        if self._size - len(line) + len(line.rstrip(b"\r\n")) > self._limit:
            raise _TooLarge(f"it is longer than {self._limit:,} bytes")
        return line.decode("utf-8", errors="surrogateescape")

    def keep_first(self) -> None:
        """The current record is its first line alone: the others are read again."""
        self._again.extendleft(reversed(self._held[1:]))
        self._held, self._count = self._held[:1], 1

    def skip_record(self, name: str, delimiter: bytes) -> int:
        """Go on to the end of the current record without keeping it; its bytes. Raises ValueError if it has no end."""
        state, size, self._count = _State.start, 0, 0
        for piece in chain(self._held, iter(lambda: self._line(CHUNK), b"")):
            state = _walk(state, piece, delimiter)
            size += len(piece)
            self._count += piece.endswith(b"\n")
            if state is not _State.quoted and piece.endswith(b"\n"):
                return size
        if state is _State.quoted:
            raise ValueError(
                f"{name}:{self.first} opens a quote that no later line closes: correct that line"
            )
        return size

    def _line(self, limit: int) -> bytes:
        return self._again.popleft() if self._again else self._stream.readline(limit)


class _State(Enum):
    start = "at the start of a field"
    plain = "in a field without quotes"
    quoted = "in quotes"
    closing = "after a quote in quotes: the last one, or the first of two that mean one"


def _walk(state: _State, piece: bytes, delimiter: bytes) -> _State:
    """Where csv.reader would stand after `piece`, which has a line's end at most at its end."""
    at = 0
    while at < len(piece):
        if state is _State.quoted:
            at = piece.find(b'"', at) + 1
            if not at:
                return state
            state = _State.closing
        elif state in (_State.start, _State.closing) and piece.startswith(b'"', at):
            state, at = _State.quoted, at + 1
        else:
            at = piece.find(delimiter, at) + 1
            if not at:
                return _State.start if piece.endswith(b"\n") else _State.plain
            state = _State.start
    return state
