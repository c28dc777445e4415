"""Section `register`: the gate, in numbers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Promotion(Enum):
    """Who moves the champion alias once the gate has passed a candidate."""

    auto = "make does, right after the pipeline"
    manual = "a person does: python -m ops.promote --yes"


@dataclass
class Score:
    """A per-item score the gate reads, and how far it may fall against a rival (`margin`, the score's unit)."""

    task: str
    metric: str
    higher_is_better: bool
    margin: float


@dataclass
class Register:
    """Everything that decides promote, reject or inconclusive."""

    seed: int
    name: str
    note: str
    registered_model: str
    target: Score
    guards: list[Score]
    confidence: float
    resamples: int
    min_items: int
    require_judge: bool
    judge_floor: float
    promote: Promotion
