"""Digests that tie params.yaml to the conf/ files it was composed from.

Only the files that took part count, so that two branches that each add an experiment do not conflict.
Light on purpose: the guard runs before every `dvc repro` and imports neither Hydra nor torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Where a composed value says which file of a group it came from: every file names itself.
CHOICES = {
    "model": ("model", "name"),
    "data": ("data", "name"),
    "prompt": ("prompt", "name"),
    "prompt/judge": ("judge", "prompt", "name"),
    "method": ("method", "name"),
    "world": ("world", "name"),
    "bench": ("bench", "name"),
    "judge": ("judge", "name"),
    "drift": ("drift", "name"),
    "register": ("register", "name"),
    "tracking": ("tracking", "name"),
    "experiment": ("experiment",),
}


def file_digest(path: Path) -> str:
    """First 16 hex digits of a file's SHA-256, or "missing"."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else "missing"


def conf_files(conf: Path, values: Mapping[str, Any]) -> dict[str, str]:
    """Relative name -> digest of each file under `conf` that took part in the composed `values`."""
    names = ["config.yaml"]
    for group, keys in CHOICES.items():
        node: Any = values
        for key in keys:
            node = node[key]
        names.append(f"{group}/{node}.yaml")
    names += sorted({f"source/{source['name']}.yaml" for source in values["data"]["sources"].values()})
    names += [parent for name in names for parent in _parents(conf, name)]
    return {name: file_digest(conf / name) for name in dict.fromkeys(names)}


def _parents(conf: Path, name: str) -> list[str]:
    """The files of its own group that a file of a group is a diff against (`defaults: [lora, _self_]`)."""
    import yaml

    group, _, _ = name.rpartition("/")
    if not group or not (conf / name).is_file():
        return []
    listed = (yaml.safe_load((conf / name).read_text(encoding="utf-8")) or {}).get("defaults", [])
    return [f"{group}/{entry}.yaml" for entry in listed if isinstance(entry, str) and entry != "_self_"]


def values_digest(values: Mapping[str, Any]) -> str:
    """First 16 hex digits of the SHA-256 of the values as canonical JSON, `digest` left out."""
    rest = {key: value for key, value in values.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:16]
