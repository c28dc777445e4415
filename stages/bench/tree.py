"""Shared prefixes: token sequences packed into rows of a tree, in which what they have in common stands once.

Sequences are sorted, so that a few-shot prefix, a question and the beginning of its choices are each a common prefix
of neighbours. A row holds the tree of some neighbours in depth-first order, and one forward pass reads it: token i
sees token j if j <= i < ends[j], which is true exactly for the tokens before i in i's own sequence. What a row has in
common with the next one stays in the cache of keys and values, so a prefix of a whole task is read once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Row:
    """One forward pass over `tokens`, behind the first `cached` tokens that the row before left in the cache.

    `tokens`, `positions` (place in their sequence) and `ends` have one length. `members` are indices of sequences;
    `scored[k]` are the places in the row that predict what is scored of `members[k]`, in order.
    """

    cached: int
    tokens: Ints
    positions: Ints
    ends: Ints
    members: list[int]
    scored: list[Ints]


def plan(sequences: Sequence[Ints], counts: Sequence[int], budget: int, most_scored: int) -> list[Row]:
    """Rows that score the last `counts[k]` places of each sequence k, each sequence in one row.

    A row has at most `budget` tokens and `most_scored` scored places, or holds one sequence alone. Sequences and
    counts are at least 1 long; equal sequences share a place.
    """
    order = sorted(range(len(sequences)), key=lambda index: sequences[index].astype(">u8").tobytes())
    common = _common(sequences, order)
    first = [len(sequences[index]) - counts[index] for index in order]
    rows, begin, before = [], 0, 0
    while begin < len(order):
        end = _end(sequences, counts, order, common, begin, budget, most_scored)
        # Only what all sequences of a row share is in the cache token by token, the tree comes after it
        shared = min([len(sequences[order[begin]]), *common[begin + 1 : end]])
        cached = min(before, shared, *first[begin:end])
        rows.append(_row(sequences, counts, order[begin:end], common[begin:end], cached))
        before = min(shared, common[end]) if end < len(order) else 0
        begin = end
    return rows


def behind(rows: Sequence[Row], begin: int) -> list[Row]:
    """The rows before `begin` that left in the cache what row `begin` stands behind: to read again there."""
    found, wanted = [], rows[begin].cached if begin < len(rows) else 0
    for row in reversed(rows[:begin]):
        if row.cached < wanted:
            found.append(row)
            wanted = row.cached
    return found[::-1]


def _common(sequences: Sequence[Ints], order: list[int]) -> list[int]:
    """How many tokens each sequence begins with like the one before it in order; 0 for the first."""
    found = [0]
    for left, right in pairwise(order):
        size = min(len(sequences[left]), len(sequences[right]))
        different = np.flatnonzero(sequences[left][:size] != sequences[right][:size])
        found.append(int(different[0]) if len(different) else size)
    return found


def _end(
    sequences: Sequence[Ints],
    counts: Sequence[int],
    order: list[int],
    common: list[int],
    begin: int,
    budget: int,
    most_scored: int,
) -> int:
    """Where the row that begins at `begin` ends: before it is too large, and where the least is lost by the cut."""
    tokens, scored, end = len(sequences[order[begin]]), counts[order[begin]], begin + 1
    while end < len(order):
        tokens += len(sequences[order[end]]) - common[end]
        scored += counts[order[end]]
        if tokens > budget or scored > most_scored:
            break
        end += 1
    if end == len(order) or end == begin + 1:
        return end
    candidates = range(begin + 1 + (end - begin) // 2, end + 1)
    return min(candidates, key=lambda place: (common[place], -place))


def _row(
    sequences: Sequence[Ints], counts: Sequence[int], members: list[int], common: list[int], cached: int
) -> Row:
    longest = max(len(sequences[member]) for member in members)
    place = np.zeros(longest, np.int64)  # of the current sequence's token at each depth
    tokens: list[Ints] = []
    positions: list[Ints] = []
    ends = np.zeros(sum(len(sequences[member]) for member in members), np.int64)
    size, scored, depth = 0, [], 0
    for number, member in enumerate(members):
        sequence = sequences[member]
        shared = common[number] if number else cached
        ends[place[shared:depth]] = size
        fresh = len(sequence) - shared
        place[shared : len(sequence)] = np.arange(size, size + fresh)
        tokens.append(sequence[shared:])
        positions.append(np.arange(shared, len(sequence)))
        size, depth = size + fresh, len(sequence)
        scored.append(place[len(sequence) - counts[member] : len(sequence)].copy())
    ends[place[cached:depth]] = size
    return Row(cached, np.concatenate(tokens), np.concatenate(positions), ends[:size], members, scored)
