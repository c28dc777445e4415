"""A run in Weights & Biases: offline unless WANDB_MODE or WANDB_API_KEY says online, then `wandb sync .lathe/wandb/*`.

Whoever opens a run sends all of it. An offline run is written from the beginning; online the run goes on at the
server's last row, and wandb drops what is not beyond it.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from stages.common.journal import Event
from stages.common.target import GoneError


class WandbTarget:
    """One run under the journal's key; a row of its history is a point, numbered as in the journal."""

    def __init__(self, root: Path) -> None:
        """Nothing is begun. run.py switches W&B off for the libraries that would start it unasked; this asks."""
        online = os.environ.get("WANDB_MODE") == "online" or "WANDB_API_KEY" in os.environ
        self._mode = "online" if online and os.environ.get("WANDB_MODE") != "offline" else "offline"
        os.environ |= {"WANDB_MODE": self._mode, "WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}
        self._folder = root / ".lathe"
        os.environ["WANDB_DIR"] = str(
            self._folder / "wandb"
        )  # wandb.Api makes a folder for a run, else in /tmp
        self.address = f"W&B ({self._mode})"
        self._run: Any = None
        self._had = self._new = 0  # rows of the server when the run was opened, and given to wandb since

    def open(self, key: str, head: Event, run: str) -> tuple[str, bool]:
        """Begin or resume the run; an offline one left half is written anew.

        Nothing counts as kept: what wandb was given it may only have queued when its process was killed.
        """
        import wandb

        self._folder.mkdir(exist_ok=True)
        if self._mode == "offline":
            for left in self._folder.glob(f"wandb/offline-run-*-{key}"):
                shutil.rmtree(left)
        quiet = wandb.Settings(
            console="off", disable_git=True, disable_code=True, x_disable_stats=True, x_disable_meta=True
        )
        self._run = wandb.init(
            project=head["experiment"],
            id=key,
            name=head["name"],
            config={**head["params"], **{f"tags/{name}": value for name, value in head["tags"].items()}},
            resume="allow",
            dir=str(self._folder),
            settings=quiet,
        )
        self._run.define_metric("*", step_metric="step")
        self._had, self._new = self._rows() if self._run.resumed else 0, 0
        return key, False

    def send(self, events: list[Event], folder: Path, first: int) -> None:
        """Queue them with wandb's own process, which keeps them in a file until they are sent."""
        for number, event in enumerate(events, first):
            if event["kind"] == "point":
                row = {event["name"]: event["value"], "step": event["step"], "_timestamp": event["at"] / 1000}
                self._run.log(row, step=number)
                self._new += number >= self._run.starting_step
            elif event["kind"] == "file":
                self._save(folder / event["file"], event["folder"])
            elif event["kind"] == "tag":
                self._set(f"tags/{event['name']}", event["value"])
            elif event["kind"] == "dataset":
                self._set(f"data/{event['name']}", event)

    def end(self, status: str, at: int) -> None:
        """Finish the run; W&B knows whether it went well, and the tag says the rest.

        Raises GoneError where rows are missing then: after some answers of a server wandb uploads no more, and
        finish() returns as ever.
        """
        self._set("tags/status", status)
        self._run.finish(exit_code=0 if status == "FINISHED" else 1)
        if self._mode == "online" and (arrived := self._rows() - self._had) < self._new:
            raise GoneError(f"W&B has {max(0, arrived)} of the {self._new} new points")

    def _rows(self) -> int:
        """How many rows the server has: the count by which wandb resumes."""
        import wandb

        return int(wandb.Api().run(self._run.path).historyLineCount or 0)

    def _set(self, key: str, value: Any) -> None:
        self._run.config.update({key: value}, allow_val_change=True)

    def _save(self, path: Path, folder: str) -> None:
        # wandb links what it is given, and the journal's copy goes when all is sent.
        if path.is_file():
            copy = Path(self._run.dir, folder, path.name)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
            self._run.save(str(copy), base_path=self._run.dir, policy="now")
