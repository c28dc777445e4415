"""Scores of one item of our own tasks; lm-eval calls them with the row and the model's responses."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any

from stages.bench.tasks.rouge import rouge_l

FIELDS = ("intent", "product", "priority", "sentiment")
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")


def triage(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """0 or 1 a field, their mean, all of them, whether the first line parses, and ROUGE-L of the reply.

    An answer is one line of JSON, a newline, and the reply. Raises ValueError if the row's own answer is not.
    """
    gold, answer = triage_fields(doc["target"], doc["id"]), _first_line(results[0])
    right = {field: float(answer is not None and answer.get(field) == gold[field]) for field in FIELDS}
    return right | {
        "fields": sum(right.values()) / len(FIELDS),
        "all_fields": float(all(right.values())),
        "valid_json": float(answer is not None and set(answer) == set(FIELDS)),
        "rouge_l": rouge_l(_reply(doc["target"]), _reply(results[0])),
    }


def heldout(doc: dict[str, Any], results: list[tuple[Any, bool]]) -> dict[str, float]:
    """Negative log-likelihood of the row's answer given its prompt, in nats per token and per UTF-8 byte.

    Tokens are the model's, so that only models with one tokenizer compare by them; bytes compare across all.
    """
    nats, _ = results[0]
    return {
        "nll_per_token": -float(nats) / nats.tokens,
        "nll_per_byte": -float(nats) / len(doc["target"].encode()),
    }


def gsm8k(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether the answer's number equals the row's. Raises ValueError on a row without one."""
    gold = final_number(doc["target"])
    if gold is None:
        raise ValueError(f"row {doc['id']} has no number in its answer: gsm8k_match cannot score it")
    return {"exact_match": float(final_number(results[0]) == gold)}


def final_number(text: str) -> Decimal | None:
    """The number after "####", else the last number of the text, else None."""
    _, mark, tail = text.rpartition("####")
    found = NUMBER.findall(tail)
    if not found:
        return None
    return Decimal((found[0] if mark else found[-1]).replace(",", ""))


def triage_fields(target: str, row: str) -> dict[str, str]:
    """The four fields of a row's own answer. Raises ValueError, naming the row, where they are not there."""
    answer = _first_line(target)
    if answer is None or not set(FIELDS) <= set(answer):
        raise ValueError(
            f"row {row}: its answer does not begin with a JSON line of {', '.join(FIELDS)}; "
            "take the helpdesk tasks out of bench.tasks for this dataset"
        )
    return {field: answer[field] for field in FIELDS}


def _first_line(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text.strip().split("\n", 1)[0])
    except (json.JSONDecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _reply(text: str) -> str:
    # Prose without a JSON line is a reply too: it misses every field, but its words count.
    head, _, tail = text.strip().partition("\n")
    return tail if head.startswith("{") else text
