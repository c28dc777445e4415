"""Is the model still right? The logged output against the feedback that came back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stages.common.statistics import Metric, holm, wilson
from stages.drift.logs import Row


@dataclass(frozen=True)
class Field:
    """Accuracy of one field on both sides; `p` one-sided (the window is worse), `adjusted` by Holm."""

    name: str
    reference: Metric
    window: Metric
    p: float
    adjusted: float


def accuracies(reference: Sequence[Row], window: Sequence[Row]) -> list[Field]:
    """Every field with feedback on both sides, worst first; empty where there is none: not evaluated."""
    named = {name for row in (*reference, *window) for name in row.fields}
    left, right = _scores(reference, named), _scores(window, named)
    names = sorted(left.keys() & right.keys())
    p_values = [worse(left[name], right[name]) for name in names]
    fields = [
        Field(
            name, wilson(sum(left[name]), len(left[name])), wilson(sum(right[name]), len(right[name])), p, q
        )
        for name, p, q in zip(names, p_values, holm(p_values), strict=True)
    ]
    return sorted(fields, key=lambda field: (field.p, field.name))


def worse(reference: Sequence[bool], window: Sequence[bool]) -> float:
    """One-sided exact p-value that the window's share of right answers is lower (Fisher 1934)."""
    from scipy.stats import hypergeom

    right, total = sum(reference) + sum(window), len(reference) + len(window)
    return float(hypergeom.cdf(sum(window), total, right, len(window)))


def _scores(rows: Sequence[Row], named: set[str]) -> dict[str, list[bool]]:
    """Right or wrong by feedback field; true/false for a field that no output has rates the answer."""
    scores: dict[str, list[bool]] = {}
    for row in rows:
        for field, value in (row.feedback or {}).items():
            right = field in row.fields and row.fields[field] == value if field in named else value is True
            scores.setdefault(field, []).append(bool(right))
    return scores
