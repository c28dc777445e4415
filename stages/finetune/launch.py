"""Training in as many processes as the section says: in this one, or in ones that torchrun's agent starts and watches.

The agent (stages/common/agent.py) works inside the stage. On further machines `python -m stages.finetune.node` runs the
same agent.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

from stages.common.agent import MEETING, Team, plain, section_of, start
from stages.common.files import read_json, write_json
from stages.common.tracking import track
from stages.finetune.config import Finetune
from stages.finetune.train import result, train

JOB, DONE = "job.json", "done"
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
            _tell(cfg, work, done=False)
            try:
                agent(cfg, work)
            finally:
                forget(work)
        found = result(work)
    elif cfg.world.nodes > 1:
        _tell(cfg, work, done=True)
    assert found is not None
    return found


def forget(work: Path) -> None:
    """Take back what a run has told its processes: a further machine would join one that is over, or was killed."""
    (work / JOB).unlink(missing_ok=True)


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
    from torch.distributed.elastic.rendezvous import RendezvousError

    world, endpoint = cfg.world, _endpoint(cfg)
    try:
        start(
            Team(WORKER, world.processes, world.nodes, endpoint),
            work,
            "the next run goes on from the last checkpoint",
        )
    except RendezvousError as error:
        raise ValueError(
            f"the {world.nodes} machines did not meet at {endpoint} within {MEETING} s "
            f"({' '.join(str(error).split())[:160]}): is {RENDEZVOUS} the first machine's address on each of them?"
        ) from error


def read_job(path: Path) -> Finetune:
    """The section that `run` wrote down for the processes it starts: <work>/job.json."""
    return section_of(Finetune, read_json(path)["section"])


def _tell(cfg: Finetune, work: Path, *, done: bool) -> None:
    """Write down for the processes, and for further machines, what is to be trained, or that it is `done`."""
    os.environ[JOURNAL] = str(track.journal.resolve() if track.journal else "")
    where = {"journal": os.environ[JOURNAL], "workspace": str(Path.cwd())}
    write_json(work / JOB, {"section": plain(asdict(cfg)), DONE: done} | where)


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
