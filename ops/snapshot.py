"""Benchmark data under DVC: `python -m ops.snapshot bench=<suite>`, or `--task NAME [--revision SHA | --from FOLDER]`.

Needs the network, once: each task's dataset at one commit becomes data/benchmarks/<task>/, which bench then reads
without it (stages/bench/snapshot.py says what lies there). Each snapshot is complete or absent; a second run makes
what is missing, and puts another content in an old one's place only with --replace. --from takes files
<split>.jsonl, <split>.parquet or <split>/*.parquet in place of the hub, of a group in FOLDER/<task>/. Commit the .dvc
files it makes.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from ops.snapshot_config import group, modules, recipe, text
from ops.snapshot_rows import Repository, files_of, from_files, from_hub, licence_of, repository
from ops.tracked import dvc_add
from stages.bench.snapshot import CARD, SNAPSHOTS, members, verify
from stages.common.files import fresh_dir, read_json, sha256, sync, write_json, write_text

DRAFTS = Path(".lathe/snapshots")  # on the disk of data/, out of the sight of git, DVC and lm-eval's index
SUITES, OWN = Path("conf/bench"), Path("stages/bench/tasks")


@dataclass
class Order:
    """What was asked for, and the commits looked up so far: tasks of one dataset are all of one commit."""

    revision: str | None
    given: Path | None
    replace: bool
    commits: dict[tuple[str, str | None], Repository] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A snapshot before its rows are fetched: its card but for `files`, its YAML, and what writes its rows."""

    head: dict[str, Any]
    texts: dict[str, str]
    fill: Callable[[Path, Path], dict[str, int]]


def main(arguments: list[str]) -> None:
    """Make the snapshots, `dvc add` them. Raises ValueError, a line for each name that has none now."""
    chosen = _parser().parse_args(arguments)
    if (chosen.revision and chosen.given) or not (chosen.task or (chosen.revision or chosen.given) is None):
        raise ValueError("--revision (a commit on the hub) or --from (files in its place) goes with --task")
    names = [chosen.task] if chosen.task else _suite(chosen.bench)
    order, problems, there = Order(chosen.revision, chosen.given, chosen.replace), [], dict[str, None]()
    for name in names:
        try:
            for line in _make_all(name, order, there):
                print(line, flush=True)
        except ValueError as problem:
            problems.append(str(problem))
    try:
        _track(list(there))
    except ValueError as problem:
        problems.append(str(problem))
    if problems:
        raise ValueError("\nsnapshot: ".join(problems))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ops.snapshot")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("bench", nargs="?", metavar="bench=SUITE", help="every task of conf/bench/SUITE.yaml")
    what.add_argument("--task", metavar="NAME", help="one task, group or tag of lm-eval's")
    parser.add_argument("--revision", metavar="SHA", help="commit of the dataset (default: its latest)")
    parser.add_argument("--from", dest="given", type=Path, metavar="FOLDER", help="files in place of the hub")
    parser.add_argument("--replace", action="store_true", help="put the new content in an old one's place")
    return parser


def _suite(override: str) -> list[str]:
    """Tasks of a suite that are lm-eval's: our own have their data elsewhere."""
    key, _, name = override.partition("=")
    path = SUITES / f"{name}.yaml"
    if key != "bench" or not path.is_file():
        known = ", ".join(sorted(suite.stem for suite in SUITES.glob("*.yaml")))
        raise ValueError(f"{override!r} is not bench=SUITE, with one of {known}")
    named = yaml.safe_load(path.read_text(encoding="utf-8")).get("tasks")
    if named is None:
        raise ValueError(f"{path} has no tasks of its own: give bench=<the suite of its defaults>")
    theirs = [task for task in named if not (OWN / f"{task}.yaml").is_file()]
    if not theirs:
        print(f"{path} names only tasks of {OWN}, which need no snapshot")
    return theirs


def _make_all(name: str, order: Order, there: dict[str, None]) -> Iterator[str]:
    """Make a name's snapshots, members before their group; a line for each, and its name into `there`."""
    wanted = list(dict.fromkeys(_needed(name)))
    for number, one in enumerate(wanted, 1):
        if one not in there:
            given = order.given / one if order.given and len(wanted) > 1 else order.given
            yield f"{one} ({number} of {len(wanted)}): {_make(one, replace(order, given=given))}"
            there[one] = None


def _needed(name: str) -> Iterator[str]:
    for member in _members(name):
        yield from _needed(member)
    yield name


def _members(name: str) -> list[str]:
    entry = _entry(name)
    if entry.kind.name == "TAG":
        return sorted(entry.tags)
    return list(members(_group(name)["task"])) if entry.kind.name == "GROUP" else []


def _group(name: str) -> dict[str, Any]:
    tags = {other: sorted(entry.tags) for other, entry in _index().items() if entry.kind.name == "TAG"}
    return group(name, _entry(name).yaml_path, tags, set(_index()))


