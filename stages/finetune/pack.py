"""Packed rows as prepare wrote them: checked and padded for training, cut into documents where single ones count.

Positions restart at each document. With restarting positions and no attention mask, transformers builds the
block-diagonal mask itself, so no token attends across documents. Fixed lengths keep every step's cost, and its
memory, the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

IGNORED = -100
Documents = list[tuple[list[int], list[int]]]


@dataclass
class Row:
    """One packed row; the three lists have the row length."""

    input_ids: list[int]
    labels: list[int]
    position_ids: list[int]


def read_rows(path: Path, length: int) -> Any:
    """Arrow table of the packed rows: input_ids, labels, and the documents' lengths.

    Raises ValueError for a row of more than `length` tokens.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["input_ids", "labels", "lengths"])
    longest = pc.max(pc.list_value_length(table["input_ids"])).as_py() or 0
    if longest > length:
        raise ValueError(
            f"{path} has a packed row of {longest} tokens, over finetune.row_length={length}: raise it, "
            "or lower prepare.row_length"
        )
    return table


def read_documents(path: Path) -> Documents:
    """(input_ids, labels) of each document with loss, by id and then by length: packing has no say in the order."""
    import pyarrow.parquet as pq

    found = sorted(document for row in pq.read_table(path).to_pylist() for document in _documents(row))
    return [(ids, labels) for _, _, ids, labels in found if any(label != IGNORED for label in labels)]


def padded(row: dict[str, list[int]], length: int, pad: int) -> Row:
    """A row of read_rows at its full length; each token of the padding is a document by itself, without loss.

    As one document it could be longer than any real one, and than what the model has positions for.
    """
    free = length - len(row["input_ids"])
    return Row(
        row["input_ids"] + [pad] * free,
        row["labels"] + [IGNORED] * free,
        [position for size in row["lengths"] for position in range(size)] + [0] * free,
    )


def _documents(row: dict[str, Any]) -> Iterator[tuple[str, int, list[int], list[int]]]:
    cuts = pairwise(accumulate(row["lengths"], initial=0))
    for identity, (begin, end) in zip(row["ids"], cuts, strict=True):
        yield identity, end - begin, row["input_ids"][begin:end], row["labels"][begin:end]
