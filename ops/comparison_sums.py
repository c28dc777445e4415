"""Values of a suite that are no mean over its items (BLEU, macro F1, bias scores) of two models, paired by item.

By what each item adds to the sums that the value is a function of (stages/bench/corpus.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from ops.comparison import ALPHA, BLOCK, PATTERNS, POWER, SEED, Array, Comparison, Spread, Verdict, of_items
from ops.direction import higher_is_better, nearer_zero
from stages.bench.corpus import RESAMPLES, Parts, table, values
from stages.common.statistics import Z95, Metric

Sums = Mapping[str, Mapping[str, Parts]]  # by "task/metric" and item


def shared(a: Sums, b: Sums) -> list[str]:
    """Metrics that both hold for some item."""
    return [name for name in sorted(a.keys() & b.keys()) if a[name].keys() & b[name].keys()]


def compare_sums(
    a: Sums, b: Sums, declared: Mapping[str, bool], family: int, repeats: Sequence[Sums] = ()
) -> list[Comparison]:
    """Each such metric that both hold, as one of `family` tests; corrected and judged by `ops.comparison.compare`."""
    return [
        _compared(name, a[name], b[name], higher_is_better(name, declared), family,
                  spread(name, of_items(a[name].keys() & b[name].keys(), [each.get(name) for each in repeats])))
        for name in shared(a, b)
    ]  # fmt: skip


def swap(metric: str, keys: Sequence[str], left: Array, right: Array, seed: int, patterns: int) -> float:
    """Two-sided p-value by swapping items between the models (approximate randomisation; Yeh 2000, COLING).

    Between models that answer alike, an item's two answers may as well have been given the other way round. All
    swaps where there are at most `patterns`, otherwise so many, the observed one among them.
    """
    moved = (left != right).any(1)
    steps, sums = (right - left)[moved], (left.sum(0), right.sum(0))
    observed = [each[None] for each in sums]
    # Equal differences may differ by their rounding, which grows with the values: a perplexity can be millions
    slack = 1e-12 * max(1.0, *(abs(values(metric, keys, each)[0]) for each in observed))
    reach = abs(_difference(metric, keys, *observed)[0]) - slack
    if 2 ** len(steps) <= patterns:
        swaps = np.arange(2 ** len(steps))[:, None] >> np.arange(len(steps)) & 1
        return float((np.abs(_difference(metric, keys, *_swapped(swaps, steps, sums))) >= reach).mean())
    rng, todo, hits = np.random.default_rng(seed), patterns - 1, 1
    while todo:
        count = min(todo, max(1, BLOCK // len(steps)))
        swaps = rng.integers(0, 2, (count, len(steps)))
        drawn = _difference(metric, keys, *_swapped(swaps, steps, sums))
        hits, todo = hits + int((np.abs(drawn) >= reach).sum()), todo - count
    return hits / patterns


def difference(
    metric: str, keys: Sequence[str], left: Array, right: Array, seed: int
) -> tuple[Metric, float]:
    """B - A, as `_difference` has it, with its paired bootstrap interval, and the standard deviation of the draws."""
    count, rng = len(left), np.random.default_rng(seed)
    weights = np.array(
        [np.bincount(rng.integers(0, count, count), minlength=count) for _ in range(RESAMPLES)], np.float64
    )
    drawn = _difference(metric, keys, weights @ left, weights @ right)
    value = _difference(metric, keys, left.sum(0, keepdims=True), right.sum(0, keepdims=True))[0]
    lo, hi = np.percentile(drawn, [2.5, 97.5])
    return {"value": float(value), "lo": float(lo), "hi": float(hi), "n": count}, float(drawn.std(ddof=1))


def spread(metric: str, repeats: Sequence[Mapping[str, Parts]]) -> Spread | None:
    """How far the value moves over the items of all repeats; None for fewer than two repeats, or no such item."""
    if len(repeats) < 2 or not (items := sorted(set.intersection(*map(set, repeats)))):
        return None
    flips = [np.mean([x[item] != y[item] for item in items]) for x, y in combinations(repeats, 2)]
    found = []
    for each in repeats:
        keys, matrix = table([each[item] for item in items])
        found.append(values(_plain(metric), keys, matrix.sum(0, keepdims=True))[0])
    sd = float(np.std(found, ddof=1))
    return Spread(len(repeats), len(items), float(np.mean(flips)), sd, Z95 * math.sqrt(2) * sd)


def _compared(
    metric: str,
    a: Mapping[str, Parts],
    b: Mapping[str, Parts],
    higher: bool,
    family: int,
    moved: Spread | None,
) -> Comparison:
    from scipy.stats import norm

    items = sorted(a.keys() & b.keys())
    keys, both = table([each[item] for each in (a, b) for item in items])
    left, right, name = both[: len(items)], both[len(items) :], _plain(metric)
    apart, sd = difference(name, keys, left, right, SEED)
    rise = _difference(name, keys, left, right) * (1 if higher else -1)
    reach = float((norm.isf(ALPHA / family / 2) + norm.ppf(POWER)) * sd)
    return Comparison(
        metric=metric, higher_is_better=higher, n=len(items), only_a=len(a) - len(items), only_b=len(b) - len(items),
        a=float(values(name, keys, left.sum(0, keepdims=True))[0]),
        b=float(values(name, keys, right.sum(0, keepdims=True))[0]),
        difference=apart, gained=int((rise > 0).sum()), lost=int((rise < 0).sum()), test="swap",
        p=swap(name, keys, left, right, SEED, max(PATTERNS, 100 * family)), p_holm=1.0, detectable=reach or None,
        spread=moved, verdict=Verdict.none, mark="", nearer_zero=nearer_zero(name),
    )  # fmt: skip


def _plain(metric: str) -> str:
    return metric.rpartition("/")[2]


def _swapped(swaps: NDArray[np.int64], steps: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
    taken = swaps.astype(np.float64) @ steps
    return sums[0] + taken, sums[1] - taken


def _difference(metric: str, keys: Sequence[str], left: Array, right: Array) -> Array:
    """B - A; of a metric with its ideal at 0, |B| - |A|."""
    before, after = (values(metric, keys, each) for each in (left, right))
    return np.abs(after) - np.abs(before) if nearer_zero(metric) else after - before
