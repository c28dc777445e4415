"""This process among those that answer for one variant: its share of the work, and what all have found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

Found = TypeVar("Found")


@dataclass(frozen=True)
class Ranks:
    """Number `rank` of `world`."""

    rank: int = 0
    world: int = 1

    def span(self, weights: Sequence[int]) -> tuple[int, int]:
        """[begin, end) of this process in a line of units, of about the same weight for each process."""
        reached = np.cumsum([0, *weights])
        edges = [reached[-1] * rank / self.world for rank in (self.rank, self.rank + 1)]
        begin, end = (int(place) for place in np.searchsorted(reached, edges))
        return begin, end

    def merged(self, found: dict[int, Found]) -> dict[int, Found]:
        """What all processes found, in each of them: every process has to come here as often as the others."""
        if self.world == 1:
            return found
        from torch import distributed

        parts: list[Any] = [None] * self.world
        distributed.all_gather_object(parts, found)
        return {index: each for part in parts for index, each in part.items()}


ALONE = Ranks()
