"""What `make` runs: dvc repro, promote what passed the gate, and a short table of what came of it.

After a promotion register is run once more, so that its out is about the new champion and the next `make`
has nothing to do. `python -m ops.pipeline [arguments of dvc repro]`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from ops import backfill, promote, summary

RAN = re.compile(r"^Running stage '(?P<name>[^']+)'")


def main(arguments: list[str]) -> None:
    """Run it all; exit with dvc's status when a stage fails."""
    ran = repro(arguments)
    if promote.main(Path.cwd(), confirmed=False):
        ran += repro(arguments)
    log()
    summary.main(list(dict.fromkeys(ran)))


def log() -> None:
    """Send what the tracking server has not yet got; one that is down has the journals to wait for it."""
    try:
        backfill.main(Path.cwd())  # it sends the journals first: `ops.sync`
    except ValueError as problem:
        print(f"tracking: {problem}")


def repro(arguments: list[str]) -> list[str]:
    """Run `dvc repro`, show its output as it comes, and return the names of the stages that ran."""
    command = [sys.executable, "-m", "dvc", "repro", *arguments]
    ran: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            if found := RAN.match(line):
                ran.append(found["name"])
    if process.returncode:
        sys.exit(process.returncode)
    return ran


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as problem:
        sys.exit(f"pipeline: {problem}")
