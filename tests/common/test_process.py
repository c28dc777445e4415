"""What a stage asks for its own process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_what_is_imported_is_not_looked_at_again_and_nothing_else_is_kept() -> None:
    """In a process of its own: what is frozen stays so."""
    code = """
import gc
from stages.common.process import importing

class Knot:
    ended = 0
    def __init__(self):
        self.self = self
    def __del__(self):
        Knot.ended += 1

with importing():
    assert not gc.isenabled()
    import statistics
frozen = gc.get_freeze_count()
assert gc.isenabled() and frozen > 1000, frozen
with importing():
    import statistics
    Knot()
assert gc.get_freeze_count() <= frozen
gc.collect()
assert Knot.ended == 1
try:
    with importing():
        import no_such_module
except ImportError:
    assert gc.isenabled()
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
