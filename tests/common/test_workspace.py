"""A workspace outlives a failure, belongs to one run at a time, and takes the old ones' place."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages.common.workspace import KEPT, in_use, workspace
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
TURNS = """
import os, sys, time
from stages.common.workspace import workspace
log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
for turn in range(25):
    with workspace("prepare", "a1") as folder:
        os.write(log, f"in {os.getpid()}-{turn}\\n".encode())
        (folder / "work").mkdir()
        time.sleep(0.002)
        os.write(log, f"out {os.getpid()}-{turn}\\n".encode())
"""


@pytest.fixture(autouse=True)
def ckpt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path / ".ckpt"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def folders(folder: Path) -> list[str]:
    """Without the locks beside those that are worked in."""
    return [name for name in names(folder) if not name.startswith(".")]


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
        assert folders(ckpt) == ["finetune-a1", "prepare-a1", "prepare-b2", "prepare-more-a1"]
        assert names(folder) == ["00000"]
    assert names(ckpt) == ["finetune-a1", "prepare-b2", "prepare-more-a1"]


def test_locks_are_such_that_a_second_machine_sees_them(ckpt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS passes on to its server only locks on regular files, exclusive ones only where they may be written."""
    seen, flock = [], fcntl.flock

    def checked(handle: int, operation: int) -> None:
        writable = fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
        exclusive = operation & fcntl.LOCK_EX
        seen.append(stat.S_ISREG(os.fstat(handle).st_mode) and (writable or not exclusive))
        flock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", checked)
    (ckpt / "prepare-b2").mkdir(parents=True)
    with workspace("prepare", "a1") as folder:
        assert in_use(folder) and not in_use(ckpt / "prepare-b2") and not in_use(ckpt / "prepare-c3")
    assert len(seen) == 3 and all(seen)
    assert names(ckpt) == ["prepare-b2"]


def test_a_lock_that_another_machine_has_just_removed_is_nobodys(
    ckpt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS says ESTALE of the open file, once to each who asks here."""
    flock, told = fcntl.flock, []

    def stale(handle: int, operation: int) -> None:
        name = str(Path(f"/proc/self/fd/{handle}").readlink())
        if name not in told:
            told.append(name)
            Path(name).unlink()
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        flock(handle, operation)

    (ckpt / "prepare-old").mkdir(parents=True)
    os.utime(ckpt / "prepare-old", (1, 1))
    (ckpt / ".prepare-b2.lock").touch()
    monkeypatch.setattr(fcntl, "flock", stale)
    assert not in_use(ckpt / "prepare-b2")
    with workspace("prepare", "a1") as folder:
        assert names(ckpt) == [".prepare-a1.lock", "prepare-a1", "prepare-old"] and in_use(folder)
    assert {Path(name).name for name in told} == {".prepare-a1.lock", ".prepare-b2.lock", ".prepare-old.lock"}
    assert names(ckpt) == ["prepare-old"]


def test_what_kills_left_of_locks_goes(ckpt: Path) -> None:
    """Killed while it removed what it had done, and in the middle of its work a week ago."""
    ckpt.mkdir()
    for name in (".prepare-a1.lock", ".prepare-b2.lock", ".prepare-c3.lock", ".bench-b2.lock"):
        (ckpt / name).touch()
    (ckpt / "prepare-c3").mkdir()
    old = time.time() - KEPT - 60
    os.utime(ckpt / "prepare-c3", (old, old))
    with workspace("prepare", "d4"):
        assert names(ckpt) == [".bench-b2.lock", ".prepare-d4.lock", "prepare-d4"]
    assert names(ckpt) == [".bench-b2.lock"]


def test_many_at_once_are_in_it_one_after_the_other(ckpt: Path, tmp_path: Path) -> None:
    """Each removes the lock with the folder: whoever waited must not hold one that is nobody's any more."""
    log = tmp_path / "log"
    running = [
        subprocess.Popen([sys.executable, "-c", TURNS, str(log)], cwd=ROOT, stderr=subprocess.DEVNULL)
        for _ in range(4)
    ]
    assert [process.wait() for process in running] == [0] * 4
    lines = log.read_text().splitlines()
    assert len(lines) == 2 * 4 * 25
    for begun, ended in zip(lines[::2], lines[1::2], strict=True):
        assert begun.split() == ["in", ended.split()[1]] and ended.startswith("out")
    assert names(ckpt) == []


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
        assert folders(ckpt) == ["prepare-a1", "prepare-b2"]
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
