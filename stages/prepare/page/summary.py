"""Evidently's data summary of the sampled rows: one card a column."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from stages.common.evidently_page import drawn

NUMBERS = ("turns", "characters", "tokens", "learned_tokens")
CATEGORIES = ("split", "source", "language")
LABELS = 6  # of a category, that its card names
ALARM, CALM = "#ed0400", "#3b6fb6"  # Evidently paints plain counts red; on our page red means trouble


def summary(columns: Mapping[str, Sequence[Any]]) -> str:
    """Evidently's page, a pure function of `columns` (name -> values, None for none); "" where no value is.

    A column without any value is left out: its card would be empty.
    """
    import pandas as pd
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataSummaryPreset

    filled = {name for name, values in columns.items() if any(value is not None for value in values)}
    numbers = [name for name in NUMBERS if name in filled]
    categories = [name for name in CATEGORIES if name in filled]
    if not numbers and not categories:
        return ""
    frame = pd.DataFrame({name: pd.Series(columns[name], dtype=float) for name in numbers})
    frame = frame.assign(**{name: pd.Series(columns[name], dtype=object) for name in categories})
    definition = DataDefinition(numerical_columns=numbers, categorical_columns=categories)
    snapshot = Report([DataSummaryPreset()]).run(Dataset.from_pandas(frame, definition), None)
    table, *cards = snapshot.to_snapshot_model().widgets[1:]  # the first is a title
    table.params["data"] = [row for row in table.params["data"] if row[-1] != "None"]
    for card in cards:
        card.params = _repainted(card.params)
        if (name := card.params["header"]) in categories:
            card.params["metrics"] = [*card.params["metrics"][:2], *_labels(columns[name])]
    return drawn([table, *cards])


def _labels(values: Sequence[Any]) -> list[dict[str, Any]]:
    """A category's most frequent labels. Evidently takes them from a set, in another order in every process."""
    counts = Counter(str(value) for value in values if value is not None)
    first = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:LABELS]
    return [{"label": label, "values": [f"{count} ({count / len(values):.0%})"]} for label, count in first]


def _repainted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _repainted(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_repainted(item) for item in value]
    return CALM if isinstance(value, str) and value == ALARM else value
