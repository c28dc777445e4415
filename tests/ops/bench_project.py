"""A folder in which bench's section can be loaded and asked: the committed parameters, three rows, a tiny model."""

from __future__ import annotations

from pathlib import Path

import yaml

from tests.small_project import HOUSE
from tests.stages.test_bench import ROWS, write


def make(model: Path, tasks: list[str]) -> None:
    """Write it to the working directory: params.yaml with `model` as its variant base, and data/prepared/test.jsonl."""
    params = yaml.safe_load((HOUSE / "params.yaml").read_text(encoding="utf-8"))
    params["bench"] |= {"tasks": tasks, "limit": 0, "batch_size": 4, "batch_tokens": 256}
    params["bench"]["prompt"]["max_new_tokens"] = 8
    params["variants"]["base"]["path"] = str(model)
    Path("params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    write(ROWS)
