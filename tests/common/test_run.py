"""The runner and the tracker, against a real MLflow store: nothing lost, nothing left RUNNING."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from stages.common.store import close_dead_runs, connect
from tests.life import wait_for

ROOT = Path(__file__).resolve().parents[2]
PARAMS = """
experiment: default
model: {name: tiny, family: Tiny}
data: {name: rows}
tracking: {name: default, mirrors: [mlflow], task: Test, user: ada, purpose: "", experiment_id: ""}
probe: {seed: 7, fail: false, points: 3, wait: false, kind: a}
variants: {base: {path: models/base}}
"""
STAGE = """
    import time
    from dataclasses import dataclass
    from enum import Enum
    from pathlib import Path
    from stages.common.run import run
    from stages.common.statistics import wilson
    from stages.common.tracking import track

    class Kind(Enum):
        a = 1
        b = 2

    @dataclass
    class Probe:
        seed: int
        fail: bool
        points: int
        wait: bool
        kind: Kind

    @dataclass
    class Entry:
        path: str

    def main(cfg, name="", entry=None):
        for step in range(cfg.points):
            track.metric("loss", 1.0 / (step + 1), step)
        if cfg.wait:
            Path("started").touch()
            time.sleep(600)
        if cfg.fail:
            raise RuntimeError("the disk is on fire")
        return {"probe/accuracy": wilson(8, 10)}

    if __name__ == "__main__":
        run(Probe, main, VARIANT)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "params.yaml").write_text(PARAMS)
    (tmp_path / "probe.py").write_text(textwrap.dedent(STAGE).replace("VARIANT", "None"))
    (tmp_path / "varied.py").write_text(textwrap.dedent(STAGE).replace("VARIANT", "Entry"))
    return tmp_path


def environment(**more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "DVC", "LATHE"))}
    return kept | {"PYTHONPATH": str(ROOT)} | more


def start(
    project: Path, *arguments: str, module: str = "probe", **more: str
) -> subprocess.CompletedProcess[str]:
    """The stage, and what its mirror had no time for on a slow machine."""
    done, _ = (
        subprocess.run(
            [sys.executable, "-m", *command],
            cwd=project,
            env=environment(**more),
            capture_output=True,
            text=True,
            check=False,
        )
        for command in ((module, *arguments), ("ops.sync",))
    )
    return done


def runs(project: Path) -> list:  # type: ignore[type-arg]
    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    return client.search_runs(ids)


