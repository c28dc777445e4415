"""Per-row numbers on disk: raw arrays that a shard appends to while it streams, read back as memory maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from stages.prepare.overlap.text import Ragged

# name -> (type, numbers a row); a width of 0 stands for one a list, whose ends are in <name>.ends
Layout = dict[str, tuple[str, int]]


class Appender:
    """Writes the columns of `layout` into `folder`, batch by batch, so that memory does not grow with rows."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        """Open one file a column, and one more for the ends of each ragged column."""
        self._layout = layout
        self._files: dict[str, BinaryIO] = {}
        self._ends = {name: 0 for name, (_, width) in layout.items() if width == 0}
        for name in [*layout, *(f"{name}.ends" for name in self._ends)]:
            self._files[name] = (folder / name).open("wb")

    def add(self, name: str, values: NDArray[Any] | Sequence[Any]) -> None:
        """Append rows of a column of fixed width."""
        np.ascontiguousarray(values, dtype=self._layout[name][0]).tofile(self._files[name])

    def add_ragged(self, name: str, lists: Ragged) -> None:
        """Append lists of a ragged column."""
        self.add(name, lists.values)
        ends = lists.offsets[1:] - lists.offsets[0] + self._ends[name]
        ends.astype(np.int64).tofile(self._files[f"{name}.ends"])
        if len(ends):
            self._ends[name] = int(ends[-1])

    def close(self) -> None:
        """Flush and close every file."""
        for file in self._files.values():
            file.close()


def column(folder: Path, name: str, layout: Layout) -> NDArray[Any]:
    """A column of fixed width as a read-only map: [rows] or [rows, width]."""
    kind, width = layout[name]
    values = _map(folder / name, kind)
    return values if width == 1 else values.reshape(-1, width)


def ragged(folder: Path, name: str, layout: Layout) -> Ragged:
    """A ragged column as a read-only map."""
    ends = _map(folder / f"{name}.ends", "<i8")
    return Ragged(_map(folder / name, layout[name][0]), np.concatenate([np.zeros(1, np.int64), ends]))


def _map(path: Path, kind: str) -> NDArray[Any]:
    # an empty file cannot be mapped
    # asarray: a slice of np.memmap itself costs ten times one of a plain array over the same pages
    return np.asarray(np.memmap(path, kind, "r")) if path.stat().st_size else np.empty(0, kind)
