"""ROUGE of two texts, equal to the rouge_score package's (without stemming) and free of its imports."""

from __future__ import annotations

import re
from collections import Counter

WORD = re.compile(r"[a-z0-9]+")


def rouge_n(reference: str, candidate: str, size: int) -> float:
    """F1 of the runs of `size` words that both have (Lin 2004, section 2); words as for `rouge_l`."""
    expected, given = (Counter(_runs(WORD.findall(text.lower()), size)) for text in (reference, candidate))
    common = (expected & given).total()
    return 2 * common / (expected.total() + given.total()) if common else 0.0


def rouge_l(reference: str, candidate: str) -> float:
    """F1 of the longest common subsequence of words (Lin 2004, ROUGE: A Package, section 3).

    Words are runs of lower-cased ASCII letters and digits, as in rouge_score; 0.0 where a side has none.
    """
    expected, given = WORD.findall(reference.lower()), WORD.findall(candidate.lower())
    common = _longest_common_subsequence(expected, given)
    return 2 * common / (len(expected) + len(given)) if common else 0.0


def _runs(words: list[str], size: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[start:] for start in range(size)), strict=False))


def _longest_common_subsequence(a: list[str], b: list[str]) -> int:
    lengths = [0] * (len(b) + 1)
    for word in a:
        diagonal = 0
        for column, other in enumerate(b, 1):
            above = lengths[column]
            lengths[column] = diagonal + 1 if word == other else max(above, lengths[column - 1])
            diagonal = above
    return lengths[-1]
