"""MLproject's entry points, through the real `mlflow run`."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from ops import project
from tests.life import Clone, fresh


@pytest.fixture
def clone(source: Clone, tmp_path: Path) -> Clone:
    return fresh(source, tmp_path / "lathe")


def mlflow_run(clone: Clone, *parameters: str) -> subprocess.CompletedProcess[str]:
    given = [part for each in parameters for part in ("-P", each)]
    return clone.module("mlflow", "run", ".", "--env-manager", "local", "-e", "compose", *given, ok=False)


def test_mlflow_run_composes_what_it_is_given(clone: Clone) -> None:
    done = mlflow_run(clone, "experiment=smoke", "finetune.learning_rate=0.002", "seed=3")
    assert done.returncode == 0, done.stderr
    params = yaml.safe_load((clone.root / "params.yaml").read_text())
    assert (params["experiment"], params["finetune"]["max_steps"]) == ("smoke", 8)
    assert (params["finetune"]["learning_rate"], params["seed"]) == (0.002, 3)


def test_mlflow_run_refuses_a_wrong_type_and_changes_nothing(clone: Clone) -> None:
    before = (clone.root / "params.yaml").read_bytes()
    done = mlflow_run(clone, "finetune.learning_rate=abc")
    assert done.returncode != 0
    [line] = [line for line in done.stderr.splitlines() if line.startswith("project:")]
    assert "finetune.learning_rate" in line
    assert "abc" in line
    assert "Traceback" not in done.stderr
    assert (clone.root / "params.yaml").read_bytes() == before


def test_pairs_become_overrides() -> None:
    given = ["--experiment", "smoke", "--seed", "17.0", "--finetune.learning_rate", "2.0"]
    assert project.overrides(given) == ["experiment=smoke", "seed=17", "finetune.learning_rate=2.0"]


@pytest.mark.parametrize("given", [["--a"], ["a", "1"], ["--a", "1", "b"]])
def test_what_are_no_pairs_is_refused(given: list[str]) -> None:
    with pytest.raises(ValueError, match="expected pairs of --key value"):
        project.overrides(given)


def test_an_unknown_verb_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown entry point 'walk'; known: run, compose"):
        project.main(["walk"])
