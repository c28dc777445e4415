"""finetune in several processes: the same losses as in one, whatever the strategy, and the same bits each time."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from stages.finetune.config import Finetune, Objective, Strategy, World
from stages.finetune.launch import JOB
from stages.finetune.progress import PROGRESS, Progress
from stages.finetune.train import RESULT
from tests.life import wait_for
from tests.stages.finetune_runs import ROOT, WORLDS, Life, content
from tests.stages.finetune_section import FULL, LORA, section

pytestmark = pytest.mark.slow
CFG = section(FULL, batch_size=4, max_steps=10, eval_every=5, weight_decay=0.1, samples=0)


def done(prepared: Path, name: str, cfg: Finetune) -> Life:
    life = Life(prepared / name, cfg).run()
    assert life.returncode == 0, life.log()[-3000:]
    return life


def progress(life: Life) -> Progress:
    return Progress.read(life.work / RESULT / PROGRESS)


def test_one_process_and_two_reach_equal_losses(prepared: Path) -> None:
    """Within 1e-5 relative for the same global batch, DDP and FSDP2, with and without accumulation."""
    one = progress(done(prepared, "one", CFG))
    for name, world, parts in (
        ("ddp", WORLDS["ddp"], 1),
        ("parts", WORLDS["ddp"], 2),
        ("fsdp", WORLDS["fsdp"], 1),
    ):
        two = progress(done(prepared, name, replace(CFG, world=world, gradient_accumulation=parts)))
        assert two.losses == pytest.approx(one.losses, rel=1e-5), name
        assert dict(two.evaluations) == pytest.approx(dict(one.evaluations), rel=1e-5), name
    assert one.losses[-1] < one.losses[0]


@pytest.mark.parametrize("world", ["ddp", "fsdp"])
def test_two_processes_repeat_to_the_last_bit(prepared: Path, world: str) -> None:
    cfg = replace(CFG, method=replace(LORA, dropout=0.1), world=WORLDS[world])
    first, again = done(prepared, "first", cfg), done(prepared, "again", cfg)
    assert content(first.work / RESULT) == content(again.work / RESULT)


def test_two_processes_learn_preferences(prepared_pairs: Path) -> None:
    cfg = replace(CFG, objective=Objective.dpo, max_steps=6, eval_every=3)
    one = progress(done(prepared_pairs, "one", cfg))
    two = progress(done(prepared_pairs, "two", replace(cfg, world=WORLDS["ddp"])))
    assert two.losses == pytest.approx(one.losses, rel=1e-4)


def test_two_machines_equal_one_with_as_many_processes(prepared: Path) -> None:
    """Two agents that meet at a port, each with one process; the second machine is there first, and waits."""
    together = replace(CFG, world=WORLDS["ddp"])
    apart = replace(CFG, world=World("two", 2, 1, Strategy.ddp))
    life = Life(prepared / ".ckpt/finetune-apart", apart)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        os.environ["LATHE_RENDEZVOUS"] = f"localhost:{free.getsockname()[1]}"
    try:
        second = node(prepared)
        wait_for("the second machine", lambda: b"waiting" in (prepared / "second.log").read_bytes())
        first = life.start()
        assert (first.wait(), second.wait()) == (0, 0), life.log()[-3000:]
    finally:
        del os.environ["LATHE_RENDEZVOUS"]
    assert content(life.work / RESULT) == content(done(prepared, "together", together).work / RESULT)
    assert not (life.work / JOB).exists()


def node(root: Path) -> subprocess.Popen[bytes]:
    """The further machine, as its user starts it."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "DVC_ROOT": str(root), "LATHE_CHECKPOINT_STEPS": "2"}
    with (root / "second.log").open("wb") as log:
        command = (sys.executable, "-m", "stages.finetune.node")
        return subprocess.Popen(command, cwd=root, env=env, stdout=log, stderr=log)


def test_several_machines_without_a_meeting_point_are_one_clear_line(prepared: Path) -> None:
    life = Life(prepared / "apart", replace(CFG, world=World("nodes2", 2, 1, Strategy.ddp))).run()
    assert life.returncode == 1
    line = life.refusal()
    assert "finetune.world.nodes=2 (conf/world/nodes2.yaml): set LATHE_RENDEZVOUS=" in line


def test_a_failure_in_one_process_is_one_clear_line(prepared: Path) -> None:
    cfg = replace(CFG, world=WORLDS["ddp"], learning_rate=1e30, max_grad_norm=0.0, warmup_steps=0)
    life = Life(prepared / "two", cfg).run()
    assert life.returncode == 1
    line = life.refusal()
    assert line.startswith("ValueError: the ") and "stopped before the update" in line
    assert not (life.work / RESULT).exists()
