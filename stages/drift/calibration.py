"""How often the verdict is wrong: the reference against itself, and against a shift of known size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.common.statistics import Metric, wilson
from stages.drift.config import Drift
from stages.drift.logs import Row
from stages.drift.verdict import Integers, conversations, decide


@dataclass(frozen=True)
class Calibration:
    """Alarm rates over splits of `left` against `right` conversations; no power if no shift is possible."""

    false_alarms: Metric
    power: Metric | None
    left: int
    right: int


def calibrate(rows: list[Row], matrix: NDArray[np.float64], window: int, cfg: Drift) -> Calibration:
    """Send `cfg.null_draws` splits of the reference through the verdict, as they fall and with a shift.

    The side that plays the window has `window` conversations, or half of the reference if that is
    less. The shift: the share of messages longer than the median is `cfg.shift` higher on that side
    than on the other, everything else as it falls.
    """
    units = conversations(rows, len(rows))
    right = min(window, (int(units.max()) + 1) // 2)
    left = int(units.max()) + 1 - right
    lengths = np.bincount(units, [len(row.input) for row in rows]) / np.bincount(units)
    long = lengths > np.median(lengths)
    rng = np.random.default_rng(cfg.seed)

    def rate(picks: Iterator[Integers]) -> Metric:
        alarms = [_alarm(rows, matrix, np.isin(units, pick), cfg, draw) for draw, pick in enumerate(picks)]
        return wilson(sum(alarms), len(alarms))

    false_alarms = rate(rng.permutation(len(long))[:right] for _ in range(cfg.null_draws))
    count = _long_in_window(int(long.sum()), left, right, cfg.shift)
    if not (count <= long.sum() and right - count <= (~long).sum()):
        return Calibration(false_alarms, None, left, right)
    power = rate(_shifted(long, right, count, rng) for _ in range(cfg.null_draws))
    return Calibration(false_alarms, power, left, right)


def _alarm(
    rows: list[Row], matrix: NDArray[np.float64], picked: NDArray[np.bool_], cfg: Drift, draw: int
) -> bool:
    order = np.concatenate([np.flatnonzero(~picked), np.flatnonzero(picked)])
    sides = [rows[i] for i in order]
    cut = int((~picked).sum())
    return decide(sides[:cut], sides[cut:], matrix[np.ix_(order, order)], cfg, cfg.seed + 1 + draw).alarm


def _long_in_window(long: int, left: int, right: int, shift: float) -> int:
    """How many of the long ones go right, so that their shares differ by `shift`: h/right - (long-h)/left."""
    return round((shift + long / left) / (1 / right + 1 / left))


def _shifted(long: NDArray[np.bool_], right: int, count: int, rng: np.random.Generator) -> Integers:
    picks = [
        rng.permutation(np.flatnonzero(long))[:count],
        rng.permutation(np.flatnonzero(~long))[: right - count],
    ]
    return np.concatenate(picks)
