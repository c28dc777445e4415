"""Clones of this repository in which the pipeline really runs, at the scale of experiment=smoke.

A clone starts from the working tree as it stands, committed or not. tests/conftest.py has `source` and `finished`
as session fixtures: the pipeline runs from nothing once, and who changes its result works on a copy.
"""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.common.files import tree_digest
from tests.small_project import HOUSE, IDENTITY

SECONDS = 600  # a bound for one command, far above what any takes: a hang fails with what was printed
STAGES = (
    "conf", "base", "prepare", "finetune", "bench@base", "bench@tuned", "judge", "drift", "register"
)  # fmt: skip
# What the machine that runs the tests may have set, and a clone must not inherit.
FOREIGN = ("MLFLOW_", "DVC_", "LATHE_", "GIT_", "PYTHONPATH")


@dataclass(frozen=True)
class Clone:
    """A clone at `root`, with an environment of its own."""

    root: Path

    def run(self, *command: str, ok: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the clone; with `ok`, a failure fails the test with its output."""
        done = subprocess.run(
            command,
            cwd=self.root,
            env=self.env() | env,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert not ok or done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
        return done

    def module(self, name: str, *arguments: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `python -m <name>`."""
        return self.run(sys.executable, "-m", name, *arguments, ok=ok)

    def dvc(self, *arguments: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a DVC command."""
        return self.module("dvc", *arguments, ok=ok)

    def git(self, *arguments: str) -> str:
        """Output of a git command."""
        return self.run("git", *arguments).stdout

    def commit(self) -> None:
        """Commit everything that git does not ignore."""
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "all")

    @property
    def log(self) -> Path:
        """What the commands of `group` print."""
        return self.root.with_name(f"{self.root.name}.log")

    @contextmanager
    def group(self, *command: str) -> Iterator[subprocess.Popen[bytes]]:
        """A command in a process group of its own, all of which is killed at the end."""
        with self.log.open("ab") as file:
            process = subprocess.Popen(
                command, cwd=self.root, env=self.env(), stdout=file, stderr=file, start_new_session=True
            )
        try:
            yield process
        finally:
            kill_group(process)

    def env(self) -> dict[str, str]:
        """The environment of a person who has nothing set but the venv's python first on PATH."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        places = {
            "PATH": f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}",
            "XDG_CONFIG_HOME": str(self.root.parent / "config"),
            "DVC_SITE_CACHE_DIR": str(self.root.parent / "site"),
            "GIT_CONFIG_GLOBAL": os.devnull,
        }
        return own | IDENTITY | places

    def lock(self) -> dict[str, Any]:
        """dvc.lock, parsed: its order follows the order of execution and says nothing."""
        return dict(yaml.safe_load((self.root / "dvc.lock").read_text(encoding="utf-8"))["stages"])

    def outs(self) -> dict[str, str]:
        """Path -> digest of every out and metrics file that stands in dvc.lock."""
        entries = [out["path"] for stage in self.lock().values() for out in stage["outs"]]
        return {path: tree_digest(self.root / path) for path in sorted(entries)}

    def runs(self) -> list[dict[str, str]]:
        """The MLflow runs of the clone's own store, oldest first: tags, `run` (its id) and `status`."""
        store = self.root / "mlflow.db"
        try:
            with closing(sqlite3.connect(f"{store.as_uri()}?mode=ro", uri=True, timeout=30)) as base:
                found = base.execute("select run_uuid, status from runs order by start_time").fetchall()
                tags = base.execute("select run_uuid, key, value from tags").fetchall()
        except sqlite3.OperationalError:  # not there, or not yet whole
            return []
        each = {run: {"run": run, "status": status} for run, status in found}
        for run, key, value in tags:
            each.get(run, {})[key] = value
        return list(each.values())


@dataclass(frozen=True)
class Finished:
    """A clone whose pipeline has run once from nothing, committed; `output` is what that run printed."""

    clone: Clone
    output: str


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A repository with one commit: the files of the working tree that git knows or would add."""
    root = tmp_path_factory.mktemp("source") / "lathe"
    names = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=HOUSE, capture_output=True, check=True
    ).stdout
    for name in filter(None, names.decode().split("\0")):
        if (HOUSE / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes((HOUSE / name).read_bytes())
    clone = Clone(root)
    clone.git("init", "-q", "-b", "main")
    clone.commit()
    return clone


@pytest.fixture(scope="session")
def finished(source: Clone, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The smoke pipeline after its first run. Never write to it: `copy` it."""
    clone = smoke(source, tmp_path_factory.mktemp("finished") / "lathe")
    output = clone.module("ops.pipeline").stdout
    clone.commit()
    return Finished(clone, output)


def fresh(source: Clone, root: Path) -> Clone:
    """A clone in which nothing has run."""
    source.git("clone", "-q", str(source.root), str(root))
    return Clone(root)


def smoke(source: Clone, root: Path) -> Clone:
    """A clone composed for experiment=smoke, in which nothing has run."""
    clone = fresh(source, root)
    clone.module("ops.compose", "experiment=smoke")
    return clone


def copy(clone: Clone, root: Path) -> Clone:
    """A copy to change, links between outs and cache kept; its MLflow store is empty, as paths in it are absolute."""
    subprocess.run(["cp", "-a", str(clone.root), str(root)], check=True)
    made = Clone(root)
    for name in ("mlflow.db", "mlartifacts"):
        subprocess.run(["rm", "-rf", str(root / name)], check=True)
    return made


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a process and everything in its group, as a batch system's time limit does."""
    if process.returncode is None:  # not waited for yet, so the number is still its own
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_for(what: str, reached: Callable[[], bool]) -> None:
    """Poll until `reached`; fail the test after a bound that only a hang meets."""
    end = time.monotonic() + SECONDS
    while not reached():
        assert time.monotonic() < end, f"{what} did not come about in {SECONDS} s"
        time.sleep(0.05)


def ran(output: str) -> list[str]:
    """The stages that `dvc repro` says it ran."""
    return re.findall(r"^Running stage '([^']+)'", output, re.MULTILINE)
