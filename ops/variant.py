"""Name a further model for bench: `python -m ops.variant NAME SOURCE [--precision fp32|bf16|int8|nf4]`.

    python -m ops.variant champion models:/HelpdeskAssistant@champion     or models:/HelpdeskAssistant/3
    python -m ops.variant before git:v1.2                                 models/tuned there; git:v1.2:models/base
    python -m ops.variant qwen hub:Qwen/Qwen2.5-0.5B-Instruct             now at @main, or at the @REVISION given
    python -m ops.variant theirs /models/theirs

An alias, a branch and a folder can move, so the weights are put under models/variants/<their hash>, which DVC tracks,
and the line under `variants` in conf/config.yaml names that folder: params.yaml then holds the hash, and asking again
changes it exactly where the weights are others. Commit the .dvc file.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

from ops.tracked import dvc_add
from ops.variant_sources import fetch
from stages.bench.config import Precision
from stages.common.files import fresh_dir, tree_digest, write_text

DRAFT, VARIANTS, CONFIG = Path(".lathe/variant"), Path("models/variants"), Path("conf/config.yaml")
OURS = ("base", "tuned")
DEFAULTS = {"path": "", "revision": "", "precision": "fp32", "backend": "own", "model_args": {}}
BLOCK = re.compile(r"^variants:.*\n((?:[ \t]+\S.*\n)*)", re.M)


def main(arguments: list[str]) -> None:
    """Bring the weights, have DVC track them, write the line. Raises ValueError with the line as it was."""
    asked = _parser().parse_args(arguments)
    _check_name(asked.name)
    find_line(CONFIG.read_text(encoding="utf-8"), asked.name)
    origin, folder = materialise(asked.source, Path.cwd())
    entry = {"path": folder.as_posix(), "revision": origin}
    if asked.precision:
        entry["precision"] = asked.precision
    old = write_entry(CONFIG, asked.name, entry)
    told = f" ({origin})" if origin else ""
    if old == folder.as_posix():
        print(f"{asked.name}: the same weights as before, {folder}{told}")
        return
    print(
        f"{asked.name}: {folder}{told} stands in {CONFIG}; now `python -m ops.compose`, and commit {folder}.dvc"
    )
    if old.startswith(f"{VARIANTS}/") and old not in CONFIG.read_text(encoding="utf-8"):
        print(f"{old} is no variant any more: `dvc remove {old}.dvc` unless an experiment names it")


def materialise(source: str, root: Path) -> tuple[str, Path]:
    """What a source's name is for good, and the folder under models/variants with its files, complete and tracked.

    Raises ValueError as `fetch` does, with nothing changed.
    """
    draft = fresh_dir(DRAFT) / "model"
    draft.mkdir()
    try:
        origin = fetch(source, draft, root)
        folder = VARIANTS / tree_digest(draft)[:16]
        # What a kill or an edit left there would come under DVC with the right name and other weights
        if folder.is_dir() and tree_digest(folder)[:16] != folder.name:
            shutil.rmtree(folder)
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            draft.rename(folder)
    finally:
        shutil.rmtree(DRAFT)
    dvc_add(folder)
    return origin, folder


def write_entry(config: Path, name: str, entry: dict[str, Any]) -> str:
    """Put `entry` into the line of a variant, or a new line after the last; returns the path that stood there.

    What the old line says besides stays; so does all of it where the path is the same. Raises ValueError as find_line.
    """
    text = config.read_text(encoding="utf-8")
    start, end, old = find_line(text, name)
    if old.get("path") == entry["path"]:
        entry = entry | {"revision": old["revision"]}  # the same weights under a new name
    write_text(config, text[:start] + flow(name, DEFAULTS | old | entry) + text[end:])
    return str(old.get("path", ""))


def find_line(text: str, name: str) -> tuple[int, int, dict[str, Any]]:
    """Where the line of a variant begins and ends in conf/config.yaml, and what it says; for a new one, where it goes.

    Raises ValueError where it cannot be told.
    """
    block = BLOCK.search(text)
    known = (yaml.safe_load(text) or {}).get("variants") or {}
    line = re.search(rf"^  {re.escape(name)}: \{{.*\}}.*\n", block[1], re.M) if block else None
    if not block or (name in known and not line):
        raise ValueError(
            f"{CONFIG}: the entry of {name} under `variants` is not on one line: write it as {name}: {{path: ..., ...}}"
        )
    if line:
        return block.start(1) + line.start(), block.start(1) + line.end(), known[name]
    return block.end(1), block.end(1), {}


def flow(name: str, entry: dict[str, Any]) -> str:
    """A line of `variants` as conf/config.yaml has them."""
    plain = re.compile(r"[A-Za-z][\w./-]*")
    values = {
        key: value if isinstance(value, str) and plain.fullmatch(value) else json.dumps(value)
        for key, value in entry.items()
    }
    return f"  {name}: {{{', '.join(f'{key}: {value}' for key, value in values.items())}}}\n"


def _check_name(name: str) -> None:
    if name in OURS:
        raise ValueError(
            f"{name} is the pipeline's own model: judge and register read its results; take another name"
        )
    if not re.fullmatch(r"[a-z][a-z0-9_-]*", name) or not isinstance(yaml.safe_load(name), str):
        raise ValueError(
            f"{name!r} is no name for a variant: small letters, digits, - and _, and no YAML word"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ops.variant", description="name a further model for bench"
    )
    parser.add_argument("name", help="under which its results stand: data/results/NAME.parquet")
    parser.add_argument(
        "source", help="models:/Name@alias, git:REVISION[:OUT], hub:owner/name[@REVISION], a folder"
    )
    parser.add_argument(
        "--precision", choices=[each.name for each in Precision], help="default: fp32, or as it was"
    )
    return parser


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as problem:
        sys.exit(f"variant: {problem}")
