"""Where a file is cut into shards: in one pass, which also takes its digest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from stages.prepare.reading.streams import CHUNK


class Cut(NamedTuple):
    """A part of a file: where it begins and ends, and the number of its first line (or row)."""

    begin: int
    end: int
    first_line: int


@dataclass
class Pass:
    """What one pass over a file found; `lines` are the parts that its lines are cut into."""

    size: int
    sha256: str
    head: bytes
    lines: list[Cut]


def one_pass(path: Path, part_bytes: int) -> Pass:
    """Read a file once. Each part begins at the first line start at least `part_bytes` after the last part's."""
    digest, head, size = hashlib.sha256(), b"", 0
    cutter = _Cutter(part_bytes)
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            head = head or chunk[:16]
            digest.update(chunk)
            cutter.feed(chunk)
            size += len(chunk)
    return Pass(size, digest.hexdigest(), head, cutter.finish())


def runs(sizes: list[tuple[int, int]], part_bytes: int) -> list[Cut]:
    """Runs of row groups, given as (rows, bytes), of at least `part_bytes` each but for the last one."""
    cuts, begin, first, rows, held = [], 0, 1, 0, 0
    for index, (more, size) in enumerate(sizes, 1):
        rows, held = rows + more, held + size
        if held >= part_bytes or index == len(sizes):
            cuts.append(Cut(begin, index, first))
            begin, first, rows, held = index, first + rows, 0, 0
    return cuts


class _Cutter:
    """Finds the cuts as chunks come by; nothing of them is kept."""

    def __init__(self, part_bytes: int) -> None:
        self._part = part_bytes
        self._cuts: list[Cut] = []
        self._begin = self._at = 0
        self._first = self._line = 1

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes."""
        offset, counted = self._at, 0
        # A line start at byte t follows a line end at t - 1.
        while (found := chunk.find(b"\n", max(self._begin + self._part - 1 - offset, 0)) + 1) > 0:
            self._line += chunk.count(b"\n", counted, found)
            self._cuts.append(Cut(self._begin, offset + found, self._first))
            self._begin, self._first, counted = offset + found, self._line, found
        self._line += chunk.count(b"\n", counted)
        self._at += len(chunk)

    def finish(self) -> list[Cut]:
        """The cuts, with what is left as the last part."""
        if self._at > self._begin:
            self._cuts.append(Cut(self._begin, self._at, self._first))
        return self._cuts
