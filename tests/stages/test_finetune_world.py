"""finetune in several processes: the same losses as in one, whatever the strategy, and the same bits each time."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from stages.common.files import read_json, write_json
from stages.common.workspace import workspace
from stages.finetune.config import Finetune, MethodConfig, Objective, Precision, Strategy, World
from stages.finetune.fingerprint import fingerprint
from stages.finetune.launch import JOB
from stages.finetune.progress import PROGRESS, Progress
from stages.finetune.train import RESULT
from tests.life import wait_for
from tests.stages.finetune_life import SECTION
from tests.stages.finetune_runs import ROOT, WORLDS, Life, content
from tests.stages.finetune_section import FULL, LORA, section

pytestmark = pytest.mark.slow
CFG = section(FULL, batch_size=4, max_steps=10, eval_every=5, weight_decay=0.1, samples=0)


def done(prepared: Path, name: str, cfg: Finetune, point: str = "") -> Life:
    life = Life(prepared / name, cfg).run(point)
    assert life.returncode == 0, life.log()[-3000:]
    return life


def progress(life: Life) -> Progress:
    return Progress.read(life.work / RESULT / PROGRESS)


def test_one_process_and_two_reach_equal_losses(prepared: Path) -> None:
    """Within 1e-5 relative for the same global batch, DDP and FSDP2, with and without accumulation.

    Under FSDP2 each part's gradients are in shards before the next one's: accumulation is there to save memory.
    """
    one = progress(done(prepared, "one", CFG))
    for name, world, parts in (
        ("ddp", WORLDS["ddp"], 1),
        ("parts", WORLDS["ddp"], 2),
        ("fsdp", WORLDS["fsdp"], 2),
    ):
        cfg = replace(CFG, world=world, gradient_accumulation=parts)
        life = done(prepared, name, cfg, "shards" if name == "fsdp" else "")
        sharded = list(life.checkpoints()[-1].glob("pytorch_model_fsdp*/*.distcp"))
        assert len(sharded) == (2 if name == "fsdp" else 0)
        two = progress(life)
        assert two.losses == pytest.approx(one.losses, rel=1e-5), name
        assert dict(two.evaluations) == pytest.approx(dict(one.evaluations), rel=1e-5), name
    assert one.losses[-1] < one.losses[0]


def test_losses_in_bf16_are_summed_in_fp32_whatever_the_strategy(prepared: Path) -> None:
    """FSDP2 would cast what the model returns, so that best weights were chosen by rounding."""
    found = {}
    for name in ("ddp", "fsdp"):
        cfg = replace(CFG, world=WORLDS[name], precision=Precision.bf16)
        found[name] = progress(done(prepared, name, cfg))
        # The mean of two numbers in bf16 has a few bits more than their eight
        coarse = [loss for loss in found[name].losses if math.frexp(loss)[0] * 4096 % 1 == 0]
        assert len(coarse) < 3, f"{name}: {found[name].losses}"
    # FSDP2 computes norms in bf16 too, which autocast leaves in fp32: near at first, each its own way later
    assert found["fsdp"].losses[0] == pytest.approx(found["ddp"].losses[0], rel=0.01)
    assert all(each.losses[-1] < each.losses[0] / 10 for each in found.values())


@pytest.mark.soak
@pytest.mark.skipif(
    "LATHE_SOAK" not in os.environ, reason="test_finetune_kill.py compares such runs: make soak"
)
@pytest.mark.parametrize("world", ["ddp", "fsdp"])
def test_two_processes_repeat_to_the_last_bit(prepared: Path, world: str) -> None:
    cfg = replace(CFG, method=replace(LORA, dropout=0.1), world=WORLDS[world])
    first, again = done(prepared, "first", cfg), done(prepared, "again", cfg)
    assert content(first.work / RESULT) == content(again.work / RESULT)


@pytest.mark.parametrize("method", [FULL, LORA], ids=["full", "lora"])
def test_two_processes_learn_preferences(prepared_pairs: Path, method: MethodConfig) -> None:
    cfg = replace(CFG, objective=Objective.dpo, method=method, max_steps=6, eval_every=3)
    one = progress(done(prepared_pairs, "one", cfg))
    for name in ("ddp", "fsdp") if method is LORA else ("fsdp",):
        two = progress(done(prepared_pairs, name, replace(cfg, world=WORLDS[name])))
        assert two.losses == pytest.approx(one.losses, rel=1e-4), name


def test_pairs_that_do_not_share_out_evenly_are_evaluated_as_in_one_process(prepared_pairs: Path) -> None:
    """TRL gathers a number for each pair: processes with unlike many would end the run, or hang on GPUs."""
    path = prepared_pairs / "data/prepared/pairs.parquet"
    pairs = pq.read_table(path)
    pq.write_table(pairs.slice(0, pairs.num_rows - 1), path)  # 11 of split valid, in parts of 2
    cfg = replace(CFG, objective=Objective.dpo, method=LORA, max_steps=3, eval_every=3)
    one, two = (done(prepared_pairs, name, replace(cfg, world=WORLDS[name])) for name in ("one", "ddp"))
    assert dict(progress(two).evaluations) == pytest.approx(dict(progress(one).evaluations), rel=1e-5)


def test_two_machines_equal_one_with_as_many_processes(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Two agents that meet at a port, each with one process; the second machine is there first, and waits.

    It is started elsewhere than where the first one works, as for `dvc exp run --temp`.
    """
    together = replace(CFG, world=WORLDS["ddp"])
    apart = replace(CFG, world=World("two", 2, 1, Strategy.ddp))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        monkeypatch.setenv("LATHE_RENDEZVOUS", f"localhost:{free.getsockname()[1]}")
    monkeypatch.setenv("DVC_ROOT", str(prepared))
    killed = Life(
        prepared / ".ckpt/finetune-0123456789abcdef", apart
    )  # has left its job, and nobody works there
    write_json(killed.work / JOB, read_json(killed.work / SECTION) | {"journal": "", "workspace": "/"})
    second = node(prepared, tmp_path_factory.mktemp("elsewhere"))
    wait_for("the second machine", lambda: b"waiting" in (prepared / "second.log").read_bytes())
    with workspace("finetune", fingerprint(apart)) as work:
        life = Life(work, apart)
        first = life.start()
        assert (first.wait(), second.wait()) == (0, 0), life.log()[-3000:]
        assert content(life.work / RESULT) == content(done(prepared, "together", together).work / RESULT)
        assert not (life.work / JOB).exists()


def test_a_second_machine_that_sees_other_rows_is_refused(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("LATHE_RENDEZVOUS", "localhost:29500")
    monkeypatch.setenv("DVC_ROOT", str(prepared))
    apart = replace(CFG, world=World("two", 2, 1, Strategy.ddp))
    with workspace("finetune", fingerprint(apart)) as work:
        life = Life(work, apart)
        told = {"journal": "", "workspace": str(prepared)}
        (prepared / "data/prepared/valid.parquet").write_bytes(b"others")
        write_json(work / JOB, read_json(life.work / SECTION) | told)
        second = node(prepared, tmp_path_factory.mktemp("elsewhere"))
        assert second.wait() == 1
    assert "are not the first one's" in (prepared / "second.log").read_text().splitlines()[-1]


def node(root: Path, cwd: Path) -> subprocess.Popen[bytes]:
    """The further machine, as its user starts it."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "LATHE_CHECKPOINT_STEPS": "2"}
    with (root / "second.log").open("wb") as log:
        command = (sys.executable, "-m", "stages.finetune.node")
        return subprocess.Popen(command, cwd=cwd, env=env, stdout=log, stderr=log)


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
