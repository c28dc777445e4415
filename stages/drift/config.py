"""Section `drift`: what is compared with what, and at which false-alarm rate."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Drift:
    """Everything that decides an alarm."""

    seed: int
    threads: int
    name: str
    note: str
    model: str
    logs: str
    reference: str
    alpha: float
    permutations: int
    resamples: int
    max_rows: int
    min_rows: int
    batch_size: int
    null_draws: int
    shift: float
