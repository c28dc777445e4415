"""What a row looks like in numbers and categories, and which of them moved."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.common.statistics import benjamini_hochberg
from stages.drift.logs import Row

Numbers = NDArray[np.float64]
NONE = "(none)"
FEWEST_EXPECTED = 5.0  # Cochran's rule for chi-squared, Biometrics 10 (1954) 417-451


@dataclass(frozen=True)
class Moved:
    """One descriptor, reference against window: `effect` is KS's D (numbers) or Cramer's V (categories)."""

    name: str
    reference: str
    window: str
    effect: float
    p: float
    adjusted: float


@dataclass(frozen=True)
class Columns:
    """Descriptors of reference and window, by name: numbers and categories."""

    numbers: dict[str, tuple[Numbers, Numbers]]
    categories: dict[str, tuple[list[str], list[str]]]


def describe(reference: Sequence[Row], window: Sequence[Row]) -> Columns:
    """Descriptor columns of both sides, those that are constant over both left out."""
    numbers = {name: _numbers(reference, window, name) for name in reference[0].numbers}
    numbers["unseen words"] = unseen_shares(reference, window)
    fields = sorted({field for row in (*reference, *window) for field in row.fields})
    categories = {
        f"predicted {field}": (_values(reference, field), _values(window, field)) for field in fields
    }
    return Columns(
        {name: sides for name, sides in numbers.items() if np.ptp(np.concatenate(sides)) > 0},
        {name: (a, b) for name, (a, b) in categories.items() if len({*a, *b}) > 1},
    )


def unseen_shares(reference: Sequence[Row], window: Sequence[Row]) -> tuple[Numbers, Numbers]:
    """Share of a row's words that one half of the reference never used.

    A reference row is held against the half that it is not in, a window row against the halves in
    turn: both sides face a vocabulary of equal size that was made without them, so equal
    distributions give equal shares.
    """
    halves = [{word for row in reference[1 - turn :: 2] for word in row.words} for turn in (0, 1)]

    def share(index: int, row: Row) -> float:
        return sum(word not in halves[index % 2] for word in row.words) / max(1, len(row.words))

    left, right = (np.array([share(i, row) for i, row in enumerate(side)]) for side in (reference, window))
    return left, right


def moves(columns: Columns) -> list[Moved]:
    """Every descriptor tested, Benjamini-Hochberg adjusted, largest effect first among equal p-values."""
    tests = {name: numeric(*sides) for name, sides in columns.numbers.items()}
    tests |= {name: categorical(*sides) for name, sides in columns.categories.items()}
    adjusted = benjamini_hochberg([p for *_, p in tests.values()])
    found = [Moved(name, *test, q) for (name, test), q in zip(tests.items(), adjusted, strict=True)]
    return sorted(found, key=lambda moved: (moved.adjusted, -moved.effect, moved.name))


def _numbers(reference: Sequence[Row], window: Sequence[Row], name: str) -> tuple[Numbers, Numbers]:
    left, right = (np.array([row.numbers[name] for row in side]) for side in (reference, window))
    return left, right


def _values(rows: Sequence[Row], field: str) -> list[str]:
    return [_text(row.fields[field]) if field in row.fields else NONE for row in rows]


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def numeric(reference: Numbers, window: Numbers) -> tuple[str, str, float, float]:
    """Two-sided Kolmogorov-Smirnov, asymptotic p-value (conservative on ties)."""
    from scipy.stats import ks_2samp

    test = ks_2samp(reference, window, method="asymp")
    return f"{reference.mean():.3g}", f"{window.mean():.3g}", float(test.statistic), float(test.pvalue)


def categorical(reference: list[str], window: list[str]) -> tuple[str, str, float, float]:
    """Chi-squared over the values that are frequent enough, the others taken together."""
    from scipy.stats import chi2_contingency

    left, right = Counter(reference), Counter(window)
    least = FEWEST_EXPECTED * (len(reference) + len(window)) / min(len(reference), len(window))
    values = sorted({*left, *right}, key=lambda value: (-left[value] - right[value], value))
    kept = [value for value in values if left[value] + right[value] >= least]
    table = np.array([[side[value] for value in kept] for side in (left, right)], dtype=np.int64)
    rest = np.array([len(reference), len(window)]) - table.sum(axis=1)
    if rest.sum() >= least or not kept:
        table, kept = np.column_stack([table, rest]), [*kept, "(rare)"]
    else:  # too few to stand alone: with the rarest of the others
        table[:, -1] += rest
    if len(kept) < 2:
        return "", "", 0.0, 1.0
    test = chi2_contingency(table, correction=False)
    effect = float(np.sqrt(test.statistic / (len(reference) + len(window))))
    shares = table / table.sum(axis=1, keepdims=True)
    most = int(np.abs(shares[1] - shares[0]).argmax())
    before, after = (f"{kept[most]} {share:.0%}" for share in shares[:, most])
    return before, after, effect, float(test.pvalue)
