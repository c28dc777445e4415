"""Files put under DVC, for the commands that bring some in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def dvc_add(*paths: Path) -> None:
    """`dvc add`. Raises ValueError with DVC's words where it does not take them."""
    # Not --quiet, which says nothing of an error either
    command = [sys.executable, "-m", "dvc", "add", *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"dvc add {' '.join(map(str, paths))} failed: {' '.join(done.stderr.split())}")
