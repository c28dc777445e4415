"""Turns, tool calls and tool definitions as people write them, into Message. Nothing is guessed: see Reject."""

from __future__ import annotations

import json
from typing import Any

from stages.common.prompt import Message
from stages.prepare.config import Source
from stages.prepare.rows.row import Reject

ROLES = {"system", "user", "assistant", "tool"}
REASONING = ("reasoning_content", "reasoning", "thinking")  # the field's names for it
CALL = "function_call"  # ShareGPT's role for an assistant turn that is a tool call as JSON text


def text_or_turns(value: Any, role: str, source: Source) -> list[Message]:
    """A text is one turn of `role`; a list is a list of turns. Raises Reject."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, list):
        raise Reject("content_wrong_type")
    return turns(value, source)


def turns(value: Any, source: Source) -> list[Message]:
    """A list of turns, their keys named by source.columns, their roles by source.roles. Raises Reject.

    Null counts as absent, for a table has every key in every turn. Keys that are not named here are not read.
    """
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise Reject("messages_wrong_type")
    return [_turn(turn, source) for turn in value]


def tools(value: Any) -> list[dict[str, Any]]:
    """Tool definitions, a list or its JSON text; a bare {name, ...} gets OpenAI's envelope. Raises Reject."""
    found = _parsed(value, "tools_wrong_type") if isinstance(value, str) and value else value
    if not found:
        return []
    if not isinstance(found, list):
        raise Reject("tools_wrong_type")
    return [_tool(tool) for tool in found]


def _tool(tool: Any) -> dict[str, Any]:
    if not isinstance(tool, dict):
        raise Reject("tools_wrong_type")
    inner = tool.get("function")
    if not _name((inner if isinstance(inner, dict) else tool).get("name")):
        raise Reject("tools_wrong_type")
    return tool if isinstance(inner, dict) else {"type": "function", "function": tool}


def _turn(turn: dict[str, Any], source: Source) -> Message:
    said, content = turn.get(source.columns.role), turn.get(source.columns.content)
    role = source.roles.get(said) if isinstance(said, str) else None
    if role == CALL:
        value = _parsed(content, "tool_calls_wrong_type")
        called: Message = {"role": "assistant", "content": "", "tool_calls": _calls(value)}
        return _with_weight(called, turn)
    if role not in ROLES:
        raise Reject("unknown_role")
    if len(turn) == 2 and isinstance(content, str):
        return {"role": role, "content": content}
    return _rich_turn(turn, role, content)


def _rich_turn(turn: dict[str, Any], role: str, content: Any) -> Message:
    calls = turn.get("tool_calls") or turn.get("function_call")  # the second is OpenAI's older form
    message: Message = {"role": role, "content": "" if calls and content is None else _content(content)}
    if calls:
        if role != "assistant":
            raise Reject("tool_calls_wrong_type")
        message["tool_calls"] = _calls(calls)
    if (answers := _label(turn, "tool_call_id")) and role == "tool":
        message["tool_call_id"] = answers
    if name := _label(turn, "name"):
        message["name"] = name
    if role == "assistant" and (thought := next(filter(None, (_label(turn, key) for key in REASONING)), "")):
        message["reasoning_content"] = thought
    return _with_weight(message, turn)


def _content(content: Any) -> str:
    """A text, or OpenAI's list of parts: the texts of {type: text} joined as they are."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise Reject("content_wrong_type")
    if any(part.get("type") != "text" for part in content):
        raise Reject("non_text_content")
    texts = [part.get("text") for part in content]
    if not all(isinstance(text, str) for text in texts):
        raise Reject("content_wrong_type")
    return "".join(texts)


def _calls(value: Any) -> list[dict[str, Any]]:
    return [_call(call) for call in (value if isinstance(value, list) else [value])]


def _call(call: Any) -> dict[str, Any]:
    """OpenAI's {id, type, function: {name, arguments}}, or a bare {name, arguments}."""
    function = (call.get("function") or call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not _name(function.get("name")):
        raise Reject("tool_calls_wrong_type")
    arguments = function.get("arguments")
    if isinstance(arguments, str) and arguments:
        arguments = _parsed(arguments, "tool_calls_wrong_type")
    if not isinstance(arguments or {}, dict):
        raise Reject("tool_calls_wrong_type")
    made = {"type": "function", "function": {"name": function["name"], "arguments": arguments or {}}}
    return {"id": name} | made if (name := _label(call, "id")) else made


def _with_weight(message: Message, turn: dict[str, Any]) -> Message:
    """Weight 0 is kept on assistant turns; the others are never learned, whatever weight they carry."""
    weight = turn.get("weight")
    if weight is None:
        return message
    if isinstance(weight, bool) or weight not in (0, 1):
        raise Reject("weight_not_0_or_1")
    if weight == 0 and message["role"] == "assistant":
        message["weight"] = 0
    return message


def _label(turn: dict[str, Any], key: str) -> str:
    value = turn.get(key)
    if value is not None and not isinstance(value, str):
        raise Reject(f"{key}_wrong_type")
    return value or ""


def _name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _parsed(text: Any, reason: str) -> Any:
    if not isinstance(text, str):
        raise Reject(reason)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Reject(reason) from None
