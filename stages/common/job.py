"""One job of many shards: how a shard becomes a folder, and how many are under way at once."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from stages.common.files import fresh_dir, sync

if TYPE_CHECKING:
    from tqdm import tqdm

T = TypeVar("T")


@dataclass(frozen=True)
class Job(Generic[T]):
    """What map_shards was asked."""

    fn: Callable[[T, Path], None]
    shards: Sequence[T]
    out_dir: Path
    label: str

    def folders(self) -> list[Path]:
        """Where each shard's files go."""
        return [_folder(self.out_dir, index) for index in range(len(self.shards))]

    def todo(self) -> list[int]:
        """The shards that are not done, in order."""
        return [index for index, folder in enumerate(self.folders()) if not folder.is_dir()]

    def parcel(self, index: int) -> tuple[bytes, Path, int]:
        """Arguments of run_parcel: pickled here, so that what fails to load there is an error and no dead worker."""
        return pickle.dumps((self.fn, self.shards[index])), self.out_dir, index

    def killed(self, indices: Sequence[int]) -> str:
        """The error for shards whose workers die whenever they are tried."""
        names = "; ".join(f"{index} ({str(self.shards[index])[:120]})" for index in indices)
        return f"{self.label}: shard {names}: killed, most likely out of memory: lower LATHE_WORKERS"


def window(
    todo: Sequence[int],
    workers: int,
    bar: tqdm[Any],
    submit: Callable[[int], Future[None]],
    outcome: Callable[[Future[None], int], None],
) -> None:
    """Submit `todo` with as many in flight as there are workers, so that after an exception nothing else begins.

    What is running when one fails is waited for: its folder counts for the next run.
    """
    waiting, running = iter(todo), dict[Future[None], int]()
    try:
        while True:
            for index in islice(waiting, workers - len(running)):
                running[submit(index)] = index
            if not running:
                return
            done = wait(running, return_when=FIRST_COMPLETED).done
            for future in sorted(done, key=running.__getitem__):
                outcome(future, running.pop(future))
                bar.update()
    except Exception:
        wait(running)
        raise


def run_parcel(content: bytes, out_dir: Path, index: int) -> None:
    """`run_shard` in a worker, with its arguments unpacked and its exception made fit for the way back."""
    try:
        fn, shard = pickle.loads(content)  # noqa: S301 - packed by Job.parcel
        run_shard(fn, shard, out_dir, index)
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))  # noqa: S301 - ours
        except Exception:  # noqa: BLE001 - whatever its class does: the pool would take it for a dead worker
            kind = ValueError if isinstance(error, ValueError) else RuntimeError
            raise kind(f"{type(error).__name__}: {error}") from error
        raise


def run_shard(fn: Callable[[T, Path], None], shard: T, out_dir: Path, index: int) -> None:
    """Run one shard in a draft, bring it to the disk and give it its name."""
    folder, draft = _folder(out_dir, index), fresh_dir(out_dir / f".draft-{index:05d}-{os.getpid()}")
    try:
        fn(shard, draft)
        for path in (*draft.rglob("*"), draft):
            sync(path)
        draft.rename(folder)
    except BaseException as error:
        shutil.rmtree(draft, ignore_errors=True)
        # Ray may try a shard again whose first worker was only taken for dead
        if not (isinstance(error, OSError) and folder.is_dir()):
            raise
    sync(out_dir)


def _folder(out_dir: Path, index: int) -> Path:
    return out_dir / f"{index:05d}"
