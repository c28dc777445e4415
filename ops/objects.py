"""What `ops.fsck` looks at: DVC objects (named by the MD5 of their bytes), their users, the two stores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ops.remote import explain, failures, probe

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.repo import Repo
    from dvc_data.hashfile.db import HashFileDB

BLOCK = 1 << 20
REMOTE_BLOCK = 8 << 20  # bytes a request; s3fs' own 50 MiB would be held once per job
REMOTE_JOBS, LOCAL_JOBS = 8, 2


@dataclass(frozen=True)
class Use:
    """One place in the workspace that has an object's content."""

    owner: str  # "finetune: models/tuned/model.safetensors"
    path: Path
    remedy: str  # how its content can be made anew
    pushed: bool  # belongs in the remote
    optional: bool  # git keeps the content; the cache has it for the run cache only


@dataclass(frozen=True)
class Object:
    """One object and all its uses in the workspace."""

    oid: str
    uses: tuple[Use, ...]

    @property
    def is_folder(self) -> bool:
        """Whether the bytes are the JSON list of a folder's files."""
        return self.oid.endswith(".dir")

    @property
    def owners(self) -> str:
        """The uses in words."""
        return ", ".join(use.owner for use in self.uses)


@dataclass(frozen=True)
class Verdict:
    """What hashing an object showed: state is good, bad, missing or unreadable; size in bytes read."""

    state: str
    detail: str = ""
    size: int = 0

    @property
    def good(self) -> bool:
        """The bytes are what the name says."""
        return self.state == "good"


def _silent(size: int) -> None:
    pass


class Store:
    """The local cache or the remote: objects by name."""

    def __init__(self, repo: Repo, odb: HashFileDB, *, jobs: int, **open_options: Any) -> None:
        """`jobs` objects are hashed at once; `open_options` go to the file system's open."""
        self.repo, self.odb, self.jobs, self.open_options = repo, odb, jobs, open_options

    @cached_property
    def trouble(self) -> str:
        """Why the store cannot be used at all; empty where it can. Asked once, with short timeouts."""
        if self.odb.fs.protocol == "local":
            return ""
        try:
            probe(self.repo.config, writable=False)
        except ValueError as error:
            return str(error)
        return ""

    def path(self, oid: str) -> str:
        """Where the store keeps an object."""
        return str(self.odb.oid_to_path(oid))

    def check(self, oid: str, progress: Callable[[int], Any] = _silent) -> Verdict:
        """Read and hash one object; `progress` is told the size of each block. Never raises."""
        try:
            with self.odb.fs.open(self.path(oid), "rb", **self.open_options) as file:
                digest, size = md5(file, progress)
        except FileNotFoundError:
            return Verdict("missing", "no such object")
        except failures() as error:
            return Verdict("unreadable", explain(error))
        if digest != oid.removesuffix(".dir"):
            return Verdict("bad", f"its {size} bytes hash to {digest}", size)
        return Verdict("good", size=size)

    def read(self, oid: str) -> bytes | None:
        """An object's bytes where they are good, else None."""
        if self.trouble or not self.check(oid).good:
            return None
        with self.odb.fs.open(self.path(oid), "rb", **self.open_options) as file:
            content: bytes = file.read()
            return content


def local_store(repo: Repo) -> Store:
    """The DVC cache on this machine."""
    return Store(repo, repo.cache.local, jobs=LOCAL_JOBS)


def remote_store(repo: Repo) -> Store:
    """The default remote; nothing is sent before it is used. Raises NoRemoteError if there is none."""
    return Store(repo, repo.cloud.get_remote_odb(), jobs=REMOTE_JOBS, block_size=REMOTE_BLOCK)


def md5(file: BinaryIO, progress: Callable[[int], Any] = _silent) -> tuple[str, int]:
    """MD5 (DVC's name for content, no protection against an attacker) and size of what is left of `file`."""
    digest, size = hashlib.md5(usedforsecurity=False), 0
    while block := file.read(BLOCK):
        digest.update(block)
        size += len(block)
        progress(len(block))
    return digest.hexdigest(), size


def recorded_objects(repo: Repo) -> list[Object]:
    """Objects that dvc.lock and *.dvc files name themselves: files, and the lists of folders."""
    return _grouped((str(out.hash_info.value), _use(repo, out)) for out in repo.index.outs if _is_ours(out))


def folder_objects(folder: Object, content: bytes) -> list[Object]:
    """Objects of the files in `folder`, whose list is `content`."""
    pairs = []
    for entry in json.loads(content):
        for use in folder.uses:
            path = use.path / entry["relpath"]
            owner = f"{use.owner}/{entry['relpath']}"
            pairs.append((entry["md5"], Use(owner, path, use.remedy, use.pushed, use.optional)))
    return _grouped(pairs)


def _grouped(pairs: Iterable[tuple[str, Use]]) -> list[Object]:
    uses: dict[str, list[Use]] = {}
    for oid, use in pairs:
        uses.setdefault(oid, []).append(use)
    return [Object(oid, tuple(users)) for oid, users in sorted(uses.items())]


def _is_ours(out: Output) -> bool:
    # Others are no objects: DVC 2's text hashes (md5-dos2unix), outs outside the repository.
    return bool(out.hash_info) and out.hash_info.name == "md5" and out.is_in_repo


def _use(repo: Repo, out: Output) -> Use:
    path, stage = Path(out.fs_path), out.stage.addressing
    made = f"`dvc repro {stage}`"
    brought = f"bring {out} back from where it came, then `dvc add {out}`"
    return Use(
        owner=f"{stage}: {path.relative_to(repo.root_dir).as_posix()}",
        path=path,
        remedy=made if out.stage.cmd else brought,
        pushed=out.use_cache and out.can_push and not out.remote,
        optional=not out.use_cache,
    )


def distinct(groups: Iterable[list[Object]]) -> list[Object]:
    """Merge lists of objects, so that content shared by folders is looked at once."""
    return _grouped(_pairs(groups))


def _pairs(groups: Iterable[list[Object]]) -> Iterator[tuple[str, Use]]:
    for group in groups:
        for each in group:
            for use in each.uses:
                yield each.oid, use
