"""The row shapes that we read, one function each: a raw row in, turns out.

Column names come only from source.columns ("" = the data has none); null, "" and absent are the same for a column
that may be missing. Rows are read, never repaired: ShareGPT's leading greeting of the assistant, two turns of one
role in a row, or a last turn of the user stay as they are, and validate.check rejects them as wrong_turn_order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stages.common.prompt import Message
from stages.prepare.config import Format, Source
from stages.prepare.rows.row import Reject, Row
from stages.prepare.rows.turns import text_or_turns, tools, turns

__all__ = ["Reject", "Row", "parse"]

Parts = tuple[list[Message], list[Message], list[Message]]  # messages, chosen, rejected


def parse(row: dict[str, Any], source: Source) -> Row:
    """The row in our own shape. Raises Reject; what it returns is not checked yet (validate.check)."""
    columns = source.columns
    messages, chosen, rejected = FORMATS[source.format](row, source)
    if system := _optional_text(row, columns.system):
        messages = [{"role": "system", "content": system}, *messages]
    meta = _cell(row, columns.meta) or None  # an empty cell of a table is no object, but none is meant
    if meta is not None and not isinstance(meta, dict):
        raise Reject("meta_not_an_object")
    return Row(
        id=_label(row, columns.id, "id_wrong_type"),
        group=_label(row, columns.group, "group_wrong_type"),
        messages=messages,
        tools=tools(_cell(row, columns.tools)),
        meta=meta or {},
        chosen=chosen,
        rejected=rejected,
    )


def _messages(row: dict[str, Any], source: Source) -> Parts:
    value = _cell(row, source.columns.messages)
    if value is None:
        raise Reject("missing_messages")
    return turns(value, source), [], []


def _instruction(row: dict[str, Any], source: Source) -> Parts:
    question, answer = (_required(row, name) for name in (source.columns.prompt, source.columns.answer))
    if not isinstance(question, str) or not isinstance(answer, str):
        raise Reject("content_wrong_type")
    if more := _optional_text(row, source.columns.input):
        question = f"{question}\n\n{more}"
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], [], []


def _completion(row: dict[str, Any], source: Source) -> Parts:
    """Only the completion is learned (as in TRL): assistant turns of the prompt get weight 0."""
    prompt = text_or_turns(_required(row, source.columns.prompt), "user", source)
    for turn in prompt:
        if turn["role"] == "assistant":
            turn["weight"] = 0
    return prompt + text_or_turns(_required(row, source.columns.answer), "assistant", source), [], []


def _preference(row: dict[str, Any], source: Source) -> Parts:
    """Answers to the prompt column, or whole conversations: then what both share is the prompt, as in TRL.

    Texts need a prompt column: what two texts begin with is no prompt. A prompt that the conversations do not
    start with is an error of the data; columns.prompt "" leaves it out.
    """
    names = (source.columns.chosen, source.columns.rejected)
    chosen, rejected = (text_or_turns(_required(row, name), "assistant", source) for name in names)
    if not chosen or not rejected:
        raise Reject("no_turns")
    if chosen == rejected:
        raise Reject("identical_pair")
    given = _cell(row, source.columns.prompt)
    prompt = text_or_turns(given, "user", source) if given else []
    if chosen[0]["role"] == "assistant" and rejected[0]["role"] == "assistant":
        if not prompt:
            raise Reject("missing_column")
        return prompt, chosen, rejected
    shared = _shared(chosen, rejected)
    if not shared or not _starts_with(chosen[:shared], prompt):
        raise Reject("prompt_mismatch")
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _shared(one: list[Message], other: list[Message]) -> int:
    """How many turns both start with; each keeps at least one as its answer."""
    most = min(len(one), len(other)) - 1
    return next((i for i in range(most) if one[i] != other[i]), most)


def _starts_with(conversation: list[Message], prompt: list[Message]) -> bool:
    def said(messages: list[Message]) -> list[tuple[str, str]]:
        return [(turn["role"], turn["content"].strip()) for turn in messages]

    return said(conversation[: len(prompt)]) == said(prompt)


def _cell(row: dict[str, Any], name: str) -> Any:
    return row.get(name) if name else None


def _required(row: dict[str, Any], name: str) -> Any:
    if (value := _cell(row, name)) is None:
        raise Reject("missing_column")
    return value


def _optional_text(row: dict[str, Any], name: str) -> str:
    """The column's text, "" where there is none or only white space."""
    value = _cell(row, name)
    if value is not None and not isinstance(value, str):
        raise Reject("content_wrong_type")
    return value if value and value.strip() else ""


def _label(row: dict[str, Any], name: str, reason: str) -> str:
    value = _cell(row, name)
    if value is None:
        return ""
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise Reject(reason)
    return str(value)


FORMATS: dict[Format, Callable[[dict[str, Any], Source], Parts]] = {
    Format.messages: _messages,
    Format.sharegpt: _messages,  # the same once columns and roles are named: see conf/source/sharegpt.yaml
    Format.instruction: _instruction,
    Format.completion: _completion,
    Format.preference: _preference,
}
