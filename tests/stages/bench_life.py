"""One life of the bench stage, ended by a real SIGKILL before its third task: what test_bench_kill.py starts.

`python -m tests.stages.bench_life MODEL POINT` in a workspace. With LATHE_BENCH_PROCESSES the stage starts this module
again for each of its processes. POINT says whom the kill hits: the `stage`, one `worker` of it, or (empty) nobody.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stages.bench import processes, worker
from stages.bench.responses import Responses
from stages.common.agent import PARENT
from tests.stages.test_bench_kill import run

POINT = "LIFE_POINT"


def main(argument: str) -> None:
    """Run the stage on the model folder `argument`; as one of its processes, answer in the work folder `argument`."""
    arm(os.environ.get("RANK", "0"), os.environ[POINT])
    if "RANK" in os.environ:
        worker.main(Path(argument))
        return
    processes.WORKER = "tests.stages.bench_life"
    try:
        run(argument)
    except ValueError as error:
        sys.exit(str(error))


def arm(rank: str, point: str) -> None:
    """Write down pid and tasks that are asked, in files of this rank, and end at the point."""
    real, met = Responses.of, list[str]()
    note(f"pids-{rank}", os.getpid())

    def of(
        self: Responses, kind: str, task: str, requests: list[Any], ask: Callable[[], list[Any]]
    ) -> list[Any]:
        met.append(task)
        if len(met) == 3 and point:
            end(rank, point)

        def noted() -> list[Any]:
            note(f"asked-{rank}", task)
            return ask()

        return real(self, kind, task, requests, noted)

    Responses.of = of


def note(name: str, line: object) -> None:
    with Path(name).open("a") as file:
        file.write(f"{line}\n")


def end(rank: str, point: str) -> None:
    """In the last of the processes, when all have come so far: the first one keeps what is answered."""
    if "RANK" in os.environ:
        from torch import distributed

        distributed.barrier()
        if int(rank) < distributed.get_world_size() - 1:
            return
    alone = "RANK" not in os.environ or point == "worker"
    os.kill(os.getpid() if alone else int(os.environ[PARENT]), signal.SIGKILL)
    time.sleep(600)  # its end is its parent's


if __name__ == "__main__":
    os.environ.setdefault(POINT, sys.argv[-1])
    main(sys.argv[1])
