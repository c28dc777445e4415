"""One process of several: `python -m stages.finetune.worker WORK`, started by launch.py's agent, never by hand."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from stages.common.agent import PARENT, leave, leave_word
from stages.common.process import die_with_parent
from stages.common.run import seed_everything
from stages.common.tracking import track
from stages.finetune.launch import JOB, JOURNAL, read_job
from stages.finetune.train import train


def main(work: Path) -> None:
    """Train as one rank; a failure that has a line for the person leaves it in `work`."""
    die_with_parent(int(os.environ[PARENT]))
    logging.basicConfig(level=os.environ.get("LATHE_LOG_LEVEL", "INFO"), format="%(levelname)s: %(message)s")
    rank = int(os.environ["RANK"])
    if os.environ.get(JOURNAL):
        track.join(Path(os.environ[JOURNAL]), rank)
    cfg = read_job(work / JOB)
    seed_everything(cfg)
    try:
        train(cfg, work)
    except ValueError as error:
        leave_word(work, error)
        sys.exit(1)
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
