"""A further machine's part: `LATHE_RENDEZVOUS=<first machine>:29500 python -m stages.finetune.node`.

It needs the repository in the same shared folder as the first machine, computes with it, and ends with it; outs and
tracking are the first machine's.
"""

from __future__ import annotations

import sys

from stages.common import provenance
from stages.common.run import load
from stages.finetune.config import Finetune
from stages.finetune.fingerprint import fingerprint
from stages.finetune.launch import agent


def main(arguments: list[str]) -> None:
    """Run this machine's processes of the section in params.yaml, with the same overrides as on the first."""
    cfg: Finetune = load("finetune", Finetune, arguments).section
    agent(cfg, provenance.root() / ".ckpt" / f"finetune-{fingerprint(cfg)}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"finetune, further machine: {error}")
