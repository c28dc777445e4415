"""Look at everything a run depends on and say what to do about what is wrong:

    python -m ops.doctor [--json]

Leaves nothing behind: it probes the remote with a small object, removed again, and makes no tracking store.
Exit status 1 where a check fails; a warning does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ops import guard, machine, remote, tracker
from ops.finding import FAIL, OK, WARN, Finding
from stages.common.store import tracking_uri

STYLES = {OK: "green", WARN: "yellow", FAIL: "bold red"}
# DO_NOT_TRACK is enough for Hugging Face and Evidently at any value, for MLflow only as "true".
TELEMETRY = {"DO_NOT_TRACK": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; exit status 1 where a check fails."""
    parser = argparse.ArgumentParser(prog="python -m ops.doctor", description="check what a run depends on")
    parser.add_argument("--json", action="store_true", help="a list of {name, status, found, todo}")
    options = parser.parse_args(arguments)
    findings = examine(Path.cwd())
    if options.json:
        print(json.dumps([asdict(each) for each in findings], indent=2))
    else:
        _print_table(findings)
    return 1 if any(each.status == FAIL for each in findings) else 0


def examine(root: Path) -> list[Finding]:
    """All findings about the repository at `root`, in the order in which to put things right."""
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("python", machine.python_version),
        ("python on PATH", machine.python_on_path),
        ("packages", lambda: machine.packages(root)),
        ("processor", machine.processor),
        ("memory", machine.memory),
        ("gpu", machine.gpu),
        ("disk", lambda: machine.disk(root)),
        ("hard links", lambda: machine.hard_links(root, cache_dir(root))),
        ("git", lambda: git(root)),
        ("dvc", lambda: dvc(root)),
        ("params", lambda: params(root)),
        ("remote", lambda: storage(root)),
        ("tracking", lambda: tracker.tracking(tracking_uri(root))),
        ("telemetry", lambda: telemetry(os.environ)),
    ]
    return [_guarded(name, check) for name, check in checks]


def git(root: Path) -> Finding:
    """Repository, branch, identity (DVC experiments commit) and uncommitted changes."""
    if _git(root, "rev-parse", "--git-dir") is None:
        return Finding("git", FAIL, f"{root} is no git repository", "git clone it, or `git init`")
    branch = _git(root, "branch", "--show-current") or "a detached HEAD"
    changed = len((_git(root, "status", "--porcelain") or "").splitlines())
    found = f"{branch}, {f'{changed} uncommitted changes' if changed else 'clean'}"
    if _git(root, "var", "GIT_COMMITTER_IDENT") is None:
        todo = "experiments make commits: `git config user.name ...` and `git config user.email ...`"
        return Finding("git", WARN, f"{found}, no identity", todo)
    if changed:
        return Finding("git", WARN, found, "commit before a run that others should be able to repeat")
    return Finding("git", OK, found)


def dvc(root: Path) -> Finding:
    """The settings of .dvc/config that Lathe relies on, and dvc.lock."""
    config = _dvc_config(root)
    links = config["cache"].get("type", [])
    section = config["remote"].get(config["core"].get("remote"), {})
    faults = {
        "cache.type does not start with hardlink": links[:1] != ["hardlink"],
        "hydra.enabled is off": not config["hydra"].get("enabled"),
        "core.analytics is on": config["core"].get("analytics") is not False,
        "the remote's verify is off": not section.get("verify"),
        "dvc.lock is missing": not (root / "dvc.lock").is_file(),
    }
    wrong = [text for text, is_so in faults.items() if is_so]
    if not wrong:
        return Finding("dvc", OK, f"cache linked by {', '.join(links)}; hydra, verify on; dvc.lock present")
    only_lock = wrong == ["dvc.lock is missing"]
    todo = (
        "`dvc repro` makes it" if only_lock else "`git checkout .dvc/config`, and look at `dvc config --list`"
    )
    return Finding("dvc", WARN, "; ".join(wrong), todo)


def params(root: Path) -> Finding:
    """Whether params.yaml is what conf/ composes to, as the guard stage asks before a run."""
    wrong = guard.problems(root)
    if wrong:
        return Finding("params", FAIL, "; ".join(wrong), "`python -m ops.compose`")
    return Finding("params", OK, "params.yaml is what conf/ composes to")


def storage(root: Path) -> Finding:
    """Whether the DVC remote is set, reachable and writable: writes, reads and removes a small object."""
    config = _dvc_config(root)
    where = remote.describe(config)
    if not remote.is_set(config):
        return Finding(
            "remote", WARN, "not configured: data and models stay on this machine", f"`{remote.COMMAND}`"
        )
    try:
        remote.probe(config)
    except ValueError as error:
        return _unwritable(config, error)
    return Finding("remote", OK, f"{where}: reachable and writable")


def telemetry(environment: Mapping[str, str]) -> Finding:
    """Whether this shell's own commands (mlflow ui) are silent too; stages switch it off for themselves."""
    if any(environment.get(name, "").lower() == value for name, value in TELEMETRY.items()):
        return Finding("telemetry", OK, "off for stages, DVC and this shell")
    todo = f"`export {' '.join(f'{name}={value}' for name, value in TELEMETRY.items())}` (see .env.example)"
    return Finding(
        "telemetry", WARN, "off for stages and DVC, not for commands of this shell (mlflow ui)", todo
    )


def cache_dir(root: Path) -> Path:
    """DVC's cache folder."""
    return Path(_dvc_config(root)["cache"].get("dir") or root / ".dvc" / "cache")


def _guarded(name: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except remote.failures() as error:
        return Finding(
            name, FAIL, f"the check itself failed: {type(error).__name__}: {error}", "see the message"
        )


def _print_table(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("check", "status")
    table.add_column("found", overflow="fold")
    table.add_column("to do", overflow="fold")
    for each in findings:
        status = f"[{STYLES[each.status]}]{each.status}[/]"
        table.add_row(each.name, status, escape(each.found), escape(each.todo))
    Console().print(table)


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], check=False, capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.rstrip() if done.returncode == 0 else None


def _dvc_config(root: Path) -> Any:
    from dvc.config import Config

    return Config(str(root / ".dvc"))


def _unwritable(config: Any, error: ValueError) -> Finding:
    broken = Finding("remote", FAIL, str(error), f"`{remote.COMMAND}` sets another")
    if not isinstance(error.__cause__, PermissionError):
        return broken
    try:
        remote.probe(config, writable=False)
    except ValueError:
        return broken
    return Finding(
        "remote", WARN, f"reachable, not writable: {error}", "enough for `dvc pull`; ask for write access"
    )


if __name__ == "__main__":
    sys.exit(main())
