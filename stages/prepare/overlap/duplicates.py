"""Near-duplicates: MinHash-LSH finds the pairs worth comparing, the exact Jaccard similarity decides.

Broder 1997 (MinHash), Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, ch. 3 (banding).
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash

from stages.prepare.config import Duplicates
from stages.prepare.overlap.text import BASE, Ragged, grams, mix

RECALL = 0.99
SEED = 1
MAX_KEPT = 128  # kept rows that a bucket remembers, at most 255
MAX_COMPARED = 64  # exact comparisons a row, most common buckets first
CACHED_SHINGLES = 1 << 24  # numbers, so 128 MB


def bands(threshold: float, permutations: int) -> tuple[int, int]:
    """(bands, rows per band): the most rows, so the fewest comparisons, that find RECALL of pairs at `threshold`.

    A pair of Jaccard similarity s shares a band with probability 1 - (1 - s^rows)^bands. Raises ValueError where no
    banding finds enough.
    """
    for rows in range(permutations, 0, -1):
        count = permutations // rows
        if 1 - (1 - threshold**rows) ** count >= RECALL:
            return count, rows
    raise ValueError(
        f"duplicates: threshold={threshold} with permutations={permutations} finds less than {RECALL:.0%} of "
        "such pairs; raise permutations, or the threshold"
    )


def band_keys(words: Ragged, cfg: Duplicates) -> NDArray[np.uint64]:
    """One key for each band of each row's MinHash, [rows, bands]; rows of equal n-grams have equal keys."""
    count, rows = bands(cfg.threshold, cfg.permutations)
    shingles = grams(words, cfg.ngram)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(
        shingles.values, shingles.offsets.astype(np.uint64), cfg.permutations, SEED
    )
    digests = np.array(matrix.to_rows(), np.uint64).reshape(-1, cfg.permutations)
    keys = np.zeros((len(digests), count), np.uint64)
    for place in range(rows):
        keys = mix(keys + digests[:, place : count * rows : rows] + np.uint64(BASE))
    return keys


def near(
    keys: Callable[[int], NDArray[np.uint64]],
    shingles: Callable[[int], NDArray[np.uint64]],
    eligible: NDArray[np.bool_],
    cfg: Duplicates,
    splits: NDArray[np.int8] | None,
) -> NDArray[np.int64]:
    """By row: the earlier kept row that it is a near-duplicate of, -1 if it is kept (or not eligible).

    With `splits`, a near-duplicate within its split stays too, and one of another split is found first: it must go.

    `keys(band)` are one band's keys of all rows, `shingles(row)` its distinct n-grams, sorted. Rows are taken in order
    and compared with kept rows that share a bucket, so a row's fate never depends on later rows, and no row goes
    without a kept one of Jaccard >= threshold. A row without words is kept.

    Missed is, by chance, at most 1 - RECALL of pairs at the threshold; and, so that a thousand rows of one template
    cost no million comparisons, a near-duplicate only of kept rows past the first MAX_KEPT of every common bucket, or
    past the MAX_COMPARED with the most buckets in common. Memory: one band's keys, about 30 bytes for each row and band
    whose bucket is shared, and CACHED_SHINGLES.
    """
    found = np.full(len(eligible), -1, np.int64)
    rows, numbers, ends = _shared(keys, np.flatnonzero(eligible), bands(cfg.threshold, cfg.permutations)[0])
    kept, cache, start = _Kept(numbers), _Shingles(shingles), 0
    for row, end in zip(rows.tolist(), ends.tolist(), strict=True):
        buckets = numbers[start:end].tolist()
        start = end
        common = kept.common(buckets)
        if common:
            order = _order(row, common, splits)
            found[row] = _first_near(row, order, cache, cfg.threshold)
        if found[row] < 0 or (splits is not None and splits[row] == splits[found[row]]):
            kept.add(row, buckets)
    return found


