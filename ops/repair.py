"""How `ops.fsck` mends one object: from the workspace, the remote or the cache, whichever is good."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ops.objects import Object, Store, Use, md5
from ops.remote import explain, failures

if TYPE_CHECKING:
    from dvc.repo import Repo


@dataclass(frozen=True)
class Outcome:
    """Whether a repair worked, and from what; or why not, and what to do."""

    fixed: bool
    text: str


def mend_local(repo: Repo, each: Object, local: Store, remote: Store) -> Outcome:
    """Put good bytes in the local cache, and link the workspace files that shared the bad ones to them.

    Without a good copy a bad object is moved to .dvc/tmp/fsck: DVC would go on trusting it, and even
    `dvc repro --force` would keep it, because an object of that name exists.
    """
    target = Path(local.path(each.oid))
    sharing = [use.path for use in each.uses if _shares(use.path, target)]
    text = _from_workspace(each, local) or _from_remote(each, local, remote)
    if not text:
        return Outcome(False, _no_copy(repo, each, target, remote))
    for path in sharing:
        link(local, each.oid, path)
    return Outcome(
        True, text + (f"; linked again: {', '.join(map(os.path.relpath, sharing))}" if sharing else "")
    )


def mend_remote(each: Object, local: Store, remote: Store) -> Outcome:
    """Replace the remote's object by the local one, where that is good, and read it back."""
    if not local.check(each.oid).good:
        return Outcome(
            False, f"the local copy is no good either: {_remedies(each)}, then `python -m ops.fsck --remote`"
        )
    try:
        remote.odb.fs.put_file(local.path(each.oid), remote.path(each.oid))
    except failures() as error:
        return Outcome(False, explain(error))
    after = remote.check(each.oid)
    return Outcome(after.good, "from the local cache" if after.good else f"after an upload: {after.detail}")


def stale_files(repo: Repo, each: Object, local: Store) -> list[Path]:
    """Workspace files that DVC takes for this object, by inode, size and mtime, but with other bytes.

    A file that DVC itself sees as modified is someone's work and none of ours.
    """
    cached = Path(local.path(each.oid))
    return [] if each.is_folder else [use.path for use in each.uses if _is_stale(repo, each.oid, use, cached)]


def mend_stale(each: Object, path: Path, local: Store) -> Outcome:
    """Link a stale workspace file to the cached object, which is known to be good."""
    link(local, each.oid, path)
    return Outcome(True, "from the local cache")


def link(local: Store, oid: str, path: Path) -> None:
    """Make `path` the cached object, by the link type that the cache is set to, atomically."""
    from dvc_objects.fs.generic import transfer

    fresh = path.with_name(f".{path.name}.fsck")
    fresh.unlink(missing_ok=True)
    fs = local.odb.fs
    transfer(fs, local.path(oid), fs, str(fresh), links=[*local.odb.cache_types, "copy"])
    fresh.replace(path)


def _shares(path: Path, target: Path) -> bool:
    # A symbolic link follows the repaired object by itself.
    return path.is_file() and not path.is_symlink() and target.exists() and path.samefile(target)


def _from_workspace(each: Object, local: Store) -> str:
    for use in each.uses:
        if each.is_folder and use.path.is_dir():
            with _fresh(local, each.oid) as fresh:
                fresh.write_bytes(_folder_list(use.path))
                if _adopt(local, each.oid, fresh):
                    return f"from the files of {os.path.relpath(use.path)}"
        elif not each.is_folder and use.path.is_file() and _hash(use.path) == each.oid:
            with _fresh(local, each.oid) as fresh:
                shutil.copyfile(use.path, fresh)
                if _adopt(local, each.oid, fresh):
                    return f"from {os.path.relpath(use.path)}"
    return ""


def _from_remote(each: Object, local: Store, remote: Store) -> str:
    if remote.trouble or not any(use.pushed for use in each.uses):
        return ""
    with _fresh(local, each.oid) as fresh:
        try:
            remote.odb.fs.get_file(remote.path(each.oid), str(fresh))
        except failures():  # the outcome will say what the remote has
            return ""
        return "from the remote" if _adopt(local, each.oid, fresh) else ""


@contextmanager
def _fresh(local: Store, oid: str) -> Iterator[Path]:
    path = Path(local.path(oid)).with_suffix(".fsck")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _adopt(local: Store, oid: str, fresh: Path) -> bool:
    # The bytes that will be trusted are the ones hashed, not those they were copied from.
    if _hash(fresh) != oid.removesuffix(".dir"):
        return False
    with fresh.open("rb") as file:
        os.fsync(file.fileno())
    fresh.chmod(0o444)  # what DVC gives its cache files
    fresh.replace(local.path(oid))
    return True


def _folder_list(folder: Path) -> bytes:
    from dvc_data.hashfile.tree import Tree

    files = (path for path in folder.rglob("*") if path.is_file())
    entries = [{"relpath": path.relative_to(folder).as_posix(), "md5": _hash(path)} for path in files]
    return bytes(Tree.from_list(entries).as_bytes())


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return md5(file)[0]


def _no_copy(repo: Repo, each: Object, target: Path, remote: Store) -> str:
    found = remote.trouble or f"the remote's copy is {remote.check(each.oid).state}"
    aside = ""
    if target.exists():
        keep = Path(repo.tmp_dir) / "fsck" / each.oid
        keep.parent.mkdir(parents=True, exist_ok=True)
        target.replace(keep)
        aside = f"; the bad bytes are now {os.path.relpath(keep)}"
    return f"no good copy ({found}): {_remedies(each)}{aside}"


def _remedies(each: Object) -> str:
    return " or ".join(sorted({use.remedy for use in each.uses}))


def _is_stale(repo: Repo, oid: str, use: Use, cached: Path) -> bool:
    if not use.path.is_file() or (cached.exists() and use.path.samefile(cached)):
        return False
    _, believed = repo.state.get(str(use.path), repo.cache.local.fs)
    if believed is None or believed.value != oid:
        return False
    return _hash(use.path) != oid
