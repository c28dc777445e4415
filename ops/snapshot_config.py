"""A task's lm-eval configuration for a snapshot: one YAML without includes, that names no dataset and whose
`!function`s are modules of the installed lm-eval, which the card hashes. Nothing of lm-eval's task code is imported.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ops.snapshot_code import sandboxed
from ops.snapshot_functions import functions, rename
from stages.bench.modules import module_file
from stages.bench.reach import LM_EVAL, forbidden, imports
from stages.bench.snapshot import DATASET, Function, parse
from stages.common.files import sha256

DROPPED = (
    "trust_remote_code",
    "streaming",
)  # of dataset_kwargs: the one is refused, the other changes no row
SPLITS = ("test_split", "validation_split", "training_split")
# What a group may not change of a task: the rows, which the task's own snapshot holds.
ROWS = {
    "dataset_path",
    "dataset_name",
    "dataset_kwargs",
    "custom_dataset",
    "class",
    "include",
    "fewshot_config",
}


@dataclass(frozen=True)
class Source:
    """Where lm-eval would take the rows from: a dataset of the hub, `kwargs` as `load_dataset` takes them."""

    path: str
    name: str | None
    revision: str | None
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """A task as its snapshot will have it: the text of task.yaml, the splits it reads, the one it is tested on."""

    task: str
    text: str
    version: Any
    source: Source
    splits: list[str]
    tested: str
    modules: dict[str, str]


def recipe(name: str, path: Path) -> Recipe:
    """The recipe of a task that lm-eval defines at `path`.

    Raises ValueError, one line, for a task whose rows are no dataset's, whose metric is code to be downloaded, whose
    functions come to such a one, or which executes what a model writes and is not known to do so in our sandbox.
    """
    config = flat(path)
    for key, what in (("class", "a Python class"), ("custom_dataset", "a function of lm-eval's")):
        if key in config:
            raise ValueError(
                f"{name}: its rows come from {what}, not from a dataset, so there is no snapshot of it"
            )
    if "dataset_path" not in config:
        raise ValueError(f"{name}: {path} names no dataset_path, so there is no snapshot of it")
    config = sandboxed(name, config)
    _keep_local(name, config)
    if why := next(filter(None, map(forbidden, sorted(_theirs(config)))), ""):
        raise ValueError(f"{name}: {why}, which is refused")
    kwargs = {k: v for k, v in (config.pop("dataset_kwargs", None) or {}).items() if k not in DROPPED}
    revision = kwargs.pop("revision", None)
    source = Source(config.pop("dataset_path"), config.pop("dataset_name", None), revision, kwargs)
    splits = _splits(config)
    config |= {"custom_dataset": Function(DATASET), "dataset_kwargs": {"snapshot": name}}
    return Recipe(name, text(config), _version(config), source, splits, splits[0], modules(config))


def flat(path: Path) -> dict[str, Any]:
    """A YAML of lm-eval with its includes merged, as lm-eval's load_yaml does, and its functions' full names."""
    read, _ = parse(path)
    config: dict[str, Any] = rename(read, lambda function: _module(function, path))
    includes = config.pop("include", [])
    merged: dict[str, Any] = {}
    for include in includes if isinstance(includes, list) else [includes]:
        merged |= {key: value for key, value in flat(path.parent / include).items() if key != "task_list"}
    return merged | config


def group(name: str, path: Path, tags: dict[str, list[str]], known: set[str]) -> dict[str, Any]:
    """A group's configuration with tags spelled out as the tasks that have them, in lm-eval's order.

    Raises ValueError where it defines a task itself, or changes the rows of one.
    """
    config = flat(path)
    listed = config.get("task")
    if not isinstance(listed, list):
        raise ValueError(f"{name}: {path} is a group without a list of tasks")
    _check_keys(name, config)
    return config | {"task": _spelled(name, listed, tags, known)}


def text(config: dict[str, Any]) -> str:
    """A configuration as YAML, keys in their order."""
    written: str = yaml.dump(config, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return written


def modules(config: Any) -> dict[str, str]:
    """Hash of each lm-eval module that a configuration's functions are from, or that those import, by name."""
    todo = {function.rpartition(".")[0] for function in _theirs(config)}
    found: dict[str, str] = {}
    while todo:
        module = todo.pop()
        path = module_file(module)
        if module in found or not path.is_file():  # a folder without __init__.py has nothing to hash
            continue
        found[module] = sha256(path)
        todo |= _imported(module, path)
    return dict(sorted(found.items()))


