"""The energy distance between two samples, its permutation test and its bootstrap interval.

Szekely & Rizzo, "Energy statistics", J. Stat. Plan. Inference 143 (2013) 1249-1272: for samples X and Y,
E = 2 E|X-Y| - E|X-X'| - E|Y-Y'|, zero only where the distributions are equal. Here in its unbiased form
(pairs of a row with itself left out) and as a share of 2 E|X-Y|: 0 equal, 1 apart, below 0 by chance.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.common.statistics import Metric

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def distances(vectors: Floats) -> Floats:
    """Euclidean distances between rows, (rows, rows), after each dimension was given unit variance.

    The scale is that of all rows together: a permutation of the sides does not change it, so the
    test stays exact.
    """
    import torch

    spread = vectors.std(axis=0)
    scaled = torch.from_numpy((vectors - vectors.mean(axis=0)) / np.where(spread > 0, spread, 1.0))
    matrix: Floats = torch.cdist(scaled, scaled).numpy()
    matrix += matrix.T.copy()
    matrix /= 2
    np.fill_diagonal(matrix, 0.0)
    return matrix


def energy(matrix: Floats, left: Floats, right: Floats) -> Floats:
    """The energy coefficient for each column of row weights `left` and `right`, both (rows, columns).

    A weight counts how often a row is in that side's sample; a pair of copies of one row counts as no
    pair. Returns (columns,).
    """
    import torch

    d, a, b = torch.from_numpy(matrix), torch.from_numpy(left), torch.from_numpy(right)
    to_a = d @ a
    return _coefficient((to_a * a).sum(0), (to_a * b).sum(0), ((d @ b) * b).sum(0), a, b)


def permutation_test(
    matrix: Floats, units: Integers, cut: int, permutations: int, seed: int
) -> tuple[float, float]:
    """Energy coefficient of rows [:cut] against rows [cut:], and its one-sided permutation p-value.

    `units` numbers the conversation of each row from 0; whole conversations change sides. The p-value
    is (1 + as extreme) / (1 + permutations), valid at any sample size (Phipson & Smyth 2010).
    """
    sides = np.zeros(int(units.max()) + 1)
    sides[units[:cut]] = 1.0
    rng = np.random.default_rng(seed)
    shuffled = rng.permuted(np.tile(sides, (permutations, 1)), axis=1)
    left = np.ascontiguousarray(np.vstack([sides, shuffled])[:, units].T)
    values = _splits(matrix, left)
    extreme = int((values[1:] >= values[0] - 1e-12).sum())  # a tie is a tie, whatever the rounding
    return float(values[0]), (1 + extreme) / (1 + permutations)


def interval(matrix: Floats, units: Integers, cut: int, resamples: int, seed: int) -> Metric:
    """Energy coefficient with a percentile bootstrap interval: conversations of each side are redrawn."""
    rng = np.random.default_rng(seed)
    counts = np.zeros((int(units.max()) + 1, resamples + 1))
    for side in (np.unique(units[:cut]), np.unique(units[cut:])):
        counts[side, 0] = 1
        counts[side, 1:] = rng.multinomial(len(side), np.full(len(side), 1 / len(side)), resamples).T
    weights = counts[units]
    left, right = weights.copy(), weights.copy()
    left[cut:], right[:cut] = 0.0, 0.0
    values = energy(matrix, left, right)
    lo, hi = np.percentile(values[1:], [2.5, 97.5])
    return {"value": float(values[0]), "lo": float(lo), "hi": float(hi), "n": len(units)}


def _splits(matrix: Floats, left: Floats) -> Floats:
    """`energy` of `left` against all other rows, for weights of 0 and 1: one product instead of two."""
    import torch

    d, a = torch.from_numpy(matrix), torch.from_numpy(left)
    rows = d.sum(0)
    aa, whole = ((d @ a) * a).sum(0), rows @ a
    return _coefficient(aa, whole - aa, rows.sum() - 2 * whole + aa, a, 1 - a)


def _coefficient(aa: Any, ab: Any, bb: Any, a: Any, b: Any) -> Floats:
    """From the sums of distances within and between the sides to one number per column."""
    import torch

    n, m = a.sum(0), b.sum(0)
    between = 2 * ab / (n * m)
    within = aa / (n * n - (a * a).sum(0)) + bb / (m * m - (b * b).sum(0))
    return np.asarray(torch.where(between > 0, (between - within) / between, 0.0).numpy())