@contextmanager
def running(project: Path, expected: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A stage that waits for ever, once MLflow has its run: the runs there are `expected` then."""
    command = [sys.executable, "-m", "probe", "probe.wait=true"]
    with subprocess.Popen(command, cwd=project, env=environment(), stderr=subprocess.DEVNULL) as process:
        wait_for("its run", lambda: process.poll() is not None or statuses(project) == expected)
        yield process
        process.kill()


def statuses(project: Path) -> list[str]:
    """Of all runs, without MLflow, which would make the store that the stage is making."""
    try:
        with closing(sqlite3.connect(f"file:{project / 'mlflow.db'}?mode=ro", uri=True)) as store:
            return sorted(status for (status,) in store.execute("select status from runs"))
    except sqlite3.OperationalError:
        return []


def test_a_run_carries_metrics_facts_and_log(project: Path) -> None:
    done = start(project, "probe.points=5")
    assert done.returncode == 0, done.stderr
    written = json.loads((project / "metrics/probe.json").read_text())
    assert written["probe/accuracy"]["value"] == 0.8 and written["probe/accuracy"]["n"] == 10
    (run,) = runs(project)
    assert run.info.status == "FINISHED" and run.info.run_name == "tiny-probe"
    assert run.data.params["points"] == "5" and run.data.metrics["probe/accuracy"] == 0.8
    assert {
        "hardware.cpu",
        "hardware.isa",
        "python",
        "version.torch",
        "user",
        "params.digest",
    } <= run.data.tags.keys()
    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 5
    assert client.get_experiment(run.info.experiment_id).name == "Test-Tiny"
    assert [item.path for item in client.list_artifacts(run.info.run_id)] == [
        "environment.txt",
        "section.json",
        "stage.log",
    ]
    assert "empty tags, set LATHE_PURPOSE, LATHE_EXPERIMENT_ID" in done.stderr


def test_a_failure_is_tagged_with_its_error_and_writes_no_metrics(project: Path) -> None:
    done = start(project, "probe.fail=true")
    assert done.returncode != 0 and done.stderr.count("RuntimeError: the disk is on fire") == 1
    assert not (project / "metrics").exists()
    (run,) = runs(project)
    assert run.info.status == "FAILED" and run.data.tags["failed"] == "true"
    assert run.data.tags["error"] == "RuntimeError: the disk is on fire"


def test_a_killed_run_is_closed_by_the_next_start(project: Path) -> None:
    with running(project, ["RUNNING"]) as process:
        process.send_signal(signal.SIGKILL)
    assert statuses(project) == ["RUNNING"]
    with running(project, ["KILLED", "RUNNING"]):
        assert statuses(project) == ["KILLED", "RUNNING"]


def test_a_living_run_of_another_process_is_left_alone(project: Path) -> None:
    with running(project, ["RUNNING"]):
        close_dead_runs(connect(project))
        assert statuses(project) == ["RUNNING"]


def test_four_processes_open_a_fresh_store_at_once(project: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "probe"], cwd=project, env=environment(), stderr=subprocess.PIPE
        )
        for _ in range(4)
    ]
    errors = [process.communicate()[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert not any("the run goes on" in error for error in errors), errors
    subprocess.run([sys.executable, "-m", "ops.sync"], cwd=project, env=environment(), check=True)
    assert [run.info.status for run in runs(project)] == ["FINISHED"] * 4


def test_a_dead_server_costs_a_warning_not_the_stage(project: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = start(project, MLFLOW_TRACKING_URI=f"http://127.0.0.1:{port}", MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    assert done.returncode == 0 and done.stderr.count("the run goes on") == 1
    assert f"events not sent to http://127.0.0.1:{port}: `python -m ops.sync` sends them" in done.stderr
    assert (project / "metrics/probe.json").is_file()


def test_what_mlflow_run_hands_down_is_a_parent_not_the_run(project: Path) -> None:
    assert start(project, MLFLOW_RUN_ID="0" * 32, MLFLOW_EXPERIMENT_ID="77").returncode == 0
    (run,) = runs(project)
    assert run.info.run_id != "0" * 32 and run.data.tags["mlflow.parentRunId"] == "0" * 32


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["probe.points=many"],
            "Value 'many' of type 'str' could not be converted to Integer full_key: points",
        ),
        (["probe.pionts=3"], "pionts"),
        (["probe.kind=c"], "expected one of [a, b]"),
        (["extra"], "unexpected argument 'extra'"),
    ],
)
def test_a_bad_value_is_one_line_before_any_work(project: Path, arguments: list[str], expected: str) -> None:
    done = start(project, *arguments)
    assert done.returncode == 1 and expected in done.stderr and "Traceback" not in done.stderr
    assert not (project / "mlflow.db").exists()


def test_a_variant_is_named_first_and_has_its_own_metrics_file(project: Path) -> None:
    assert start(project, "base", module="varied").returncode == 0
    assert (project / "metrics/probe/base.json").is_file()
    done = start(project, "tunde", module="varied")
    assert done.returncode == 1 and "variant 'tunde' is not under `variants`" in done.stderr


def test_no_outputs_folder_and_no_hijacked_logging(project: Path) -> None:
    start(project)
    assert not (project / "outputs").exists() and not (project / ".hydra").exists()


def test_a_stage_dies_with_the_process_that_started_it(project: Path) -> None:
    shell = f"{sys.executable} -m probe probe.wait=true & echo $!; wait"
    process = subprocess.Popen(
        ["bash", "-c", shell],
        cwd=project,
        env=environment(DVC_ROOT=str(project)),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    while not (project / "started").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    for _ in range(200):
        if (
            not Path(f"/proc/{child}").exists()
            or "Z" in Path(f"/proc/{child}/stat").read_text().split(")")[1][:3]
        ):
            return
        time.sleep(0.05)
    pytest.fail("the stage outlived its parent")
