"""bench, killed between tasks by a real SIGKILL: what is finished is not asked again, and the results are the same."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stages.bench import __main__ as bench
from stages.bench.__main__ import main
from stages.bench.config import Backend, Bench, Precision, Variant
from stages.bench.responses import Responses
from stages.common.prompt import Prompt
from tests.small_project import HOUSE
from tests.stages.test_bench import NO_CODE, ROWS, write

TASKS = ["heldout_loss", "helpdesk_intent", "helpdesk_triage"]


# Whichever the agent sees first: the one that was killed, or the one that lost it
ONE_DIED = r"process \d of 2 (was killed by signal 9|failed).*; the next run asks no finished task again"


def run(model: str) -> Any:
    cfg = Bench(7, 2, "sample", TASKS, 0, 2, 256, Prompt("p", "", [], 8), 0, True, ["style"], NO_CODE)
    return main(cfg, "base", Variant(model, "", Precision.fp32, Backend.own, {}))


def life(model: Path, point: str, processes: int) -> subprocess.CompletedProcess[str]:
    """The stage in a process of its own, and what it left of itself."""
    command = [sys.executable, "-m", "tests.stages.bench_life", str(model), point]
    env = os.environ | {"PYTHONPATH": str(HOUSE), "LATHE_BENCH_PROCESSES": str(processes)}
    return subprocess.run(command, env=env, stderr=subprocess.PIPE, text=True, check=False, timeout=300)


def lines(name: str) -> list[str]:
    """What the processes noted, in order of their ranks; the notes are removed."""
    files = sorted(Path().glob(f"{name}-*"))
    found = [line for file in files for line in file.read_text().split()]
    for file in files:
        file.unlink()
    return found


def dead(pid: str) -> bool:
    """Whether the process has ended, also where nobody has asked for its exit status yet."""
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize(("point", "processes"), [("stage", 1), ("stage", 2), ("worker", 2)])
def test_finished_tasks_are_not_asked_again_and_the_results_are_the_same(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, point: str, processes: int
) -> None:
    """Killed is the stage, or one of its processes; none of them is left alive."""
    monkeypatch.chdir(tmp_path)
    write(ROWS)
    path = Path("data/results/base.parquet")
    run(str(tiny_model))
    expected = path.read_bytes()
    path.unlink()
    assert not list(Path(".ckpt").glob("bench*"))

    killed = life(tiny_model, point, processes)
    assert not path.exists() and len(list(Path(".ckpt").glob("bench.base-*/*-*.json"))) == 2
    if point == "stage":
        assert killed.returncode == -signal.SIGKILL
    else:
        assert killed.returncode == 1
        assert re.fullmatch(ONE_DIED, killed.stderr.splitlines()[-1]), killed.stderr
    pids, end = lines("pids"), time.monotonic() + 20
    while left := [pid for pid in pids if not dead(pid)]:
        assert time.monotonic() < end, left
        time.sleep(0.1)
    assert len(pids) == (processes + 1 if processes > 1 else 1) and lines("asked")[:2] == TASKS[:2]

    again = life(tiny_model, "", processes)
    assert again.returncode == 0, again.stderr
    assert lines("asked") == TASKS[2:] * processes
    assert path.read_bytes() == expected


def test_answers_outlive_an_error_in_the_metrics(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(ROWS)
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(bench, "slice_metrics", lambda *_: (_ for _ in ()).throw(MemoryError()))
        run(str(tiny_model))
    assert len(list(Path(".ckpt").glob("bench.base-*/*.json"))) == len(TASKS)
    run(str(tiny_model))
    assert not list(Path(".ckpt").glob("bench*"))


def test_answers_are_kept_for_the_very_same_requests_alone(tmp_path: Path) -> None:
    kept = Responses(tmp_path / "work")
    asked = [("a", "b"), ("a", "c")]
    assert (
        kept.of("loglikelihood", "t", asked, lambda: [[-1.5, 2, True], [float("-inf"), 1, False]]) is not None
    )
    again = kept.of("loglikelihood", "t", asked, pytest.fail)
    assert again == [[-1.5, 2, True], [float("-inf"), 1, False]]
    assert kept.of("loglikelihood", "t", asked[:1], lambda: ["other"]) == ["other"]
    assert kept.of("generate", "t", asked, lambda: ["another"]) == ["another"]
    assert kept.of("loglikelihood", "u", asked, lambda: ["third"]) == ["third"]


def test_what_a_task_draws_does_not_depend_on_the_tasks_before_it(tmp_path: Path, tiny_model: Path) -> None:
    """One that was answered before the kill draws nothing after it."""
    from lm_eval.api.instance import Instance

    from stages.bench.model import Scorer

    cfg = Bench(7, 2, "sample", [], 0, 2, 256, Prompt("p", "", [], 8), 0, True, ["style"], NO_CODE)
    chosen = Variant(str(tiny_model), "", Precision.fp32, Backend.own, {})
    drawn = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 8}

    def asked(*tasks: str, kept: Path | None = None, seed: int = 7) -> list[str]:
        requests = [Instance("generate_until", {}, ("hello", dict(drawn)), 0, (task, 0, 1)) for task in tasks]
        return Scorer(replace(cfg, seed=seed), chosen, kept).generate_until(requests)

    one, two = asked("one", "two", kept=tmp_path)
    for path in tmp_path.iterdir():
        if json.loads(path.read_text()) == [two]:
            path.unlink()
    assert asked("one", "two", kept=tmp_path) == [one, two] == [*asked("one"), *asked("two")]
    assert one != two and asked("two", seed=8) != [two]


def test_answers_are_kept_for_the_very_files_that_decide_them(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what loads a model, which lies outside of the stage, and the tasks' YAML."""
    from stages.bench import fingerprint

    cfg = Bench(7, 2, "sample", TASKS, 0, 2, 256, Prompt("p", "", [], 8), 0, True, ["style"], NO_CODE)
    given = cfg, Variant(str(tiny_model), "", Precision.fp32, Backend.own, {})
    found, real = {fingerprint.fingerprint(*given)}, fingerprint.sha256
    for changed in (
        "bench/generation.py",
        "bench/tasks/helpdesk_triage.yaml",
        "common/adapter.py",
        "common/prompt.py",
        "common/quantised.py",
    ):
        monkeypatch.setattr(
            fingerprint,
            "sha256",
            lambda path, end=changed: "other" if path.as_posix().endswith(end) else real(path),
        )
        found.add(fingerprint.fingerprint(*given))
    assert len(found) == 6