def _theirs(config: Any) -> set[str]:
    return {function for function in functions(config) if function.startswith(LM_EVAL)}


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(Function, lambda dumper, name: dumper.represent_scalar("!function", str(name)))


def _module(function: Function, path: Path) -> Function:
    """lm-eval's rule: a module beside the YAML comes before an installed one. Raises ValueError outside lm-eval."""
    module, _, name = function.rpartition(".")
    beside = (path.parent / f"{module.replace('.', '/')}.py").resolve()
    if beside.is_file():
        inner = beside.relative_to(module_file(LM_EVAL).parent.resolve()).with_suffix("")
        return Function(".".join((LM_EVAL, *inner.parts, name)))
    if not module.startswith(f"{LM_EVAL}."):
        raise ValueError(f"{path}: !function {function} is not from {LM_EVAL}, so it would not be imported")
    return function


def _imported(module: str, path: Path) -> set[str]:
    """Modules of lm_eval.tasks that a module imports, wherever in it, and the packages that it lies in."""
    parts = module.split(".")
    found = {".".join(parts[:end]) for end in range(3, len(parts))}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for name in imports(module, node).values() if isinstance(node, ast.Import | ast.ImportFrom) else []:
            found |= {name, name.rpartition(".")[0]}  # from a module its name, or from a package a module
    return {name for name in found if name.startswith(f"{LM_EVAL}.")}


def _splits(config: dict[str, Any]) -> list[str]:
    """The split that is tested, then the one that few-shot examples are drawn from (lm_eval/api/task.py)."""
    own = [config[key] for key in reversed(SPLITS) if config.get(key)]
    few = config.get("fewshot_config") or {}
    tested = config.get("test_split") or config.get("validation_split")
    if not tested:
        raise ValueError(
            f"{config['task']}: neither test_split nor validation_split is set, so nothing is tested"
        )
    shown = few.get("split", config.get("fewshot_split")) or (None if "samples" in few else own[0])
    return list(dict.fromkeys(filter(None, (tested, shown))))


def _version(config: dict[str, Any]) -> Any:
    metadata = config.get("metadata")
    return metadata.get("version") if isinstance(metadata, dict) else metadata


def _keep_local(name: str, config: dict[str, Any]) -> None:
    """Take metrics from lm-eval itself. Raises ValueError where that would be another function.

    Only of generated text is a metric's function called (lm_eval/api/task.py, process_results); elsewhere, and where
    the task has its own process_results, `hf_evaluate` would download code that nothing calls.
    """
    import lm_eval.api.metrics  # noqa: F401 - registers them
    from lm_eval.api.registry import metric_registry

    called = config.get("output_type", "generate_until") == "generate_until"
    listed = (
        [] if config.get("process_results") else config.get("metric_list") or []
    )  # else they are only names
    for entry in listed:
        metric = entry["metric"]
        foreign = entry.pop("hf_evaluate", False) and called
        if foreign or not (isinstance(metric, Function) or metric in metric_registry):
            raise ValueError(f"{name}: metric {metric} is code that lm-eval would download, which is refused")


def _spelled(name: str, listed: list[Any], tags: dict[str, list[str]], known: set[str]) -> list[Any]:
    spelled: list[Any] = []
    for item in listed:
        keys = {} if isinstance(item, str) else item
        child = item if isinstance(item, str) else keys.get("group", keys.get("task"))
        _check_keys(name, keys)
        if "group" in keys and child not in known:  # defined here, in the list
            spelled.append(keys | {"task": _spelled(name, keys["task"], tags, known)})
        elif child not in known or {"group", "task"} <= keys.keys():
            raise ValueError(
                f"{name}: the group defines the task {child} itself, so there is no snapshot of it"
            )
        elif child in tags:
            spelled += [keys | {"task": task} if keys else task for task in tags[child]]
        else:
            spelled.append(item)
    return spelled


def _check_keys(name: str, keys: dict[str, Any]) -> None:
    changed = {key for key in keys if key in ROWS or key.endswith("_split")}
    if changed:
        raise ValueError(
            f"{name}: the group changes {', '.join(sorted(changed))} of a task, whose snapshot is its own"
        )
