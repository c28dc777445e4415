"""Rows that overlap an item the model will be tested on: any common n-gram of words, as in GPT-3.

Brown et al. 2020 (arXiv:2005.14165), appendix C: 13-grams of lower-case words without punctuation. Words are those of
text.words, so that case, punctuation and spacing make no difference.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.prepare.config import Leakage
from stages.prepare.overlap.text import Ragged, finish, grams, prefix_sums, word_hashes

# An n-gram of more items is their prompt's wording rather than their content: it points to the first ones only, so
# that a row with that wording is found and still does not overlap a whole benchmark.
MAX_ITEMS = 50
BATCH = 1024  # items or lines at a time
WINDOW = 1 << 16  # words at a time: their sums stay in the processor's cache
MAX_FILTER_BITS = 26
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Item:
    """One tested item: `id` is unique within its benchmark."""

    benchmark: str
    id: str
    text: str


@dataclass(frozen=True)
class Hit:
    """A row of the batch, the number of an item, and the share of the item's words inside common n-grams."""

    row: int
    item: int
    share: float


@dataclass
class Index:
    """The n-grams of all items. Several processes share one on disk, through memory maps.

    `hashes` [n-grams] are sorted; n-gram g stands in items[starts[g]:starts[g + 1]], with its first word at
    positions[...]; `sizes` [items] are in words; `lengths` are those of n-grams to look for, `ngram` [1] the greatest;
    `filter` is by the top bits of a hash whether any n-gram has them.
    """

    hashes: NDArray[np.uint64]
    starts: Integers
    items: NDArray[np.int32]
    positions: NDArray[np.int32]
    sizes: Integers
    lengths: Integers
    filter: NDArray[np.bool_]
    ngram: Integers

    @classmethod
    def build(cls, items: Iterable[Item], cfg: Leakage) -> Index:
        """Index items, numbered in their order. An item without words matches nothing."""
        if not 1 <= cfg.min_words <= cfg.ngram:
            raise ValueError(
                f"leakage: min_words={cfg.min_words} must be from 1 to ngram={cfg.ngram}, the most words compared"
            )
        hashes, item, position, sizes = _postings(items, cfg.ngram)
        order = np.argsort(hashes, kind="stable")
        hashes, item, position = hashes[order], item[order], position[order]
        early = _rank(hashes) < MAX_ITEMS
        hashes, first = np.unique(hashes[early], return_index=True)
        searched = np.minimum(sizes[sizes >= cfg.min_words], cfg.ngram)
        return cls(
            hashes=hashes,
            starts=np.append(first, np.count_nonzero(early)).astype(np.int64),
            items=item[early],
            positions=position[early],
            sizes=sizes,
            lengths=np.unique(searched),
            filter=_filter(hashes),
            ngram=np.array([cfg.ngram], np.int64),
        )

    def save(self, folder: Path) -> None:
        """Write one .npy an array."""
        for field in fields(self):
            np.save(folder / f"{field.name}.npy", getattr(self, field.name), allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> Index:
        """Map what `save` wrote, read-only."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: np.load(folder / f"{name}.npy", "r", allow_pickle=False) for name in names})

    def match(self, words: Ragged, turns: Ragged) -> list[Hit]:
        """Overlaps of a batch of rows, by row, the greatest share first, equal shares by item.

        `words` are the rows' text.word_hashes, `turns` their text.turn_hashes: items of fewer than min_words are found
        only as a whole turn.
        """
        rows, found = self._search(words)
        turn, whole = self._look_up(turns.values)
        key = np.append(rows, _row_of(turn, turns.offsets)) * len(self.hashes) + np.append(found, whole)
        row, item, share = self._shares(*np.divmod(np.unique(key), max(len(self.hashes), 1)))
        order = np.lexsort((item, -share, row))
        columns = (row[order].tolist(), item[order].tolist(), share[order].tolist())
        return [Hit(*values) for values in zip(*columns, strict=True)]

    def _search(self, words: Ragged) -> tuple[Integers, Integers]:
        """(row, n-gram's number) of every n-gram of the rows that is an item's."""
        first, last = int(words.offsets[0]), int(words.offsets[-1])
        rows, found = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for start in range(first, last, WINDOW):
            sums, inverse = prefix_sums(words.values[start : min(start + WINDOW + int(self.ngram[0]), last)])
            for length in self.lengths.tolist():
                count = max(min(WINDOW, len(sums) - length), 0)
                raw = (sums[length : length + count] - sums[:count]) * inverse[:count]
                place, number = self._look_up(finish(raw, np.full(1, length, np.uint64)))
                row = _row_of(place + start, words.offsets)
                inside = place + start + length <= words.offsets[row + 1]
                rows.append(row[inside])
                found.append(number[inside])
        return np.concatenate(rows), np.concatenate(found)

    def _look_up(self, hashes: NDArray[np.uint64]) -> tuple[Integers, Integers]:
        """Places of the hashes that are in the index, and their numbers there."""
        shift = np.uint64(65 - len(self.filter).bit_length())
        place = np.flatnonzero(self.filter[hashes >> shift])
        number = np.searchsorted(self.hashes, hashes[place])
        number[number == len(self.hashes)] = 0
        same = self.hashes[number] == hashes[place]
        return place[same], number[same]

    def _shares(
        self, rows: Integers, found: Integers
    ) -> tuple[Integers, NDArray[np.int32], NDArray[np.float64]]:
        """(row, item, share) from n-grams: an item's words are counted once where its n-grams overlap."""
        counts = self.starts[found + 1] - self.starts[found]
        entry = np.arange(counts.sum()) + np.repeat(self.starts[found] - np.cumsum(counts) + counts, counts)
        row, item, position = np.repeat(rows, counts), self.items[entry], self.positions[entry]
        order = np.lexsort((position, item, row))
        row, item, position = row[order], item[order], position[order]
        covered = np.minimum(self.ngram, self.sizes[item])
        same = (row[1:] == row[:-1]) & (item[1:] == item[:-1])
        covered[:-1][same] = np.minimum(covered[:-1], np.diff(position))[same]
        first = np.flatnonzero(np.append(np.ones(min(1, len(row)), np.bool_), ~same))
        row, item = row[first], item[first]
        total = np.add.reduceat(covered, first) if len(first) else covered
        return row, item, total / self.sizes[item]


def _postings(
    items: Iterable[Item], n: int
) -> tuple[NDArray[np.uint64], NDArray[np.int32], NDArray[np.int32], Integers]:
    """Of every n-gram of every item, in order: hash, item, position; and the number of words of every item."""
    hashes, numbers, positions = [np.empty(0, np.uint64)], [np.empty(0, np.int32)], [np.empty(0, np.int32)]
    sizes = [np.empty(0, np.int64)]
    texts, done = (item.text for item in items), 0
    while batch := list(islice(texts, BATCH)):
        words = word_hashes(batch)
        found = grams(words, n)
        owner = np.repeat(np.arange(len(batch)), np.diff(found.offsets))
        hashes.append(found.values)
        numbers.append((owner + done).astype(np.int32))
        positions.append((np.arange(len(owner)) - found.offsets[owner]).astype(np.int32))
        sizes.append(np.diff(words.offsets))
        done += len(batch)
    return np.concatenate(hashes), np.concatenate(numbers), np.concatenate(positions), np.concatenate(sizes)


def _rank(ordered: NDArray[np.uint64]) -> Integers:
    """How many equal values stand before each."""
    return np.arange(len(ordered)) - np.searchsorted(ordered, ordered)


def _filter(hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which top bits occur, of so many that at most one stranger in sixteen passes (until MAX_FILTER_BITS)."""
    bits = min(max(len(hashes) * 16, 1024).bit_length(), MAX_FILTER_BITS)
    found = np.zeros(1 << bits, np.bool_)
    found[hashes >> np.uint64(64 - bits)] = True
    return found


def _row_of(places: Integers, offsets: Integers) -> Integers:
    return np.searchsorted(offsets, places, "right").astype(np.int64) - 1
