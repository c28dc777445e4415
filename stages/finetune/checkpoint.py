"""Checkpoints that are complete or absent: a draft, a manifest with every file's digest, fsync, rename.

A kill at any moment leaves the earlier ones as they were. What fails its manifest is never used: `latest` says so
in the log, sets it aside and falls back to the one before.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from stages.common.files import fresh_dir, read_json, sha256, sync, write_json
from stages.finetune.progress import PROGRESS, Progress

log = logging.getLogger("lathe")
MANIFEST, MEASURED = "MANIFEST", "measured.json"
DRAFT, DAMAGED, BEST = ".draft", ".damaged", "best"
KEEP = 2


class Checkpoints:
    """The complete states of one run, `step-<n>` under a folder of its own."""

    def __init__(self, folder: Path) -> None:
        """Use `folder`, made if need be."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, step: int) -> Path:
        """Where the state after `step` updates is, or will be."""
        return self.folder / f"step-{step:08}"

    def draft(self) -> Path:
        """An empty folder for the next state; what a kill left of the last draft goes."""
        return fresh_dir(self.folder / DRAFT)

    def best(self, step: int) -> Path:
        """Where the weights of the best evaluation are, or will be, if that was after `step` updates.

        By the step, since a checkpoint before it still counts on the best until then.
        """
        return self.folder.parent / f"{BEST}-{step:08}"

    def prune(self, best_step: int) -> None:
        """Remove all but the newest states, and best weights that neither one of these nor the run counts on."""
        for old in self._found()[KEEP:]:
            remove(old)
        named = {self.best(step) for step in (best_step, *map(_best_step, self._found()))}
        there = {
            *self.folder.parent.glob(f"{BEST}-*"),
            *self.folder.parent.glob(_old(Path(f"{BEST}-*")).name),
        }
        for best in there - named:
            remove(best)

    def latest_step(self) -> int:
        """The step of the newest state, looked at or not; 0 where there is none."""
        return max((int(path.name.removeprefix("step-")) for path in self._found()), default=0)

    def latest(self) -> Path | None:
        """The newest state whose every file is as it was written; None where there is none."""
        for path in self._found():
            if not (problem := verify(path)):
                return path
            log.warning("checkpoint %s is damaged (%s): not used", path, problem)
            remove(self.folder / DAMAGED)
            path.rename(self.folder / DAMAGED)
        return None

    def _found(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"), reverse=True)


def _best_step(path: Path) -> int:
    """The best evaluation that a state knows of; 0 of one that is damaged, which no run will go on from."""
    try:
        return Progress.read(path / PROGRESS).best_step
    except (OSError, ValueError, TypeError):
        return 0


def commit(draft: Path, path: Path) -> None:
    """Write the draft's manifest, bring it to the disk and rename it to `path`, which it replaces."""
    digests = _digests(draft)
    body = json.dumps(digests, sort_keys=True)
    (draft / MANIFEST).write_text(f"{hashlib.sha256(body.encode()).hexdigest()} {body}", encoding="utf-8")
    for file in (*draft.rglob("*"), draft):
        sync(file)
    old = _old(path)
    remove(old)
    if path.exists():  # of an earlier life, or the best so far: it goes only when the new one has its name
        path.rename(old)
    draft.rename(path)
    sync(path.parent)
    remove(old)


def once(folder: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `measure` returned, kept in `folder` as JSON: called once in a run's lives, again where that is damaged."""
    if problem := verify(folder):
        if folder.exists():
            log.warning("%s is damaged (%s): measured again", folder, problem)
        found, draft = measure(), folder.with_name(DRAFT)

        def keep() -> None:
            write_json(fresh_dir(draft) / MEASURED, found)
            commit(draft, folder)

        write_safely(str(folder), "nothing is trained yet", keep)
    kept = read_json(folder / MEASURED)
    assert isinstance(kept, dict)
    return kept


def finish_commit(path: Path) -> None:
    """Give the old folder its name back where a kill came between `commit`'s two renames."""
    if not path.exists() and _old(path).exists():
        _old(path).rename(path)


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def verify(path: Path) -> str:
    """What is wrong with a committed folder, "" if nothing is; a file that the disk cannot give back is damaged too."""
    try:
        digest, _, body = (path / MANIFEST).read_text(encoding="utf-8").partition(" ")
    except (OSError, UnicodeDecodeError) as error:
        return f"no readable {MANIFEST}: {type(error).__name__}"
    if hashlib.sha256(body.encode()).hexdigest() != digest:
        return f"{MANIFEST} is not what was written"
    try:
        wanted, found = json.loads(body), _digests(path)
    except OSError as error:
        return f"not readable: {error}"
    changed = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    return f"not as written: {', '.join(changed)}" if changed else ""


def remove(path: Path) -> None:
    """Remove whatever stands there, if anything does: damage can turn a folder into a file."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_safely(what: str, last: str, write: Callable[[], None]) -> None:
    """Call `write`; a full disk becomes one clear line that says what is still there to go on from.

    Raises ValueError on a full disk or quota, whatever library met it.
    """
    try:
        write()
    except Exception as error:
        if not _full(error):
            raise
        raise ValueError(f"no space left on the disk for {what}: free some and run again; {last}") from error


def _full(error: BaseException | None) -> bool:
    """Whether an error, or its cause, is a full disk; safetensors and torch report it in their own classes."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(error) or "os error 28" in str(error):
            return True
        if "unexpected pos" in str(error) or "file write failed" in str(error):  # torch.save's words for it
            return True
        error = error.__cause__ or error.__context__
    return False


def _digests(folder: Path) -> dict[str, str]:
    """Digest of each file by its relative name; hashing lets go of the interpreter lock, so files go in parallel."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file != folder / MANIFEST)
    with ThreadPoolExecutor(4) as pool:
        digests = pool.map(sha256, files)
        return {
            file.relative_to(folder).as_posix(): digest for file, digest in zip(files, digests, strict=True)
        }
