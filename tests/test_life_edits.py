"""What an edit re-runs, and what stops before anything runs, in a clone that has run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.life import Clone, Finished, copy, ran

pytestmark = pytest.mark.slow


@pytest.fixture
def clone(finished: Finished, tmp_path: Path) -> Clone:
    return copy(finished.clone, tmp_path / "lathe")


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text, f"{path} no longer holds {old!r}: mend this test"
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_a_change_in_judge_reruns_judge_and_register(clone: Clone) -> None:
    extra = '{**main(cfg), "judge/extra": {"value": 1.0, "lo": 1.0, "hi": 1.0, "n": 1}}'
    edit(clone.root / "stages/judge/__main__.py", "run(Judge, main)", f"run(Judge, lambda cfg: {extra})")
    assert ran(clone.dvc("repro").stdout) == ["judge", "register"]


def test_a_comment_in_judge_reruns_judge_alone(clone: Clone) -> None:
    """Its outs come out the same, so nothing after it has to run."""
    with (clone.root / "stages/judge/verdicts.py").open("a", encoding="utf-8") as file:
        file.write("# a comment\n")
    assert ran(clone.dvc("repro").stdout) == ["judge"]


def test_an_edit_under_conf_stops_with_the_command_to_run(clone: Clone) -> None:
    before = clone.outs()
    edit(clone.root / "conf/drift/default.yaml", "\n", "  # edited\n")
    done = clone.dvc("repro", ok=False)
    assert done.returncode != 0
    assert ran(done.stdout) == ["conf"]
    assert "conf: conf/drift/default.yaml is not the file that params.yaml was composed from" in done.stderr
    assert "python -m ops.compose" in done.stderr
    assert "Traceback" not in done.stderr
    clone.module("ops.compose", "experiment=smoke")
    assert ran(clone.dvc("repro").stdout) == ["conf"]
    assert clone.outs() == before


def test_an_edit_of_params_by_hand_stops(clone: Clone) -> None:
    edit(clone.root / "params.yaml", "max_steps: 8", "max_steps: 9")
    done = clone.dvc("repro", ok=False)
    assert done.returncode != 0
    assert ran(done.stdout) == ["conf"]
    assert "conf: params.yaml was edited by hand" in done.stderr
    assert "python -m ops.compose" in done.stderr


def test_a_conf_file_that_took_no_part_stops_nothing(clone: Clone) -> None:
    edit(clone.root / "conf/bench/gsm8k.yaml", "\n", "  # edited\n")
    (clone.root / "conf/experiment/mine.yaml").write_text("# @package _global_\nexperiment: mine\n")
    assert ran(clone.dvc("repro").stdout) == ["conf"]


REFUSED = {
    "finetune.learning_rate=abc": ["finetune.learning_rate", "abc", "Float"],
    "finetune.lr=3": ["finetune.lr", "Key 'lr' not in 'Finetune'"],
    "model=nope": ["model/nope", "tiny", "qwen2.5-0.5b"],
    "finetune.init=foo": ["finetune.init", "foo", "base", "random"],
}


def test_dvc_exp_run_refuses_before_any_stage(clone: Clone) -> None:
    for override, named in REFUSED.items():
        done = clone.dvc("exp", "run", "-S", "experiment=smoke", "-S", override, ok=False)
        assert done.returncode != 0
        assert ran(done.stdout) == []
        assert [word for word in named if word not in done.stderr] == []
        assert "Traceback" not in done.stderr
    assert clone.git("status", "--porcelain") == ""
    assert clone.runs() == []
