"""A result that no run holds gets one run, once."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from ops import backfill
from stages.common.files import write_json
from stages.common.statistics import wilson

PARAMS = """
experiment: default
model: {name: tiny, family: Tiny}
tracking: {name: default, task: Test, user: "", purpose: "", experiment_id: ""}
judge: {seed: 7, prompt: {name: pairwise}}
bench: {seed: 7}
"""


def test_restored_results_are_logged_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "params.yaml").write_text(PARAMS)
    write_json(tmp_path / "metrics/judge.json", {"judge/agreement": wilson(8, 10)})
    write_json(tmp_path / "metrics/bench/base.json", {"triage/fields": wilson(1, 10)})
    assert backfill.main(tmp_path) == ["metrics/bench/base.json", "metrics/judge.json"]
    assert backfill.main(tmp_path) == []
    write_json(tmp_path / "metrics/judge.json", {"judge/agreement": wilson(9, 10)})
    assert backfill.main(tmp_path) == ["metrics/judge.json"]
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("Test-Tiny").experiment_id])
    assert sorted(run.info.run_name for run in runs) == ["tiny-bench-base", "tiny-judge", "tiny-judge"]
    assert all(run.data.tags["backfilled"] == "true" and run.info.status == "FINISHED" for run in runs)
    newest = runs[0].data
    assert newest.params["prompt.name"] == "pairwise" and newest.metrics["judge/agreement.lo"] < 0.9
