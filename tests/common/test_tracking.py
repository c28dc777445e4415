"""The dataset input of a run, against a real MLflow store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stages.common.store import connect
from stages.common.tracking import RunName, Track


def test_a_run_carries_its_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    track = Track()
    track.start(tmp_path, RunName("Test-Tiny", "tiny-prepare"), {}, {})
    run_id = track.run_id
    track.dataset("helpdesk", "ab" * 32, "rows/train.jsonl 0123", {"rows/train": 3.0, "rows/read": 4.0})
    assert track.run_id == run_id  # no failure has ended the tracking
    track.close("FINISHED")
    (given,) = connect(tmp_path).get_run(run_id).inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("helpdesk", "ab" * 18)
    assert json.loads(given.dataset.source) == {"uri": "rows/train.jsonl 0123"}
    assert json.loads(given.dataset.profile) == {"rows/read": 4.0, "rows/train": 3.0}
    assert [(tag.key, tag.value) for tag in given.tags] == [("mlflow.data.context", "training")]


def test_outside_a_run_and_on_what_mlflow_refuses_nothing_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    track = Track()
    track.dataset("helpdesk", "ab", "rows", {})
    track.start(tmp_path, RunName("Test-Tiny", "tiny-prepare"), {}, {})
    track.dataset("helpdesk", "", "rows" * 20_000, {"rows/read": 4.0})
    track.close("FINISHED")
    assert [record.levelname for record in caplog.records if "tracking:" in record.message] == ["WARNING"]
