"""What a good row is: the shapes we read, and one reason for each way in which a row is not one."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from dataclasses import dataclass
from typing import Any

from stages.common.prompt import Message
from stages.prepare.config import Columns, Data, Format
from stages.prepare.read import Record

ROLES = {"system", "user", "assistant"}


@dataclass
class Conversation:
    """A validated row. `key` is a digest of the normalised text; `question` of all but the answers."""

    record: Record
    id: str
    messages: list[Message]
    meta: dict[str, Any]
    key: str
    question: str


class Reject(ValueError):
    """A row that is not used; the message is its reason, a short snake_case word."""


def conversation(record: Record, data: Data) -> Conversation:
    """Turn a raw row into a conversation. Raises Reject with the reason."""
    row = record.row
    if row is None:
        raise Reject(record.problem)
    chat = data.format is Format.messages
    messages = _messages(row.get("messages")) if chat else _instruction(row, data.columns)
    _check_turns(messages)
    meta = row.get("meta", {})
    if not isinstance(meta, dict):
        raise Reject("meta_not_an_object")
    key = digest(message["role"] + "\0" + normalise(message["content"]) for message in messages)
    identity = row.get("id", key[:16])
    if not isinstance(identity, str | int) or isinstance(identity, bool) or identity == "":
        raise Reject("id_wrong_type")
    return Conversation(record, str(identity), messages, meta, key, question_digest(messages))


def question_digest(messages: list[Message]) -> str:
    """Digest of what is asked: rows that share it are the same item, whatever the answer."""
    return digest(normalise(message["content"]) for message in messages if message["role"] == "user")


def normalise(text: str) -> str:
    """Unicode NFKC, case folded, white space collapsed: what counts as the same text."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def digest(parts: Any) -> str:
    """SHA-256 of an iterable of strings, unambiguous about where one ends."""
    return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()


def _messages(value: Any) -> list[Message]:
    if value is None:
        raise Reject("missing_messages")
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise Reject("messages_wrong_type")
    turns: list[Message] = []
    for turn in value:
        role, content = turn.get("role"), turn.get("content")
        if role not in ROLES:
            raise Reject("unknown_role")
        if not isinstance(content, str):
            raise Reject("content_wrong_type")
        turns.append({"role": role, "content": content})
    return turns


def _instruction(row: dict[str, Any], columns: Columns) -> list[Message]:
    def text(column: str) -> str:
        value = row.get(column)
        if value is None:
            raise Reject("missing_column")
        if not isinstance(value, str):
            raise Reject("content_wrong_type")
        return value

    question = text(columns.instruction)
    if columns.input and (extra := row.get(columns.input)):
        question = f"{question}\n\n{extra}"
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": text(columns.response)},
    ]


def _check_turns(messages: list[Message]) -> None:
    if not messages:
        raise Reject("no_turns")
    if any(not message["content"].strip() for message in messages):
        raise Reject("empty_content")
    if any("\0" in message["content"] for message in messages):
        raise Reject("nul_character")
    if any(_has_surrogate(message["content"]) for message in messages):
        raise Reject("invalid_unicode")
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    expected = ["user", "assistant"] * (len(turns) // 2)
    if not turns or turns != expected:
        raise Reject("wrong_turn_order")


def _has_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)
