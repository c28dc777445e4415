"""finetune, killed: at every kind of moment, in one process and in two, and still the same to the last bit."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from stages.finetune.checkpoint import verify
from stages.finetune.config import Finetune, Scheduler
from tests.life import wait_for
from tests.stages.finetune_runs import WORLDS, Life, same
from tests.stages.finetune_section import LORA, section
from tests.stages.finetune_shapes import SOUND, tiny

pytestmark = pytest.mark.slow
SOAK = "LATHE_SOAK" in os.environ
LONG = pytest.mark.skipif(not SOAK, reason="an hour: make soak")
# A dropout, so that the state of the random numbers matters; 12 rows in batches of 2, so that a pass is 6 steps.
CFG = section(
    replace(LORA, dropout=0.2),
    max_steps=20,
    eval_every=4,
    keep_best=True,
    weight_decay=0.1,
    scheduler=Scheduler.linear,
)
# Each life begins where the one before was killed; the numbers count calls within that life.
LIVES = ("saving-2", "step-4", "committed-2", "renaming-2", "evaluating-1", "turn-3", "end-1")


@pytest.mark.parametrize("world", ["one", "ddp", pytest.param("fsdp", marks=[pytest.mark.soak, LONG])])
def test_killed_seven_times_and_identical(prepared: Path, world: str) -> None:
    cfg = replace(CFG, world=WORLDS[world])
    calm = Life(prepared / "calm", cfg).run()
    assert calm.returncode == 0, calm.log()
    life = Life(prepared / "killed", cfg)
    for point in LIVES if world == "one" or SOAK else LIVES[::2]:
        life.run(point)
        assert life.returncode != 0, f"{point} was never reached"
        assert not [path for path in life.checkpoints() if verify(path)]
    life.run()
    assert life.returncode == 0, life.log()
    assert "resumed from" in life.log()
    same(calm, life)


@pytest.mark.parametrize("shape", ["gpt-neox", "mixtral"])
def test_weights_that_have_other_names_in_a_model_folder_are_taken_up_again(
    prepared: Path, shape: str
) -> None:
    """save_pretrained writes them under the names of the hub, which load_state_dict would pass over."""
    base = prepared / "models/base"
    shared = base.resolve()  # by all tests
    base.unlink()
    shutil.copytree(shared, base)
    (base / "model.safetensors").unlink()
    tiny(SOUND[shape]).save_pretrained(base)
    resumes(prepared, section(max_steps=8, batch_size=4), "step-7")


@pytest.mark.parametrize(("world", "parts"), [("three", 1), ("fsdp", 3)])
def test_three_processes_and_shards_are_taken_up_again(prepared: Path, world: str, parts: int) -> None:
    """Two ranks' gradients sum to the same in any order, three ranks' do not: their buckets must stay as they are.

    Killed after the first part of step 5: what was summed of it, shard by shard, is computed anew.
    """
    cfg = section(max_steps=9, batch_size=6, gradient_accumulation=parts, world=WORLDS[world])
    resumes(prepared, cfg, f"step-{4 * parts + 1}")


@pytest.mark.soak
@LONG
@pytest.mark.parametrize("world", ["one", "ddp"])
@pytest.mark.parametrize(
    "point", ["step-5", "committed-2", "saving-2", "renaming-3", "evaluating-4", "turn-6", "end-1"]
)
def test_killed_once_at_each_point(prepared: Path, world: str, point: str) -> None:
    cfg = replace(CFG, world=WORLDS[world])
    calm, life = Life(prepared / "calm", cfg).run(), Life(prepared / "killed", cfg)
    assert life.run(point).returncode != 0
    assert life.run().returncode == 0, life.log()
    same(calm, life)


KILLS = 50 if SOAK else 3


@pytest.mark.soak
@pytest.mark.parametrize("world", ["one", "ddp"])
def test_killed_at_random_moments(prepared: Path, world: str) -> None:
    """SIGKILL to the process group; the processes that the agent started in groups of their own end with it."""
    if world != "one" and not SOAK:
        pytest.skip("make soak")
    cfg, kills = replace(CFG, world=WORLDS[world]), KILLS if world == "one" else KILLS // 2
    began = time.monotonic()
    calm = Life(prepared / "calm", cfg).run()
    whole, moments = time.monotonic() - began, random.Random(17)
    for number in range(kills):
        life = Life(prepared / f"killed-{number}", cfg)
        life.run(seconds=moments.uniform(0.3, 1.0) * whole)
        life.run()
        assert life.returncode == 0, life.log()
        same(calm, life)


def test_the_processes_end_with_the_stage(prepared: Path) -> None:
    """Only the stage is killed, as by a memory killer: no process that it started computes on."""
    life = Life(prepared / "two", replace(CFG, world=WORLDS["ddp"], max_steps=100_000))
    process = life.start()
    try:
        wait_for("a checkpoint", lambda: bool(life.checkpoints()) or process.poll() is not None)
        workers = descendants(process.pid)
        assert len(workers) == 2, life.log()
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    wait_for("the end of its processes", lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


def test_one_killed_process_ends_the_run_in_one_line(prepared: Path) -> None:
    life = Life(prepared / "two", replace(CFG, world=WORLDS["ddp"])).run("step-5")
    assert life.returncode == 1
    line = life.refusal()
    assert (
        line.startswith("ValueError: process 1 of 2 was killed by signal 9")
        and "goes on from the last" in line
    )


def resumes(prepared: Path, cfg: Finetune, point: str) -> None:
    """Assert that a run killed at the point goes on from a checkpoint, to what one that was not killed ends with."""
    calm, life = Life(prepared / "calm", cfg).run(), Life(prepared / "killed", cfg)
    assert calm.returncode == 0, calm.log()
    assert life.run(point).returncode != 0
    assert life.run().returncode == 0, life.log()
    assert "resumed from" in life.log()
    same(calm, life)


def descendants(pid: int) -> list[int]:
    """Processes that train: those of torchrun's agent with a rank."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == pid and b"RANK=" in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found
