"""ops.sync: what a kill, an outage or another server left of a run, brought to the store and closed."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from ops import sync
from stages.common import journal as journals
from stages.common import mark as marks
from stages.common.copier import Copier
from stages.common.store import close_dead_runs, connect
from stages.common.tracking import Mirror, RunName, Track
from tests.common.tracking_servers import free_port
from tests.life import HOUSE, wait_for

NAME = RunName("Test-Tiny", "tiny-probe")
STAGE = """
import sys, time
from pathlib import Path
from stages.common.tracking import RunName, track
track.start(Path(sys.argv[1]), RunName("Test-Tiny", "tiny-probe"), {}, {"lr": "0.1"}, follow=False)
for step in range(700):
    track.metric("loss", 1.0, step)
(Path(sys.argv[1]) / "logged").touch()
time.sleep(600)
"""


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    return connect(tmp_path)


def runs(client: MlflowClient) -> list[Run]:
    return list(client.search_runs([each.experiment_id for each in client.search_experiments()]))


def finished(root: Path, points: int = 3) -> Path:
    """The journal of a run that has ended and that no server has seen."""
    track = Track()
    track.start(root, NAME, {"a": "b"}, {"lr": "0.1"}, follow=False)
    journal = track.journal
    assert journal is not None
    for step in range(points):
        track.metric("loss", 1.0, step)
    track.close("FINISHED")
    return journal


def test_a_run_whose_process_is_gone_is_killed_and_a_living_one_left_alone(
    tmp_path: Path, client: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    with subprocess.Popen([sys.executable, "-c", STAGE, str(tmp_path)]) as process:
        wait_for("its points", (tmp_path / "logged").exists)
        assert sync.main(tmp_path) == [] and runs(client) == []
        assert capsys.readouterr().out == "tiny-probe: still running, left alone\n"
        process.kill()
    (journal,) = journals.folder(tmp_path).iterdir()
    with (journal / journals.RUN).open("ab") as file:
        file.write(b'{"kind": "point", "na')
    assert sync.main(tmp_path) == [journal.name]
    (run,) = runs(client)
    assert run.info.status == "KILLED" and run.data.params == {"lr": "0.1"}
    assert (run.data.tags["failed"], run.data.tags["error"]) == ("true", "killed: its process is gone")
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 700
    assert sync.main(tmp_path) == [] and len(runs(client)) == 1


def test_a_run_of_another_machine_is_sent_once_somebody_says_that_it_is_over(
    tmp_path: Path, client: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    """A container that was killed: the next one has another name, and cannot know."""
    journal = finished(tmp_path)
    *begun, _ = (journal / journals.RUN).read_text().splitlines(keepends=True)
    elsewhere = begun[0].replace(f'"lathe.host": "{platform.node()}"', '"lathe.host": "pod-7"')
    (journal / journals.RUN).write_text("".join([elsewhere, *begun[1:]]))
    assert sync.main(tmp_path) == [] and runs(client) == []
    said = capsys.readouterr().out
    assert said.startswith("tiny-probe: may be running on pod-7 (if not: `python -m ops.sync --dead ")
    assert sync.main(tmp_path, [journal.name]) == [journal.name]
    (run,) = runs(client)
    assert run.info.status == "KILLED" and len(client.get_metric_history(run.info.run_id, "loss")) == 3


def test_a_finished_run_that_others_took_for_dead_is_put_right(tmp_path: Path, client: MlflowClient) -> None:
    journal = finished(tmp_path)
    head = journals.header(journal)
    assert head is not None
    experiment = client.create_experiment("Test-Tiny", artifact_location=(tmp_path / "mlartifacts").as_uri())
    dead = head["tags"] | {"lathe.journal": journal.name, "lathe.started": "0"}
    run = client.create_run(experiment, tags=dead).info.run_id
    close_dead_runs(client)
    assert client.get_run(run).info.status == "KILLED" and client.get_run(run).data.tags["failed"] == "true"
    assert sync.main(tmp_path) == [journal.name]
    (only,) = runs(client)
    assert (only.info.run_id, only.info.status) == (run, "FINISHED")
    assert not {"failed", "error"} & only.data.tags.keys()


def test_a_create_that_was_repeated_leaves_one_run(tmp_path: Path, client: MlflowClient) -> None:
    journal = finished(tmp_path)
    experiment = client.create_experiment("Test-Tiny", artifact_location=(tmp_path / "mlartifacts").as_uri())
    for _ in range(2):
        client.create_run(experiment, tags={"lathe.journal": journal.name})
    sync.main(tmp_path)
    assert [run.info.status for run in runs(client)] == ["FINISHED"]


def test_another_server_gets_the_whole_run(
    tmp_path: Path, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = finished(tmp_path, 1200)
    mark = marks.Mark(f"http://127.0.0.1:{free_port()}", "0" * 32, {journals.RUN: 5000}, 50)
    marks.save(journal, "mlflow", mark)
    assert sync.main(tmp_path) == [journal.name]
    (run,) = runs(client)
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 1200


def test_a_store_that_was_made_anew_gets_the_whole_run(tmp_path: Path, client: MlflowClient) -> None:
    journal = finished(tmp_path, 1200)
    address = f"sqlite:///{tmp_path / 'mlflow.db'}"
    marks.save(journal, "mlflow", marks.Mark(address, "0" * 32, {journals.RUN: 5000}, 50))
    assert sync.main(tmp_path) == [journal.name]
    (run,) = runs(client)
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 1200


def test_a_mark_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    journal = finished(tmp_path)
    marks.save(journal, "mlflow", marks.Mark("t", sent=2))
    path = marks.path_of(journal, "mlflow")
    path.write_text(path.read_text().replace('"sent"', '"pending": {"run.jsonl": 7}, "sent"'))
    assert marks.load(journal, "mlflow") == marks.Mark("t", sent=2)


def test_a_batch_whose_answer_was_lost_is_the_same_batch_the_second_time(tmp_path: Path) -> None:
    """W&B drops a row by its number, so a row must keep it although the journal has grown."""
    track, worker, sent = Track(), Track(), Sent()
    track.start(tmp_path, NAME, {}, {"lr": "0.1"}, follow=False)
    journal = track.journal
    assert journal is not None
    worker.join(journal, 1)
    worker.metric("rank1/loss", 1.0)
    sent.answers = False
    with pytest.raises(ConnectionError):
        Copier(journal, "mlflow", sent).advance()
    track.metric("loss", 1.0)
    track.close("FINISHED")
    worker.close("FINISHED")
    sent.answers = True
    copier = Copier(journal, "mlflow", sent)
    while not copier.mark.complete:
        copier.advance()
    names = [(first, [event["name"] for event in events]) for first, events in sent.batches]
    assert names == [(0, ["lr", "rank1/loss"])] * 2 + [(2, ["loss"])] and sent.status == "FINISHED"


def test_a_run_that_is_sent_again_has_each_event_under_its_number_of_before(tmp_path: Path) -> None:
    """Of two processes' points that came by turns; also after a kill that cut off the note of the last batch."""
    track, worker, first, again = Track(), Track(), Sent(), Sent(kept=False)
    track.start(tmp_path, NAME, {}, {"lr": "0.1"}, follow=False)
    journal = track.journal
    assert journal is not None
    worker.join(journal, 1)
    copier = Copier(journal, "mlflow", first)
    for step in range(3):
        track.metric(f"loss-{step}", 1.0)
        copier.advance()
        worker.metric(f"rank1/loss-{step}", 1.0)
        copier.advance()
    with (journal / "mlflow.batches").open("a") as file:
        file.write('\n{"run.jsonl": 9')
    track.close("FINISHED")
    worker.metric("rank1/last", 1.0)
    worker.close("FINISHED")
    for _ in range(2):
        copier = Copier(journal, "mlflow", again)
        for _ in range(4):
            assert copier.advance()
    copier = Copier(journal, "mlflow", again)
    while not copier.mark.complete:
        copier.advance()
    assert len(again.numbered()) == 8 and first.numbered().items() <= again.numbered().items()
    assert again.status == "FINISHED"


