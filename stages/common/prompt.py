"""A prompt is data: one file under conf/prompt, a parameter of every stage that uses it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, NotRequired, TypedDict

# Some templates (Llama 3.2, gpt-oss) write today's date into the system turn, and then no two days' outs are alike.
# This is the day that Llama 3.1's and 3.2's own templates fall back to. In production the date is the real one.
DATE = datetime(2024, 7, 26)


class Message(TypedDict):
    """One chat turn; role is system, user, assistant or tool.

    `content` is "" where an assistant turn only calls tools. A tool call is {id?, type: function, function: {name,
    arguments}} with arguments as an object, as chat templates want it. weight 0: nothing is learned from this turn.
    `reasoning_content` is what the assistant thought before it spoke.
    """

    role: str
    content: str
    tool_calls: NotRequired[list[dict[str, Any]]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]
    weight: NotRequired[int]
    reasoning_content: NotRequired[str]


@dataclass
class Example:
    """A worked example shown before the question (one few-shot turn pair)."""

    user: str
    assistant: str


@dataclass
class Prompt:
    """System text, few-shot examples and decoding settings of one prompt file."""

    name: str
    system: str
    examples: list[Example]
    max_new_tokens: int


def with_prompt(prompt: Prompt, turns: list[Message], *, examples: bool) -> list[Message]:
    """Put the prompt's system text (where it has one) and, if asked, its examples before `turns`.

    A conversation that brings its own system turn keeps it.
    """
    own = bool(turns) and turns[0]["role"] == "system"
    head: list[Message] = turns[:1] if own else []
    if prompt.system and not own:
        head = [{"role": "system", "content": prompt.system}]
    if examples:
        for example in prompt.examples:
            head.append({"role": "user", "content": example.user})
            head.append({"role": "assistant", "content": example.assistant})
    return head + turns[own:]


def stop_clock(tokenizer: Any) -> None:
    """Have the tokenizer's chat templates write DATE in place of today's date, for as long as this process lives.

    An argument of that name is made a string by apply_chat_template, so their own clock is set.
    """
    from transformers.utils.chat_template_utils import _compile_jinja_template

    own = tokenizer.chat_template
    for source in own.values() if isinstance(own, dict) else [own] if own else []:
        _compile_jinja_template(source).environment.globals["strftime_now"] = DATE.strftime
