"""Where a variant's weights come from: a registered version, a git revision, the hub, or a folder of this machine.

Each puts them into a draft folder, as hard links where nobody may write into the original, and says in which words
the same weights can be asked for again. An adapter brings its base along, in a folder of its own.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import yaml

from ops.objects import local_store
from ops.package import BASE, MODEL, open_store
from ops.remote import explain, failures
from stages.base.weights import PATTERNS
from stages.common.adapter import CONFIG, INSIDE, WEIGHTS, base_of
from stages.common.files import fresh_dir, read_json, tree_digest
from stages.common.store import one_line, shown, tracking_uri

if TYPE_CHECKING:
    from dvc.repo import Repo

FILES = (*PATTERNS, WEIGHTS)
NEEDED = {"*.safetensors": "weights", "*config.json": "a configuration", "tokenizer*": "a tokenizer"}


def fetch(source: str, draft: Path, root: Path) -> str:
    """Fill `draft` with the model that `source` names; returns a name that cannot move, "" where there is none.

    Raises ValueError, one line, where there is no such model, or not all of it.
    """
    kinds = {"models:/": registered, "git:": committed, "hub:": downloaded}
    kind = next((kind for prefix, kind in kinds.items() if source.startswith(prefix)), copied)
    origin = kind(source, draft, root)
    for pattern, what in NEEDED.items():
        if not any(draft.glob(pattern)):
            raise ValueError(
                f"{source} has no {pattern}: Lathe needs {what} in that form; save_pretrained() writes it"
            )
    base_of(draft)
    return origin


def registered(source: str, draft: Path, root: Path) -> str:
    """A version of MLflow's registry by alias or number, checked against the hash that it was registered with."""
    from mlflow.exceptions import MlflowException

    found = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", source)
    if not found:
        raise ValueError(f"{source} is neither models:/Name@alias nor models:/Name/3")
    name, alias, number = found.groups()
    client = open_store(root)
    try:
        version = (
            client.get_model_version(name, number)
            if number
            else client.get_model_version_by_alias(name, alias)
        )
        uri = client.get_model_version_download_uri(name, version.version)
        artifacts = _artifacts(uri, draft.with_name(f"{draft.name}.download"))
    except (MlflowException, OSError) as error:
        where = shown(tracking_uri(root))
        raise ValueError(
            f"{source} is not in the store at {where} ({one_line(error)}): `python -m ops.promote` registers the "
            "candidate"
        ) from error
    if not (artifacts / MODEL.name).is_dir():
        raise ValueError(
            f"{source} ({uri}) was not registered by ops.promote: it has no artifacts/{MODEL.name}"
        )
    if tree_digest(artifacts / MODEL.name) != version.tags.get("lathe.model"):
        raise ValueError(
            f"{source} ({uri}) is not the model that was registered, by its hash lathe.model: `python -m ops.fsck`"
        )
    link_tree(artifacts / MODEL.name, draft)
    if (artifacts / BASE.name).is_dir():
        link_tree(artifacts / BASE.name, draft / INSIDE)
    return f"models:/{name}/{version.version}"


