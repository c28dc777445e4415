"""What every source's rows become: one shape, and one way of saying that a row is not one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stages.common.prompt import Message


@dataclass
class Row:
    """A conversation, or a preference pair.

    `id` and `group` are "" where the data names none. `chosen` and `rejected` are empty unless the row is a pair;
    then `messages` is the prompt that both answer.
    """

    id: str
    group: str
    messages: list[Message]
    tools: list[dict[str, Any]]
    meta: dict[str, Any]
    chosen: list[Message]
    rejected: list[Message]


class Reject(ValueError):
    """A row that is not used; the message is its reason, a short snake_case word."""
