"""A further machine's part: `LATHE_RENDEZVOUS=<first machine>:29500 python -m stages.finetune.node`.

It needs the repository in the same shared folder as the first machine, waits until that one has written down what is to
be trained, computes with it, and ends with it; outs are the first machine's, and so is the journal it writes to.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from stages.common import provenance
from stages.common.agent import section_of
from stages.common.files import read_json
from stages.common.run import QUIET
from stages.common.workspace import in_use
from stages.finetune.config import Finetune
from stages.finetune.fingerprint import fingerprint
from stages.finetune.launch import DONE, JOB, JOURNAL, RENDEZVOUS, agent

PAUSE = 2.0


def main() -> None:
    """Run this machine's processes of the job that the first machine starts. Raises ValueError as `agent` does."""
    if RENDEZVOUS not in os.environ:
        raise ValueError(f"set {RENDEZVOUS}=<first machine>:29500, as on the first machine")
    os.environ.update({key: value for key, value in QUIET.items() if key not in os.environ})
    work, told = wait_for_job(provenance.root() / ".ckpt")
    if told.get(DONE):
        print("the first machine's run is trained already and only writes its outs: nothing to do here")
        return
    cfg = section_of(Finetune, told["section"])
    os.environ[JOURNAL] = told["journal"]
    _go_there(Path(told["workspace"]), cfg, work)
    agent(cfg, work)


def wait_for_job(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The workspace of the first machine's run and what it told, once it is ready: it prepares and measures before.

    What a killed run has left is passed over: nobody holds its lock.
    """
    print(f"waiting for a run of the first machine under {folder}", flush=True)
    while True:
        for job in sorted(folder.glob(f"finetune-*/{JOB}")):
            if in_use(job.parent) and (told := _read(job)) and told["section"]["world"]["nodes"] > 1:
                return job.parent, told
        time.sleep(PAUSE)


def _read(job: Path) -> dict[str, Any] | None:
    """What the first machine told; None where it has taken it back meanwhile."""
    try:
        found: dict[str, Any] = read_json(job)
    except FileNotFoundError:
        return None
    return found


def _go_there(folder: Path, cfg: Finetune, work: Path) -> None:
    """Work where the first machine does: `dvc exp run --temp` and the queue have a folder of their own.

    Raises ValueError where rows, base, code or libraries are others than its own.
    """
    if not folder.is_dir():
        raise ValueError(
            f"{folder}, where the first machine trains, is not there: share it under the same path"
        )
    os.chdir(folder)
    if work.name != f"finetune-{fingerprint(cfg)}":
        raise ValueError(
            f"the rows, base, code or library versions that this machine sees in {folder} are not the first one's "
            f"({work.name}): share that folder, and set up the same environment (requirements.lock)"
        )


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"finetune, further machine: {error}")
