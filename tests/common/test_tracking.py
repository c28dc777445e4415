"""Runs through their journal into a real MLflow store: all that a stage logs, and nothing that can hurt it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from ops import sync
from stages.common import journal as journals
from stages.common import mark as marks
from stages.common.tracking import RunName, Track

NAME = RunName("Test-Tiny", "tiny-prepare")


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    return MlflowClient(os.environ["MLFLOW_TRACKING_URI"])


def logged(client: MlflowClient, root: Path, track: Track) -> Run:
    """The run of a closed track, whether its mirror had time for all of it or not."""
    sync.main(root)
    return client.get_run(track.run_id)


def test_a_run_carries_its_dataset(tmp_path: Path, client: MlflowClient) -> None:
    track = Track()
    track.start(tmp_path, NAME, {}, {})
    track.dataset("helpdesk", "ab" * 32, "rows/train.jsonl 0123", {"rows/train": 3.0, "rows/read": 4.0})
    track.close("FINISHED")
    (given,) = logged(client, tmp_path, track).inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("helpdesk", "ab" * 18)
    assert json.loads(given.dataset.source) == {"uri": "rows/train.jsonl 0123"}
    assert json.loads(given.dataset.profile) == {"rows/read": 4.0, "rows/train": 3.0}
    assert [(tag.key, tag.value) for tag in given.tags] == [("mlflow.data.context", "training")]


def test_what_mlflow_refuses_is_one_warning_and_holds_up_nothing(
    tmp_path: Path, client: MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    track = Track()
    track.dataset("helpdesk", "ab", "rows", {})  # outside a run
    track.start(tmp_path, NAME, {}, {f"p{number}": "x" * 9000 for number in range(230)} | {"a param?!": "y"})
    track.dataset("helpdesk", "", "rows" * 20_000, {"rows/read": 4.0})
    for step in range(40):
        track.metric("loss" if step % 20 else "not/../unique", 1.0, step)
    track.close("FINISHED")
    run = logged(client, tmp_path, track)
    assert run.info.status == "FINISHED" and len(run.data.params) == 230
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 38
    (journal,) = journals.folder(tmp_path).iterdir()
    assert marks.load(journal, "mlflow").refused == 4
    assert [note["level"] for note in marks.notes(journal, "mlflow", 0)[0]] == [30]
    assert len([record for record in caplog.records if "refuses" in record.message]) <= 1


def test_a_name_that_mlflow_would_refuse_arrives_with_underscores(
    tmp_path: Path, client: MlflowClient
) -> None:
    """lm-eval's filters and a slice's values have commas in their names."""
    track = Track()
    track.start(tmp_path, NAME, {}, {})
    track.metric("gsm8k/exact_match,strict-match", 0.5)
    track.metric("t/acc/style:a @b", 0.25)
    track.close("FINISHED")
    found = logged(client, tmp_path, track).data.metrics
    assert found == {"gsm8k/exact_match_strict-match": 0.5, "t/acc/style:a _b": 0.25}


def test_a_file_is_kept_as_it_was_when_it_was_logged(tmp_path: Path, client: MlflowClient) -> None:
    plot, folder = tmp_path / "loss.csv", tmp_path / "folder"
    plot.write_text("step,loss\n")
    (folder / "inner").mkdir(parents=True)
    (folder / "inner/deep.txt").write_text("deep")
    (folder / "flat.txt").write_text("flat")
    track = Track()
    track.start(tmp_path, NAME, {}, {})
    track.artifact(plot, "plots")
    with plot.open("a") as file:
        file.write("1,0.5\n")
    track.artifact(folder)
    track.artifact(tmp_path / "no such file")
    track.text("logs/stage.log", "all is well \udcff")
    track.close("FINISHED")
    run = logged(client, tmp_path, track)
    local = Path(client.download_artifacts(run.info.run_id, ""))
    found = {
        path.relative_to(local).as_posix(): path.read_text() for path in local.rglob("*") if path.is_file()
    }
    expected = {"plots/loss.csv": "step,loss\n", "inner/deep.txt": "deep", "flat.txt": "flat"}
    assert found == expected | {"logs/stage.log": "all is well ?"}
    (journal,) = journals.folder(tmp_path).iterdir()
    assert not (journal / journals.FILES).exists()


def test_a_full_disk_costs_events_not_the_stage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    track = Track()
    track.start(tmp_path, NAME, {}, {}, [])
    (track.journal / "rank1.jsonl").symlink_to("/dev/full")
    worker = Track()
    worker.join(track.journal, 1)
    for step in range(100):
        worker.metric("loss", 1.0, step)
    worker.close("FINISHED")
    track.close("FINISHED")
    told = [record.message for record in caplog.records]
    assert len(told) == 2 and "No space left on device; the run goes on" in told[0]
    assert told[1].startswith("tracking: 100 events of this run are lost:")


def test_a_folder_that_cannot_be_written_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / ".lathe").write_text("a file where the folder should be")
    track = Track()
    track.start(tmp_path, NAME, {}, {})
    track.metric("loss", 1.0)
    track.text("a", "b")
    track.close("FINISHED")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert track.run_id == "" and track.journal is None


def test_workers_log_to_one_run(tmp_path: Path, client: MlflowClient) -> None:
    code = """
import sys
from pathlib import Path
from stages.common.tracking import track
track.join(Path(sys.argv[1]), int(sys.argv[2]))
for step in range(300):
    track.metric(f"rank{sys.argv[2]}/loss", step / 7, step)
track.close("FINISHED")
"""
    track = Track()
    track.start(tmp_path, NAME, {}, {})
    workers = [
        subprocess.Popen([sys.executable, "-c", code, str(track.journal), str(rank)]) for rank in (1, 2, 3)
    ]
    for step in range(300):
        track.metric("rank0/loss", step / 7, step)
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    track.close("FINISHED")
    run = logged(client, tmp_path, track).info.run_id
    for rank in range(4):
        history = client.get_metric_history(run, f"rank{rank}/loss")
        assert sorted((point.step, point.value) for point in history) == [(s, s / 7) for s in range(300)]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Path]:
    yield journals.create(tmp_path)


def test_a_torn_line_is_left_out_and_the_next_one_is_not(journal: Path) -> None:
    path = journal / journals.RUN
    first = journals.Writer(path)
    first.append({"kind": "point", "name": "a"})
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:-9])
    assert [event["name"] for event, _ in journals.read(path)] == ["a"]  # killed while it wrote
    assert next(end for _, end in journals.read(path)) == len(whole)
    path.write_bytes(whole + whole[:-9] + b"\n" + whole)  # and a full disk that had room again
    assert [event and event["name"] for event, _ in journals.read(path)] == ["a", None, "a"]


def test_only_the_newest_finished_journals_stay(tmp_path: Path) -> None:
    track = Track()
    for _ in range(marks.KEEP + 3):
        track.start(tmp_path, NAME, {}, {}, [], follow=False)
        track.close("FINISHED")
    track.start(tmp_path, NAME, {}, {}, follow=False)  # not sent: it stays, however old
    waiting = track.journal
    assert waiting is not None
    track.close("FINISHED")
    waiting.rename(waiting.with_name("2000-first"))
    marks.prune(tmp_path)
    names = sorted(path.name for path in journals.folder(tmp_path).iterdir())
    assert len(names) == marks.KEEP + 1 and names[0] == "2000-first"
