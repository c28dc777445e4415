"""Raw rows in, one record per line out: a row's bytes are decoded here or get a reason why not."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.prepare.config import Data, Source

FULL_SHA = re.compile(r"[0-9a-f]{40}")


@dataclass
class Record:
    """One raw row: where it stood, and what it holds or why it cannot be read."""

    file: str
    line: int
    raw: str
    row: dict[str, Any] | None
    problem: str


def read(data: Data, split: str) -> Iterator[Record]:
    """Records of one split, in the source's order. Raises ValueError where there is no source at all."""
    return _jsonl(Path(data.path) / split) if data.source is Source.jsonl else _hub(data, split)


def _jsonl(path: Path) -> Iterator[Record]:
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist: put the rows there, or name their file in conf/data (data.train, data.test)"
        )
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _record(path.name, number, line)


def _record(file: str, number: int, line: bytes) -> Record:
    """Decode one line; only this line is lost if it is broken."""
    shown = line.decode("utf-8", errors="backslashreplace").rstrip("\r\n")
    try:
        value = json.loads(line.decode("utf-8"), parse_constant=_refuse)
    except UnicodeDecodeError:
        return Record(file, number, shown, None, "invalid_utf8")
    except (ValueError, RecursionError):
        return Record(file, number, shown, None, "invalid_json")
    if not isinstance(value, dict):
        return Record(file, number, shown, None, "not_an_object")
    return Record(file, number, shown, value, "")


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON: {math.nan}")


def _hub(data: Data, split: str) -> Iterator[Record]:
    from datasets import load_dataset

    if not Path(data.id).exists() and not FULL_SHA.fullmatch(data.revision):
        raise ValueError(
            f"data.revision {data.revision!r} of hub dataset {data.id!r} is not a full commit hash: "
            "a floating revision cannot be reproduced; copy the 40 hex digits from the dataset's history"
        )
    try:
        rows = load_dataset(data.id, data.subset or None, revision=data.revision or None, split=split)
    except Exception as error:
        text = " ".join(str(error).split())
        raise ValueError(f"data.id {data.id!r}, split {split!r}, could not be loaded: {text}") from error
    for number, row in enumerate(rows, 1):
        yield Record(
            f"{data.id}:{split}", number, json.dumps(row, ensure_ascii=False, default=str), dict(row), ""
        )
