"""Conversations to token ids and labels, by the model's own chat template; loss on assistant turns only."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

from stages.common.prompt import Message

IGNORED = -100


@dataclass
class Tokens:
    """`labels[i]` is `input_ids[i]` where the assistant speaks and -100 elsewhere; both have the same length."""

    input_ids: list[int]
    labels: list[int]


def render(tokenizer: Any, messages: list[Message], *, ask: bool) -> str:
    """The chat template's text; with `ask`, ending where the assistant is to speak."""
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask))


def tokenise(tokenizer: Any, messages: list[Message], first_answer: int) -> Tokens:
    """Tokenise one conversation; assistant turns before index `first_answer` (examples) carry no loss.

    Spans come from rendering the conversation up to each assistant turn, which works for templates with and
    without generation markers. Raises ValueError for a template that rewrites earlier turns, because then no
    span of the text is what the model is to say.
    """
    text = render(tokenizer, messages, ask=False)
    spans = [
        _span(tokenizer, messages, index, text)
        for index, message in enumerate(messages)
        if message["role"] == "assistant" and index >= first_answer
    ]
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    starts = [start for start, _ in offsets]
    labels = [IGNORED] * len(ids)
    for begin, end in spans:
        for position in range(bisect_left(starts, begin), bisect_left(starts, end)):
            labels[position] = ids[position]
    return Tokens(list(ids), labels)


def _span(tokenizer: Any, messages: list[Message], index: int, text: str) -> tuple[int, int]:
    asked = render(tokenizer, messages[:index], ask=True)
    answered = render(tokenizer, messages[: index + 1], ask=False)
    if not (text.startswith(answered) and answered.startswith(asked)):
        raise ValueError(
            f"the chat template of {tokenizer.name_or_path!r} rewrites earlier turns, so the loss cannot be "
            "limited to the assistant's words: use a template that only appends (chat_template.jinja)"
        )
    return len(asked), len(answered)
