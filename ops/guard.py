"""Stage `conf`: stop a run whose params.yaml is not what conf/ composes to (`python -m ops.guard`).

`dvc repro` reads params.yaml and never composes, so an edit under conf/ would be ignored without a word.
params.yaml carries digests of the files and values it came from (ops/digest.py); this compares them.
`dvc repro -s <stage>` runs one stage alone and so goes past this guard.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ops.digest import file_digest, values_digest
from stages.common.files import write_text

TOKEN = Path("reports/conf.txt")


def main(root: Path) -> None:
    """Write the constant out that root stages depend on, or exit with what is wrong and what to run."""
    found = problems(root)
    if found:
        sys.exit("\n".join(f"conf: {line}" for line in found))
    write_text(root / TOKEN, "params.yaml is what conf/ composes to\n")


def problems(root: Path) -> list[str]:
    """One line for each way in which params.yaml and conf/ disagree; empty when they agree."""
    import yaml

    path = root / "params.yaml"
    if not path.is_file():
        return ["params.yaml is missing: run `python -m ops.compose`"]
    try:
        params: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        digest = params["digest"]
        files, values = dict(digest["files"]), str(digest["values"])
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return [f"params.yaml is not a composed file ({text}): run `python -m ops.compose`"]
    lines = [
        f"conf/{name} is {'missing' if now == 'missing' else 'not the file'} that params.yaml was composed from: "
        "run `python -m ops.compose` (and give it this experiment's overrides again, if it had any)"
        for name, then in sorted(files.items())
        if (now := file_digest(root / "conf" / name)) != then
    ]
    if not lines and values_digest(params) != values:
        lines.append(
            "params.yaml was edited by hand: edit conf/ and run `python -m ops.compose`, "
            "or `python -m ops.compose <key>=<value>` for a value of this run alone"
        )
    return lines + [
        f"variants.{name}.path={path} is no folder here: `python -m ops.variant {name} hub:{path}@<revision>` brings a "
        "model of the hub"
        for name, path in _paths(params).items()
        if not path.startswith("models/") and not (root / path).is_dir()
    ]


def _paths(params: dict[str, Any]) -> dict[str, str]:
    """Where the models that bench scores should be; those under models/ may have yet to be made."""
    return {name: str(variant["path"]) for name, variant in params.get("variants", {}).items()}


if __name__ == "__main__":
    main(Path.cwd())
