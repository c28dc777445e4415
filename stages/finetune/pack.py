"""Best-fit packing: documents into rows of fixed length, positions restarting at each document.

With restarting positions and no attention mask, transformers builds the block-diagonal mask itself, so no
token attends across documents. Fixed lengths keep every step's cost, and its memory, the same.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

IGNORED = -100


@dataclass
class Row:
    """One packed row; the three lists have the row length."""

    input_ids: list[int]
    labels: list[int]
    position_ids: list[int]


def pack(documents: Sequence[tuple[list[int], list[int]]], length: int, pad: int) -> list[Row]:
    """Pack (input_ids, labels) pairs into rows of `length` tokens.

    Best fit decreasing: longest document first, each into the fullest row that still holds it. Raises
    ValueError for a document longer than a row.
    """
    order = sorted(range(len(documents)), key=lambda index: (-len(documents[index][0]), index))
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, bin), sorted
    for index in order:
        size = len(documents[index][0])
        if size > length:
            raise ValueError(
                f"a training row of {size} tokens does not fit into finetune.row_length={length}: "
                "raise it, or lower prepare.max_length"
            )
        at = bisect_left(room, (size, -1))
        free, target = room.pop(at) if at < len(room) else (length, len(bins))
        if target == len(bins):
            bins.append([])
        bins[target].append(index)
        insort(room, (free - size, target))
    return [_row([documents[index] for index in members], length, pad) for members in bins]


def _row(documents: Sequence[tuple[list[int], list[int]]], length: int, pad: int) -> Row:
    row = Row([], [], [])
    for ids, labels in documents:
        row.input_ids += ids
        # A document's first token has no predecessor of its own: predicting it from another one is no task.
        row.labels += [IGNORED, *labels[1:]]
        row.position_ids += range(len(ids))
    free = length - len(row.input_ids)
    row.input_ids += [pad] * free
    row.labels += [IGNORED] * free
    row.position_ids += range(free)
    return row