def _entry(name: str) -> Any:
    if name not in _index():
        import difflib

        near = ", ".join(difflib.get_close_matches(name, _index(), n=3))
        raise ValueError(f"lm-eval has no task {name!r}; near it: {near or 'none'}")
    return _index()[name]


@cache
def _index() -> dict[str, Any]:
    from lm_eval.tasks import TaskManager

    print("reading lm-eval's index of tasks", flush=True)
    index: dict[str, Any] = TaskManager().task_index
    return index


def _make(name: str, order: Order) -> str:
    """Make one snapshot unless it is there; what there is to say. Raises ValueError, with nothing changed."""
    folder, kind = SNAPSHOTS / name, _entry(name).kind.name
    plan = _task(name, order) if kind.endswith("TASK") else _collection(name, kind.lower())
    told = plan.head.get("dataset", {})
    origin = (
        f"{told['path']} at {told['revision'] or order.given}" if told else f"{len(_members(name))} members"
    )
    if not order.replace and (folder.exists() or folder.with_name(f"{name}.dvc").is_file()):
        _check_same(name, folder, plan)
        return f"there already, {origin}"
    rows = _write(folder, plan)
    return ", ".join([origin, *(f"{count} rows of {split}" for split, count in rows.items())])


def _task(name: str, order: Order) -> Plan:
    made = recipe(name, _entry(name).yaml_path)
    told: dict[str, Any] = {"path": made.source.path, "name": made.source.name, "revision": None}
    if given := order.given:
        paths = [path for listed in files_of(made, given).values() for path in listed]
        files = {path.relative_to(given).as_posix(): sha256(path) for path in paths}
        told |= {"licence": licence_of(given), "from": files}
    else:
        key = (made.source.path, order.revision or made.source.revision)
        found = order.commits.get(key) or repository(made.source, order.revision)
        order.commits[key] = found
        told |= {"licence": found.licence, "revision": found.revision}
    head = {"task": name, "dataset": told, "tested": f"{made.tested}.parquet", "version": made.version}
    head |= {"modules": made.modules, "lm_eval": version("lm_eval")}

    def fill(folder: Path, scratch: Path) -> dict[str, int]:
        return from_files(made, given, folder) if given else from_hub(made, found, folder, scratch)

    return Plan(head, {"task.yaml": made.text}, fill)


def _collection(name: str, kind: str) -> Plan:
    """A group, which has a YAML, or a tag: its tasks carry it in theirs."""
    config = _group(name) if kind == "group" else {}
    head = {kind: name, "tasks": _members(name), "modules": modules(config), "lm_eval": version("lm_eval")}
    return Plan(head, {"group.yaml": text(config)} if config else {}, lambda folder, scratch: {})


def _check_same(name: str, folder: Path, plan: Plan) -> None:
    """Raises ValueError unless the snapshot that is there is whole, and the one that would be made."""
    verify([name])
    old = read_json(folder / CARD)
    # another lm-eval whose code and configuration of the task are the same makes the same snapshot
    changed = [
        key for key, value in plan.head.items() if key not in old or (key != "lm_eval" and old[key] != value)
    ]
    changed += [
        file for file, content in plan.texts.items() if (folder / file).read_bytes() != content.encode()
    ]
    if changed:
        held = (
            f" of revision {old['dataset']['revision']}" if "dataset" in changed and "dataset" in old else ""
        )
        raise ValueError(
            f"{folder} is another snapshot{held}, with other {', '.join(changed)}: --replace makes it anew"
            + (", --revision stays with it" if held else "")
        )


def _write(folder: Path, plan: Plan) -> dict[str, int]:
    """Rows, YAML and card into a draft, then all into place; returns rows by split."""
    draft, scratch = fresh_dir(DRAFTS / folder.name), fresh_dir(DRAFTS / f"{folder.name}.cache")
    try:
        rows = plan.fill(draft, scratch)
        for name, content in plan.texts.items():
            write_text(draft / name, content)
        files: dict[str, dict[str, Any]] = {
            path.name: {"sha256": sha256(path)} for path in sorted(draft.iterdir())
        }
        for split, count in rows.items():
            files[f"{split}.parquet"]["rows"] = count
        write_json(draft / CARD, plan.head | {"files": files})
        for path in (*draft.iterdir(), draft):
            sync(path)
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft.rename(folder)
    finally:
        for left in (draft, scratch):
            shutil.rmtree(left, ignore_errors=True)
    return rows


def _track(names: list[str]) -> None:
    paths = [SNAPSHOTS / name for name in names]
    if not paths or not Path(".dvc").is_dir():
        print("not under DVC: this folder is no DVC repository" if paths else "no snapshot was made")
        return
    dvc_add(*paths)
    print(f"{len(paths)} under DVC: commit their {SNAPSHOTS}/<task>.dvc, then `dvc push`")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as problem:
        sys.exit(f"snapshot: {problem}")
