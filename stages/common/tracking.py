"""MLflow as a mirror that cannot hurt: `track` buffers, batches, and turns a dead server into one warning.

A stage calls `track.metric`, `track.artifact`, `track.text` and `track.dataset`; outside a run they do
nothing. The run itself is opened and closed by stages/common/run.py.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.common.statistics import Metrics
from stages.common.store import close_dead_runs, connect, ensure_experiment, process_tags, tracking_uri

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

log = logging.getLogger(__name__)
FLUSH_POINTS = 500
FLUSH_SECONDS = 10.0
PARAM_LENGTH = 6000
PARAMS_PER_CALL = 100
DATASET_NAME, DATASET_DIGEST = 500, 36  # what MLflow takes, in characters
IDENTITY = ("LATHE_USER", "LATHE_PURPOSE", "LATHE_EXPERIMENT_ID")


@dataclass
class Tracking:
    """conf/tracking/<name>.yaml: names in MLflow; LATHE_USER and its kin override the identity per person."""

    name: str
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
        self._client: MlflowClient | None = None
        self._run_id = ""
        self._buffer: list[tuple[str, float, int, int]] = []
        self._flushed = 0.0

    @property
    def run_id(self) -> str:
        """MLflow's id of the open run, "" outside one."""
        return self._run_id

    def start(self, where: Path, name: RunName, tags: Mapping[str, str], params: Mapping[str, str]) -> None:
        """Open a run; earlier runs of dead processes on this machine are closed first."""
        self._guarded(lambda: self._start(where, name, tags, params))

    def metric(self, name: str, value: float, step: int = 0) -> None:
        """Buffer one point; sent in batches, because a call a point costs a training step."""
        if not self._run_id:
            return
        self._buffer.append((name, float(value), int(time.time() * 1000), step))
        if len(self._buffer) >= FLUSH_POINTS or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def metrics(self, metrics: Metrics) -> None:
        """Log a stage's results, an interval as two more metrics, `.lo` and `.hi`."""
        for key, value in metrics.items():
            self.metric(key, value["value"])
            if value["lo"] != value["hi"]:
                self.metric(f"{key}.lo", value["lo"])
                self.metric(f"{key}.hi", value["hi"])

    def artifact(self, path: Path | str, folder: str | None = None) -> None:
        """Copy a file (or a folder's files) to the run's artifacts."""
        source = Path(path)
        self.flush()
        if source.is_dir():
            self._call(lambda client: client.log_artifacts(self._run_id, str(source), folder))
        else:
            self._call(lambda client: client.log_artifact(self._run_id, str(source), folder))

    def text(self, name: str, text: str) -> None:
        """Store `text` as the artifact file `name`."""
        self._call(lambda client: client.log_text(self._run_id, text, name))

    def dataset(self, name: str, digest: str, source: str, profile: Mapping[str, Any]) -> None:
        """Log the data that this run used, as MLflow's dataset input; of the digest it keeps 36 characters."""
        self._call(lambda client: _log_dataset(client, self._run_id, name, digest, source, profile))

    def tag(self, name: str, value: str) -> None:
        """Set a tag."""
        self._call(lambda client: client.set_tag(self._run_id, name, value[:PARAM_LENGTH]))

    def flush(self) -> None:
        """Send what is buffered, in one request."""
        points, self._buffer, self._flushed = self._buffer, [], time.monotonic()
        if points:
            self._call(lambda client: _log_batch(client, self._run_id, points))

    def close(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED."""
        self.flush()
        self._call(lambda client: client.set_terminated(self._run_id, status))
        self._client, self._run_id = None, ""

    def _start(self, where: Path, name: RunName, tags: Mapping[str, str], params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        client = connect(where)
        experiment_id = ensure_experiment(client, name.experiment, where)
        close_dead_runs(client)
        run = client.create_run(
            experiment_id, run_name=name.run, tags={**tags, **process_tags(), **_parent_tags()}
        )
        items = [Param(key, value[:PARAM_LENGTH]) for key, value in params.items()]
        for start in range(0, len(items), PARAMS_PER_CALL):
            client.log_batch(run.info.run_id, params=items[start : start + PARAMS_PER_CALL])
        self._client, self._run_id, self._flushed = client, run.info.run_id, time.monotonic()

    def _call(self, action: Callable[[MlflowClient], Any]) -> None:
        client = self._client
        if client is not None:
            self._guarded(lambda: action(client))

    def _guarded(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - whatever a tracking client raises, the stage goes on
            uri = tracking_uri(Path.cwd())
            log.warning("tracking: %s at %s; this run goes on without it", " ".join(str(error).split()), uri)
            self._client, self._run_id, self._buffer = None, "", []


track = Track()


def _log_batch(client: MlflowClient, run_id: str, points: list[tuple[str, float, int, int]]) -> None:
    from mlflow.entities import Metric

    client.log_batch(run_id, metrics=[Metric(name, value, at, step) for name, value, at, step in points])


def _log_dataset(
    client: MlflowClient, run_id: str, name: str, digest: str, source: str, profile: Mapping[str, Any]
) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    data = Dataset(
        name[:DATASET_NAME],
        digest[:DATASET_DIGEST],
        source_type="local",
        source=json.dumps({"uri": source}),
        profile=json.dumps(profile, sort_keys=True),
    )
    client.log_inputs(run_id, [DatasetInput(data, [InputTag("mlflow.data.context", "training")])])


def _parent_tags() -> dict[str, str]:
    # `mlflow run` sets these for its child; a stage that inherited them would log into that one run.
    parent = os.environ.pop("MLFLOW_RUN_ID", "")
    os.environ.pop("MLFLOW_EXPERIMENT_ID", None)
    return {"mlflow.parentRunId": parent} if parent else {}
