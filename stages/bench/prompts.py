"""Prompts on their way from a task to whatever computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Seen = Callable[[float], object]


@dataclass(frozen=True)
class Prompts:
    """Texts and their tokens, each to be completed by up to `most` tokens or to a stop string.

    `decoding` has transformers' names; `seen` is told how many are done.
    """

    texts: list[str]
    tokens: list[list[int]]
    stops: list[str]
    most: int
    decoding: dict[str, Any]
    seen: Seen
