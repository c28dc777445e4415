"""Sections of prepare for tests: the shapes of conf/source, small limits, nothing removed unless a test asks for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from stages.common.prompt import Example, Prompt
from stages.prepare.config import (
    Action,
    Columns,
    Data,
    Duplicates,
    Format,
    Kind,
    LeakAction,
    Leakage,
    Overlong,
    Personal,
    PersonalAction,
    Prepare,
    Source,
    Use,
)

ROOT = Path(__file__).resolve().parents[2]


def source(shape: str = "messages", **changes: Any) -> Source:
    """conf/source/<shape>.yaml as a dataclass, with `changes`; `columns` adds to the shape's."""
    values = yaml.safe_load((ROOT / f"conf/source/{shape}.yaml").read_text(encoding="utf-8")) | {
        key: value for key, value in changes.items() if key != "columns"
    }
    columns = values.pop("columns") | changes.get("columns", {})
    values |= {"format": Format[values["format"]], "use": Use[values["use"]]}
    return Source(columns=Columns(**columns), **values)


def data(path: Path | str, **sources: Source) -> Data:
    """A dataset of `sources`, or of train.jsonl and test.jsonl under `path`."""
    plain = {
        "train": source(files=["train.jsonl"]),
        "test": source(files=["test.jsonl"], use="test"),
    }
    return Data("rows", "Made for a test.", "MIT", str(path), sources or plain)


def section(path: Path | str, **changes: Any) -> Prepare:
    """A section of prepare; `near`, `leaks` and `personal` take an action's name, `sources` a mapping."""
    near, leaks = changes.pop("near", "ignore"), changes.pop("leaks", "ignore")
    found = changes.pop("personal", "ignore")
    values: dict[str, Any] = {
        "seed": 1,
        "data": data(path, **changes.pop("sources", {})),
        "prompt": Prompt("p", "Be brief.", [Example("1+1", "2")], 8),
        "examples_share": 0.5,
        "max_row_bytes": 1 << 20,
        "max_length": 1000,
        "overlong": Overlong.reject,
        "row_length": 2000,
        "valid_share": 0.2,
        "test_share": 0.1,
        "max_reject_share": 1.0,
        "duplicates": Duplicates(Action[near], 0.8, 5, 128),
        "leakage": Leakage(LeakAction[leaks], 13, 8, []),
        "personal": Personal(PersonalAction[found], list(Kind), []),
    }
    return Prepare(**(values | changes))


def row(question: str, answer: str = "fine", **more: Any) -> bytes:
    """One line of a messages source."""
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages, **more}).encode()


def write(path: Path, lines: list[bytes]) -> None:
    """A file of lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(line + b"\n" for line in lines))
