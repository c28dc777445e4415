"""Independent shards of work on local processes or Ray: the same bytes for any number of them, resumed after a kill.

LATHE_WORKERS is the number of processes (default: the cores), LATHE_BACKEND is local (default) or ray.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from stages.common.cluster import on_ray
from stages.common.files import fresh_dir
from stages.common.job import Job, run_parcel, run_shard, window
from stages.common.workers import workers

if TYPE_CHECKING:
    from tqdm import tqdm

log = logging.getLogger("lathe")
T = TypeVar("T")
TRIES = 3


def map_shards(
    fn: Callable[[T, Path], None], shards: Sequence[T], out_dir: Path, *, label: str
) -> list[Path]:
    """Call fn(shard, folder) once for each shard; returns the folders out_dir/<index:05d> in the order of `shards`.

    fn writes into the empty folder that it is given, which becomes out_dir/<index:05d> when fn returns: a folder with
    that name is complete and on the disk, and its shard is not run again. So out_dir belongs to these shards and this
    fn: see `workspace`. fn (or a partial of it) and the shards are pickled, fn by its module's name.

    What fn raises is raised here as it is, after the shards that were running have finished; what is done is kept.
    Raises ValueError if a shard's worker is killed each time, and for an unknown LATHE_BACKEND or LATHE_WORKERS.
    """
    from tqdm import tqdm

    run, count = _backend(), workers()
    _sweep(out_dir)
    job = Job(fn, shards, out_dir.absolute(), label)
    left = len(job.todo())
    with tqdm(total=len(shards), initial=len(shards) - left, desc=label, unit="shard", mininterval=1) as bar:
        (run if min(count, left) > 1 else _here)(job, count, bar)
    _sweep(out_dir)
    return job.folders()


def _backend() -> Callable[[Job[Any], int, tqdm[Any]], None]:
    name, known = os.environ.get("LATHE_BACKEND") or "local", {"local": _on_pool, "ray": on_ray}
    if name not in known:
        raise ValueError(f"LATHE_BACKEND={name!r} in the environment: set it to {' or '.join(known)}")
    return known[name]


def _sweep(out_dir: Path) -> None:
    """Remove the drafts of workers that died.

    Moved away first: should one still be writing, as Ray's may for a moment, it cannot finish what is half removed.
    """
    dead = fresh_dir(out_dir / ".dead")
    for draft in out_dir.glob(".draft-*"):
        with suppress(FileNotFoundError):
            draft.rename(dead / draft.name)
    shutil.rmtree(dead)


def _here(job: Job[Any], workers: int, bar: tqdm[Any]) -> None:
    """One after the other in this process: no start-up, and a debugger that works."""
    for index in job.todo():
        run_shard(job.fn, job.shards[index], job.out_dir, index)
        bar.update()


def _on_pool(job: Job[Any], workers: int, bar: tqdm[Any]) -> None:
    """In local processes. A killed worker takes its pool down: a new one runs what is left."""
    failures = 0
    while todo := job.todo():
        bar.update(len(job.shards) - len(todo) - bar.n)
        count = min(workers, len(todo))
        try:
            _round(job, todo, count, bar)
        except BrokenProcessPool as error:
            failures = failures + 1 if job.todo() == todo else 0
            if failures == TRIES:
                raise ValueError(job.killed(todo[:count])) from error
            log.warning("%s: a worker was killed; its shard is tried again", job.label)
            _sweep(job.out_dir)


def _round(job: Job[Any], todo: Sequence[int], workers: int, bar: tqdm[Any]) -> None:
    """All of `todo` in one pool. Raises BrokenProcessPool when a worker is killed."""
    # spawn: a forked child inherits the locks that Arrow's or a tokenizer's threads hold, and waits for ever
    with ProcessPoolExecutor(workers, get_context("spawn"), _begin, (os.getpid(),)) as pool:

        def submit(index: int) -> Future[None]:
            return pool.submit(run_parcel, *job.parcel(index))

        window(todo, workers, bar, submit, lambda future, index: future.result())


def _begin(parent: int) -> None:
    """A worker's first act: to die with its parent, whose next run writes where it would, and at Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
