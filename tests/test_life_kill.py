"""SIGKILL in each stage in turn, then `dvc repro`: the same bytes as undisturbed, and no run left RUNNING."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stages.common import journal as journals
from tests.life import STAGES, Clone, Finished, copy, fresh, smoke, wait_for

pytestmark = pytest.mark.slow
REPRO = (sys.executable, "-m", "dvc", "repro")


def test_killed_in_each_stage_in_turn(source: Clone, finished: Finished, tmp_path: Path) -> None:
    """Twice in each: when its run has begun, and when one of its outs stands in the workspace, whole or half."""
    clone = smoke(source, tmp_path / "lathe")
    left = set(STAGES) - {"conf"}
    while left:
        stage = kill_when_begun(clone, left)
        kill_when_it_writes(clone, stage, finished.clone.lock()[stage])
        left.remove(stage)
    clone.dvc("repro")
    clone.module("ops.sync")

    assert clone.lock() == finished.clone.lock()
    assert clone.outs() == finished.clone.outs()
    runs = clone.runs()
    assert {run["status"] for run in runs} == {"FINISHED", "KILLED"}
    assert {run["dvc.stage"] for run in runs if run["status"] == "KILLED"} == set(STAGES) - {"conf"}
    assert {run["failed"] for run in runs if run["status"] == "KILLED"} == {"true"}


def kill_when_begun(clone: Clone, stages: set[str]) -> str:
    """Kill `dvc repro` in the first of `stages` to open its run; returns which."""
    known = opened(clone)
    with clone.group(*REPRO) as process:
        return tags(begun(clone, process, known, stages))["dvc.stage"]


def kill_when_it_writes(clone: Clone, stage: str, lock: dict[str, list[dict[str, str]]]) -> None:
    """Kill it in `stage` with an out there, or at the end of the stage if that comes first."""
    known = opened(clone)
    outs = [clone.root / out["path"] for out in lock["outs"] if not out["path"].startswith("metrics/")]
    with clone.group(*REPRO) as process:
        run = begun(clone, process, known, {stage})
        wait_for(f"an out of {stage}", lambda: any(out.exists() for out in outs) or journals.ended(run))


def begun(clone: Clone, process: subprocess.Popen[bytes], known: set[Path], stages: set[str]) -> Path:
    """The journal of the first run beyond the `known` ones that one of `stages` has opened."""
    found: list[Path] = []

    def look() -> bool:
        found[:] = [run for run in sorted(opened(clone) - known) if tags(run).get("dvc.stage") in stages]
        assert found or process.poll() is None, clone.log.read_text()[-3000:]
        return bool(found)

    wait_for(f"a run of {', '.join(stages)}", look)
    return found[0]


def opened(clone: Clone) -> set[Path]:
    """The journals of the clone's runs: MLflow hears of them a few seconds later."""
    return set(journals.folder(clone.root).glob("[0-9]*"))


def tags(journal: Path) -> dict[str, str]:
    """Of a run, none where its first line is not yet there."""
    head = journals.header(journal)
    return dict(head["tags"]) if head else {}


def test_a_stage_dies_with_dvc(finished: Finished, tmp_path: Path) -> None:
    """Only DVC is killed, as by a memory killer: its stage must not write on into the next run's outs."""
    clone = copy(finished.clone, tmp_path / "lathe")
    with clone.group(*REPRO, "--force", "--single-item", "prepare") as process:
        stage = int(tags(begun(clone, process, opened(clone), {"prepare"}))["lathe.pid"])
        os.kill(process.pid, signal.SIGKILL)
        wait_for("the end of the stage", lambda: not alive(stage))
    clone.dvc("repro")
    assert clone.outs() == finished.clone.outs()


CONNECT = """
from pathlib import Path
from stages.common.store import connect, ensure_experiment
print(ensure_experiment(connect(Path.cwd()), "Helpdesk-Tiny", Path.cwd()))
"""


@pytest.mark.parametrize("size", [1, 200_000, 500_000])
def test_killed_while_the_store_is_made(source: Clone, tmp_path: Path, size: int) -> None:
    """A store with half of MLflow's schema never opens again, so none must stand in its place."""
    clone = fresh(source, tmp_path / "lathe")
    draft = clone.root / "mlflow.db.draft"
    with clone.group(sys.executable, "-c", CONNECT) as process:
        wait_for(f"{size} bytes", lambda: held(draft) >= size or process.poll() is not None)
    assert process.returncode == -signal.SIGKILL
    assert clone.run(sys.executable, "-c", CONNECT).stdout == "1\n"
    assert [path.name for path in clone.root.glob("mlflow.db*")] == ["mlflow.db"]


def held(path: Path) -> int:
    """Bytes in a file, 0 where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie: in a container there may be nobody to collect it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
