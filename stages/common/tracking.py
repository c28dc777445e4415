"""Tracking that cannot hurt: `track` appends events to a journal on disk, and another process mirrors it.

A stage calls `track.metric`, `track.artifact`, `track.text` and `track.dataset`; outside a run they do nothing.
The run itself is opened and closed by stages/common/run.py. Nothing here talks to a server, waits for one, or
raises: stages/common/mirror.py follows the journal, and `python -m ops.sync` sends what it could not.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

from stages.common import journal as journals
from stages.common import mark as marks
from stages.common.statistics import Metrics

log = logging.getLogger(__name__)
CLOSE_SECONDS = 8.0  # what the end of a run may wait for its mirrors, whatever the servers do
NOTES_SECONDS = 1.0
IDENTITY = ("LATHE_USER", "LATHE_PURPOSE", "LATHE_EXPERIMENT_ID")
CODE = Path(__file__).resolve().parents[2]


class Mirror(Enum):
    """Where a run is shown."""

    mlflow = "mlflow"
    wandb = "wandb"


@dataclass
class Tracking:
    """conf/tracking/<name>.yaml: mirrors and names; LATHE_USER and its kin override the identity per person."""

    name: str
    mirrors: list[Mirror]
    task: str
    user: str
    purpose: str
    experiment_id: str


@dataclass
class RunName:
    """What a run is called: experiment `{Task}-{ModelFamily}`, run `{model}-{variant}`."""

    experiment: str
    run: str


class Track:
    """The open run of this process, or nothing."""

    def __init__(self) -> None:
        """No run is open."""
        self._journal = Path()
        self._writer: journals.Writer | None = None
        self._file = ""
        self._kept = 0
        self._mirrors: dict[str, subprocess.Popen[bytes]] = {}
        self._heard: dict[str, int] = {}
        self._listened = 0.0

    @property
    def journal(self) -> Path | None:
        """The journal of the open run: what `join` takes in another process. None outside a run."""
        return self._journal if self._writer else None

    @property
    def run_id(self) -> str:
        """MLflow's id of this run or of the last one, "" before its mirror has one."""
        mark = marks.load(self._journal, Mirror.mlflow.value)
        return mark.run if mark else ""

    def start(
        self,
        where: Path,
        name: RunName,
        tags: Mapping[str, str],
        params: Mapping[str, str],
        mirrors: Sequence[Mirror] = (Mirror.mlflow,),
        *,
        follow: bool = True,
    ) -> None:
        """Open a run; with `follow`, each mirror is a process that sends while the run goes on."""
        event = {
            "kind": "run",
            "experiment": name.experiment,
            "name": name.run,
            "tags": {**tags, **journals.process_tags(), **_parent_tags()},
            "params": dict(params),
            "mirrors": [mirror.value for mirror in mirrors],
        }
        self._guarded(lambda: self._start(where, event, follow))

    def join(self, journal: Path, rank: int) -> None:
        """Log to a run that another process has opened, as its worker number `rank`, 1 or more."""
        self._guarded(lambda: self._open(journal, f"rank{rank}.jsonl"))

    def metric(self, name: str, value: float, step: int = 0) -> None:
        """Log one point, as of now."""
        self._append({"kind": "point", "name": name, "value": float(value), "step": int(step)})

    def metrics(self, metrics: Metrics) -> None:
        """Log a stage's results, an interval as two more metrics, `.lo` and `.hi`."""
        for key, value in metrics.items():
            self.metric(key, value["value"])
            if value["lo"] != value["hi"]:
                self.metric(f"{key}.lo", value["lo"])
                self.metric(f"{key}.hi", value["hi"])

    def artifact(self, path: Path | str, folder: str | None = None) -> None:
        """Keep a copy of a file (or of a folder's files) as it is now, for the run's artifacts."""
        source = Path(path)
        for file in sorted(source.rglob("*")) if source.is_dir() else [source]:
            if not file.is_dir():
                inside = Path(folder or "") / file.relative_to(source).parent
                self._keep(inside.as_posix(), file.name, partial(shutil.copyfile, file))

    def text(self, name: str, text: str) -> None:
        """Store `text` as the artifact file `name`."""
        path, content = Path(name), text.encode(errors="replace")
        self._keep(path.parent.as_posix(), path.name, lambda copy: copy.write_bytes(content))

    def dataset(self, name: str, digest: str, source: str, profile: Mapping[str, Any]) -> None:
        """Log the data that this run used."""
        given = {"name": name, "digest": digest, "source": source, "profile": dict(profile)}
        self._append({"kind": "dataset", **given})

    def tag(self, name: str, value: str) -> None:
        """Set a tag."""
        self._append({"kind": "tag", "name": name, "value": value})

    def close(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED, and give its mirrors a few seconds to send the rest."""
        if self._file == journals.RUN:
            self._append({"kind": "end", "status": status})
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
            if writer.lost:
                log.warning("tracking: %d events of this run are lost: %s", writer.lost, writer.error)
            self._guarded(self._wait)

    def _start(self, where: Path, event: journals.Event, follow: bool) -> None:
        journal = journals.create(where)
        self._open(journal, journals.RUN)
        self._append(event)
        for name in event["mirrors"] if follow else ():
            self._mirrors[name] = _spawn(journal, name)

    def _open(self, journal: Path, file: str) -> None:
        self._writer = journals.Writer(journal / file)
        self._journal, self._file, self._kept = journal, file, 0
        self._mirrors, self._heard = {}, {}

    def _append(self, event: journals.Event) -> None:
        if (writer := self._writer) is None:
            return
        lost = writer.lost
        self._guarded(lambda: writer.append(event))
        if writer.lost and not lost:
            log.warning("tracking: %s: %s; the run goes on", self._journal, writer.error)
        if time.monotonic() - self._listened > NOTES_SECONDS:
            self._guarded(self._listen)

    def _keep(self, folder: str, name: str, write: Callable[[Path], object]) -> None:
        # A copy and no link: who appends to the original, as to a plot's CSV, must not change what was logged.
        def keep() -> None:
            self._kept += 1
            file = Path(journals.FILES, f"{Path(self._file).stem}-{self._kept}", name)
            (self._journal / file).parent.mkdir(parents=True)
            write(self._journal / file)
            self._append({"kind": "file", "file": file.as_posix(), "folder": folder.strip("./")})

        if self._writer is not None:
            self._guarded(keep)

    def _listen(self) -> None:
        """Bring what the mirrors have to say into this process's log; they have no part in it."""
        self._listened = time.monotonic()
        for name in self._mirrors:
            found, self._heard[name] = marks.notes(self._journal, name, self._heard.get(name, 0))
            for note in found:
                log.log(note["level"], "tracking: %s", note["text"])

    def _wait(self) -> None:
        end = time.monotonic() + CLOSE_SECONDS
        for process in self._mirrors.values():
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()  # it must not go on beside the `ops.sync` that is asked for
                process.wait(1)
        self._listen()
        for name in self._mirrors:
            if left := marks.unsent(self._journal, name):
                mark = marks.load(self._journal, name)
                where = mark.target if mark else name
                log.warning(
                    "tracking: %d events not sent to %s: `python -m ops.sync` sends them", left, where
                )

    def _guarded(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - whatever goes wrong with tracking, the stage goes on
            log.warning("tracking: %s; the run goes on", " ".join(str(error).split()))


track = Track()


def _spawn(journal: Path, name: str) -> subprocess.Popen[bytes]:
    """Start a mirror; a process, so that MLflow's import and its requests never hold this one's lock."""
    paths = filter(None, (str(CODE), os.environ.get("PYTHONPATH")))
    with (journal / f"{name}.out").open("wb") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "stages.common.mirror", str(journal), name],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )


def _parent_tags() -> dict[str, str]:
    # `mlflow run` sets these for its child; a stage that inherited them would log into that one run.
    parent = os.environ.pop("MLFLOW_RUN_ID", "")
    os.environ.pop("MLFLOW_EXPERIMENT_ID", None)
    return {"mlflow.parentRunId": parent} if parent else {}
