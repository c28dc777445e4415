"""What a good row is, and one reason for each way in which a row is not one. Nothing is changed here."""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

from stages.common.prompt import Message
from stages.prepare.rows.row import Reject, Row

MAX_LABEL = 1_000  # characters of an id or group
MAX_DEPTH = 100  # of lists and objects in each other: what writes a row later may recurse
# white space by Unicode and what shows nothing: soft hyphen, zero-width characters, byte order mark
INVISIBLE = (
    "".join(chr(i) for i in range(0x3001) if chr(i).isspace()) + "\u00ad\u180e\u200b\u200c\u200d\u2060\ufeff"
)

# The order of turns, a letter each: system, user, tool, assistant, assistant that calls tools.
LETTERS = {"system": "s", "user": "u", "assistant": "a", "tool": "t"}
PROMPT = r"s?(?:u(?:ct+)*a)*u(?:ct+)*"
CONVERSATION_ORDER, PROMPT_ORDER, ANSWER_ORDER = (
    re.compile(PROMPT + "[ac]"),
    re.compile(PROMPT),
    re.compile("[ac]"),
)

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def check(row: Row) -> None:
    """Raise Reject unless the row can be written, rendered by a chat template and learned from."""
    pair = bool(row.chosen or row.rejected)
    if not row.messages:
        raise Reject("no_turns")
    _check_turns(row.messages, PROMPT_ORDER if pair else CONVERSATION_ORDER)
    if pair:
        _check_turns(row.chosen, ANSWER_ORDER)
        _check_turns(row.rejected, ANSWER_ORDER)
    elif all(turn.get("weight") == 0 for turn in row.messages if turn["role"] == "assistant"):
        raise Reject("nothing_to_learn")
    _check_label(row.id, "id_too_long")
    _check_label(row.group, "group_too_long")
    if row.tools or row.meta:
        _check_json([row.tools, row.meta])


def _check_turns(messages: list[Message], order: re.Pattern[str]) -> None:
    letters = ""
    for turn in messages:
        content, calls = turn["content"], turn.get("tool_calls")
        if not calls and not content.strip(INVISIBLE):
            raise Reject("empty_content")
        _check_text(content)
        if len(turn) > 2:
            _check_extras(turn)
        letters += "c" if calls else LETTERS[turn["role"]]
    if not order.fullmatch(letters):
        raise Reject("wrong_turn_order")
    if "t" in letters:
        _check_answers(messages)


def _check_text(text: str) -> None:
    if "\0" in text:
        raise Reject("nul_character")
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can spell and UTF-8 cannot
        raise Reject("invalid_unicode") from None


def _check_extras(turn: Message) -> None:
    _check_text(turn.get("name", ""))
    _check_text(turn.get("tool_call_id", ""))
    _check_text(turn.get("reasoning_content", ""))
    if calls := turn.get("tool_calls"):
        _check_json(calls)


def _check_answers(messages: list[Message]) -> None:
    """Calls that have ids are answered once each; an answer without one answers the first that is open."""
    named, waiting = False, list[str]()
    for turn in messages:
        if turn["role"] != "tool":
            if waiting:
                raise Reject("tool_answer_mismatch")
            calls = turn.get("tool_calls", [])
            named = bool(calls) and all("id" in call for call in calls)
            waiting = [call["id"] for call in calls] if named else []
        elif named:
            answered = turn.get("tool_call_id") or next(iter(waiting), "")
            if answered not in waiting:
                raise Reject("tool_answer_mismatch")
            waiting.remove(answered)
    if waiting and messages[-1]["role"] == "tool":
        raise Reject("tool_answer_mismatch")


def _check_label(label: str, too_long: str) -> None:
    if len(label) > MAX_LABEL:
        raise Reject(too_long)
    _check_text(label)


def _check_json(value: Any) -> None:
    """`value` can be written as JSON, in UTF-8, in numbers of 64 bits, at no more than MAX_DEPTH."""
    try:
        text = _encode(value)
        text.encode()
    except UnicodeEncodeError:
        raise Reject("invalid_unicode") from None
    except RecursionError:
        raise Reject("nested_too_deeply") from None
    except TypeError:
        raise Reject("not_json") from None
    except ValueError:
        raise Reject("number_not_finite") from None
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise Reject("nested_too_deeply")
    if "\\u0000" in text and any("\0" in item for item in _strings(value)):
        raise Reject("nul_character")
    try:
        orjson.dumps(value)
    except TypeError:
        raise Reject("number_too_large") from None


def _depth(value: Any) -> int:
    """Level by level: a recursive walk would fail at a depth that depends on who called it."""
    level, depth = [value], 0
    while level := [
        item for outer in level if isinstance(outer, dict | list | tuple) for item in _items(outer)
    ]:
        depth += 1
    return depth


def _strings(value: Any) -> list[str]:
    found, level = [], [value]
    while level:
        found += [item for item in level if isinstance(item, str)]
        level = [item for outer in level if isinstance(outer, dict | list | tuple) for item in _items(outer)]
    return found


def _items(outer: Any) -> list[Any]:
    return [*outer, *outer.values()] if isinstance(outer, dict) else list(outer)
