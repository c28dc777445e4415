"""bench, killed between tasks by a real SIGKILL: what is finished is not asked again, and the results are the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
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
# Ends itself when the third task of the suite is about to be asked.
LIFE = """
import os, signal, sys
from stages.bench.responses import Responses
real, asked = Responses.of, []
def of(self, kind, task, requests, ask):
    asked.append(task)
    if len(asked) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, kind, task, requests, ask)
Responses.of = of
from tests.stages.test_bench_kill import run
run(sys.argv[1])
"""


def run(model: str) -> Any:
    cfg = Bench(7, 2, "sample", TASKS, 0, 2, 256, Prompt("p", "", [], 8), 0, True, ["style"], NO_CODE)
    return main(cfg, "base", Variant(model, "", Precision.fp32, Backend.own, {}))


def test_finished_tasks_are_not_asked_again_and_the_results_are_the_same(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stages.bench.generation import Generation
    from stages.bench.likelihood import Likelihood

    monkeypatch.chdir(tmp_path)
    write(ROWS)
    path = Path("data/results/base.parquet")
    calm = run(str(tiny_model))
    expected = path.read_bytes()
    path.unlink()
    assert not list(Path(".ckpt").glob("bench*"))

    command = [sys.executable, "-c", LIFE, str(tiny_model)]
    killed = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(HOUSE)}, check=False)
    assert killed.returncode == -signal.SIGKILL and not path.exists()
    assert len(list(Path(".ckpt").glob("bench.base-*/*.json"))) == 2

    asked = []
    for kind, name in ((Likelihood, "score"), (Generation, "complete")):
        real = getattr(kind, name)

        def spy(self: Any, *given: Any, name: str = name, real: Any = real) -> Any:
            asked.append(name)
            return real(self, *given)

        monkeypatch.setattr(kind, name, spy)
    assert run(str(tiny_model)) == calm
    assert path.read_bytes() == expected and len(asked) == 1


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
