"""Bring a dataset in: `python -m ops.data <name> --train FILE [--test FILE] [--labels FILE] [--logs FILE ...]`.

Copies the files into data/raw/<name>/ (rows/, labels/, production/, pretrain/: the folders a dataset always has,
empty where nothing was given), writes the training rows as text for model=tiny's pretraining, and puts the folder
under DVC, so that queued experiments and colleagues get it too. Commit the .dvc file it makes. Rows may be .jsonl,
.json, .csv, .tsv or .parquet, also .gz and .zst; rows that lie on S3 come by `dvc import-url` (README).
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from ops.tracked import dvc_add
from stages.common.files import fresh_dir, write_jsonl
from stages.prepare.reading.inputs import kind_of
from stages.prepare.reading.read import file_records

FOLDERS = ("rows", "labels", "production", "pretrain")
RAW = Path("data/raw")
MAX_ROW_BYTES = 1 << 20


def main(arguments: list[str]) -> None:
    """Parse, copy, `dvc add`.

    Raises ValueError, before anything is copied, for a file that is not there; and where DVC does not take the folder.
    """
    chosen = _parser().parse_args(arguments)
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", chosen.name):
        raise ValueError(
            f"the name {chosen.name!r} is not lower-case letters, digits, - and _: choose another"
        )
    files = {
        f"rows/train{_suffixes(chosen.train)}": chosen.train,
        f"rows/test{_suffixes(chosen.test)}": chosen.test,
        "labels/labels.jsonl": chosen.labels,
    }
    files |= {f"production/{log.name}": log for log in chosen.logs}
    if len({log.name for log in chosen.logs}) < len(chosen.logs):
        raise ValueError("two of --logs have the same file name, which names the window: rename one")
    given = {name: path for name, path in files.items() if path is not None}
    for path in given.values():
        if not path.is_file():
            raise ValueError(f"{path} does not exist: give the path of a file")
    target = RAW / chosen.name
    if target.exists() and not chosen.replace:
        raise ValueError(f"{target} exists: --replace puts the new files in its place")
    draft = fresh_dir(
        RAW / f".{chosen.name}.draft"
    )  # swapped in whole: a given file may lie in the old folder
    _copy(given, draft)
    _pretrain(draft)
    shutil.rmtree(target, ignore_errors=True)
    draft.rename(target)
    dvc_add(target)
    print(f"{target} is in, and under DVC: commit {target}.dvc; then `dvc exp run -S data={chosen.name}`")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ops.data")
    parser.add_argument("name")
    parser.add_argument("--train", type=Path, required=True)
    for name in ("--test", "--labels"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--logs", type=Path, nargs="*", default=[])
    parser.add_argument("--replace", action="store_true")
    return parser


def _copy(files: dict[str, Path], target: Path) -> None:
    for folder in FOLDERS:
        (target / folder).mkdir()
        (target / folder / ".gitkeep").touch()  # DVC and git both forget an empty folder
    for name, source in files.items():
        shutil.copyfile(source, target / name)


def _suffixes(path: Path | None) -> str:
    """A file's kind as its name says it. Raises ValueError for one that prepare cannot read."""
    if path is None:
        return ""
    kind = kind_of(path.name)
    return f".{kind.container}{kind.compression}"


def _pretrain(target: Path) -> None:
    [rows] = (target / "rows").glob("train.*")
    texts = [{"text": text} for row in file_records(rows, MAX_ROW_BYTES) if (text := _text(row.row))]
    write_jsonl(target / "pretrain/train.jsonl", texts)


def _text(row: dict[str, Any] | None) -> str:
    """A training row's text: of `messages` their contents, of other rows their string columns in order.

    "" for a row that cannot be read: it stays in rows/, where prepare rejects it with line number and reason.
    """
    if row is None:
        return ""
    turns = row.get("messages")
    values = (
        [turn.get("content") for turn in turns if isinstance(turn, dict)]
        if isinstance(turns, list)
        else row.values()
    )
    text = "\n".join(value for value in values if isinstance(value, str))
    return text.encode(errors="replace").decode()  # JSON can hold half a character, which no file can


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as problem:
        sys.exit(f"data: {problem}")
