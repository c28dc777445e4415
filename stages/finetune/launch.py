"""Training in as many processes as the section says: in this one, or in ones that torchrun's agent starts and watches.

The agent (torch.distributed's elastic launcher, what `torchrun` runs) works inside the stage, so the processes are its
children and end with it. On further machines `python -m stages.finetune.node` runs the same agent.
"""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Any

from stages.common.files import read_json, write_json
from stages.common.tracking import track
from stages.finetune.config import Finetune
from stages.finetune.train import result, train

JOB, FAILED = "job.json", "failed.txt"
WORKER = "stages.finetune.worker"
RENDEZVOUS, JOURNAL = "LATHE_RENDEZVOUS", "LATHE_JOURNAL"


def run(cfg: Finetune, work: Path) -> Path:
    """Train unless that is done already; returns the folder with the result.

    Raises ValueError with the line of the process that failed first.
    """
    if (found := result(work)) is None:
        work.mkdir(parents=True, exist_ok=True)
        if cfg.world.nodes * cfg.world.processes == 1:
            train(cfg, work)
        else:
            os.environ[JOURNAL] = str(track.journal or "")
            write_json(work / JOB, plain(asdict(cfg)))
            agent(cfg, work)
        found = result(work)
    assert found is not None
    return found


def agent(cfg: Finetune, work: Path) -> None:
    """Start this machine's processes and wait for them. Raises ValueError when one fails."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    (work / FAILED).unlink(missing_ok=True)
    world = cfg.world
    config = LaunchConfig(
        min_nodes=world.nodes,
        max_nodes=world.nodes,
        nproc_per_node=world.processes,
        run_id=work.name,
        rdzv_backend="c10d",
        rdzv_endpoint=_endpoint(cfg),
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", WORKER, str(work.resolve()))
    except ChildFailedError as error:
        if (work / FAILED).is_file():
            raise ValueError((work / FAILED).read_text(encoding="utf-8")) from error
        rank, failure = error.get_first_failure()
        how = (
            f"was killed by signal {-failure.exitcode}, most likely out of memory"
            if failure.exitcode < 0
            else "failed"
        )
        raise ValueError(
            f"process {rank} of {world.nodes * world.processes} {how} (its own words are above); the next run goes on "
            "from the last checkpoint"
        ) from error


def read_job(work: Path) -> Finetune:
    """The section that `run` wrote down for the processes it starts."""
    from omegaconf import OmegaConf

    made = OmegaConf.merge(OmegaConf.structured(Finetune), OmegaConf.create(read_json(work / JOB)))
    section = OmegaConf.to_object(made)
    assert isinstance(section, Finetune)
    return section


def plain(value: Any) -> Any:
    """Enums by name, all else as it is."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value.name if isinstance(value, Enum) else value


def _endpoint(cfg: Finetune) -> str:
    """Where the processes meet. Raises ValueError where several machines were not told."""
    if endpoint := os.environ.get(RENDEZVOUS):
        return endpoint
    if cfg.world.nodes > 1:
        raise ValueError(
            f"finetune.world.nodes={cfg.world.nodes} (conf/world/{cfg.world.name}.yaml): set {RENDEZVOUS}="
            "<first machine>:29500 on each of them"
        )
    return "localhost:0"
