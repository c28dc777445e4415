"""A run, or its experiment, that somebody deletes in MLflow while its journal is open."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.entities import Run, ViewType
from mlflow.tracking import MlflowClient

from ops import backfill, sync
from stages.common import journal as journals
from stages.common import mark as marks
from stages.common.files import write_json
from stages.common.run import RESULT, result_key
from stages.common.statistics import wilson
from stages.common.store import connect
from stages.common.tracking import RunName, Track
from tests.life import wait_for

NAME = RunName("Test-Tiny", "tiny-judge")
SECTION = {"seed": 7}
METRICS = {"judge/agreement": wilson(8, 10)}
PARAMS = """
experiment: default
model: {name: tiny, family: Tiny}
tracking: {name: default, task: Test, user: "", purpose: "", experiment_id: ""}
judge: {seed: 7}
bench: {seed: 7}
"""


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    (tmp_path / "params.yaml").write_text(PARAMS)
    return connect(tmp_path)


class Training:
    """A stage that is mirrored, and that logs 20 points, a file and its result after `begun`."""

    def __init__(self, root: Path) -> None:
        self.track = Track()
        self.track.start(root, NAME, {"a": "b"}, {"lr": "0.1"})
        journal = self.track.journal
        assert journal is not None
        self.journal = journal
        self._log(range(20))
        wait_for("points in the store", lambda: self.mark().sent == 21)

    def mark(self) -> marks.Mark:
        return marks.load(self.journal, "mlflow") or marks.Mark("")

    def end(self) -> None:
        self._log(range(20, 40))
        self.track.text("stage.log", "all is well")
        self.track.tag(RESULT, result_key(SECTION, METRICS))
        self.track.close("FINISHED")

    def _log(self, steps: range) -> None:
        for step in steps:
            self.track.metric("loss", 1.0, step)


def shell(root: Path, command: str) -> None:
    """A command of the note, without its backticks."""
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(command.split(), cwd=root, env=env, check=True, capture_output=True)


def runs(client: MlflowClient) -> list[Run]:
    every = [each.experiment_id for each in client.search_experiments(ViewType.ALL)]
    return list(client.search_runs(every, run_view_type=ViewType.ALL))


def is_whole(client: MlflowClient, run: str) -> None:
    steps = [point.step for point in client.get_metric_history(run, "loss")]
    assert sorted(steps) == list(range(40)) and client.get_run(run).info.status == "FINISHED"
    assert [each.path for each in client.list_artifacts(run)] == ["stage.log"]


@pytest.mark.parametrize("kind", ["runs", "experiments"])
def test_what_was_deleted_is_left_alone_until_it_is_restored(
    tmp_path: Path,
    client: MlflowClient,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    training = Training(tmp_path)
    run = training.mark().run
    experiment = client.get_run(run).info.experiment_id
    if kind == "runs":
        client.delete_run(run)
        restore, what = f"mlflow runs restore --run-id {run}", "the run"
    else:
        client.delete_experiment(experiment)
        restore = f"mlflow experiments restore --experiment-id {experiment}"
        what = "its experiment Test-Tiny"
    training.end()
    assert sync.main(tmp_path) == []  # whether the mirror had time to see it or not
    mark = f".lathe/tracking/{training.journal.name}/mlflow.json"
    line = (
        f"tiny-judge: {what} was deleted in sqlite:///{tmp_path}/mlflow.db, nothing more is sent; "
        f"to have it back: `{restore}`, `rm {mark}`, `python -m ops.sync`"
    )
    said = [note["text"] for note in marks.notes(training.journal, "mlflow", 0)[0]]
    assert said == [line] and training.mark().deleted and training.mark().refused == 0
    capsys.readouterr()
    assert sync.main(tmp_path) == [] and capsys.readouterr().out == ""
    write_json(tmp_path / "metrics/judge.json", METRICS)
    write_json(tmp_path / "metrics/bench/base.json", {"triage/fields": wilson(1, 10)})
    filled = ["metrics/bench/base.json"] if kind == "runs" else []
    assert backfill.main(tmp_path) == filled and backfill.main(tmp_path) == []
    assert [each.info.lifecycle_stage for each in runs(client) if each.info.run_id == run] == ["deleted"]
    assert len(runs(client)) == 1 + len(filled)
    for command in (restore, f"rm {mark}"):
        shell(tmp_path, command)
    assert sync.main(tmp_path) == [training.journal.name]
    is_whole(client, run)
    assert len(runs(client)) == 1 + len(filled)


def test_a_run_that_was_deleted_before_its_mark_was_written_is_not_made_again(
    tmp_path: Path, client: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    training = Training(tmp_path)
    client.delete_run(training.mark().run)
    training.end()
    marks.path_of(training.journal, "mlflow").unlink()
    sync.main(tmp_path)
    assert "the run was deleted in sqlite:///" in capsys.readouterr().out and len(runs(client)) == 1


def test_a_stage_that_begins_in_a_deleted_experiment_goes_on_and_says_so_once(
    tmp_path: Path, client: MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    client.delete_experiment(client.create_experiment("Test-Tiny"))
    track = Track()
    track.start(tmp_path, NAME, {}, {})
    journal = track.journal
    assert journal is not None
    wait_for("the note", lambda: marks.deleted(journal))
    for step in range(20):
        track.metric("loss", 1.0, step)
    track.close("FINISHED")
    (told,) = [record.message for record in caplog.records if record.message.startswith("tracking:")]
    assert "its experiment Test-Tiny was deleted in " in told and runs(client) == []


def test_a_journal_whose_run_was_deleted_is_kept(tmp_path: Path) -> None:
    track = Track()
    for _ in range(marks.KEEP + 3):
        track.start(tmp_path, NAME, {}, {}, follow=False)
        journal = track.journal
        assert journal is not None
        track.close("FINISHED")
        marks.save(journal, "mlflow", marks.Mark("t", complete=True, deleted=True))
    marks.prune(tmp_path)
    assert len(list(journals.folder(tmp_path).iterdir())) == marks.KEEP + 3
