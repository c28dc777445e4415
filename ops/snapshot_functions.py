"""The `!function`s in a task's configuration: found and renamed, never imported."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from stages.bench.snapshot import Function


def rename(value: Any, change: Callable[[Function], Any]) -> Any:
    """A copy of a YAML value with each function changed."""
    if isinstance(value, Function):
        return change(value)
    if isinstance(value, dict):
        return {key: rename(inner, change) for key, inner in value.items()}
    return [rename(inner, change) for inner in value] if isinstance(value, list) else value


def functions(value: Any) -> Iterator[Function]:
    """Each function in a YAML value."""
    if isinstance(value, Function):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from functions(inner)