def _shared(
    keys: Callable[[int], NDArray[np.uint64]], rows: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]]:
    """Rows that share a bucket with another, in order; the numbers of those buckets, flat, and where each row's end."""
    places, numbers, used = [np.empty(0, np.int32)], [np.empty(0, np.int32)], 0
    for band in range(count):
        place, number = _buckets(keys(band)[rows])
        places.append(place.astype(np.int32))
        numbers.append((number + used).astype(np.int32))
        used += int(number.max(initial=-1)) + 1
    ordered = np.concatenate(places)
    order = np.argsort(ordered, kind="stable")
    ordered = ordered[order]
    ends = np.flatnonzero(np.diff(ordered, append=-1)) + 1
    return rows[ordered[ends - 1]], np.concatenate(numbers)[order], ends.astype(np.int64)


def _buckets(values: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places whose value occurs more than once, and for each the number of its value."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    first = np.ones(len(values), np.bool_)
    first[1:] = ordered[1:] != ordered[:-1]
    alone = first & np.append(first[1:], np.ones(min(1, len(values)), np.bool_))
    return order[~alone], np.cumsum(first[~alone]) - 1


class _Kept:
    """The first MAX_KEPT kept rows of each bucket, in one flat array: lists would take ten times the memory."""

    def __init__(self, numbers: NDArray[np.int32]) -> None:
        room = np.minimum(np.bincount(numbers), MAX_KEPT)
        self._starts = (np.cumsum(room) - room).data
        self._rows = np.zeros(int(room.sum()), np.int64).data
        self._used = bytearray(len(room))

    def common(self, buckets: list[int]) -> Counter[int]:
        """Kept rows in these buckets, each with the number of buckets."""
        starts, used = self._starts, self._used
        found: Counter[int] = Counter()
        for bucket in buckets:
            if used[bucket]:
                found.update(self._rows[starts[bucket] : starts[bucket] + used[bucket]].tolist())
        return found

    def add(self, row: int, buckets: list[int]) -> None:
        """Remember a kept row in those of its buckets that have room."""
        for bucket in buckets:
            if self._used[bucket] < MAX_KEPT:
                self._rows[self._starts[bucket] + self._used[bucket]] = row
                self._used[bucket] += 1


def _order(row: int, common: Counter[int], splits: NDArray[np.int8] | None) -> list[int]:
    """Candidates to compare with: those of another split first, then by buckets in common, then the earliest."""
    home = (lambda other: splits[other] == splits[row]) if splits is not None else (lambda other: True)
    return sorted(common, key=lambda other: (home(other), -common[other], other))[:MAX_COMPARED]


def _first_near(row: int, order: list[int], cache: _Shingles, threshold: float) -> int:
    """The first candidate in `order` that is near enough; -1 for none."""
    others, mine = order, cache.of(row)
    # the first is nearly always near enough; the others are compared together, which takes a third of the time
    for start, end in ((0, 1), (1, 8), (8, len(others))):
        some = others[start:end]
        enough = np.flatnonzero(jaccard(mine, [cache.of(other) for other in some]) >= threshold)
        if len(enough):
            return some[int(enough[0])]
    return -1


def jaccard(one: NDArray[np.uint64], others: list[NDArray[np.uint64]]) -> NDArray[np.float64]:
    """Size of the intersection by that of the union, of one sorted set with each of others; 0.0 for two empty ones."""
    if not others or not len(one):
        return np.zeros(len(others))
    flat = np.concatenate(others)
    places = np.minimum(np.searchsorted(one, flat), len(one) - 1)
    ends = np.cumsum([0, *map(len, others)])
    both = np.diff(np.append(0, np.cumsum(one[places] == flat))[ends])
    found: NDArray[np.float64] = both / (len(one) + np.diff(ends) - both)
    return found


class _Shingles:
    """N-grams of rows, the latest used remembered up to a bound: a bucket's kept rows come up again and again."""

    def __init__(self, source: Callable[[int], NDArray[np.uint64]]) -> None:
        self._source, self._size = source, 0
        self._rows: OrderedDict[int, NDArray[np.uint64]] = OrderedDict()

    def of(self, row: int) -> NDArray[np.uint64]:
        """Distinct n-grams of a row, sorted."""
        values = self._rows.get(row)
        if values is not None:
            self._rows.move_to_end(row)
            return values
        values = self._rows[row] = self._source(row)
        self._size += len(values)
        while self._size > CACHED_SHINGLES and len(self._rows) > 1:
            self._size -= len(self._rows.popitem(last=False)[1])
        return values
