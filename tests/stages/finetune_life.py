"""One life of a training run, ended by a real SIGKILL at a named point: what test_finetune_kill.py starts.

`python -m tests.stages.finetune_life WORK POINT`, with the section in WORK/section.json. Started again by torchrun's
agent it is one of several processes. The points are set from outside: the code under test knows nothing of them.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stages.common.run import seed_everything
from stages.finetune import checkpoint, launch, saving, train, trainers, worker

POINT, SECTION = "LIFE_POINT", "section.json"


def main(work: Path, point: str) -> None:
    """Train in WORK until the end or the point, whichever comes first."""
    arm(point)
    logging.basicConfig(level=logging.INFO)
    if "RANK" in os.environ:
        worker.main(work)
        return
    os.environ[POINT] = point
    launch.WORKER = "tests.stages.finetune_life"
    cfg = launch.read_job(work / SECTION)
    seed_everything(cfg)
    launch.run(cfg, work)


def arm(point: str) -> None:
    """Have this process kill itself at `point`: <where>-<which time>, in the process that <where> names."""
    if not point:
        return
    if point == "memory":
        trainers.Exact.go = out_of_memory(trainers.Exact.go)
        return
    if point == "shards":
        trainers.Exact.training_step = in_shards(trainers.Exact.training_step)
        return
    where, _, time = point.partition("-")
    owner, name, rank, after = POINTS[where]
    if int(os.environ.get("RANK", str(rank))) != rank:
        return
    setattr(owner, name, deadly(getattr(owner, name), int(time), after=after))


def deadly(function: Callable[..., Any], time: int, *, after: bool) -> Callable[..., Any]:
    """The function, which ends the process before or after its `time`-th call."""
    calls = [0]

    def call(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == time and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        found = function(*args, **kwargs)
        if calls[0] == time:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    return call


def out_of_memory(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with the kernel granting this process 8 MiB more of address space than it has by then."""

    def call(*args: Any, **kwargs: Any) -> Any:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + 8 * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        return function(*args, **kwargs)

    return call


def in_shards(function: Callable[..., Any]) -> Callable[..., Any]:
    """The forward and backward of a part, after which this process may hold its shard of the gradients alone."""

    def call(trainer: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        from torch.distributed.tensor import DTensor

        found = function(trainer, model, *args, **kwargs)
        held = [weight.grad for weight in model.parameters() if weight.requires_grad]
        # torch keeps what it has not reduced yet elsewhere: the shard then has no gradient
        assert held and all(isinstance(gradient, DTensor) for gradient in held), "gradients are not in shards"
        return found

    return call


# Where: whose function, in which of the processes, before or after the call.
POINTS: dict[str, tuple[Any, str, int, bool]] = {
    "step": (trainers.Exact, "training_step", 1, True),  # in the middle of a pass over the data
    "committed": (saving, "commit", 0, True),  # a checkpoint has just been given its name
    "saving": (
        trainers.Exact,
        "_save_rng_state",
        0,
        False,
    ),  # weights and optimizer are in the draft, no more
    "renaming": (checkpoint, "sync", 0, False),  # the manifest is written, the draft has no name yet
    "evaluating": (trainers.Exact, "_heldout_loss", 0, False),
    "turn": (trainers.Exact, "_maybe_log_save_evaluate", 0, False),  # when the pass has just ended
    "end": (train, "_lay_out", 0, True),  # all is trained, the result has no name yet
}

if __name__ == "__main__":
    main(Path(sys.argv[1]), os.environ[POINT] if "RANK" in os.environ else sys.argv[2])
