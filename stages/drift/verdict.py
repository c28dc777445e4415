"""One verdict for one window: three tests, one false-alarm rate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.common.statistics import holm
from stages.drift.config import Drift
from stages.drift.descriptors import Moved, describe, moves
from stages.drift.energy import permutation_test
from stages.drift.logs import Row
from stages.drift.performance import Field, accuracies

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Verdict:
    """What the tests of one window say; `adjusted` holds the parts' p-values after Holm, "data" first."""

    energy: float
    descriptors: list[Moved]
    fields: list[Field]
    p_values: dict[str, float]
    adjusted: dict[str, float]
    alarm: bool

    def cut(self, alpha: float) -> float:
        """The raw p-value of a descriptor up to which Benjamini-Hochberg rejects at `alpha`."""
        rejected = sum(moved.adjusted <= alpha for moved in self.descriptors)
        return alpha * max(1, rejected) / max(1, len(self.descriptors))


def decide(
    reference: list[Row], window: list[Row], matrix: NDArray[np.float64], cfg: Drift, seed: int
) -> Verdict:
    """Compare a window with the reference at family-wise `cfg.alpha`.

    `matrix` holds the distances between the embeddings of reference rows, then window rows. Three parts:
    data (energy permutation test), descriptors (the smallest Benjamini-Hochberg adjusted p-value, which
    is Simes' test that none moved, Biometrika 73 (1986) 751-754) and, where there is feedback,
    performance (the smallest Holm-adjusted p-value). Holm over the parts: an alarm if one is left.
    """
    units = conversations([*reference, *window], len(reference))
    energy, p_data = permutation_test(matrix, units, len(reference), cfg.permutations, seed)
    # the tests below take rows for independent: of a conversation, its first row alone
    left, right = first_rows(reference), first_rows(window)
    descriptors = moves(describe(left, right))
    fields = accuracies(*(first_rows([row for row in side if row.feedback]) for side in (reference, window)))
    p_values = {"data": p_data, "descriptors": min((moved.adjusted for moved in descriptors), default=1.0)}
    if fields:
        p_values["performance"] = min(field.adjusted for field in fields)
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    return Verdict(energy, descriptors, fields, p_values, adjusted, min(adjusted.values()) <= cfg.alpha)


def conversations(rows: list[Row], cut: int) -> Integers:
    """Number of each row's conversation, from 0; one that runs across the cut counts on each side."""
    numbers: dict[tuple[bool, str], int] = {}
    return np.array(
        [numbers.setdefault((i < cut, row.conversation), len(numbers)) for i, row in enumerate(rows)]
    )


def first_rows(rows: list[Row]) -> list[Row]:
    """One row per conversation, in order."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row.conversation, row)
    return list(first.values())


def explanation(verdict: Verdict, alpha: float, most: int = 4) -> str:
    """What moved, in one line; empty where the verdict is quiet."""
    if not verdict.alarm:
        return ""
    worse = [
        f"{field.name} right {field.reference['value']:.0%} → {field.window['value']:.0%}"
        for field in verdict.fields
        if field.adjusted <= alpha
    ]
    moved = [m for m in verdict.descriptors if m.adjusted <= alpha]
    moved.sort(key=lambda descriptor: (-descriptor.effect, descriptor.name))
    return "; ".join(worse + [f"{m.name} {m.reference} → {m.window}" for m in moved[:most]])
