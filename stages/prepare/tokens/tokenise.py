"""Conversations to token ids by the model's own chat template; loss on assistant turns only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.common.prompt import Message
from stages.prepare.tokens.pieces import Pieces
from stages.prepare.tokens.template import Document, Refused, Template


@dataclass
class Conversation:
    """What is rendered; assistant turns before index `first_answer` (examples) carry no loss."""

    messages: list[Message]
    tools: list[dict[str, Any]]
    first_answer: int


@dataclass
class Tokens:
    """One document: `learned[i]` says whether token i carries loss; both have the same length."""

    input_ids: NDArray[np.int32]
    learned: NDArray[np.bool_]


class Encoder:
    """A tokenizer with its chat template. Raises ValueError for one that cannot be used, in one line."""

    def __init__(self, tokenizer: Any) -> None:
        """Check the tokenizer and try its chat template on a question and an answer."""
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"the tokenizer of {tokenizer.name_or_path!r} is a slow one ({type(tokenizer).__name__}), which does "
                "not tell where in the text a token stands: give a model whose folder has a tokenizer.json"
            )
        self._tokenizer = tokenizer
        self._pieces = Pieces(tokenizer)
        self._templates: dict[str, Template] = {}
        self._template([])

    def encode(self, conversations: Sequence[Conversation]) -> list[list[Tokens] | str]:
        """Per conversation its documents, or the reason why the template cannot say it.

        `template_refused`: the template raised (no system turns, turns that must alternate, no tools).
        `answer_not_rendered`: it left out words or tool calls that are to be learned. A conversation is one
        document, except where the template rewrites earlier turns: then one per learned turn (Template.documents).
        An assistant turn of weight 0 carries no loss. Raises ValueError for a template that cannot be masked.
        """
        found = [self._documents(conversation) for conversation in conversations]
        tokens = iter(self._tokens([part for parts in found if not isinstance(parts, str) for part in parts]))
        return [parts if isinstance(parts, str) else [next(tokens) for _ in parts] for parts in found]

    def _documents(self, conversation: Conversation) -> list[Document] | str:
        learned = [
            index
            for index, turn in enumerate(conversation.messages)
            if turn["role"] == "assistant"
            and index >= conversation.first_answer
            and turn.get("weight", 1) != 0
        ]
        tools = conversation.tools
        try:
            return self._template(tools).documents(conversation.messages, tools, learned)
        except Refused as reason:
            return str(reason)

    def _template(self, tools: list[dict[str, Any]]) -> Template:
        """The template for these tools: some models have one of their own for tools."""
        try:
            source = self._tokenizer.get_chat_template(None, tools or None)
        except ValueError as error:
            raise ValueError(
                f"the tokenizer of {self._tokenizer.name_or_path!r} has no chat template (or several, and none is the "
                "default): take the model's instruct version, or put a chat_template.jinja into its folder"
            ) from error
        if source not in self._templates:
            self._templates[source] = Template(self._tokenizer, source)
        return self._templates[source]

    def _tokens(self, documents: list[Document]) -> list[Tokens]:
        marks = [[place for span in document.spans for place in span] for document in documents]
        encoded = self._pieces.encode([document.text for document in documents], marks)
        return [Tokens(ids, _learned(len(ids), places)) for ids, places in encoded]


def _learned(length: int, places: list[int]) -> NDArray[np.bool_]:
    learned = np.zeros(length, np.bool_)
    for begin, end in zip(places[::2], places[1::2], strict=True):
        learned[begin:end] = True
    return learned
