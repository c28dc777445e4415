"""Work in progress that outlives a kill: one folder for each stage and fingerprint, never used by two at once."""

from __future__ import annotations

import errno
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
LOCK = ".lock"


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
    for name in {other.name.removeprefix(".").removesuffix(LOCK) for other in root.iterdir()}:
        if name.rpartition("-")[0] == stage and name != path.name:
            _prune(root / name)
    handle = _lock(path)
    try:
        path.mkdir(exist_ok=True)
        yield path
        _remove(path)
    finally:
        _let_go(path, handle)


def in_use(path: Path) -> bool:
    """Whether a run works in the folder just now, on this machine or on another that shares it."""
    try:
        handle = os.open(_lock_of(path), os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not _flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    finally:
        os.close(handle)


def _prune(path: Path) -> None:
    """Remove a folder whose lock is free and whose last sign of life is long past, and a lock that a kill left."""
    try:
        handle = _open(path)
    except PermissionError:  # another person's
        return
    if not _flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB):
        log.info("%s: in use, kept", path)
        os.close(handle)
        return
    if not _is(path, handle):  # another run has removed it
        os.close(handle)
        return
    try:
        if path.exists() and time.time() - _last_written(path) > KEPT:
            _remove(path)
    finally:
        _let_go(path, handle)


def _last_written(path: Path) -> float:
    """When a file or folder two levels down was last changed, in seconds since the epoch: checkpoints, shards."""
    return max(entry.stat().st_mtime for entry in (path, *path.glob("*"), *path.glob("*/*")))


def _lock_of(path: Path) -> Path:
    """A file beside the folder: a lock on a folder itself, which NFS allows, holds on one machine alone."""
    return path.with_name(f".{path.name}{LOCK}")


def _open(path: Path) -> int:
    """The lock's file, made if need be; for writing, or NFS refuses an exclusive lock."""
    return os.open(_lock_of(path), os.O_RDWR | os.O_CREAT, 0o666)


def _lock(path: Path) -> int:
    """Lock the folder, which need not be there yet; the lock ends with the process, and no child inherits it."""
    while True:
        handle = _open(path)
        if not _flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB):
            log.warning("%s: another run is working there; waiting for it", path)
            _flock(handle, fcntl.LOCK_EX)
        if _is(path, handle):
            return handle
        os.close(handle)  # the run that was waited for has removed it: this is a lock on nothing


def _flock(handle: int, kind: int) -> bool:
    """Whether nobody stands in the way: the file is locked, or gone, which `_is` tells."""
    try:
        fcntl.flock(handle, kind)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno != errno.ESTALE:  # NFS's word for a file that another machine has removed
            raise
    return True


def _is(path: Path, handle: int) -> bool:
    """Whether the open file is still the folder's lock; opened anew, since NFS may answer a stat from memory."""
    try:
        there = os.open(_lock_of(path), os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return os.path.samestat(os.fstat(there), os.fstat(handle))
    finally:
        os.close(there)


def _let_go(path: Path, handle: int) -> None:
    """Remove the lock while it is held, so that whoever waits finds it gone and makes another."""
    _lock_of(path).unlink(missing_ok=True)
    os.close(handle)


def _remove(path: Path) -> None:
    """Take the name away, then the content: a kill in between leaves no shard that is named but half gone."""
    trash = path.rename(path.parent / f".removed-{path.name}-{os.getpid()}")
    shutil.rmtree(trash, ignore_errors=True)
