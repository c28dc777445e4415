"""Scores apart: by any field of the items, with the gap between best and worst, and on items that no row overlaps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stages.bench.results import Row, interval
from stages.common.files import read_jsonl
from stages.common.statistics import Metric, Metrics, bootstrap_means

ITEMS = Path("data/prepared/items.jsonl")


def dirty_items(tasks: dict[str, str]) -> set[tuple[str, str]]:
    """(task, item) that training rows overlap, by prepare's report; none where it wrote none.

    `tasks` maps a task to what its items are called there.
    """
    found = set()
    for line in read_jsonl(ITEMS) if ITEMS.is_file() else []:
        if line["clean"]:
            continue
        found |= {(task, line["item"]) for task, name in tasks.items() if line["benchmark"] == name}
    return found


def slice_metrics(rows: list[Row], seed: int) -> Metrics:
    """Means over parts of the items, with 95 % intervals.

    "task/metric/field:value" for each value of a sliced field that has several, "task/metric/field:gap" for best minus
    worst, and "task/metric/clean" over the items that no training row overlaps, where some are overlapped.
    """
    found: Metrics = {}
    for name, part in _by_metric(rows):
        fields = sorted({field for row in part for field in row[0]["slices"]})
        for field in fields:
            groups: dict[str, list[float]] = defaultdict(list)
            for row, score in part:
                if field in row["slices"]:
                    groups[row["slices"][field]].append(score)
            if len(groups) > 1:
                found |= {
                    f"{name}/{field}:{value}": interval(groups[value], seed) for value in sorted(groups)
                }
                found[f"{name}/{field}:gap"] = gap(list(groups.values()), seed)
        clean = [score for row, score in part if row["clean"]]
        if 0 < len(clean) < len(part):
            found[f"{name}/clean"] = interval(clean, seed)
    return found


def gap(groups: list[list[float]], seed: int) -> Metric:
    """Largest minus smallest mean of the groups; bootstrap within each of the two, which are taken as given.

    That the two were picked out of several is not in the interval: with many groups it is too narrow.
    """
    ordered = sorted(groups, key=lambda group: float(np.mean(group)))
    worst, best = ordered[0], ordered[-1]
    resampled = bootstrap_means(best, seed, 2000) - bootstrap_means(worst, seed + 1, 2000)
    low, high = np.quantile(resampled, [0.025, 0.975])
    value = float(np.mean(best) - np.mean(worst))
    return {"value": value, "lo": float(low), "hi": float(high), "n": len(best) + len(worst)}


def _by_metric(rows: list[Row]) -> Iterator[tuple[str, list[tuple[Row, float]]]]:
    found: dict[str, list[tuple[Row, float]]] = defaultdict(list)
    for row in rows:
        for metric, score in row["scores"].items():
            found[f"{row['task']}/{metric}"].append((row, score))
    yield from found.items()
