"""Which rows a step trains on: a pure function of seed, step and rank, so that no position has to be remembered."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from stages.finetune.config import Finetune


@dataclass(frozen=True)
class Order:
    """The rows of every step of a run: each pass over the data in an order of its own, one pass after the other."""

    seed: int
    rows: int
    batch_size: int
    parts: int
    ranks: int

    @property
    def part(self) -> int:
        """Rows that a process works on at once."""
        return self.batch_size // (self.parts * self.ranks)

    def step(self, step: int) -> list[int]:
        """Row numbers of a step (the first is 0), over all processes."""
        begin = step * self.batch_size
        found: list[int] = []
        while len(found) < self.batch_size:
            turn, offset = divmod(begin + len(found), self.rows)
            order = _permutation(self.seed, turn, self.rows)
            found += order[offset : offset + self.batch_size - len(found)].tolist()
        return found

    def parts_of(self, step: int, rank: int) -> list[list[int]]:
        """What one process works on in a step, part by part; the parts of all make up the step."""
        rows = self.step(step)
        starts = ((part * self.ranks + rank) * self.part for part in range(self.parts))
        return [rows[start : start + self.part] for start in starts]

    def batches(self, first: int, last: int, rank: int) -> Iterator[list[int]]:
        """The parts of the steps from `first` up to `last`, excluded."""
        for step in range(first, last):
            yield from self.parts_of(step, rank)


def turns(rows: int, size: int, ranks: int, *, even: bool) -> Iterator[list[range]]:
    """Every row once, `size` at a time, shared among the processes; in the last turns some have nothing.

    With `even`, all that have something in a turn have equally much: a turn with a short last part is split anew.
    """
    starts = range(0, rows, size)
    for turn in range(0, len(starts), ranks):
        parts = [range(start, min(start + size, rows)) for start in starts[turn : turn + ranks]]
        if even and len(parts[-1]) < len(parts[0]):
            begin, share = parts[0].start, len(range(parts[0].start, rows)) // ranks
            left = begin + share * ranks
            if share:
                yield [range(start, start + share) for start in range(begin, left, share)]
            parts = [range(row, row + 1) for row in range(left, rows)]
        if parts:
            yield parts + [range(0)] * (ranks - len(parts))


@lru_cache(maxsize=2)
def _permutation(seed: int, turn: int, rows: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, turn]).permutation(rows)


def order_of(cfg: Finetune, rows: int) -> Order:
    """The order of a section over so many rows."""
    ranks = cfg.world.nodes * cfg.world.processes
    return Order(cfg.seed, rows, cfg.batch_size, cfg.gradient_accumulation, ranks)


def total_steps(cfg: Finetune, rows: int) -> int:
    """Updates of a run. Raises ValueError unless exactly one of max_steps and epochs says how many."""
    if (cfg.max_steps is None) == (cfg.epochs is None):
        raise ValueError(
            f"finetune.max_steps={cfg.max_steps} and finetune.epochs={cfg.epochs}: give one, the other is null"
        )
    if cfg.epochs is not None:
        passes = Fraction(str(cfg.epochs))  # exact: in binary 2.2 * 25 is over 55
        return max(1, math.ceil(passes * rows / cfg.batch_size))
    assert cfg.max_steps is not None
    return cfg.max_steps
