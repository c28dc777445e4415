"""Processes of one stage that work together: torchrun's agent starts and watches them.

The agent (torch.distributed's elastic launcher, what `torchrun` runs) works inside the stage, so the processes are its
children and end with it.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

FAILED, PARENT = "failed.txt", "LATHE_PARENT"
MEETING = 3600  # seconds that a machine waits for the others: the first one measures the base meanwhile
Section = TypeVar("Section")


@dataclass(frozen=True)
class Team:
    """What each process runs (`python -m <worker> <work>`), how many on each machine, and where the machines meet."""

    worker: str
    processes: int
    nodes: int = 1
    endpoint: str = "localhost:0"


def start(team: Team, work: Path, then: str) -> None:
    """Run this machine's processes to their end; `then` is what comes of the work if one fails.

    Raises ValueError when one does, with the line that it left in <work>/failed.txt, and when the first machine is
    gone; RendezvousError where the machines have not met.
    """
    with TemporaryDirectory(prefix="lathe-") as logs:
        _start(team, work, then, Path(logs))


def _start(team: Team, work: Path, then: str, logs: Path) -> None:
    """`start`; in `logs` the agent makes a folder when it starts processes."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    (work / FAILED).unlink(missing_ok=True)
    config = LaunchConfig(
        min_nodes=team.nodes,
        max_nodes=team.nodes,
        nproc_per_node=team.processes,
        run_id=work.name,
        rdzv_backend="c10d",
        rdzv_endpoint=team.endpoint,
        rdzv_configs={"join_timeout": MEETING, "read_timeout": MEETING},
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=str(logs)),
    )
    os.environ[PARENT] = str(os.getpid())
    try:
        elastic_launch(config, sys.executable)("-m", team.worker, str(work.resolve()))
    except RendezvousError as error:
        if not any(logs.iterdir()):
            raise
        raise ValueError(
            f"the first machine is gone ({' '.join(str(error).split())[:160]}): start its run and this again; {then}"
        ) from error
    except ChildFailedError as error:
        if (work / FAILED).is_file():
            raise ValueError((work / FAILED).read_text(encoding="utf-8")) from error
        # Of those that failed at the same moment the one that was killed: the others only lost its connection
        killed = [(rank, failure) for rank, failure in error.failures.items() if failure.exitcode < 0]
        rank, failure = killed[0] if killed else error.get_first_failure()
        how = f"was killed by signal {-failure.exitcode}" if failure.exitcode < 0 else "failed"
        if failure.exitcode == -signal.SIGKILL:
            how += ", most likely out of memory"
        raise ValueError(
            f"process {rank} of {team.nodes * team.processes} {how} (its own words are above); {then}"
        ) from error


def leave_word(work: Path, error: ValueError) -> None:
    """In a process: write down for `start` why it ends, unless another has."""
    if not (work / FAILED).exists():
        (work / FAILED).write_text(str(error), encoding="utf-8")


def leave() -> None:
    """In a process: take leave of the others, so that none reports a lost connection."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def plain(value: Any) -> Any:
    """Enums by name, all else as it is: a section that JSON can hold."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value.name if isinstance(value, Enum) else value


def section_of(kind: type[Section], values: Any) -> Section:
    """The section whose `plain` dictionary `values` is."""
    from omegaconf import OmegaConf

    section = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), OmegaConf.create(values)))
    assert isinstance(section, kind)
    return section
