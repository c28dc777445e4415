"""Training runs in processes of their own, and what makes two of them the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stages.common.files import write_json
from stages.finetune.config import Finetune, Strategy, World
from stages.finetune.launch import plain
from tests.stages.finetune_life import SECTION

ROOT = Path(__file__).parents[2]
WORLDS = {
    "one": World("one", 1, 1, Strategy.ddp),
    "ddp": World("two", 1, 2, Strategy.ddp),
    "three": World("three", 1, 3, Strategy.ddp),
    "fsdp": World("two", 1, 2, Strategy.fsdp),
}


class Life:
    """A work folder and the processes that train in it, one after the other."""

    def __init__(self, work: Path, cfg: Finetune) -> None:
        self.work, self.returncode = work, -1
        work.mkdir(parents=True, exist_ok=True)
        write_json(work / SECTION, {"section": plain(asdict(cfg))})

    def start(self, point: str = "") -> subprocess.Popen[bytes]:
        env = os.environ | {
            "PYTHONPATH": str(ROOT), "LATHE_CHECKPOINT_STEPS": "2", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"
        }  # fmt: skip
        with self.work.with_suffix(".log").open("wb") as log:
            command = (sys.executable, "-m", "tests.stages.finetune_life", str(self.work), point)
            return subprocess.Popen(
                command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def run(self, point: str = "", seconds: float | None = None) -> Life:
        process = self.start(point)
        try:
            self.returncode = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            self.returncode = process.wait()
        return self

    def log(self) -> str:
        return self.work.with_suffix(".log").read_text(errors="replace")

    def refusal(self) -> str:
        """The line that the stage would end with."""
        return [line for line in self.log().splitlines() if line.startswith("ValueError: ")][-1]

    def checkpoints(self) -> list[Path]:
        return sorted((self.work / "checkpoints").glob("step-*"))


def same(calm: Life, killed: Life) -> None:
    """Result, last checkpoint (weights, optimizer, schedule, random states) and progress are equal, bit by bit."""
    assert content(calm.work / "result") == content(killed.work / "result")
    assert [path.name for path in calm.checkpoints()] == [path.name for path in killed.checkpoints()]
    newest = (calm.checkpoints()[-1], killed.checkpoints()[-1])
    names = [
        sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file()) for folder in newest
    ]
    assert names[0] == names[1]
    for name in names[0]:
        if name.name not in ("MANIFEST", "adapter_config.json") and name.suffix != ".distcp":
            assert equal(read(newest[0] / name), read(newest[1] / name)), name


def content(folder: Path) -> dict[str, bytes]:
    """Weights and progress; PEFT writes sets into adapter_config.json, whose order outs.py mends."""
    names = ("model.safetensors", "adapter_model.safetensors", "progress.json")
    found = {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.name in names}
    assert len(found) == 2
    return found


def read(path: Path) -> Any:
    """What torch saved, as values: its archive's bytes carry the folder's name, and FSDP2's shards an order."""
    import torch
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    if path.name == ".metadata":  # of the shards beside it
        whole = path.parents[2] / f"{path.parent.parent.name}-{path.parent.name}.pt"
        dcp_to_torch_save(path.parent, whole)
        return torch.load(whole, weights_only=False)
    if path.suffix not in (".pt", ".pth"):
        return path.read_bytes()
    return torch.load(path, weights_only=False)


def equal(one: Any, other: Any) -> bool:
    import numpy as np
    import torch

    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return bool(np.all(one == other))
