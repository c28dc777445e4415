"""Scores apart: by any field of the items, with the gap between best and worst, and on items that no row overlaps."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stages.bench import corpus
from stages.bench.results import Row, exponential, interval
from stages.common.files import read_jsonl
from stages.common.statistics import Metric, Metrics, bootstrap_means

ITEMS = Path("data/prepared/items.jsonl")


@dataclass(frozen=True)
class Sum:
    """What is told of the items of a slice: the number, by a seed also its interval, and bootstrap draws of it."""

    value: Callable[[list[Any]], float]
    metric: Callable[[list[Any], int], Metric]
    drawn: Callable[[list[Any], int], corpus.Array]


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
    """Each metric over parts of the items, with 95 % intervals, whether it is a mean over items or not.

    "task/metric/field:value" for each value of a sliced field that has several, "task/metric/field:gap" for best minus
    worst, and "task/metric/clean" over the items that no training row overlaps, where some are overlapped.
    """
    found: Metrics = {}
    for name, part in _by_metric(rows, "scores"):
        found |= _sliced(name, part, MEAN, seed)
        if name.endswith("/nll_per_token"):
            found |= _sliced(name.replace("nll_per_token", "perplexity"), part, PERPLEXITY, seed)
    for name, part in _by_metric(rows, "parts"):
        found |= _sliced(name, part, _whole(name.rpartition("/")[2]), seed)
    return found


def gap(groups: list[list[Any]], how: Sum, seed: int) -> Metric:
    """Largest minus smallest number of the groups; bootstrap within each of the two, which are taken as given.

    That the two were picked out of several is not in the interval: with many groups it is too narrow.
    """
    ordered = sorted(groups, key=how.value)
    worst, best = ordered[0], ordered[-1]
    low, high = np.quantile(how.drawn(best, seed) - how.drawn(worst, seed + 1), [0.025, 0.975])
    value = how.value(best) - how.value(worst)
    return {"value": value, "lo": float(low), "hi": float(high), "n": len(best) + len(worst)}


def _mean(scores: list[float]) -> float:
    return float(np.mean(scores))


def _drawn(scores: list[float], seed: int) -> corpus.Array:
    return bootstrap_means(scores, seed, 2000)


MEAN = Sum(_mean, interval, _drawn)
PERPLEXITY = Sum(
    lambda nats: float(np.exp(_mean(nats))),
    lambda nats, seed: exponential(interval(nats, seed)),
    lambda nats, seed: np.exp(_drawn(nats, seed)),
)


def _whole(metric: str) -> Sum:
    """Of a metric that is no mean over items, by what they add to its sums."""
    partial = functools.partial
    return Sum(partial(corpus.value, metric), partial(corpus.summary, metric), partial(corpus.drawn, metric))


def _sliced(name: str, part: list[tuple[Row, Any]], how: Sum, seed: int) -> Metrics:
    found: Metrics = {}
    for field in sorted({field for row, _ in part for field in row["slices"]}):
        groups: dict[str, list[Any]] = defaultdict(list)
        for row, item in part:
            if field in row["slices"]:
                groups[row["slices"][field]].append(item)
        if len(groups) > 1:
            found |= {f"{name}/{field}:{value}": how.metric(groups[value], seed) for value in sorted(groups)}
            found[f"{name}/{field}:gap"] = gap(list(groups.values()), how, seed)
    clean = [item for row, item in part if row["clean"]]
    if 0 < len(clean) < len(part):
        found[f"{name}/clean"] = how.metric(clean, seed)
    return found


def _by_metric(
    rows: list[Row], column: Literal["scores", "parts"]
) -> Iterator[tuple[str, list[tuple[Row, Any]]]]:
    found: dict[str, list[tuple[Row, Any]]] = defaultdict(list)
    for row in rows:
        for metric, item in row[column].items():
            found[f"{row['task']}/{metric}"].append((row, item))
    yield from found.items()
