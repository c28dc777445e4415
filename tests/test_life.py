"""The pipeline in a clone, at the scale of experiment=smoke: it runs, repeats itself, and has nothing left to do."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.life import STAGES, Clone, Finished, copy, ran, smoke


@pytest.mark.slow
def test_every_stage_runs_once_and_says_what_came_of_it(finished: Finished) -> None:
    assert sorted(ran(finished.output)) == sorted(STAGES)
    assert set(finished.clone.lock()) == set(STAGES)
    for title in ("Held-out rows", "Judge and drift", "Gate: "):
        assert title in finished.output
    for stage in set(STAGES) - {"conf"}:
        file = finished.clone.root / f"metrics/{stage.replace('@', '/')}.json"
        metrics = json.loads(file.read_text(encoding="utf-8"))
        assert metrics
        assert all(set(metric) == {"value", "lo", "hi", "n"} for metric in metrics.values())


@pytest.mark.slow
def test_every_stage_has_one_finished_run_in_mlflow(finished: Finished) -> None:
    runs = finished.clone.runs()
    assert sorted(run["dvc.stage"] for run in runs) == sorted(set(STAGES) - {"conf"})
    assert {run["status"] for run in runs} == {"FINISHED"}
    assert {run["experiment"] for run in runs} == {"smoke"}


@pytest.mark.slow
def test_a_second_run_runs_no_stage_and_changes_no_file(finished: Finished, tmp_path: Path) -> None:
    clone = copy(finished.clone, tmp_path / "lathe")
    before = clone.outs(), (clone.root / "dvc.lock").read_bytes()
    output = clone.module("ops.pipeline").stdout
    assert ran(output) == []
    assert "every stage is up to date" in output
    assert clone.git("status", "--porcelain") == ""
    assert before == (clone.outs(), (clone.root / "dvc.lock").read_bytes())


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.skipif(
    "LATHE_SOAK" not in os.environ, reason="test_life_kill.py compares another clone: make soak"
)
def test_another_clone_makes_the_same_bytes(source: Clone, finished: Finished, tmp_path: Path) -> None:
    clone = smoke(source, tmp_path / "elsewhere")
    clone.dvc("repro", "--no-run-cache")
    assert clone.lock() == finished.clone.lock()
    assert clone.outs() == finished.clone.outs()
