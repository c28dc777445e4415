"""Which words give a window away: a linear domain classifier, for the explanation only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stages.drift.logs import Row

FEWEST_ROWS = 5  # a word in fewer rows than that explains nothing


@dataclass(frozen=True)
class Word:
    """A word and the share of each side's rows that have it."""

    word: str
    reference: float
    window: float


def telling_words(reference: Sequence[Row], window: Sequence[Row], most: int = 12) -> list[Word]:
    """The words with the largest weight in a logistic regression of the side on the words of a row.

    Presence, not counts; words of either direction; heaviest first. Empty where nothing is common enough.
    """
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    sets = [set(row.words) for row in (*reference, *window)]
    counts: dict[str, int] = {}
    for words in sets:
        for word in words:
            counts[word] = counts.get(word, 0) + 1
    names = sorted(word for word, count in counts.items() if FEWEST_ROWS <= count < len(sets))
    if not names:
        return []
    table = np.array([[float(name in words) for name in names] for words in sets])
    sides = np.array([0] * len(reference) + [1] * len(window))
    weights = LogisticRegression(C=0.1, class_weight="balanced", max_iter=500).fit(table, sides).coef_[0]
    heaviest = sorted(range(len(names)), key=lambda index: (-abs(round(weights[index], 6)), names[index]))[
        :most
    ]
    shares = [table[sides == side].mean(axis=0) for side in (0, 1)]
    return [Word(names[i], float(shares[0][i]), float(shares[1][i])) for i in heaviest]
