"""Re-hash every object that the workspace's dvc.lock and *.dvc files name; repair what another copy allows:

    python -m ops.fsck              # the local cache, and workspace files that DVC wrongly believes unchanged
    python -m ops.fsck --remote     # the remote's objects too (reads every byte of them)
    python -m ops.fsck --dry-run    # report only

DVC trusts a cache file that is read-only and never hashes it again, so a flipped bit passes `dvc status`,
`dvc checkout` and `dvc push`.
Exit status: 0 all is good now, 1 something is not, 2 the remote cannot be used.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from ops.objects import (
    Object,
    Store,
    Verdict,
    distinct,
    folder_objects,
    local_store,
    recorded_objects,
    remote_store,
)
from ops.repair import Outcome, mend_local, mend_remote, mend_stale, stale_files

if TYPE_CHECKING:
    from dvc.repo import Repo


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    options = _parse(arguments)
    try:
        with Repo() as repo, repo.lock:
            return _fsck(repo, with_remote=options.remote, dry_run=options.dry_run)
    except (DvcException, OSError, ValueError) as error:
        print(f"ops.fsck: {error}", file=sys.stderr)
        return 2


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ops.fsck", description="verify and repair DVC's objects")
    parser.add_argument("--remote", action="store_true", help="verify the remote's objects too")
    parser.add_argument("--dry-run", action="store_true", help="report, repair nothing")
    return parser.parse_args(arguments)


def _fsck(repo: Repo, *, with_remote: bool, dry_run: bool) -> int:
    check = Check(repo, with_remote=with_remote, dry_run=dry_run)
    objects = recorded_objects(repo)
    check.run("files and folder lists", objects)
    check.run("files in folders", distinct(check.inside(each) for each in objects if each.is_folder))
    return check.summary()


class Check:
    """Hashes, repairs, reports and counts objects."""

    def __init__(self, repo: Repo, *, with_remote: bool, dry_run: bool) -> None:
        """Raises ValueError where the remote is asked for and cannot be used."""
        self.repo, self.with_remote, self.dry_run = repo, with_remote, dry_run
        self.local, self.remote = local_store(repo), remote_store(repo)
        self.seen = self.repaired = self.open = 0
        if with_remote and self.remote.trouble:
            raise ValueError(self.remote.trouble)

    def run(self, what: str, objects: list[Object]) -> None:
        """Hash all `objects`, several at once, then settle what is not good, one by one."""
        size = sum(
            path.stat().st_size for each in objects if (path := Path(self.local.path(each.oid))).exists()
        )
        local = self._hash(f"local cache, {what}", self.local, objects, size)
        pushed = [each for each in objects if self.with_remote and any(use.pushed for use in each.uses)]
        remote = self._hash(
            f"remote, {what}", self.remote, pushed, sum(local[each.oid].size for each in pushed)
        )
        for each in objects:
            self._settle(each, local[each.oid], remote.get(each.oid))

    def inside(self, folder: Object) -> list[Object]:
        """The objects of a folder's files, by whichever copy of its list is good."""
        content = self.local.read(folder.oid) or self.remote.read(folder.oid)
        if content is None:
            print(f"         the files of {folder.owners} cannot be checked: no good copy of their list")
            return []
        return folder_objects(folder, content)

    def summary(self) -> int:
        """Print the totals; 0 where everything is good now."""
        scope = "local cache and remote" if self.with_remote else "local cache"
        print(f"fsck of {scope}: {self.seen} objects, {self.repaired} repaired, {self.open} not good")
        return 1 if self.open else 0

    def _hash(self, title: str, store: Store, objects: list[Object], size: int) -> dict[str, Verdict]:
        names = [each.oid for each in objects]
        with (
            tqdm(total=size, unit="B", unit_scale=True, desc=title, leave=False, disable=None) as bar,
            ThreadPoolExecutor(store.jobs) as pool,
        ):
            return dict(zip(names, pool.map(lambda name: store.check(name, bar.update), names), strict=True))

    def _settle(self, each: Object, local: Verdict, remote: Verdict | None) -> None:
        if local.state == "missing" and all(use.optional for use in each.uses):
            return
        self.seen += 1
        good = local.good or self._report(each, "local cache", local, partial(self._mend_local, each))
        if remote is not None and not remote.good:
            self._report(each, "remote", remote, partial(mend_remote, each, self.local, self.remote))
        for path in stale_files(self.repo, each, self.local) if good else []:
            text = f"{os.path.relpath(path)} has other bytes, but DVC takes it for unchanged"
            self._report(each, "workspace", Verdict("bad", text), partial(mend_stale, each, path, self.local))

    def _mend_local(self, each: Object) -> Outcome:
        return mend_local(self.repo, each, self.local, self.remote)

    def _report(self, each: Object, where: str, verdict: Verdict, mend: Callable[[], Outcome]) -> bool:
        print(f"{verdict.state.upper():8} {where}: {each.owners} ({each.oid}): {verdict.detail}")
        outcome = Outcome(False, "--dry-run") if self.dry_run else mend()
        self.repaired += outcome.fixed
        self.open += not outcome.fixed
        print(f"         {'repaired' if outcome.fixed else 'NOT repaired:'} {outcome.text}")
        return outcome.fixed


if __name__ == "__main__":
    sys.exit(main())
