"""Whole documents packed into rows of one length, so that no step is spent on padding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

IGNORED = -100  # torch's cross entropy leaves such labels out
OPEN_ROWS = 64  # rows that still take documents: more fill better and shuffle less


@dataclass(frozen=True)
class Batches:
    """Endless batches over `documents`: each epoch shuffled anew by the seed, then packed.

    A batch holds int64 tensors of shape (batch_size, row_length): input_ids, labels and position_ids. The
    positions restart with each document, by which transformers keeps documents from seeing one another.
    """

    documents: list[list[int]]
    row_length: int
    batch_size: int
    seed: int

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Batches without end."""
        rng, waiting = Random(self.seed), list[list[list[int]]]()
        while True:
            order = rng.sample(self.documents, len(self.documents))
            rows = pack(order, self.row_length)
            rng.shuffle(rows)
            waiting += rows
            while len(waiting) >= self.batch_size:
                yield tensors(waiting[: self.batch_size], self.row_length)
                waiting = waiting[self.batch_size :]


def pack(documents: list[list[int]], length: int) -> list[list[list[int]]]:
    """Rows of whole documents, each document into the fullest open row that still has room for it."""
    done: list[list[list[int]]] = []
    rows: list[tuple[int, list[list[int]]]] = []  # (used, documents), fullest last
    for document in documents:
        at = next((i for i in reversed(range(len(rows))) if rows[i][0] + len(document) <= length), None)
        used, row = rows.pop(at) if at is not None else (0, [])
        rows.append((used + len(document), [*row, document]))
        rows.sort(key=lambda entry: entry[0])
        if len(rows) > OPEN_ROWS:
            done.append(rows.pop()[1])
    return done + [row for _, row in rows]


def tensors(rows: list[list[list[int]]], length: int) -> dict[str, torch.Tensor]:
    """input_ids, labels and position_ids of shape (rows, length); padding is a last document without labels.

    The first token of a document has no label: what would predict it belongs to the document before.
    """
    import torch

    ids, labels, positions = (torch.zeros(len(rows), length, dtype=torch.int64) for _ in range(3))
    labels.fill_(IGNORED)
    for number, row in enumerate(rows):
        at = 0
        for document in row:
            end = at + len(document)
            ids[number, at:end] = labels[number, at:end] = torch.tensor(document)
            labels[number, at] = IGNORED
            positions[number, at:end] = torch.arange(len(document))
            at = end
        positions[number, at:] = torch.arange(length - at)
    return {"input_ids": ids, "labels": labels, "position_ids": positions}
