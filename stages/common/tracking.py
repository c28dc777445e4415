"""MLflow as a mirror that cannot hurt: `track` buffers, batches, and turns a dead server into one warning.

A stage calls `track.metric`, `track.artifact` and `track.text`; outside a run they do nothing. The run
itself is opened and closed by stages/common/run.py.
"""

from __future__ import annotations

import fcntl
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.common.statistics import Metrics

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

log = logging.getLogger(__name__)
FLUSH_POINTS = 500
FLUSH_SECONDS = 10.0
PARAM_LENGTH = 6000
PARAMS_PER_CALL = 100
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


def tracking_uri(where: Path) -> str:
    """MLFLOW_TRACKING_URI, or the sqlite file in the repository's root."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{where.resolve() / 'mlflow.db'}"


def connect(where: Path) -> MlflowClient:
    """A client of the store; a fresh sqlite store is created by one process at a time.

    Several processes that open a fresh store at once crash each other in its schema migration.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import set_tracking_uri
    from mlflow.tracking import MlflowClient

    uri = tracking_uri(where)
    set_tracking_uri(uri)
    with _store_lock(where):
        _ensure_sqlite(uri)
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


def ensure_experiment(client: MlflowClient, name: str, where: Path) -> str:
    """The experiment's id; made with an explicit artifact folder, or a temp workspace would hold the files."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    local = tracking_uri(where).startswith("sqlite")
    location = (where.resolve() / "mlartifacts").as_uri() if local else None
    try:
        return str(client.create_experiment(name, artifact_location=location))
    except MlflowException:  # another stage made it a moment ago
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)


def close_dead_runs(client: MlflowClient) -> None:
    """End as KILLED every run that says RUNNING and whose process on this machine is gone."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    query = f"attributes.status = 'RUNNING' and tags.`lathe.host` = '{platform.node()}'"
    for run in client.search_runs(experiments, query) if experiments else []:
        tags = run.data.tags
        if _started(int(tags.get("lathe.pid", "0"))) != tags.get("lathe.started"):
            client.set_tag(run.info.run_id, "failed", "true")
            client.set_tag(run.info.run_id, "error", "killed: its process is gone")
            client.set_terminated(run.info.run_id, "KILLED")


def _ensure_sqlite(uri: str) -> None:
    """Make a sqlite store whole or not at all: one that a kill left with half its schema never opens again."""
    from mlflow.tracking import MlflowClient

    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or path.exists():
        return
    for left in path.parent.glob(f"{path.name}.draft*"):
        left.unlink()
    MlflowClient(f"sqlite:///{path}.draft").search_experiments(max_results=1)
    path.with_name(f"{path.name}.draft").replace(path)


@contextmanager
def _store_lock(where: Path) -> Iterator[None]:
    path = where / ".lathe" / "mlflow.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _log_batch(client: MlflowClient, run_id: str, points: list[tuple[str, float, int, int]]) -> None:
    from mlflow.entities import Metric

    client.log_batch(run_id, metrics=[Metric(name, value, at, step) for name, value, at, step in points])


def process_tags() -> dict[str, str]:
    """Tags by which `close_dead_runs` knows whether a run's process still lives."""
    pid = os.getpid()
    return {"lathe.host": platform.node(), "lathe.pid": str(pid), "lathe.started": _started(pid) or ""}


def _parent_tags() -> dict[str, str]:
    # `mlflow run` sets these for its child; a stage that inherited them would log into that one run.
    parent = os.environ.pop("MLFLOW_RUN_ID", "")
    os.environ.pop("MLFLOW_EXPERIMENT_ID", None)
    return {"mlflow.parentRunId": parent} if parent else {}


def _started(pid: int) -> str | None:
    """A process's start in clock ticks since boot, None if there is none: a pid alone may have been reused."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return None
    return stat.rsplit(")", 1)[1].split()[19]