def says(status: int) -> requests.HTTPError:
    """What MLflow's client raises for a server's, or its proxy's, answer to an artifact."""
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(f"{status} of it", response=response)


def test_a_file_that_the_server_will_never_take_holds_up_nothing(
    tmp_path: Path, client: MlflowClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    track = Track()
    track.start(tmp_path, NAME, {}, {}, follow=False)
    journal = track.journal
    track.text("large.log", "too much")
    track.metric("loss", 1.0)
    track.close("FINISHED")
    later = finished(tmp_path)

    def refuse(status: int) -> None:
        def log_artifact(*_: object) -> None:
            raise says(status)

        monkeypatch.setattr(MlflowClient, "log_artifact", log_artifact)

    refuse(503)
    with pytest.raises(ValueError, match="503 of it; nothing is lost"):
        sync.main(tmp_path)
    refuse(413)
    assert journal is not None and journal.name in sync.main(tmp_path)
    assert "1 refused" in capsys.readouterr().out and marks.complete(later)
    assert [run.info.status for run in runs(client)] == ["FINISHED"] * 2


def test_a_run_that_cannot_be_sent_does_not_hold_up_the_next(
    tmp_path: Path, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But a server that is down is asked once, and not for every journal."""
    journals_of = sorted(finished(tmp_path) for _ in range(3))
    create, tried = MlflowClient.create_run, list[str]()

    def created(error: Exception) -> None:
        def create_run(self: MlflowClient, experiment: str, at: int, tags: dict[str, str], name: str) -> Run:
            tried.append(tags["lathe.journal"])
            if tags["lathe.journal"] == journals_of[0].name:
                raise error
            return create(self, experiment, at, tags, name)

        monkeypatch.setattr(MlflowClient, "create_run", create_run)

    created(requests.ConnectionError("no route"))
    with pytest.raises(ValueError, match="no route; nothing is lost"):
        sync.main(tmp_path)
    assert tried == [journals_of[0].name]
    created(says(403))
    with pytest.raises(ValueError, match=r"tiny-probe: .*403 of it; nothing is lost") as refusal:
        sync.main(tmp_path)
    assert "\n" not in str(refusal.value)
    assert [marks.complete(each) for each in journals_of] == [False, True, True]


class Sent:
    """A target that writes down what it is given."""

    address = "t"

    def __init__(self, *, kept: bool = True) -> None:
        self.kept = kept
        self.batches: list[tuple[int, list[journals.Event]]] = []
        self.status, self.answers = "", True

    def open(self, key: str, head: journals.Event, run: str) -> tuple[str, bool]:
        return key, self.kept

    def numbered(self) -> dict[int, str]:
        """The events' names; each number has one."""
        pairs = {
            (number, event["name"])
            for first, events in self.batches
            for number, event in enumerate(events, first)
        }
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    def send(self, events: list[journals.Event], folder: Path, first: int) -> None:
        self.batches.append((first, events))
        if not self.answers:
            raise ConnectionError("the answer is lost")

    def end(self, status: str, at: int) -> None:
        self.status = status


@pytest.mark.parametrize(
    ("words", "outage"),
    [
        ('Post "https://w/graphql": dial tcp: connection refused', True),
        ("upsertBucket: returned error 409: run x was previously created and deleted", False),
        ("returned error 403: permission denied", False),
    ],
)
def test_what_wandb_refuses_is_no_outage(words: str, outage: bool) -> None:
    """It has one class for both, and says in words which it is."""
    CommError = type("CommError", (Exception,), {})
    assert sync._is_outage(CommError(words)) is outage


def test_a_server_that_does_not_answer_is_one_line_and_the_other_mirror_gets_its_own(tmp_path: Path) -> None:
    track = Track()
    track.start(tmp_path, NAME, {}, {}, [Mirror.mlflow, Mirror.wandb], follow=False)
    track.metric("loss", 1.0)
    track.close("FINISHED")
    uri = f"http://ada:secret@127.0.0.1:{free_port()}"
    env = os.environ | {
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "PYTHONPATH": str(HOUSE),
    }
    command = [sys.executable, "-m", "ops.sync"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "secret" not in done.stdout + done.stderr
    (line,) = [each for each in done.stderr.splitlines() if each.startswith("sync: ")]
    assert line.startswith("sync: http://127.0.0.1:") and line.endswith(
        "nothing is lost, try again when it answers"
    )
    assert "sent to W&B (offline)" in done.stdout
    assert len(list(tmp_path.glob(".lathe/wandb/offline-run-*"))) == 1
