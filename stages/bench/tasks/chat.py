"""How lm-eval asks our own tasks: the rows of data/prepared/test.jsonl through the model's chat template.

The YAML files beside this one name these classes and functions. lm-eval's own prompt builder knows one user
turn a row; a conversation, or a row with a system turn of its own, would be asked differently from how the
model was trained. So the turns come from `with_prompt`, as in the prepare stage, and only the rendering is
lm-eval's: the string sent is `apply_chat_template(with_prompt(...), add_generation_prompt=True)`, no more.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset
from lm_eval.api.task import ConfigurableTask

from stages.bench.tasks.scoring import triage_fields
from stages.common.files import read_jsonl
from stages.common.prompt import Example, Prompt, with_prompt

Doc = dict[str, Any]


class ChatTask(ConfigurableTask):  # type: ignore[misc]  # lm-eval carries no types
    """A YAML task whose context is a whole conversation."""

    def __init__(self, config: dict[str, Any]) -> None:
        """As lm-eval's, for a YAML that names this class."""
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    render: Callable[[list[dict[str, str]]], str]  # by the model's own chat template; evaluation.py sets it

    def fewshot_context(self, doc: Doc, *_: Any, **__: Any) -> str:
        """The prompt of one item as a string, through the chat template whether lm-eval's tasks are or not."""
        return self.render(json.loads(doc["turns"]))


def rows(path: str, prompt: dict[str, Any], fewshot: int, **_: Any) -> dict[str, Dataset]:
    """The split `test`: one item a row, asked up to its last assistant turn, which is the target.

    Raises ValueError on a missing or empty file and on a row that does not end with an assistant's answer.
    """
    return {"test": Dataset.from_list(list(_docs(Path(path), _prompt(prompt, fewshot))))}


def intent_rows(path: str, prompt: dict[str, Any], fewshot: int, **_: Any) -> dict[str, Dataset]:
    """`rows` with `choices`, how an answer may begin (one for each intent of the file), and the right one."""
    docs = list(_docs(Path(path), _prompt(prompt, fewshot)))
    gold = [triage_fields(doc["target"], doc["id"])["intent"] for doc in docs]
    intents = sorted(set(gold))
    choices = [f'{{"intent": {json.dumps(intent)},' for intent in intents]
    for doc, intent in zip(docs, gold, strict=True):
        doc |= {"choices": choices, "answer": intents.index(intent)}
    return {"test": Dataset.from_list(docs)}


def _prompt(values: dict[str, Any], fewshot: int) -> Prompt:
    examples = [Example(**example) for example in values["examples"]]
    return Prompt(**{**values, "examples": examples[:fewshot]})


def _docs(path: Path, prompt: Prompt) -> Iterator[Doc]:
    if not path.is_file():
        raise ValueError(f"no test rows at {path}: run `dvc repro prepare`")
    found = list(read_jsonl(path))
    if not found:
        raise ValueError(f"{path} holds no rows: look at data.test and at data/prepared/rejects.jsonl")
    seen: set[str] = set()
    for row in found:
        if row["id"] in seen:
            raise ValueError(f"{path}: id {row['id']!r} stands there twice: items are told apart by it")
        seen.add(row["id"])
        *turns, last = row["messages"] or [{"role": "none", "content": ""}]
        if last["role"] != "assistant" or not last["content"]:
            raise ValueError(f"{path}: row {row['id']} ends with {last['role']!r}, not with an answer")
        yield {
            "id": row["id"],
            "meta": json.dumps(row["meta"]),
            "turns": json.dumps(with_prompt(prompt, turns, examples=True)),
            "question": turns[-1]["content"] if turns else "",
            "target": last["content"],
        }
