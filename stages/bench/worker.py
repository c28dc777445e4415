"""One process of several: `python -m stages.bench.worker WORK`, started by processes.py's agent, never by hand."""

from __future__ import annotations

import logging
import os
import sys
from datetime import timedelta
from pathlib import Path

from stages.common.agent import PARENT, leave, leave_word
from stages.common.process import die_with_parent, importing
from stages.common.run import hush, seed_everything

# The slowest process's share of a task may take hours, and gloo gives up after half an hour. One that dies ends all.
PATIENCE = timedelta(days=7)


def main(work: Path) -> None:
    """Answer this rank's share of everything; a failure that has a line for the person leaves it in `work`."""
    die_with_parent(int(os.environ[PARENT]))
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    logging.basicConfig(level=os.environ.get("LATHE_LOG_LEVEL", "INFO"), format="%(levelname)s: %(message)s")
    hush()
    if rank:
        os.environ["TQDM_DISABLE"] = "1"
    with importing():
        import lm_eval.evaluator  # noqa: F401 - for answer
        import torch

        from stages.bench.evaluation import answer
        from stages.bench.model import Scorer
        from stages.bench.processes import read_job
        from stages.bench.ranks import Ranks

    cfg, variant = read_job(work)
    seed_everything(cfg)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # What is exchanged is small and on the CPU
    torch.distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        answer(cfg, Scorer(cfg, variant, work, Ranks(rank, world)))
    except ValueError as error:
        leave_word(work, error)
        sys.exit(1)
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
