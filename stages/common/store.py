"""The MLflow store itself: where it is, how it comes to be whole, and whose runs in it are dead."""

from __future__ import annotations

import fcntl
import logging
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from stages.common.journal import started

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

DELETED = "deleted"  # MLflow's lifecycle stage of what was deleted and can be restored
DEAD = {"failed": "true", "error": "killed: its process is gone"}


def tracking_uri(where: Path) -> str:
    """MLFLOW_TRACKING_URI, or the sqlite file in the repository's root."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{where.resolve() / 'mlflow.db'}"


def shown(uri: str) -> str:
    """A URI without its user and password, fit for a log."""
    return re.sub(r"//[^/\s]*@", "//", uri)


def one_line(error: Exception) -> str:
    """What an error says, on one line; MLflow's name the URI of the request, with the password in it."""
    return shown(" ".join(str(error).split()))


def metric_name(name: str) -> str:
    """A metric's name as MLflow takes it: what it refuses, a comma or an @ say, becomes an underscore."""
    return re.sub(r"[^/\w.\- :]", "_", name)


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
    if not uri.startswith("sqlite"):  # a server makes its own store, and a slow one must hold up nobody else
        return MlflowClient(uri)
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
    """End as KILLED every run that says RUNNING and whose process on this machine is gone.

    A run that had ended and could not say so is among them; its journal puts that right (mirror_mlflow.py).
    """
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    query = f"attributes.status = 'RUNNING' and tags.`lathe.host` = '{platform.node()}'"
    for run in client.search_runs(experiments, query) if experiments else []:
        tags = run.data.tags
        if started(int(tags.get("lathe.pid", "0"))) != tags.get("lathe.started"):
            for name, value in DEAD.items():
                client.set_tag(run.info.run_id, name, value)
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
