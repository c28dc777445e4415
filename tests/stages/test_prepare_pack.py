"""prepare packs: as the plain algorithm would, full rows, and a row too long is one clear line."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stages.prepare.tokens.pack import pack


def plain(lengths: list[int], capacity: int) -> list[list[int]]:
    """Best fit decreasing as its definition says it: each document looks at every row."""
    rows: list[list[int]] = []
    free: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        fits = [row for row in range(len(rows)) if free[row] >= lengths[index]]
        best = min(fits, key=lambda row: (free[row], row), default=len(rows))
        if best == len(rows):
            rows.append([])
            free.append(capacity)
        rows[best].append(index)
        free[best] -= lengths[index]
    return rows


def packed(lengths: list[int], capacity: int) -> list[list[int]]:
    found = pack(np.array(lengths, np.int64), capacity)
    return [found.order[begin:end].tolist() for begin, end in pairwise(found.offsets.tolist())]


@settings(max_examples=400, deadline=None)
@given(st.integers(40, 60), st.lists(st.integers(1, 40), max_size=80))
@example(50, [])
@example(40, [40])
@example(60, [20] * 7 + [10] * 5 + [1] * 70)
def test_the_rows_are_those_of_the_plain_algorithm(capacity: int, lengths: list[int]) -> None:
    assert packed(lengths, capacity) == plain(lengths, capacity)


@pytest.mark.parametrize("seed", range(5))
def test_the_rows_are_those_of_the_plain_algorithm_on_a_larger_set(seed: int) -> None:
    lengths = np.random.default_rng(seed).lognormal(4, 1, 1500).astype(np.int64).clip(1, 512).tolist()
    assert packed(lengths, 512) == plain(lengths, 512)


def test_rows_of_a_large_set_are_full() -> None:
    sizes = (
        np.random.default_rng(0).lognormal(np.log(250) - 0.32, 0.8, 100_000).astype(np.int64).clip(1, 2048)
    )
    found = pack(sizes, 2048)
    assert sorted(found.order.tolist()) == list(range(len(sizes)))
    used = np.add.reduceat(sizes[found.order], found.offsets[:-1])
    assert used.max() <= 2048 and sizes.sum() / (2048 * len(used)) >= 0.999


def test_a_document_longer_than_a_row_is_one_clear_line() -> None:
    with pytest.raises(
        ValueError, match=r"41 tokens does not fit into prepare.row_length=40: raise it, or lower"
    ):
        packed([3, 41, 5], 40)


def test_a_document_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="without tokens"):
        packed([3, 0], 40)
