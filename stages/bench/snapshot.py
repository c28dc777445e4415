"""Snapshots of lm-eval's tasks: the items and the configuration that a commit names, read without the network.

`data/benchmarks/<task>/` is a task folder as lm-eval itself reads it: task.yaml, a Parquet file a split, card.json
with a hash of each file and of each lm-eval module that the task calls. `python -m ops.snapshot` makes it. lm-eval
imports whatever a YAML's `!function` names, so `verify` comes first: it reads, hashes and imports nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from stages.bench.modules import executes, module_hash
from stages.bench.reach import refused
from stages.common.files import read_json, sha256

if TYPE_CHECKING:
    import datasets

SNAPSHOTS = Path("data/benchmarks")
CARD = "card.json"
ROW = "lathe_row"  # a column with the number of each row in its file: a task may leave rows out
DATASET = "stages.bench.snapshot.dataset"  # what each task.yaml has as its custom_dataset
CODE_TASK = (
    "stages.bench.tasks.code.CodeTask"  # the class of all that are marked unsafe_code, and of no other
)
FILES = re.compile(r"task\.yaml|group\.yaml|[\w.]+\.parquet|README\.md|(LICEN[CS]E|COPYING)[\w.-]*")
KINDS = ("task", "group", "tag")


class Function(str):
    """The dotted name after a `!function`; nothing is imported."""


@dataclass(frozen=True)
class Card:
    """What card.json says: a task's own, or a group's (or tag's) with the names of its `members`."""

    kind: str
    name: str
    members: list[str]
    files: dict[str, str]  # name: sha256
    modules: dict[str, str]  # dotted name: sha256
    lm_eval: str


def dataset(snapshot: str, **_: Any) -> dict[str, datasets.Dataset]:
    """The rows of a snapshot by split, as `datasets` gave them when it was made, and ROW. Called by lm-eval.

    In memory, so that a task's `map` writes no cache; raises ValueError where the card cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset, Split

    folder, rows = SNAPSHOTS / snapshot, {}
    for name, digest in sorted(read_card(folder).files.items()):
        if name.endswith(".parquet"):
            table, split = pq.ParquetFile(folder / name).read(), name.removesuffix(".parquet")
            table = table.append_column(ROW, pa.array(range(len(table)), pa.int64()))
            rows[split] = Dataset(table, split=Split(split), fingerprint=digest[:16])
    return rows


def verify(names: list[str]) -> None:
    """Check the snapshots of tasks, groups and tags, with all that they contain.

    Raises ValueError, one line, for a snapshot that is missing or unreadable, a file that is missing, changed or
    not the card's, and a `!function` that is not from a hashed module of the installed lm-eval or this stage.
    """
    hashes: dict[str, str | None] = {}
    for folder in folders(names):
        card = read_card(folder)
        _check_files(folder, card)
        _check_modules(folder, card, hashes)
        if card.kind != "tag":
            _check_yaml(folder / f"{card.kind}.yaml", card)


def there(name: str) -> bool:
    """Whether a snapshot of that name is here, or under DVC."""
    return (SNAPSHOTS / name).is_dir() or (SNAPSHOTS / f"{name}.dvc").is_file()


def folders(names: list[str]) -> list[Path]:
    """The snapshots that these names need, each once, members before their group: TaskManager's include_path.

    lm-eval then indexes what was verified and no more; but a tag that spans several paths it keeps of the last
    one only, so load `untagged(names)`. Raises ValueError as `verify` does for one that is missing or unreadable.
    """
    found: dict[str, Path] = {}
    for name in names:
        _collect(name, found, ())
    return list(found.values())


def untagged(names: list[str]) -> list[str]:
    """Names with each tag's tasks in its place, as lm-eval would load them. Raises ValueError as `folders` does."""
    found: list[str] = []
    for name in names:
        card = read_card(SNAPSHOTS / name)
        found += card.members if card.kind == "tag" else [name]
    return list(dict.fromkeys(found))


def read_card(folder: Path) -> Card:
    """A snapshot's card. Raises ValueError where it is missing or is none."""
    path = folder / CARD
    try:
        told = read_json(path)
        [kind] = [kind for kind in KINDS if kind in told]
        files = {name: entry["sha256"] for name, entry in told["files"].items()}
        members = [] if kind == "task" else [str(name) for name in told["tasks"]]
        modules = dict(told["modules"])
        return Card(kind, str(told[kind]), members, files, modules, str(told["lm_eval"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} is no snapshot's card ({reason}): {_again(folder.name)}") from error


def parse(path: Path) -> tuple[dict[str, Any], list[Function]]:
    """A task's YAML, and each `!function` met while reading it: lm-eval would import them all.

    Raises ValueError where it is no mapping, or not YAML as lm-eval reads it.
    """
    met: list[Function] = []

    class Loader(yaml.CSafeLoader):
        pass

    def construct(loader: yaml.CSafeLoader, node: yaml.ScalarNode) -> Function:
        met.append(Function(loader.construct_scalar(node)))
        return met[-1]

    Loader.add_constructor("!function", construct)
    try:
        config = yaml.load(path.read_bytes(), Loader=Loader)  # noqa: S506 - a safe loader
    except (yaml.YAMLError, OSError) as error:
        raise ValueError(f"{path}: not readable as YAML ({' '.join(str(error).split())})") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: a {type(config).__name__}, and not a task's keys and values")
    return config, met


def members(items: list[Any]) -> Iterator[str]:
    """The tasks and groups that a group's `task:` list names, those of groups that are defined in it too."""
    for item in items:
        if isinstance(item, str):
            yield item
        elif "group" in item and "task" in item:
            yield from members(item["task"])
        else:
            yield item["group"] if "group" in item else item["task"]


def _collect(name: str, found: dict[str, Path], within: tuple[str, ...]) -> None:
    folder = SNAPSHOTS / name
    if name in found or name in within:
        return
    if name != folder.name or name.startswith(".") or not folder.is_dir():
        raise ValueError(_missing(name, folder))
    card = read_card(folder)
    if card.name != name:
        raise ValueError(f"{folder / CARD} is the card of {card.name!r}: {_again(name)}")
    for member in card.members:
        _collect(member, found, (*within, name))
    found[name] = folder


def _missing(name: str, folder: Path) -> str:
    pointer = folder.with_name(f"{folder.name}.dvc")
    if pointer.is_file():
        return f"the snapshot of {name} is not at {folder}: `dvc pull {pointer}` brings it"
    return (
        f"no snapshot of task {name} at {folder}: on a machine with the network, "
        f"`python -m ops.snapshot bench=<suite>` (or `--task {name}`) makes it"
    )


def _again(name: str) -> str:
    pointer = SNAPSHOTS / f"{name}.dvc"
    checkout = f"`dvc checkout {pointer}`, or " if pointer.is_file() else ""
    return f"{checkout}`python -m ops.snapshot --task {name} --replace` makes it again"


def _check_files(folder: Path, card: Card) -> None:
    lying = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }
    # lm-eval takes a module that lies beside the YAML before an installed one: no file may be new
    for name in sorted(lying - {CARD} - set(card.files)) + [n for n in card.files if not FILES.fullmatch(n)]:
        raise ValueError(f"{folder / name} belongs to no snapshot: remove it, or {_again(card.name)}")
    for name, digest in sorted(card.files.items()):
        if name not in lying:
            raise ValueError(f"{folder / name} is missing, and {CARD} names it: {_again(card.name)}")
        if sha256(folder / name) != digest:
            raise ValueError(f"{folder / name} is not the file whose hash {CARD} has: {_again(card.name)}")


def _check_modules(folder: Path, card: Card, hashes: dict[str, str | None]) -> None:
    for module, digest in card.modules.items():
        if module not in hashes:
            hashes[module] = module_hash(module)
        if hashes[module] != digest:
            raise ValueError(
                f"{folder} was made with lm-eval {card.lm_eval}, and {module} of the installed one differs: "
                f"install that version, or {_again(card.name)}"
            )
        if executes(module):
            raise ValueError(
                f"{folder}: {module} executes what a model writes outside of the sandbox, so it is not imported: "
                f"{_again(card.name)}"
            )


def _check_yaml(path: Path, card: Card) -> None:
    config, functions = parse(path)
    for function in functions:
        if why := refused(function, card.modules):
            raise ValueError(f"{path}: {why}, so it is not imported: {_again(card.name)}")
    if not (_reads_rows(config, card) if card.kind == "task" else _lists_members(config, card)):
        raise ValueError(f"{path} is not the {card.kind} that {CARD} describes: {_again(card.name)}")


def _reads_rows(config: dict[str, Any], card: Card) -> bool:
    wanted = {"task": card.name, "custom_dataset": DATASET, "dataset_kwargs": {"snapshot": card.name}}
    foreign = {"include", "group", "dataset_path", "dataset_name"}
    # As lm-eval reads the mark: anything but false
    own = CODE_TASK if config.get("unsafe_code", False) is not False else None
    return not foreign & config.keys() and config | wanted == config and config.get("class") == own


def _lists_members(config: dict[str, Any], card: Card) -> bool:
    try:
        told = list(members(config["task"]))
    except (KeyError, TypeError):
        return False
    return not {"include", "class"} & config.keys() and config["group"] == card.name and told == card.members
