"""The stage's training as the stage runs it, tracking included.

`python -m benchmarks.finetune.ours FOLDER PRECISION OUT`

Losses, gradient norms and times are those of the run's own journal; the times are checked against its clock.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from omegaconf import OmegaConf

from benchmarks.finetune.corpus import LENGTHS, ROOT
from benchmarks.finetune.measured import stepwise
from stages.common import journal
from stages.common.run import seed_everything
from stages.common.tracking import RunName, track
from stages.finetune.config import Finetune
from stages.finetune.data import read_split
from stages.finetune.order import order_of, total_steps

LEARNING_RATE = 5e-4  # of every side


def main(folder: Path, precision: str, out: Path) -> None:
    """Train once, with every row once, and write OUT/result.json."""
    os.chdir(folder / "project")
    cfg = section(folder, precision)
    seed_everything(cfg)
    from stages.finetune.train import PREPARED, train

    track.start(Path.cwd(), RunName("Benchmark", "finetune"), {}, {})
    log = track.journal
    assert log is not None, "the journal could not be opened"
    work = out.resolve() / "work"
    shutil.rmtree(work, ignore_errors=True)
    train(cfg, work)
    track.close("FINISHED")
    data = read_split(cfg, PREPARED, "train")
    order, steps = order_of(cfg, len(data)), total_steps(cfg, len(data))
    tokens = [int(data.tokens[order.step(step)].sum()) for step in range(steps)]
    points = _points(log)
    seconds = [
        count / speed for count, (_, speed) in zip(tokens, points["speed/tokens_per_second"], strict=True)
    ]
    _agree(seconds, [at for at, _ in points["train/loss"]])
    losses, norms = ([value for _, value in points[f"train/{name}"]] for name in ("loss", "gradient_norm"))
    stepwise(losses, norms, seconds, sum(tokens)).write(out / "result.json")


def section(folder: Path, precision: str) -> Finetune:
    """The committed section on `folder`'s rows, one pass over them."""
    lengths = LENGTHS[folder.name.partition("-")[0]]
    changes = {
        "epochs": 1,
        "max_steps": None,
        "row_length": lengths.row_length,
        "batch_size": lengths.batch_size,
        "learning_rate": LEARNING_RATE,
        "precision": precision,
    }
    values = OmegaConf.merge(
        OmegaConf.structured(Finetune), OmegaConf.load(ROOT / "params.yaml").finetune, changes
    )
    found = OmegaConf.to_object(values)
    assert isinstance(found, Finetune)
    return found


def _points(log: Path) -> dict[str, list[tuple[int, float]]]:
    """(milliseconds, value) of each metric, by step."""
    found: dict[str, list[tuple[int, float]]] = {}
    for event, _ in journal.read(log / journal.RUN):
        if event and event["kind"] == "point":
            found.setdefault(event["name"], []).append((event["at"], event["value"]))
    return found


def _agree(seconds: list[float], at: list[int]) -> None:
    """The meter's time of all steps but the first is the clock's."""
    clock = (at[-1] - at[0]) / 1000
    assert abs(sum(seconds[1:]) - clock) < 0.01 * clock + 0.01, (sum(seconds[1:]), clock)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]).resolve())
