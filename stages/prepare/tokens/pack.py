"""Best-fit decreasing packing: documents into rows of at most `capacity` tokens, over the whole set at once."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]


@dataclass
class Packed:
    """Row r holds the documents order[offsets[r]:offsets[r + 1]], longest first, equally long ones by index."""

    order: Numbers
    offsets: Numbers


def pack(lengths: Numbers, capacity: int) -> Packed:
    """Pack documents of `lengths` tokens into rows of `capacity`.

    The longest document first (ties: the lower index), each into the fullest row that still holds it (ties: the
    lower row). Johnson 1973, "Near-optimal bin packing algorithms": at most 11/9 of the best number of rows, plus 4.
    Equally long documents are placed together: a row that is the fullest to hold one of them stays so until it
    holds no more, so the cost is per length and level of fullness, not per document. Raises ValueError for a
    document that is empty or longer than a row.
    """
    _check(lengths, capacity)
    order = np.argsort(-lengths, kind="stable").astype(np.int64)
    sizes, counts = np.unique(lengths, return_counts=True)
    room = _Room(capacity)
    placed = [
        rows
        for size, count in zip(sizes[::-1].tolist(), counts[::-1].tolist(), strict=True)
        for rows in room.place(size, count)
    ]
    rows = np.concatenate(placed) if placed else np.empty(0, np.int64)
    offsets = np.concatenate(([0], np.cumsum(np.bincount(rows, minlength=room.rows)))).astype(np.int64)
    return Packed(order[np.argsort(rows, kind="stable")], offsets)


def _check(lengths: Numbers, capacity: int) -> None:
    if not len(lengths):
        return
    if int(lengths.max()) > capacity:
        raise ValueError(
            f"a document of {int(lengths.max())} tokens does not fit into prepare.row_length={capacity}: raise it, "
            "or lower prepare.max_length"
        )
    if int(lengths.min()) < 1:
        raise ValueError("a document without tokens cannot be packed: leave it out")


@dataclass
class _Room:
    """Rows by how many tokens they still hold."""

    capacity: int
    rows: int = 0
    levels: list[int] = field(default_factory=list)  # the free sizes that occur, sorted
    at: dict[int, list[Numbers]] = field(default_factory=dict)  # rows at a level, in chunks that are sorted

    def place(self, size: int, count: int) -> Iterator[Numbers]:
        """The rows of `count` documents of one size, in order."""
        while count and (first := bisect_left(self.levels, size)) < len(self.levels):
            free = self.levels[first]
            chosen = self._take(free, -(-count // (free // size)))
            yield self._fill(chosen, free, size, count)
            count -= min(count, len(chosen) * (free // size))
        if count:
            new = np.arange(self.rows, self.rows - (-count // (self.capacity // size)), dtype=np.int64)
            self.rows += len(new)
            yield self._fill(new, self.capacity, size, count)

    def _take(self, free: int, wanted: int) -> Numbers:
        """The lowest `wanted` rows of a level, or all of them."""
        chunks = self.at[free]
        rows = chunks[0] if len(chunks) == 1 else np.sort(np.concatenate(chunks), kind="stable")
        if wanted < len(rows):
            self.at[free] = [rows[wanted:]]
        else:
            del self.at[free]
            self.levels.remove(free)
        return rows[:wanted]

    def _fill(self, rows: Numbers, free: int, size: int, count: int) -> Numbers:
        """Each row takes all it holds; the last may take fewer. Returns the row of each document."""
        each = free // size
        filled = np.repeat(rows, each)[:count]
        last = len(filled) - (len(rows) - 1) * each
        self._put(rows[:-1], free - each * size)
        self._put(rows[-1:], free - last * size)
        return filled

    def _put(self, rows: Numbers, free: int) -> None:
        if not len(rows):
            return
        if free not in self.at:
            insort(self.levels, free)
        self.at.setdefault(free, []).append(rows)
