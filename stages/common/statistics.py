"""Intervals and paired tests on per-item scores. Every function is pure and seeded by its arguments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Metric(TypedDict):
    """A number with its 95 % interval and the number of items behind it."""

    value: float
    lo: float
    hi: float
    n: int


Metrics = dict[str, Metric]
Z95 = 1.959963984540054


def exact(value: float, n: int = 1) -> Metric:
    """A counted or configured number: its interval is itself."""
    return {"value": float(value), "lo": float(value), "hi": float(value), "n": n}


def wilson(successes: float, n: int) -> Metric:
    """Proportion with Wilson's score interval (Wilson 1927, JASA 22, 209-212).

    Raises ValueError for n < 1: a share of nothing is not a number.
    """
    if n < 1:
        raise ValueError("a proportion needs at least one item")
    p, z2 = successes / n, Z95 * Z95
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return {"value": p, "lo": max(0.0, centre - half), "hi": min(1.0, centre + half), "n": n}


def bootstrap_means(scores: ArrayLike, seed: int, resamples: int) -> NDArray[np.float64]:
    """Means of `resamples` bootstrap draws of a one-dimensional array of per-item scores."""
    array = np.asarray(scores, dtype=np.float64)
    rng = np.random.default_rng(seed)
    return np.array([array[rng.integers(0, len(array), len(array))].mean() for _ in range(resamples)])


def bootstrap(scores: ArrayLike, seed: int, resamples: int = 2000, confidence: float = 0.95) -> Metric:
    """Mean with the percentile bootstrap interval (Efron & Tibshirani 1993, ch. 13).

    Raises ValueError on an empty or non-finite sample.
    """
    array = np.asarray(scores, dtype=np.float64)
    if array.size == 0 or not np.isfinite(array).all():
        raise ValueError("a mean needs at least one finite score, and only finite ones")
    tail = 100 * (1 - confidence) / 2
    lo, hi = np.percentile(bootstrap_means(array, seed, resamples), [tail, 100 - tail])
    return {"value": float(array.mean()), "lo": float(lo), "hi": float(hi), "n": int(array.size)}


def paired_difference(
    a: ArrayLike, b: ArrayLike, seed: int, resamples: int = 2000, confidence: float = 0.95
) -> Metric:
    """Mean of a - b over the same items, with its bootstrap interval. Raises ValueError if lengths differ."""
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if left.shape != right.shape:
        raise ValueError(f"paired scores need the same items: {left.shape} against {right.shape}")
    return bootstrap(left - right, seed, resamples, confidence)


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Two-sided exact McNemar p-value for paired right/wrong (McNemar 1947): a binomial on the discordant."""
    from scipy.stats import binomtest

    only_a = sum(x and not y for x, y in zip(a, b, strict=True))
    only_b = sum(y and not x for x, y in zip(a, b, strict=True))
    if only_a + only_b == 0:
        return 1.0
    return float(binomtest(only_a, only_a + only_b).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the given order (Holm 1979, Scand. J. Stat. 6, 65-70)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Benjamini-Hochberg adjusted p-values, in the given order (JRSS B 57, 1995, 289-300)."""
    count = len(p_values)
    order = sorted(range(count), key=lambda i: p_values[i], reverse=True)
    adjusted, running = [0.0] * count, 1.0
    for position, index in enumerate(order):
        running = min(running, p_values[index] * count / (count - position))
        adjusted[index] = running
    return adjusted


def cohen_kappa(a: Sequence[str], b: Sequence[str]) -> float:
    """Chance-corrected agreement of two raters (Cohen 1960); 0.0 where chance alone explains all."""
    labels, n = sorted(set(a) | set(b)), len(a)
    observed = sum(x == y for x, y in zip(a, b, strict=True)) / n
    chance = sum((a.count(label) / n) * (b.count(label) / n) for label in map(str, labels))
    return 0.0 if chance == 1.0 else (observed - chance) / (1 - chance)


def minimum_detectable_effect(differences: ArrayLike, power: float = 0.8) -> float:
    """Smallest true mean difference that a two-sided 5 % paired z-test finds with `power`."""
    from scipy.stats import norm

    array = np.asarray(differences, dtype=np.float64)
    if array.size < 2:
        return math.inf
    return float((Z95 + norm.ppf(power)) * array.std(ddof=1) / math.sqrt(array.size))
