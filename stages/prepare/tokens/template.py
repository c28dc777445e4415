"""A chat template's text, and where in it the assistant speaks."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from stages.common.prompt import DATE

Turn = Mapping[str, Any]
Tools = list[dict[str, Any]]
Span = tuple[int, int]

MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")  # as transformers looks for it
MEND = "(TRL has such templates for known families: trl.chat_template_utils.get_training_chat_template)"
PROBE: list[Turn] = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]


class Refused(Exception):
    """The template cannot say this conversation; the message is the reject reason, in snake_case."""


class Unmaskable(ValueError):
    """The assistant's words cannot be told from the rest of the text."""


@dataclass(frozen=True)
class Document:
    """A rendered conversation, and the [begin, end) character spans of it that are learned, in order."""

    text: str
    spans: list[Span]


class Template:
    """One chat template, compiled. Raises ValueError for one that no model can be trained with."""

    def __init__(self, tokenizer: Any, source: str) -> None:
        """Compile and try `source`, a template of `tokenizer`."""
        from jinja2 import TemplateSyntaxError
        from transformers.utils.chat_template_utils import _compile_jinja_template

        self.name = repr(tokenizer.name_or_path)
        self._marked = MARKER.search(source) is not None
        # What apply_chat_template passes besides the conversation; an argument goes before transformers' own clock.
        self._variables = {**tokenizer.special_tokens_map, "documents": None, "strftime_now": DATE.strftime}
        try:
            self._jinja = _compile_jinja_template(source)
        except TemplateSyntaxError as error:
            raise ValueError(f"the chat template of {self.name} is not valid Jinja: {error}") from error
        self._probe()

    def render(self, turns: Sequence[Turn], tools: Tools, *, ask: bool) -> str:
        """The text that apply_chat_template gives; with `ask`, ending where the assistant is to speak.

        Raises Refused if the template raises: no system turns, no tools, turns that must alternate.
        """
        return self._traced(turns, tools, ask=ask)[0]

    def documents(self, messages: Sequence[Turn], tools: Tools, learned: Sequence[int]) -> list[Document]:
        """The conversation with loss on the assistant turns at the indices `learned`.

        One document, unless a template without markers renders an earlier turn differently once others follow
        (Qwen3 drops its reasoning, phi-3 its end of text): then one per learned turn, up to that turn, which is
        what the model sees at inference. Raises Refused for a conversation that the template cannot say, and
        ValueError for a template whose assistant turns cannot be found in its text.
        """
        turns = _turns(messages)
        return (
            [self._by_marker(turns, tools, learned)]
            if self._marked
            else self._by_prefix(turns, tools, learned)
        )

    def _by_marker(self, turns: list[Turn], tools: Tools, learned: Sequence[int]) -> Document:
        text, spans = self._traced(turns, tools, ask=False)
        answers = [index for index, turn in enumerate(turns) if turn["role"] == "assistant"]
        owners = answers if len(spans) == len(answers) else self._owners(turns, tools, answers, text, spans)
        for index in learned:
            own = [span for span, owner in zip(spans, owners, strict=True) if owner == index]
            if not own:
                raise Unmaskable(
                    f"the chat template of {self.name} puts assistant turn {answers.index(index) + 1} of "
                    f"{len(answers)} outside {{% generation %}}: mark all that the assistant says {MEND}"
                )
            _check_said(turns[index], "".join(text[begin:end] for begin, end in own))
        return Document(text, [span for span, owner in zip(spans, owners, strict=True) if owner in learned])

    def _owners(
        self, turns: list[Turn], tools: Tools, answers: list[int], text: str, spans: list[Span]
    ) -> list[int]:
        """The turn of each span where a turn has several: the last one that starts before the span does."""
        if not answers:
            return [-1] * len(spans)
        # A turn starts where the text so far ends; rendered alone, that may carry an end of text.
        starts = [
            _common(self.render(turns[:index], tools, ask=False), text) if index else 0 for index in answers
        ]
        return [answers[max(0, bisect_right(starts, begin) - 1)] for begin, _ in spans]

    def _by_prefix(self, turns: list[Turn], tools: Tools, learned: Sequence[int]) -> list[Document]:
        text = self.render(turns, tools, ask=False)
        documents = []
        for index in learned:
            last = index + 1 == len(turns)
            answered = text if last else self.render(turns[: index + 1], tools, ask=False)
            begin = len(self._asked(turns[:index], tools, answered))
            _check_said(turns[index], answered[begin:])
            documents.append(Document(answered, [(begin, len(answered))]))
        if all(text.startswith(document.text) for document in documents):
            return [Document(text, [document.spans[0] for document in documents])]
        return documents

    def _asked(self, turns: list[Turn], tools: Tools, answered: str) -> str:
        asked = self.render(turns, tools, ask=True) if turns else ""
        if not answered.startswith(asked):
            raise Unmaskable(
                f"the chat template of {self.name} does not begin an answer as it asks for one (it asks with "
                f"{asked[-40:]!r}), so the assistant's words cannot be found: put {{% generation %}} markers "
                f"around them in its chat_template.jinja {MEND}"
            )
        return asked

    def _traced(self, turns: Sequence[Turn], tools: Tools, *, ask: bool) -> tuple[str, list[Span]]:
        from jinja2 import TemplateError

        blocks: list[str] = []
        spans: list[Span] = []
        generate = self._jinja.generate
        try:
            with self._jinja.environment.activate_tracker(blocks, spans):
                for block in generate(
                    messages=turns, tools=tools or None, add_generation_prompt=ask, **self._variables
                ):
                    blocks.append(block)  # the tracker reads the list while it grows
        except (TemplateError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            raise Refused("template_refused") from error
        return "".join(blocks), spans

    def _probe(self) -> None:
        """Refuse what would spoil every row: words left out, or an end of turn that is not learned."""
        try:
            with suppress(Unmaskable):  # may depend on the row: an answer that brings its reasoning is found
                (document,) = self.documents(PROBE, [], [1])
                said = "".join(document.text[begin:end] for begin, end in document.spans)
                if said.endswith(PROBE[1]["content"]):
                    raise ValueError(
                        f"the chat template of {self.name} has no end-of-turn token after the assistant's words (or "
                        f"not inside {{% generation %}}), so the model would never learn to stop: add one {MEND}"
                    )
        except Refused as error:
            detail = f": {error.__cause__}" if error.__cause__ else ""
            raise ValueError(
                f"the chat template of {self.name} cannot say a plain question and answer ({error}{detail}): "
                "give a template for text in its chat_template.jinja; one for images wants other messages"
            ) from error


def _turns(messages: Sequence[Turn]) -> list[Turn]:
    """What apply_chat_template shows of messages: no empty values, reasoning under each of its names.

    The `weight` of a turn is the trainer's business and no template's.
    """
    from transformers.utils.chat_template_utils import _alias_reasoning_fields

    kept = [
        {key: value for key, value in turn.items() if value is not None and key != "weight"}
        for turn in messages
    ]
    return list(_alias_reasoning_fields(kept))


def _check_said(turn: Turn, text: str) -> None:
    """Raise Refused if words or tool calls to be learned are not in `text`: some templates leave them out."""
    content = turn.get("content", "")
    words = content.rpartition("</think>")[2].strip() if isinstance(content, str) else ""
    names = [str(call.get("function", call).get("name", "")) for call in turn.get("tool_calls", [])]
    if not all(part in text for part in (words, *names)):
        raise Refused("answer_not_rendered")


def _common(one: str, other: str) -> int:
    """Length of the common beginning."""
    shorter = min(len(one), len(other))
    return next((at for at in range(shorter) if one[at] != other[at]), shorter)
