"""What one side came to in one round, as its process hands it over."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

WINDOW = 10
WARM_UP = 2  # the first steps choose kernels and grow the heap


@dataclass(frozen=True)
class Measured:
    """`seconds` of the training loop alone, real `tokens` (no padding) that it trained on, and proof that it trained.

    `first` and `last` are mean losses of WINDOW steps; `losses` and `step_seconds` are empty where a side does not
    tell them step by step.
    """

    seconds: float
    tokens: int
    steps: int
    first: float
    last: float
    least_norm: float
    losses: list[float]
    step_seconds: list[float]

    @property
    def speed(self) -> float:
        """Real tokens a second."""
        return self.tokens / self.seconds

    @property
    def steady(self) -> float:
        """Seconds of the steps after the warm-up."""
        return sum(self.step_seconds[WARM_UP:])

    def check(self, side: str) -> None:
        """Raises AssertionError where the model did not learn: the figure would be of something else."""
        assert self.last < self.first, f"{side}: the loss went from {self.first} to {self.last}"
        assert 0 < self.least_norm < math.inf, f"{side}: a gradient norm is {self.least_norm}"
        assert self.steps >= 2 * WINDOW, f"{side}: {self.steps} steps"

    def write(self, path: Path) -> None:
        """Store as JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Measured:
        """What `write` stored."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def stepwise(losses: list[float], norms: list[float], step_seconds: list[float], tokens: int) -> Measured:
    """A side that tells each step."""
    first, last = losses[:WINDOW], losses[-WINDOW:]
    return Measured(
        sum(step_seconds),
        tokens,
        len(losses),
        sum(first) / len(first),
        sum(last) / len(last),
        min(norms),
        losses,
        step_seconds,
    )
