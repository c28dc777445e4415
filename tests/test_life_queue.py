"""Two queued experiments at once, from a clone that has run: DVC and the one MLflow store know both."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.life import Clone, Finished, copy, ran, wait_for

pytestmark = pytest.mark.slow
RATES = ("0.002", "0.003")  # neither is the rate of the finished run, whose stages would be restored, not run
RERUN = ["bench@tuned", "finetune", "judge", "register"]


@pytest.fixture
def clone(finished: Finished, tmp_path: Path) -> Iterator[Clone]:
    made = copy(finished.clone, tmp_path / "lathe")
    yield made
    made.dvc("queue", "stop", "--kill", ok=False)


def test_a_sweep_from_the_queue(clone: Clone) -> None:
    sweep = f"finetune.learning_rate=choice({','.join(RATES)})"
    clone.dvc("exp", "run", "--queue", "-S", "experiment=smoke", "-S", sweep)
    clone.dvc("queue", "start", "-j", "2")
    wait_for("the end of the queue", lambda: not unfinished(clone))

    clone.module("ops.sync")  # on a machine that has much else to do, a stage does not wait for its mirror

    experiments = shown(clone)
    assert sorted(experiments.values()) == sorted(map(float, RATES)), clone.dvc("queue", "status").stdout
    runs = clone.runs()
    assert {run["status"] for run in runs} == {"FINISHED"}
    for name in experiments:
        assert sorted(run["dvc.stage"] for run in runs if run.get("dvc.experiment") == name) == RERUN
    assert clone.git("status", "--porcelain") == ""

    name = next(iter(experiments))
    clone.dvc("exp", "branch", name, "kept")
    clone.git("checkout", "-q", "kept")
    clone.dvc("checkout")
    assert ran(clone.dvc("repro").stdout) == []
    assert clone.git("status", "--porcelain") == ""


def unfinished(clone: Clone) -> bool:
    lines = clone.dvc("queue", "status").stdout.splitlines()
    return any(line.rstrip().endswith(("Queued", "Running")) for line in lines)


def shown(clone: Clone) -> dict[str, float]:
    """Name -> learning rate of the experiments in `dvc exp show`."""
    found: dict[str, float] = {}
    for baseline in json.loads(clone.dvc("exp", "show", "--json").stdout):
        for experiment in baseline.get("experiments") or []:
            revision: dict[str, Any] = experiment["revs"][0]
            params = revision["data"]["params"]["params.yaml"]["data"]
            found[experiment["name"]] = params["finetune"]["learning_rate"]
    return found
