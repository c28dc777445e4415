"""What a run knows of itself besides its weights: every loss so far, and which evaluation was best."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

from stages.common.files import write_text

PROGRESS = "progress.json"
PLOTTED = 500
REMEDY = "lower finetune.learning_rate, lengthen finetune.warmup_steps or lower finetune.max_grad_norm"


@dataclass
class Progress:
    """Losses of the updates so far (mean over the step's learned tokens, or pairs), evaluations as (step, loss)."""

    losses: list[float] = field(default_factory=list)
    evaluations: list[tuple[int, float]] = field(default_factory=list)
    best_step: int = 0
    stale: int = 0
    trained_share: float = 0.0
    processor: str = ""  # of the life that it began in

    def add(self, loss: float, norm: float) -> None:
        """Keep the loss of the step to be taken now. Raises ValueError where it or its gradient is not finite."""
        step = len(self.losses) + 1
        for name, value in (("loss", loss), ("gradient norm", norm)):
            if not math.isfinite(value):
                raise ValueError(f"the {name} is {value} at step {step}: stopped before the update; {REMEDY}")
        self.losses.append(loss)

    def evaluated(self, step: int, loss: float) -> bool:
        """Keep an evaluation; returns whether it is the lowest so far. Raises ValueError where it is not finite."""
        if not math.isfinite(loss):
            raise ValueError(f"the heldout loss is {loss} at step {step}: {REMEDY}")
        better = all(loss < earlier for _, earlier in self.evaluations)
        self.evaluations.append((step, loss))
        self.best_step, self.stale = (step, 0) if better else (self.best_step, self.stale + 1)
        return better

    def write(self, path: Path) -> None:
        """Store as JSON, floats to the last bit."""
        path.write_text(json.dumps(asdict(self), allow_nan=False), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Progress:
        """What `write` stored."""
        found = cls(**json.loads(path.read_text(encoding="utf-8")))
        found.evaluations = [(step, loss) for step, loss in found.evaluations]
        return found

    def plot(self, path: Path) -> None:
        """step,split,loss with a header, the DVC plot: training losses as means of at most PLOTTED equal windows."""
        width = max(1, math.ceil(len(self.losses) / PLOTTED))
        windows = [self.losses[start : start + width] for start in range(0, len(self.losses), width)]
        points = [
            (min((number + 1) * width, len(self.losses)), "train", sum(window) / len(window))
            for number, window in enumerate(windows)
        ]
        points += [(step, "heldout", loss) for step, loss in self.evaluations]
        points.sort(key=lambda point: point[0])
        write_text(path, "step,split,loss\n" + "".join(f"{a},{b},{c:.6f}\n" for a, b, c in points))
