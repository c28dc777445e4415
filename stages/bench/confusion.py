"""What was answered where what was right: reports/confusion/<variant>/<task>.csv for each classified field.

`dvc plots show` draws them by DVC's template confusion, one row of the file for each item.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from stages.bench.choices import trimmed
from stages.bench.corpus import cell
from stages.bench.results import Row
from stages.common.files import fresh_dir, write_text

FOLDER = Path("reports/confusion")
MOST = 20  # classes that a picture shows legibly
NONE, OTHER = "(none)", "(other)"  # an answer without the field, and one that is no class
Pairs = list[tuple[str, str]]


def confusions(rows: Sequence[Row], tasks: Iterable[str]) -> dict[str, Pairs]:
    """(actual, predicted) of the items of each classified field of `tasks`, by "task" or "task.field".

    Classified is what macro F1 is of, a choice between few answers, and each field of a target that begins with a JSON
    object, where few values come twice and more. Tasks that are only members of a group are left out.
    """
    found: dict[str, Pairs] = {}
    for task in sorted(set(tasks)):
        mine = [row for row in rows if row["task"] == task]
        labels = {name for row in mine for name in row["parts"] if name.startswith("f1_macro")}
        if labels:
            cells = [row["parts"].get(min(labels), {}) for row in mine]
            fields = {task: [cell(key) for each in cells for key in each]}
        elif mine and all(len(row["loglikelihoods"]) > 1 for row in mine):
            fields = {task: _trimmed([(row["target"], row["output"]) for row in mine])}
        elif any(row["loglikelihoods"] for row in mine):
            continue  # nothing was answered: the target itself was scored
        else:
            fields = {f"{task}.{name}": pairs for name, pairs in _json_fields(mine).items()}
        found |= {name: _known(pairs) for name, pairs in fields.items() if _few(pairs)}
    return found


def write(folder: Path, found: dict[str, Pairs]) -> None:
    """A CSV of actual and predicted for each field, in place of whatever the folder held."""
    fresh_dir(folder)
    for name, pairs in found.items():
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([("actual", "predicted"), *pairs])
        write_text(folder / f"{name}.csv", text.getvalue())


def _json_fields(rows: Sequence[Row]) -> dict[str, Pairs]:
    targets, outputs = ([_first_line(row[side]) for row in rows] for side in ("target", "output"))
    if not targets or not all(targets):
        return {}
    names = [name for name in targets[0] if all(isinstance(target.get(name), str) for target in targets)]
    return {
        name: [
            (target[name], given if isinstance(given := output.get(name), str) else NONE)
            for target, output in zip(targets, outputs, strict=True)
        ]
        for name in names
    }


def _first_line(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text.strip().split("\n", 1)[0])
    except (json.JSONDecodeError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _few(pairs: Pairs) -> bool:
    classes = {actual for actual, _ in pairs}
    return 1 < len(classes) <= MOST and 2 * len(classes) <= len(pairs)


def _known(pairs: Pairs) -> Pairs:
    classes = {actual for actual, _ in pairs} | {NONE}
    return [(actual, predicted if predicted in classes else OTHER) for actual, predicted in pairs]


def _trimmed(pairs: Pairs) -> Pairs:
    """Answers without what all of them begin and end with, in whole words: `{"intent": "` and `",` say nothing."""
    texts = sorted({text for pair in pairs for text in pair})
    cut = dict(zip(texts, trimmed(texts), strict=True))
    return [(cut[actual], cut[predicted]) for actual, predicted in pairs]
