"""A further machine's part: `LATHE_RENDEZVOUS=<first machine>:29500 python -m stages.finetune.node`.

It needs the repository in the same shared folder as the first machine, waits until that one has written down what is to
be trained, computes with it, and ends with it; outs are the first machine's, and so is the journal it writes to.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from stages.common import provenance
from stages.common.files import read_json
from stages.common.run import QUIET
from stages.finetune.launch import JOB, JOURNAL, RENDEZVOUS, agent, read_job

PAUSE = 2.0


def main() -> None:
    """Run this machine's processes of the job that the first machine starts. Raises ValueError as `agent` does."""
    if RENDEZVOUS not in os.environ:
        raise ValueError(f"set {RENDEZVOUS}=<first machine>:29500, as on the first machine")
    os.environ.update({key: value for key, value in QUIET.items() if key not in os.environ})
    work = wait_for_job(provenance.root() / ".ckpt")
    os.environ[JOURNAL] = read_json(work / JOB)["journal"]
    agent(read_job(work / JOB), work)


def wait_for_job(folder: Path) -> Path:
    """The workspace of the first machine's run, once it is ready to train: it prepares and measures before that."""
    print(f"waiting for a run of the first machine under {folder}", flush=True)
    while True:
        found = [job for job in sorted(folder.glob(f"finetune-*/{JOB}")) if read_job(job).world.nodes > 1]
        if found:
            return found[0].parent
        time.sleep(PAUSE)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"finetune, further machine: {error}")
