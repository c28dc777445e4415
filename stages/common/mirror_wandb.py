"""A run in Weights & Biases: offline unless WANDB_MODE or WANDB_API_KEY says online, then `wandb sync .lathe/wandb/*`.

A repeated row is dropped online, where the run goes on at its last step; an offline run is written from the beginning.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from stages.common.journal import Event


class WandbTarget:
    """One run under the journal's key; a row of its history is a point, numbered as in the journal."""

    def __init__(self, root: Path) -> None:
        """Nothing is begun. run.py switches W&B off for the libraries that would start it unasked; this asks."""
        online = os.environ.get("WANDB_MODE") == "online" or "WANDB_API_KEY" in os.environ
        self._mode = "online" if online and os.environ.get("WANDB_MODE") != "offline" else "offline"
        os.environ |= {"WANDB_MODE": self._mode, "WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}
        self._folder = root / ".lathe"
        self.address = f"W&B ({self._mode})"
        self._run: Any = None

    def open(self, key: str, head: Event, run: str) -> tuple[str, bool]:
        """Begin or resume the run; an offline one left half is written anew."""
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
        return key, self._mode == "online" and run == key

    def send(self, events: list[Event], folder: Path, first: int) -> None:
        """Queue them with wandb's own process, which keeps them in a file until they are sent."""
        for number, event in enumerate(events, first):
            if event["kind"] == "point":
                row = {event["name"]: event["value"], "step": event["step"], "_timestamp": event["at"] / 1000}
                self._run.log(row, step=number)
            elif event["kind"] == "file":
                self._save(folder / event["file"], event["folder"])
            elif event["kind"] == "tag":
                self._set(f"tags/{event['name']}", event["value"])
            elif event["kind"] == "dataset":
                self._set(f"data/{event['name']}", event)

    def end(self, status: str, at: int) -> None:
        """Finish the run; W&B knows whether it went well, and the tag says the rest."""
        self._set("tags/status", status)
        self._run.finish(exit_code=0 if status == "FINISHED" else 1)

    def _set(self, key: str, value: Any) -> None:
        self._run.config.update({key: value}, allow_val_change=True)

    def _save(self, path: Path, folder: str) -> None:
        # wandb links what it is given, and the journal's copy goes when all is sent.
        if path.is_file():
            copy = Path(self._run.dir, folder, path.name)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
            self._run.save(str(copy), base_path=self._run.dir, policy="now")
