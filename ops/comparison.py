"""Two sets of per-item scores against each other: pairs, tests, verdicts, and how far repeats of a run move.

Pure functions of their arguments. Differences are B - A; "better" and "worse" are said of B.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from enum import Enum
from itertools import combinations
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ops.direction import higher_is_better
from stages.common.statistics import (
    Z95,
    Metric,
    holm,
    mcnemar,
    minimum_detectable_effect,
    paired_difference,
)
from stages.register.evidence import Scores

ALPHA, POWER, SEED = 0.05, 0.8, 17
PATTERNS = 10_000  # of signs, at least; a p-value near 0.05 is then uncertain by 0.002
BLOCK = 1 << 22  # signs held at once
Array = NDArray[np.float64]
T = TypeVar("T")  # what an item has: a score, or what it adds to sums


class Verdict(Enum):
    """What is said of B."""

    worse = "worse"
    better = "better"
    none = "no difference found"


@dataclass(frozen=True)
class Spread:
    """How far a score moves between repeats of one model on `n` items.

    `flip_rate`: share of items whose score differs between two repeats; `sd`: of the mean; `limit`: how far two
    single runs are apart at most in 95 of 100 cases, 1.96 * sqrt(2) * sd (repeatability limit of ISO 5725-6).
    """

    repeats: int
    n: int
    flip_rate: float
    sd: float
    limit: float


@dataclass(frozen=True)
class Comparison:
    """One metric of one task on the items that both scored. `a` and `b` are means; `p_holm` is corrected.

    `gained` and `lost` count items on which B is better and worse. `detectable` is the smallest true difference
    found with 80 % power; None where no item differs. `mark` says why a difference does not count. Of a metric
    `nearer_zero` the difference is |B| - |A|, and items are better and worse by their |value|.
    """

    metric: str
    higher_is_better: bool
    n: int
    only_a: int
    only_b: int
    a: float
    b: float
    difference: Metric
    gained: int
    lost: int
    test: str
    p: float
    p_holm: float
    detectable: float | None
    spread: Spread | None
    verdict: Verdict
    mark: str
    nearer_zero: bool = False

    @property
    def word(self) -> str:
        """The verdict and what excuses it."""
        return self.verdict.value + (f" ({self.mark})" if self.mark else "")

    @property
    def same(self) -> bool:
        """No item differs."""
        return not (self.gained + self.lost or self.difference["value"]) and self.a == self.b

    @property
    def fails(self) -> bool:
        """B is worse, and nothing excuses it."""
        return self.verdict is Verdict.worse and not self.mark


def compare(
    a: Scores,
    b: Scores,
    declared: Mapping[str, bool],
    margin: float,
    repeats: Sequence[Scores] = (),
    others: Sequence[Comparison] = (),
) -> list[Comparison]:
    """Every metric that both hold for some item, in order of name, and `others`, corrected as one family.

    `declared` says of which metrics higher is better. A fall only counts where its whole interval lies below
    -`margin`, in the metric's unit. Raises ValueError where no item is in both.
    """
    names = [name for name in sorted(a.keys() & b.keys()) if a[name].keys() & b[name].keys()]
    if not names:
        counts = f"{len(a)} metrics in A, {len(b)} in B, {len(a.keys() & b.keys())} in both"
        raise ValueError(f"no item is scored in both ({counts})")
    family = len(names) + len(others)
    found = [*others]
    for name in names:
        moved = spread(of_items(a[name].keys() & b[name].keys(), [each.get(name) for each in repeats]))
        found.append(_compared(name, a[name], b[name], higher_is_better(name, declared), family, moved))
    corrected = holm([each.p for each in found])
    judged = [_judged(each, p_holm, margin) for each, p_holm in zip(found, corrected, strict=True)]
    return sorted(judged, key=lambda each: each.metric)


def _compared(
    name: str, a: Mapping[str, float], b: Mapping[str, float], higher: bool, family: int, moved: Spread | None
) -> Comparison:
    left, right = paired(a, b)
    test, p = p_value(left, right, family)
    rise = right - left if higher else left - right
    return Comparison(
        metric=name, higher_is_better=higher, n=left.size, only_a=len(a) - left.size, only_b=len(b) - left.size,
        a=float(left.mean()), b=float(right.mean()), difference=paired_difference(right, left, SEED),
        gained=int((rise > 0).sum()), lost=int((rise < 0).sum()), test=test, p=p, p_holm=1.0,
        detectable=detectable(right - left, family), spread=moved, verdict=Verdict.none, mark="",
    )  # fmt: skip


def paired(a: Mapping[str, float], b: Mapping[str, float]) -> tuple[Array, Array]:
    """The scores of the items that are in both, in one order."""
    shared = sorted(a.keys() & b.keys())
    return np.array([a[item] for item in shared]), np.array([b[item] for item in shared])


def p_value(a: Array, b: Array, family: int) -> tuple[str, float]:
    """Name and two-sided p-value of the test that fits the scores, one of `family` tests."""
    if np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all():
        return "mcnemar", mcnemar((a == 1).tolist(), (b == 1).tolist())
    # Holm multiplies the smallest p-value by the family's size: it must be able to be small enough for that.
    return "sign-flip", sign_flip(b - a, SEED, max(PATTERNS, 100 * family))


def sign_flip(differences: Array, seed: int, patterns: int) -> float:
    """Two-sided p-value of paired scores by flipping the signs of their differences (Fisher 1935, sect. 21).

    Between models that answer alike, each item's difference is as likely as its negative; the p-value is the
    share of sign patterns whose sum is as far from 0. So its level is exact for any number of items, which a
    bootstrap's is not (Good 2005, Permutation, Parametric and Bootstrap Tests of Hypotheses). All patterns where
    there are at most `patterns`, otherwise so many, the observed one among them, so that it is never too small
    (Phipson & Smyth 2010, Stat. Appl. Genet. Mol. Biol. 9, 39). Items that do not differ add nothing to any sum.
    """
    moved = differences[differences != 0]
    reach = abs(moved.sum()) - 1e-12 * np.abs(moved).sum()  # equal sums may differ by their rounding
    if 2**moved.size <= patterns:
        bits = np.arange(2**moved.size)[:, None] >> np.arange(moved.size) & 1
        return float((np.abs((1 - 2 * bits) @ moved) >= reach).mean())
    rng, left, hits = np.random.default_rng(seed), patterns - 1, 1
    while left:
        count = min(left, max(1, BLOCK // moved.size))
        signs = 1.0 - 2.0 * rng.integers(0, 2, (count, moved.size), dtype=np.int8)
        hits, left = hits + int((np.abs(signs @ moved) >= reach).sum()), left - count
    return hits / patterns


def detectable(differences: Array, family: int) -> float | None:
    """Smallest true mean difference that a paired test finds with 80 % power at 0.05 / `family`, two-sided.

    Holm asks this level of the smallest p-value, so the power holds for a metric that alone differs. None where
    the items say nothing of the spread: fewer than two, or all differ by the same.
    """
    from scipy.stats import norm

    alone = minimum_detectable_effect(differences, POWER)
    power = norm.ppf(POWER)
    corrected = float(alone * (norm.isf(ALPHA / family / 2) + power) / (Z95 + power))
    return corrected if 0 < corrected < math.inf else None


def of_items(items: Set[str], repeats: Sequence[Mapping[str, T] | None]) -> list[dict[str, T]]:
    """What each repeat that has the metric says of these items: how others move says nothing of a comparison."""
    return [{item: each[item] for item in each.keys() & items} for each in repeats if each is not None]


def spread(repeats: Sequence[Mapping[str, float]]) -> Spread | None:
    """How far one metric moves over the items of all repeats; None for fewer than two repeats, or no such item."""
    if len(repeats) < 2 or not (shared := sorted(set.intersection(*map(set, repeats)))):
        return None
    matrix = np.array([[scores[item] for item in shared] for scores in repeats])
    flips = [float((x != y).mean()) for x, y in combinations(matrix, 2)]
    sd = float(matrix.mean(axis=1).std(ddof=1))
    return Spread(len(repeats), len(shared), sum(flips) / len(flips), sd, Z95 * math.sqrt(2) * sd)


def rows(comparisons: list[Comparison], *, noise: bool) -> list[list[str]]:
    """The table as text, its heads first; with `noise`, a column of how far repeats move."""
    head = ["metric", "n", "A", "B", "B - A [95 %]", "items", "p (Holm)", "detectable"]
    table = [[*head, *(["repeats"] if noise else []), "verdict"]]
    for each in comparisons:
        moved = each.spread
        repeats = f"SD {moved.sd:.4f}, {100 * moved.flip_rate:.1f} % flip" if moved else "not measured"
        cells = [
            f"{each.metric} {'→0' if each.nearer_zero else '↑' if each.higher_is_better else '↓'}",
            str(each.n),
            f"{each.a:.4f}",
            f"{each.b:.4f}",
            _interval(each),
            f"+{each.gained} -{each.lost}",
            f"{each.p_holm:.3f}" if each.p_holm >= 0.001 else "<0.001",
            f"{each.detectable:.4f}" if each.detectable else "",
            *([repeats] if noise else []),
            each.word,
        ]
        table.append(cells)
    return table


def _judged(each: Comparison, p_holm: float, margin: float) -> Comparison:
    if p_holm > ALPHA:
        return replace(each, p_holm=p_holm)
    apart, moved = each.difference, each.spread
    better = (apart["value"] > 0) == each.higher_is_better
    known = moved is not None and moved.n == each.n  # of fewer items a mean moves further
    mark = "within noise" if moved and known and abs(apart["value"]) <= moved.limit else ""
    if better:
        return replace(each, p_holm=p_holm, verdict=Verdict.better, mark=mark)
    least = -apart["hi"] if each.higher_is_better else apart["lo"]  # what the interval surely shows
    mark = mark or ("within margin" if margin and least <= margin else "")
    return replace(each, p_holm=p_holm, verdict=Verdict.worse, mark=mark)


def _interval(each: Comparison) -> str:
    if each.same:
        return "0 (all items equal)"
    difference = each.difference
    return f"{difference['value']:+.4f} [{difference['lo']:+.4f}, {difference['hi']:+.4f}]"
