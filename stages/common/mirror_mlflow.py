"""A run in MLflow, found by the tag of its journal. MLflow keeps a repeated point, parameter or input once."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from stages.common.journal import Event
from stages.common.store import (
    DEAD,
    DELETED,
    close_dead_runs,
    connect,
    ensure_experiment,
    metric_name,
    one_line,
)
from stages.common.target import DeletedError, GoneError, RefusedError

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

JOURNAL = "lathe.journal"
PARAM_LENGTH = 6000
PER_CALL = 100  # parameters or tags
DATASET_NAME, DATASET_DIGEST = 500, 36  # what MLflow takes, in characters
TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
LONGEST_TIMEOUT = 120
UNFIT = {400, 413, 415, 422}  # what a server, or a proxy before it, answers to a file that it never takes
REFUSALS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST"}


class MlflowTarget:
    """The store of MLFLOW_TRACKING_URI, or the sqlite file in the root."""

    def __init__(self, root: Path, address: str) -> None:
        """Nothing is asked of the store yet."""
        self.address = address
        self._root = root
        self._key = self._experiment = self._run = ""
        self._client: MlflowClient

    def open(self, key: str, head: Event, run: str) -> tuple[str, bool]:
        """The run that carries the journal's key as a tag, made where there is none, not even a deleted one."""
        with self._alive():
            self._client = connect(self._root)
            self._key = key
            self._experiment = ensure_experiment(self._client, head["experiment"], self._root)
            close_dead_runs(self._client)
            self._run = run
            self._run = run or self._first() or self._create(head)
        return self._run, self._run == run

    def send(self, events: list[Event], folder: Path, first: int) -> None:
        """One request for all points, and one for each file and dataset."""
        with self._alive():
            self._log_batch(events)
            for event in events:
                if event["kind"] == "file":
                    self._log_file(folder / event["file"], event["folder"])
                elif event["kind"] == "dataset":
                    _log_dataset(self._client, self._run, event)

    def end(self, status: str, at: int) -> None:
        """Close the run, undo what others took for a death, and drop what a lost answer left behind."""
        with self._alive():
            for run in self._found():
                if run.info.run_id != self._run:  # a create that was repeated while the first was on its way
                    self._client.delete_run(run.info.run_id)
                elif status != "KILLED" and run.data.tags.get("error") == DEAD["error"]:
                    for name in DEAD:
                        self._client.delete_tag(self._run, name)
            self._client.set_terminated(self._run, status, at)

    def _first(self) -> str:
        found = self._found() or self._found(deleted=True)
        return next((str(each.info.run_id) for each in found), "")

    def _found(self, *, deleted: bool = False) -> Sequence[Run]:
        from mlflow.entities import ViewType

        query = f"tags.`{JOURNAL}` = '{self._key}'"
        view = ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY
        return list(self._client.search_runs([self._experiment], query, run_view_type=view))

    @contextmanager
    def _alive(self) -> Iterator[None]:
        """As `_patience`; of a refusal, which has no code of its own for that, it asks whether all is still there."""
        try:
            with _patience():
                yield
        except RefusedError:
            with _patience():
                self._check_deleted()
            raise

    def _check_deleted(self) -> None:
        if not self._experiment:
            return
        # The experiment first: to restore it restores its runs.
        experiment = self._client.get_experiment(self._experiment)
        if experiment.lifecycle_stage == DELETED:
            what = f"its experiment {experiment.name}"
            raise DeletedError(what, f"mlflow experiments restore --experiment-id {self._experiment}")
        if self._run and self._client.get_run(self._run).info.lifecycle_stage == DELETED:
            raise DeletedError("the run", f"mlflow runs restore --run-id {self._run}")

    def _create(self, head: Event) -> str:
        tags = {name: value[:PARAM_LENGTH] for name, value in head["tags"].items()} | {JOURNAL: self._key}
        run = self._client.create_run(self._experiment, head["at"], tags, head["name"])
        return str(run.info.run_id)

    def _log_batch(self, events: list[Event]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        points = [
            Metric(metric_name(event["name"]), event["value"], event["at"], event["step"])
            for event in events
            if event["kind"] == "point"
        ]
        params = [Param(name, value) for name, value in _last(events, "param").items()]
        tags = [RunTag(name, value) for name, value in _last(events, "tag").items()]
        if points:
            self._client.log_batch(self._run, metrics=points)
        for start in range(0, max(len(params), len(tags)), PER_CALL):
            part = slice(start, start + PER_CALL)
            self._client.log_batch(self._run, params=params[part], tags=tags[part])

    def _log_file(self, path: Path, folder: str) -> None:
        if not path.is_file():
            raise RefusedError(f"{path} is gone")
        self._client.log_artifact(self._run, str(path), folder or None)


def _last(events: list[Event], kind: str) -> dict[str, str]:
    return {event["name"]: event["value"][:PARAM_LENGTH] for event in events if event["kind"] == kind}


def _log_dataset(client: MlflowClient, run: str, event: Event) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    data = Dataset(
        event["name"][:DATASET_NAME],
        event["digest"][:DATASET_DIGEST],
        source_type="local",
        source=json.dumps({"uri": event["source"]}),
        profile=json.dumps(event["profile"], sort_keys=True),
    )
    client.log_inputs(run, [DatasetInput(data, [InputTag("mlflow.data.context", "training")])])


@contextmanager
def _patience() -> Iterator[None]:
    """Tell refusals from outages, and wait longer the next time that an answer did not come in time."""
    from mlflow.exceptions import MlflowException
    from requests import HTTPError

    began = time.monotonic()
    try:
        yield
    except HTTPError as error:  # of files: what else is asked comes as an MlflowException
        if error.response is not None and error.response.status_code in UNFIT:
            raise RefusedError(one_line(error)) from error
        raise
    except MlflowException as error:
        text = one_line(error)
        if error.error_code in REFUSALS:
            raise RefusedError(text) from error
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise GoneError(text) from error
        timeout = int(os.environ[TIMEOUT])
        if time.monotonic() - began >= timeout:
            os.environ[TIMEOUT] = str(min(2 * timeout, LONGEST_TIMEOUT))
        raise
