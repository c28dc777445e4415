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

from stages.bench.__main__ import main
from stages.bench.config import Backend, Bench, Precision, Variant
from stages.bench.responses import Responses
from stages.bench.slices import gap, slice_metrics
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
        "common/quantised.py",
    ):
        monkeypatch.setattr(
            fingerprint,
            "sha256",
            lambda path, end=changed: "other" if path.as_posix().endswith(end) else real(path),
        )
        found.add(fingerprint.fingerprint(*given))
    assert len(found) == 5


def rows(scores: dict[str, list[float]], dirty: int = 0) -> list[Any]:
    found = []
    for style, values in scores.items():
        found += [
            {"task": "t", "slices": {"style": style}, "scores": {"acc": value}, "clean": True}
            for value in values
        ]
    for row in found[:dirty]:
        row["clean"] = False
    return found


def test_slices_and_their_gap_by_hand() -> None:
    found = slice_metrics(rows({"a": [1.0] * 30 + [0.0] * 10, "b": [1.0] * 10 + [0.0] * 10}, dirty=8), 7)
    assert found["t/acc/style:a"]["value"] == 0.75 and found["t/acc/style:b"]["n"] == 20
    whole = found["t/acc/style:gap"]
    assert whole["value"] == 0.25 and whole["n"] == 60 and whole["lo"] < 0.25 < whole["hi"]
    # sqrt(.75*.25/40 + .5*.5/20) = 0.131: the normal interval is 0.25 -+ 0.257
    assert whole["lo"] == pytest.approx(-0.007, abs=0.04) and whole["hi"] == pytest.approx(0.507, abs=0.04)
    assert found["t/acc/clean"] | {"lo": 0, "hi": 0} == {"value": 32 / 52, "lo": 0, "hi": 0, "n": 52}
    assert gap([[1.0, 1.0], [0.0, 0.0]], 1) == {"value": 1.0, "lo": 1.0, "hi": 1.0, "n": 4}


def test_one_slice_alone_is_the_whole_and_is_not_shown_twice() -> None:
    assert slice_metrics(rows({"a": [1.0, 0.0]}), 7) == {}
    assert json.loads(json.dumps(slice_metrics([], 7))) == {}
