"""What is read out of a message and an answer."""

from __future__ import annotations

import json
import re
from typing import Any

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


def words(text: str) -> list[str]:
    """Lower-case words: runs of letters of any script, apostrophes inside kept."""
    return _WORD.findall(text.lower())


def parsed(output: str) -> tuple[dict[str, Any], str]:
    """The fields and the free text of an answer that is `JSON object\\nreply`, or only JSON, or only text."""
    head, _, tail = output.partition("\n")
    for candidate, rest in ((head, tail), (output, "")):
        try:
            value = json.loads(candidate)
        except ValueError:
            continue
        if isinstance(value, dict):
            return value, rest
    return {}, output


def measures(text: str, text_words: list[str], output: str) -> dict[str, float]:
    """Sizes (characters, words) and shares (0 to 1) of a message, and the number of words of its reply."""
    size, letters = max(1, len(text)), sum(map(len, text_words))
    return {
        "characters": len(text),
        "words": len(text_words),
        "word length": letters / max(1, len(text_words)),
        "digits": sum(map(str.isdigit, text)) / size,
        "punctuation": sum(not (mark.isalnum() or mark.isspace()) for mark in text) / size,
        "capitals": sum(map(str.isupper, text)) / size,
        "reply words": len(words(parsed(output)[1])),
    }
