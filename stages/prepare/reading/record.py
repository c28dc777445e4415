"""One raw row: its bytes decoded, or the reason why not. A broken row is lost alone."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import orjson

RAW_SHOWN = 1_000  # characters of an over-long row that go into rejects.jsonl
MAX_DEPTH = 100  # of lists and objects in each other: what walks a row later may recurse
# One look at a line finds the digits of an integer that orjson would round to a float, and bounds the row's depth.
_FORM = bytes.maketrans(b"0123456789{", b"0000000000[")
_MANY_DIGITS = b"0" * 19


@dataclass(slots=True)
class Record:
    """One raw row: where it stood, and what it holds or why it cannot be read."""

    file: str
    line: int
    raw: str
    row: dict[str, Any] | None
    problem: str


def decode(file: str, line: int, data: bytes) -> Record:
    """The record of one JSON text; its problem is "", invalid_utf8, invalid_json or not_an_object.

    NaN, infinity, a number that overflows and a value nested deeper than MAX_DEPTH are invalid; lone surrogates
    and integers over 64 bits are not.
    """
    form = data.translate(_FORM)
    value, problem = None, ""
    try:
        if _MANY_DIGITS in form:
            value, problem = _exactly(data)
        else:
            value = orjson.loads(data)
    except orjson.JSONDecodeError:
        value, problem = _exactly(data)
    if form.count(b"[") > MAX_DEPTH and _too_deep(value):
        value, problem = None, "invalid_json"
    if not isinstance(value, dict):
        return Record(file, line, shown(data), None, problem or "not_an_object")
    return Record(file, line, shown(data), value, problem)


def too_large(file: str, line: int, start: bytes, size: int) -> Record:
    """The record of a row over max_row_bytes, of which only the start was kept; size in bytes."""
    return Record(file, line, excerpt(start, size), None, "row_too_large")


def excerpt(start: bytes, size: int) -> str:
    """The first RAW_SHOWN characters of a row of `size` bytes, with a note of its size if that is not all."""
    text = shown(start[: 4 * RAW_SHOWN])
    return (
        text if size <= len(start) and len(text) <= RAW_SHOWN else f"{text[:RAW_SHOWN]}... ({size:,} bytes)"
    )


def shown(data: bytes) -> str:
    """A row's bytes as text for people: what is not UTF-8 stands as \\xff."""
    return data.decode("utf-8", errors="backslashreplace").rstrip("\r\n")


def _exactly(data: bytes) -> tuple[Any, str]:
    """The value as the standard library parses it, and the problem."""
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_refuse, parse_float=_finite), ""
    except UnicodeDecodeError:
        return None, "invalid_utf8"
    except (ValueError, RecursionError):
        return None, "invalid_json"


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _refuse(digits)


def _too_deep(value: Any) -> bool:
    """Level by level, because a recursive walk fails at a depth that depends on who called it."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _inside(outer) if isinstance(inner, (dict, list))]
    return bool(level)


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
