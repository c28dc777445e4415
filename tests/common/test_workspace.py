"""A workspace outlives a failure, belongs to one run at a time, and takes the old ones' place."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages.common.workspace import KEPT, workspace
from tests.common.shard_work import wait_for

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys
from pathlib import Path
from stages.common.workspace import workspace
with workspace("prepare", "a1") as folder:
    (folder / "by").write_text("other")
    Path(sys.argv[1]).touch()
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def ckpt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path / ".ckpt"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_removed_on_success_kept_on_failure(ckpt: Path) -> None:
    with pytest.raises(KeyError), workspace("prepare", "a1") as folder:
        assert folder == ckpt / "prepare-a1"
        (folder / "work").write_text("done")
        raise KeyError
    assert names(ckpt) == ["prepare-a1"]
    with workspace("prepare", "a1") as folder:
        assert (folder / "work").read_text() == "done"
    assert names(ckpt) == []


def test_others_of_the_stage_go_when_they_are_old(ckpt: Path) -> None:
    """A killed run is taken up again after runs with other settings; what nobody came back to for a week goes."""
    old = time.time() - KEPT - 60
    for name in ("prepare-a1", "prepare-old", "prepare-b2", "prepare-more-a1", "finetune-a1", ".removed-x-7"):
        (ckpt / name / "00000").mkdir(parents=True)
        if name != "prepare-b2":
            os.utime(ckpt / name / "00000", (old, old))
        os.utime(ckpt / name, (old, old))
    with workspace("prepare", "a1") as folder:
        assert names(ckpt) == ["finetune-a1", "prepare-a1", "prepare-b2", "prepare-more-a1"]
        assert names(folder) == ["00000"]
    assert names(ckpt) == ["finetune-a1", "prepare-b2", "prepare-more-a1"]


def hold(tmp_path: Path) -> subprocess.Popen[str]:
    """Another process in workspace prepare-a1, until its input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "held")], cwd=ROOT, stdin=subprocess.PIPE, text=True
    )
    wait_for(tmp_path / "held")
    return process


def test_one_in_use_is_not_removed(ckpt: Path, tmp_path: Path) -> None:
    other = hold(tmp_path)
    with workspace("prepare", "b2"):
        assert names(ckpt) == ["prepare-a1", "prepare-b2"]
    other.communicate()
    assert other.returncode == 0 and names(ckpt) == []


@pytest.mark.parametrize("killed", [False, True])
def test_the_same_one_is_waited_for(
    killed: bool, tmp_path: Path, ckpt: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that was killed leaves its work; one that succeeded leaves an empty place, not a lock on nothing."""
    other = hold(tmp_path)

    class LetGo(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            assert other.stdin is not None
            if killed:
                other.kill()
            other.stdin.close()

    handler = LetGo()
    logging.getLogger("lathe").addHandler(handler)
    try:
        with workspace("prepare", "a1") as folder:
            assert names(folder) == (["by"] if killed else [])
    finally:
        logging.getLogger("lathe").removeHandler(handler)
    other.wait()
    assert names(ckpt) == [] and "prepare-a1: another run is working there; waiting for it" in caplog.text
