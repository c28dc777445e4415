"""Inference logs: one JSON object a line, one file a window."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from stages.drift.text import measures, parsed, words


@dataclass(frozen=True)
class Row:
    """One logged exchange, and what a person later said the right fields were (None: nobody did)."""

    input: str
    output: str
    feedback: dict[str, Any] | None
    conversation: str

    @cached_property
    def words(self) -> list[str]:
        """Lower-case words of the input."""
        return words(self.input)

    @cached_property
    def fields(self) -> dict[str, Any]:
        """The structured part of the output; empty where it has none."""
        return parsed(self.output)[0]

    @cached_property
    def numbers(self) -> dict[str, float]:
        """The row's numeric descriptors."""
        return measures(self.input, self.words, self.output)


def read_windows(folder: Path) -> dict[str, list[Row]]:
    """Every `<window>.jsonl` under `folder` in name order; an absent or empty folder has none.

    Raises ValueError on a malformed row, naming file and line.
    """
    return {path.stem: read_window(path) for path in sorted(folder.glob("*.jsonl"))}


def read_window(path: Path) -> list[Row]:
    """Rows of one log. Raises ValueError naming file and line."""
    lines = path.read_bytes().split(b"\n")
    return [_row(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]


def limited(rows: list[Row], most: int, seed: int) -> list[Row]:
    """At most `most` rows: whole conversations, chosen by `seed`, in the given order."""
    if len(rows) <= most:
        return rows
    sizes: dict[str, int] = {}
    for row in rows:
        sizes[row.conversation] = sizes.get(row.conversation, 0) + 1
    names, kept, total = list(sizes), set[str](), 0
    for index in np.random.default_rng(seed).permutation(len(names)):
        if total + sizes[names[index]] <= most:
            kept.add(names[index])
            total += sizes[names[index]]
    return [row for row in rows if row.conversation in kept]


def _row(line: bytes, where: str) -> Row:
    try:
        value = json.loads(line)
    except ValueError as error:  # bad JSON and bad UTF-8 alike
        raise ValueError(f"{where}: not valid JSON ({error}); mend or remove the line") from error
    problem = _problem(value)
    if problem:
        raise ValueError(f"{where}: {problem}")
    feedback = value.get("feedback")
    # a row without a conversation is one of its own; the line keeps two rows with one id apart
    conversation = f"c {value['conversation']}" if value.get("conversation") is not None else f"r {where}"
    return Row(value["input"], value["output"], feedback or None, conversation)


def _problem(value: Any) -> str:
    """What is wrong with a parsed row; "" for nothing."""
    if not isinstance(value, dict):
        return f"a log row is a JSON object, not {json.dumps(value)[:40]}"
    for key in ("id", "input", "output"):
        if not isinstance(value.get(key), str):
            return f"a log row needs {key!r} as a string, this one has {value.get(key)!r}"
    if not isinstance(value.get("feedback", {}), dict | None):
        return f"'feedback' is null or an object of fields, not {value['feedback']!r}"
    return ""
