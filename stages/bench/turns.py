"""A conversation as the model's own chat template writes it: up to where the model is to speak, or with its answer."""

from __future__ import annotations

import json
from typing import Any

from jinja2.exceptions import TemplateError

from stages.common.prompt import stop_clock

Turns = list[dict[str, Any]]


class ChatTemplate:
    """The chat template of one model's tokenizer."""

    def __init__(self, tokenizer: Any, source: str) -> None:
        """`source` names the model in messages."""
        self.tokenizer, self.source = tokenizer, source
        stop_clock(tokenizer)

    def asked(self, turns: Turns, tools: Turns | None = None, *, to_go_on: bool = False) -> str:
        """The prompt; `to_go_on`: its last turn is the begun answer. Raises ValueError where the template refuses."""
        return self._write(turns, tools, add_generation_prompt=not to_go_on, continue_final_message=to_go_on)

    def answered(self, turns: Turns, last: dict[str, Any], tools: Turns | None, end: str) -> str:
        """What follows the prompt where the assistant says `last`: tool calls and reasoning too, up to `end`.

        Raises ValueError where the template refuses, or begins an answer otherwise than it asks for one.
        """
        asked = self._write(turns, tools, add_generation_prompt=True)
        whole = self._write([*turns, last], tools, add_generation_prompt=False)
        if not whole.startswith(asked):
            raise ValueError(
                f"{self.source}: its chat template does not begin an answer with tool calls or reasoning as it asks "
                f"for one (it asks with {asked[-40:]!r}): leave such rows out of data.test"
            )
        own = whole[len(asked) :]
        said, found, _ = own.rpartition(end)
        return said if found else own

    def _write(self, turns: Turns, tools: Turns | None, **how: bool) -> str:
        try:
            return str(self.tokenizer.apply_chat_template(turns, tools=tools or None, tokenize=False, **how))
        except TemplateError as error:
            raise ValueError(
                f"{self.source}: its chat template refuses the prompt ({error}); "
                "change prompt.system or prompt.examples"
            ) from error


class Messages(ChatTemplate):
    """For a server that takes messages and writes the prompt itself, by a template that nobody here sees."""

    def asked(self, turns: Turns, tools: Turns | None = None, *, to_go_on: bool = False) -> str:
        """The messages as JSON. Raises ValueError on what the endpoint has no room for: tools, a begun answer."""
        if tools or to_go_on:
            what = "tools" if tools else "an answer that is begun"
            raise ValueError(
                f"backend chat of {self.source} sends messages alone, and a prompt has {what}: take backend "
                "completions, or leave the task out"
            )
        return json.dumps(turns, ensure_ascii=False)
