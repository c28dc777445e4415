"""Training in as many processes as the section says: in this one, or in ones that torchrun's agent starts and watches.

The agent (torch.distributed's elastic launcher, what `torchrun` runs) works inside the stage, so the processes are its
children and end with it. On further machines `python -m stages.finetune.node` runs the same agent.
"""

from __future__ import annotations

import os
import signal
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
RENDEZVOUS, JOURNAL, PARENT = "LATHE_RENDEZVOUS", "LATHE_JOURNAL", "LATHE_PARENT"
MEETING = 3600  # seconds that a machine waits for the others: the first one measures the base meanwhile


def run(cfg: Finetune, work: Path) -> Path:
    """Train unless that is done already; returns the folder with the result.

    Raises ValueError with the line of the process that failed first.
    """
    if (found := result(work)) is None:
        work.mkdir(parents=True, exist_ok=True)
        if cfg.world.nodes * cfg.world.processes == 1:
            train(cfg, work)
        else:
            os.environ[JOURNAL] = str(track.journal.resolve() if track.journal else "")
            write_json(work / JOB, plain(asdict(cfg)) | {"journal": os.environ[JOURNAL]})
            try:
                agent(cfg, work)
            finally:  # a further machine would join a run that is over
                (work / JOB).unlink()
        found = result(work)
    assert found is not None
    return found


def choose_device(cfg: Finetune) -> None:
    """One process takes the first GPU alone: transformers would spread it over all. Before CUDA starts.

    Raises ValueError where more processes are asked for than there are GPUs.
    """
    import torch

    if cfg.world.nodes * cfg.world.processes == 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    elif 0 < torch.cuda.device_count() < cfg.world.processes:
        raise ValueError(
            f"finetune.world.processes={cfg.world.processes} (conf/world/{cfg.world.name}.yaml): this machine has "
            f"{torch.cuda.device_count()} GPUs; take as many processes, or fewer"
        )


def agent(cfg: Finetune, work: Path) -> None:
    """Start this machine's processes and wait for them. Raises ValueError when one fails."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
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
        rdzv_configs={"join_timeout": MEETING, "read_timeout": MEETING},
        max_restarts=0,
    )
    os.environ[PARENT] = str(os.getpid())
    try:
        elastic_launch(config, sys.executable)("-m", WORKER, str(work.resolve()))
    except ChildFailedError as error:
        if (work / FAILED).is_file():
            raise ValueError((work / FAILED).read_text(encoding="utf-8")) from error
        rank, failure = error.get_first_failure()
        how = f"was killed by signal {-failure.exitcode}" if failure.exitcode < 0 else "failed"
        if failure.exitcode == -signal.SIGKILL:
            how += ", most likely out of memory"
        raise ValueError(
            f"process {rank} of {world.nodes * world.processes} {how} (its own words are above); the next run goes on "
            "from the last checkpoint"
        ) from error
    except RendezvousError as error:
        raise ValueError(
            f"the {world.nodes} machines did not meet at {config.rdzv_endpoint} within {MEETING} s "
            f"({' '.join(str(error).split())[:160]}): is {RENDEZVOUS} the first machine's address on each of them?"
        ) from error


def read_job(path: Path) -> Finetune:
    """The section that `run` wrote down for the processes it starts: <work>/job.json."""
    from omegaconf import OmegaConf

    values = {name: value for name, value in read_json(path).items() if name != "journal"}
    made = OmegaConf.merge(OmegaConf.structured(Finetune), OmegaConf.create(values))
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
