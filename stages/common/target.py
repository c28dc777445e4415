"""What a mirror of a journal is to its sender, stages/common/copier.py: three calls, each safe to repeat."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Protocol

from stages.common.journal import Event
from stages.common.store import shown, tracking_uri


class RefusedError(Exception):
    """The server answers and will never take this: not a reason to try again."""


class GoneError(Exception):
    """The server answers and lacks the run, or part of what it was sent: it begins anew."""


class DeletedError(Exception):
    """Somebody deleted the run on the server, and `restore` is the command that brings it back there."""

    def __init__(self, what: str, restore: str) -> None:
        """`what` was deleted, the run or its experiment."""
        super().__init__(f"{what} was deleted")
        self.restore = restore


class Target(Protocol):
    """One run on one server. Each call raises whatever its library does where the server does not answer."""

    address: str

    def open(self, key: str, head: Event, run: str) -> tuple[str, bool]:
        """Find the run of the journal `key`, or make it; `run` is its id if that is known.

        Returns its id, and whether all that was sent before is still there. Raises DeletedError.
        """

    def send(self, events: list[Event], folder: Path, first: int) -> None:
        """Send points, tags, files (under `folder`) and datasets; `first` is the number of the first of them.

        Raises RefusedError, GoneError and DeletedError.
        """

    def end(self, status: str, at: int) -> None:
        """Close the run as FINISHED, FAILED or KILLED, at `at` milliseconds. Raises GoneError and DeletedError."""


def make_target(name: str, root: Path) -> Target:
    """The target of that name. Raises ValueError where what it needs is not installed."""
    if name == "wandb":
        if importlib.util.find_spec("wandb") is None:
            raise ValueError("no wandb here: pip install -r requirements-wandb.txt, then python -m ops.sync")
        from stages.common.mirror_wandb import WandbTarget

        return WandbTarget(root)
    from stages.common.mirror_mlflow import MlflowTarget

    return MlflowTarget(root, shown(tracking_uri(root)))
