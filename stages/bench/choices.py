"""What an item's choices are called in its row: the likeliest is its output, the right one its target."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from typing import Any

from stages.bench.scores import chosen

GOLD = "lathe_gold"  # in a sample of lm-eval's: the number of the right choice, where its target is no choice


def output_and_target(task: str, sample: dict[str, Any]) -> tuple[str, str]:
    """Of an item that is scored by likelihoods; the output is "" where there is nothing to choose from.

    Raises ValueError where the right choice is not among the item's.
    """
    arguments, target = sample["arguments"], sample.get(GOLD, sample["target"])
    if len(arguments) == 1:
        return "", str(target)
    texts = _texts(arguments)
    likeliest = max(range(len(texts)), key=lambda place: float(sample["filtered_resps"][place][0]))
    return texts[likeliest], _named(texts, target, f"item {sample['doc_id']} of {task}")


def trimmed(texts: Sequence[str]) -> list[str]:
    """The texts without what all of them begin and end with, in whole words; whole where nothing would be left."""
    begin, end = _shared_beginning(texts), _shared_beginning([text[::-1] for text in texts])
    return [text[begin : len(text) - end] or text for text in texts]


def _shared_beginning(texts: Sequence[str]) -> int:
    """How long the common beginning is, up to where its last word begins."""
    same = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False))
    return len(re.sub(r"\w*\Z", "", "".join(letters[0] for letters in same)))


def _texts(arguments: Sequence[tuple[str, str]]) -> list[str]:
    """The answers; where choices stand in the prompts (winogrande), what tells the prompts apart."""
    # acc_mutual_info asks for each answer a second time, without the question
    asked = [(prompt, answer) for prompt, answer in arguments if prompt] or list(arguments)
    answers, prompts = [answer for _, answer in asked], [prompt for prompt, _ in asked]
    if len(set(answers)) > 1 or len(set(prompts)) == 1:
        return answers
    return trimmed(prompts)


def _named(texts: Sequence[str], target: Any, what: str) -> str:
    """The right choice as its text: a task names it by its number, by its text without the delimiter, or lists some."""
    if isinstance(target, int):
        return chosen(texts, target, what)
    if isinstance(target, list) and target and all(isinstance(each, int) for each in target):
        right = [chosen(texts, each, what) for each in target]
        return right[0] if len(right) == 1 else json.dumps(right, ensure_ascii=False)
    return next((text for text in texts if text.strip() == str(target).strip()), str(target))
