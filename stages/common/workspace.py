"""Work in progress that outlives a kill: one folder for each stage and fingerprint, never used by two at once."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.common import provenance

log = logging.getLogger("lathe")
KEPT = 7 * 24 * 3600.0


@contextmanager
def workspace(stage: str, fingerprint: str) -> Iterator[Path]:
    """The folder $DVC_ROOT/.ckpt/<stage>-<fingerprint>: removed on success, kept on failure, for the next run.

    The fingerprint is a digest of everything that the stage's work depends on. Another run with the same one is
    waited for. Folders of the stage with other fingerprints go when nothing was written to them for KEPT seconds,
    unless a run is working there: a killed run is taken up again after others have run.
    """
    root = provenance.root() / ".ckpt"
    path = root / f"{stage}-{fingerprint}"
    root.mkdir(parents=True, exist_ok=True)
    for trash in root.glob(".removed-*"):
        shutil.rmtree(trash, ignore_errors=True)
    for other in root.iterdir():
        if other.name.rpartition("-")[0] == stage and other != path:
            _prune(other)
    handle = _lock(path)
    try:
        yield path
        _remove(path)
    finally:
        os.close(handle)


def in_use(path: Path) -> bool:
    """Whether a run works in the folder just now, on this machine or on another that shares it."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _prune(path: Path) -> None:
    """Remove a folder whose lock is free and whose last sign of life is long past."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:  # another run has removed it
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is(path, handle) and time.time() - _last_written(path) > KEPT:
            _remove(path)
    except BlockingIOError:
        log.info("%s: in use, kept", path)
    finally:
        os.close(handle)


def _last_written(path: Path) -> float:
    """When a file or folder two levels down was last changed, in seconds since the epoch: checkpoints, shards."""
    return max(entry.stat().st_mtime for entry in (path, *path.glob("*"), *path.glob("*/*")))


def _lock(path: Path) -> int:
    """Make the folder and lock it; the lock ends with the process, and no child inherits it."""
    while True:
        path.mkdir(exist_ok=True)
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.warning("%s: another run is working there; waiting for it", path)
            fcntl.flock(handle, fcntl.LOCK_EX)
        if _is(path, handle):
            return handle
        os.close(handle)  # the run that was waited for has removed it: this is a lock on nothing


def _is(path: Path, handle: int) -> bool:
    """Whether the open folder still has that name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def _remove(path: Path) -> None:
    """Take the name away, then the content: a kill in between leaves no shard that is named but half gone."""
    trash = path.rename(path.parent / f".removed-{path.name}-{os.getpid()}")
    shutil.rmtree(trash, ignore_errors=True)
