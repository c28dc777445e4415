"""Where results come from: a registry version, a folder, a file, a git revision or an experiment, in one form.

A name is, in the order in which it is tried:

    models:/Name@alias, models:/Name/3, Name@champion   the scores that registry/ keeps of a champion
    . or workspace, a folder with data/results          what lies there now
    results.parquet                                     one file
    main, v1.2, 3f2a1c0, HEAD~1, an experiment          what dvc.lock names there, from the cache or the remote

A folder and a revision may say which variant: `.:base`, `main:base`.
"""

from __future__ import annotations

import io
import json
import math
import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ops.objects import local_store, md5, remote_store
from ops.package import open_store
from ops.remote import explain, failures
from stages.common.files import read_json, read_jsonl, sha256
from stages.common.run import flat
from stages.common.store import one_line
from stages.register.evidence import Scores

if TYPE_CHECKING:
    from dvc.repo import Repo

RESULTS, PACKAGES = "data/results", ("torch", "transformers", "lm_eval")
WORKSPACE, KEPT = (".", "workspace"), ("champion", "previous")  # KEPT: what champion.json itself names
# Which items were asked is seen in the items, and the model is what is compared.
NO_SETTINGS = {"bench.name", "bench.tasks", "variant.path", "variant.revision"}
Texts = dict[str, dict[str, str]]


@dataclass(frozen=True)
class Results:
    """Per-item scores by "task/metric" and id; prompt hashes and targets by task and id, where they are recorded.

    `parts` has what an item adds to values that are no mean (stages/bench/corpus.py), by "task/metric" and id.
    `settings` say how they were made, as dvc.lock has it; None where nobody recorded that.
    """

    name: str
    source: str
    scores: Scores
    prompts: Texts = field(default_factory=dict)
    targets: Texts = field(default_factory=dict)
    settings: dict[str, str] | None = None
    parts: dict[str, Scores] = field(default_factory=dict)


def read(name: str, variant: str, root: Path) -> Results:
    """The results that a name means in the repository at `root`; `variant` where the name does not say one.

    Raises ValueError: what is not there, and what to do.
    """
    if version := _version(name, root):
        return _from_registry(name, *version, root)
    place, colon, chosen = name.rpartition(":")
    if not colon or (root / name).exists():
        place, chosen = name, variant
    if place in WORKSPACE or (root / place / RESULTS).is_dir():
        return _from_folder(name, "." if place in WORKSPACE else place, chosen, root)
    if place.endswith(".parquet"):
        if not (root / place).is_file():
            raise ValueError(f"{place}: no such file")
        return parse((root / place).read_bytes(), name, f"file {place}")
    return _from_revision(name, place, chosen, root)


