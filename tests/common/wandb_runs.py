"""Runs that are mirrored to W&B, for the tests of both of its modes."""

from __future__ import annotations

from pathlib import Path

from stages.common import mark as marks
from stages.common.tracking import Mirror, RunName, Track

NAME = RunName("Test-Tiny", "tiny-finetune")


def closed(root: Path) -> Path:
    """The journal of a run of 2,000 points, a file and a tag that was mirrored and has ended."""
    track = Track()
    track.start(root, NAME, {"user": "ada"}, {"lr": "0.1"}, [Mirror.wandb])
    journal = track.journal
    assert journal is not None
    for step in range(2000):
        track.metric("loss", 1 / (step + 1), step)
    track.text("logs/stage.log", "all is well")
    track.tag("decision", "promote")
    track.close("FINISHED")
    return journal


def sent(root: Path) -> int:
    """How many events the mirror of the one run in `root` has given to W&B."""
    (mark,) = [marks.load(path, "wandb") for path in root.glob(".lathe/tracking/[0-9]*")] or [None]
    return mark.sent if mark else 0