def committed(source: str, draft: Path, root: Path) -> str:
    """An out of dvc.lock at a git revision (git:REV, git:REV:models/base) or experiment, linked from DVC's cache."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.scm import RevError, resolve_rev

    revision, _, path = source.removeprefix("git:").partition(":")
    path = path or MODEL.as_posix()
    try:
        with Repo(str(root)) as repo:
            commit = resolve_rev(repo.scm, revision)
            outs = _outs(commit, root)
            _check_out(repo, outs, path, commit, draft)
            if (draft / CONFIG).is_file():
                base = read_json(draft / CONFIG)["base_model_name_or_path"]
                _check_out(repo, outs, base, commit, draft / INSIDE)
    except RevError as error:
        raise ValueError(f"{source}: {revision!r} is no revision and no experiment here") from error
    except DvcException as error:
        raise ValueError(f"{source}: {one_line(error)}") from error
    return f"git:{commit}:{path}"


def downloaded(source: str, draft: Path, root: Path) -> str:
    """A hub repository (hub:owner/name, hub:owner/name@REVISION) at the commit that its revision is now."""
    from huggingface_hub import HfApi, snapshot_download

    name, _, revision = source.removeprefix("hub:").partition("@")
    try:
        fixed = re.fullmatch(r"[0-9a-f]{40}", revision)
        commit = revision if fixed else str(HfApi().model_info(name, revision=revision or None).sha)
        snapshot_download(name, revision=commit, allow_patterns=list(FILES), local_dir=draft)
    except Exception as error:  # httpx's own, the client's, OSError, ValueError
        raise ValueError(
            f"{source} did not come from the hub ({type(error).__name__}: {one_line(error)[:300]}): check name, "
            "revision and network; a gated model wants its terms accepted and HF_TOKEN set (.env.example)"
        ) from error
    shutil.rmtree(draft / ".cache", ignore_errors=True)  # download times
    if (draft / CONFIG).is_file():
        told = read_json(draft / CONFIG)
        base = f"hub:{told['base_model_name_or_path']}@{told.get('revision') or ''}"
        downloaded(base, draft / INSIDE, root)
    return f"hub:{name}@{commit}"


def copied(source: str, draft: Path, _: Path) -> str:
    """A folder of this machine, with its base if it is an adapter."""
    folder = Path(source)
    if not folder.is_dir():
        raise ValueError(
            f"{source!r} is no folder: name one, or models:/Name@alias, git:REVISION, hub:owner/name@REVISION"
        )
    link_tree(folder, draft, FILES)
    if base := base_of(folder):
        link_tree(base, draft / INSIDE, FILES)
    return ""


def link_tree(source: Path, target: Path, patterns: tuple[str, ...] = ("**/*",)) -> None:
    """The files of a folder: hard links to those that nobody may write into, copies of others."""
    for file in sorted({file for pattern in patterns for file in source.glob(pattern) if file.is_file()}):
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        _link(file.resolve(), place)


def _link(file: Path, place: Path) -> None:
    # What is linked here DVC makes read-only, and a write into it would go into the cache
    if not file.stat().st_mode & 0o222:
        try:
            os.link(file, place)
        except OSError:  # another file system
            pass
        else:
            return
    shutil.copyfile(file, place)


def _artifacts(uri: str, scratch: Path) -> Path:
    """The artifacts folder of a version, where it lies or as a download."""
    from mlflow.artifacts import download_artifacts

    parts = urlsplit(uri)
    if parts.scheme in ("", "file"):
        return Path(url2pathname(parts.path)) / "artifacts"
    return Path(download_artifacts(artifact_uri=uri, dst_path=str(fresh_dir(scratch)))) / "artifacts"


def _outs(commit: str, root: Path) -> dict[str, str]:
    """Path -> MD5 of the outs that dvc.lock has at a commit."""
    command = ["git", "show", f"{commit}:./dvc.lock"]
    text = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False).stdout
    stages = (yaml.safe_load(text) or {}).get("stages", {})
    return {out["path"]: str(out["md5"]) for stage in stages.values() for out in stage.get("outs", [])}


def _check_out(repo: Repo, outs: dict[str, str], path: str, commit: str, draft: Path) -> None:
    """Put an out's files into `draft`, each verified. Raises ValueError where one is nowhere."""
    folders = sorted(
        name for name, md5 in outs.items() if md5.endswith(".dir") and name.startswith("models/")
    )
    if path not in folders:
        raise ValueError(
            f"dvc.lock at {commit[:10]} has no {path} (there: {', '.join(folders) or 'no model'})"
        )
    what = f"{path} of {commit[:10]}"
    _bring(repo, [outs[path]], what)
    entries = _entries(local_store(repo).read(outs[path]))
    _bring(repo, [entry["md5"] for entry in entries], what)
    for entry in entries:
        place = draft / entry["relpath"]
        place.parent.mkdir(parents=True, exist_ok=True)
        _link(Path(local_store(repo).path(entry["md5"])), place)


def _entries(listed: bytes | None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(listed or b"[]")
    return found


def _bring(repo: Repo, oids: list[str], what: str) -> None:
    """Have the objects in the cache, from the remote where need be."""
    from dvc_data.hashfile.hash_info import HashInfo

    states = dict(_states(repo, oids))
    if "bad" in states.values():
        raise ValueError(f"{what} is damaged in the cache: `python -m ops.fsck`")
    missing, why = [HashInfo("md5", oid) for oid, state in states.items() if state != "good"], "it has none"
    if not missing:
        return
    for name in ("dvc", "dvc_data"):  # they report each object; what is missing in the end is said below
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        repo.cloud.pull(missing)
    except failures() as error:
        why = explain(error)
    if any(state != "good" for _, state in _states(repo, oids)):
        raise ValueError(
            f"{what} is not in the cache and does not come from the remote ({why}): `dvc pull` at that revision, "
            "or `dvc repro` there, brings it"
        )


def _states(repo: Repo, oids: list[str]) -> Iterator[tuple[str, str]]:
    store = local_store(repo)
    return ((oid, store.check(oid).state) for oid in dict.fromkeys(oids))