def parse(content: bytes, name: str, source: str, settings: dict[str, str] | None = None) -> Results:
    """Rows of bench as `Results`; columns that nobody compares are not read.

    Raises ValueError on other files, on an item that stands there twice and on a score that is not finite.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(io.BytesIO(content))
    except pa.ArrowInvalid as error:
        raise ValueError(f"{source} is not a parquet file: {one_line(error)}") from error
    if missing := sorted({"task", "id", "scores"} - set(file.schema_arrow.names)):
        raise ValueError(f"{source} holds no results of bench: it has no column {', '.join(missing)}")
    wanted = {"task", "id", "scores", "parts", "prompt_hash", "target"} & set(file.schema_arrow.names)
    results, seen = Results(name, source, {}, settings=settings), set()
    for row in file.read(columns=sorted(wanted)).to_pylist():
        task, item = row["task"], row["id"]
        if (task, item) in seen:
            raise ValueError(f"{source}: item {item} of {task} stands there twice")
        seen.add((task, item))
        for column, texts in (("prompt_hash", results.prompts), ("target", results.targets)):
            if column in row:
                texts.setdefault(task, {})[item] = row[column]
        for metric, value in _numbers(row["scores"], f"{source}: item {item} of {task}").items():
            results.scores.setdefault(f"{task}/{metric}", {})[item] = value
        for metric, added in json.loads(row.get("parts") or "{}").items():
            results.parts.setdefault(f"{task}/{metric}", {})[item] = added
    return results


def _numbers(text: str, where: str) -> dict[str, float]:
    try:
        scores = json.loads(text).items()
    except (TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{where} has scores that are no JSON object: {text!r}") from error
    numbers = {metric: float(value) for metric, value in scores if isinstance(value, (int, float))}
    for metric, value in numbers.items():
        if not math.isfinite(value):
            raise ValueError(f"{where} has {metric} {value}: bench that model again")
    return numbers


def _version(name: str, root: Path) -> tuple[str, str] | None:
    """Registered model and alias or number, where a name says one."""
    if name.startswith("models:/"):
        if not (found := re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", name)):
            raise ValueError(f"{name} is neither models:/Name@alias nor models:/Name/3")
        return found[1], found[2] or found[3]
    model, _, alias = name.partition("@")
    return (model, alias) if alias and model in _champions(root) else None


def _champions(root: Path) -> dict[str, Any]:
    return dict(read_json(path)) if (path := root / "registry/champion.json").is_file() else {}


def _from_registry(name: str, model: str, which: str, root: Path) -> Results:
    state = _champions(root)
    if model not in state:
        raise ValueError(f"{name}: registry/champion.json has no {model!r} ({_there(state)})")
    if which in KEPT:
        entry = state[model][which]
    else:
        digest, ledger = _model_of(name, model, which, root), read_jsonl(root / "registry/ledger.jsonl")
        entry = next((each for each in ledger if each["model"] == digest), None)
    if not entry:
        raise ValueError(f"{name} was never champion, and registry/ keeps no other's scores: name a revision")
    path = root / "registry/items" / f"{entry['items'][:16]}.json"
    if not path.is_file() or sha256(path) != entry["items"]:
        raise ValueError(f"{name}: {path.relative_to(root)} is missing or changed: restore it from git")
    return Results(name, f"model {entry['model'][:8]} in registry/", read_json(path))


def _model_of(name: str, model: str, which: str, root: Path) -> str:
    """Content hash of a version that only the tracking store knows by its number or alias."""
    from mlflow.exceptions import MlflowException

    client = open_store(root)
    find = client.get_model_version if which.isdecimal() else client.get_model_version_by_alias
    try:
        return str(find(model, which).tags.get("lathe.model"))
    except MlflowException as error:
        raise ValueError(f"{name}: {one_line(error)}") from error


def _from_folder(name: str, place: str, variant: str, root: Path) -> Results:
    folder, where = root / place, f"{place}/{RESULTS}/{variant}.parquet"
    if not (root / where).is_file():
        there = _there(each.stem for each in (folder / RESULTS).glob("*.parquet"))
        raise ValueError(f"{where} does not exist ({there}): `dvc pull` or `dvc repro` brings it")
    content = (root / where).read_bytes()
    digest, stage = _benched(_text(folder / "dvc.lock")).get(variant, ("", {}))
    recorded = digest == md5(io.BytesIO(content))[0]
    settings = _settings(stage, _text(folder / "requirements.lock")) if recorded else None
    return parse(content, name, where, settings)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _from_revision(name: str, revision: str, variant: str, root: Path) -> Results:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.scm import RevError, resolve_rev

    try:
        with Repo(str(root)) as repo:
            commit = resolve_rev(repo.scm, revision)
            benched = _benched(_show(root, commit, "dvc.lock"))
            if variant not in benched:
                raise ValueError(f"{name}: dvc.lock there has no {variant!r} ({_there(benched)})")
            digest, stage = benched[variant]
            content = _object(repo, digest, f"{RESULTS}/{variant}.parquet of {revision}")
    except RevError as error:
        known = f"revision, experiment, folder with {RESULTS} or .parquet file"
        raise ValueError(f"{revision!r} is no {known}") from error
    except DvcException as error:
        raise ValueError(f"{name}: {one_line(error)}") from error
    settings = _settings(stage, _show(root, commit, "requirements.lock"))
    return parse(content, name, f"{RESULTS}/{variant}.parquet at commit {commit[:8]}", settings)


def _show(root: Path, commit: str, path: str) -> str:
    """A file's text at a commit, "" where it has none."""
    command = ["git", "show", f"{commit}:./{path}"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False).stdout


def _benched(lock: str) -> dict[str, tuple[str, Any]]:
    """Of each variant that a dvc.lock holds results of: their MD5 and the stage that made them."""
    found = {}
    for name, stage in ((yaml.safe_load(lock) or {}).get("stages", {})).items():
        for out in stage["outs"] if name.startswith("bench@") else []:
            if out["path"].startswith(f"{RESULTS}/"):
                found[Path(out["path"]).stem] = (str(out["md5"]), stage)
    return found


def _there(names: Iterable[str]) -> str:
    return f"there: {', '.join(sorted(names)) or 'none'}"


def _object(repo: Repo, digest: str, what: str) -> bytes:
    local, why = local_store(repo), "it has no such object"
    content = local.read(digest)
    if content is None:
        try:
            remote = remote_store(repo)
            content, why = remote.read(digest), remote.trouble or why
        except failures() as error:
            why = explain(error)
    if content is None:
        state = f"{local.check(digest).state} in the cache and does not come from the remote ({why})"
        raise ValueError(f"{what} is {state}: fetch it or make it again")
    return content


def _settings(stage: Mapping[str, Any], pins: str) -> dict[str, str]:
    """How a bench stage was run: its parameters, what it read besides the model and shared code, pinned versions."""
    found: dict[str, str] = {}
    for section, values in stage.get("params", {}).get("params.yaml", {}).items():
        found |= flat({"variant" if section.startswith("variants.") else section: values})
    for dep in stage.get("deps", []):
        if dep["path"] not in found.values() and not dep["path"].startswith("stages/common/"):
            found[dep["path"]] = dep["md5"]
    versions = re.findall(r"(?m)^([\w-]+)==(\S+)", pins)
    found |= {f"pinned {package}": version for package, version in versions if package in PACKAGES}
    return {key: value for key, value in found.items() if key not in NO_SETTINGS}
