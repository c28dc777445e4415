"""Groups of tasks: lm-eval's own values of them, with intervals, and those over the items that no row overlaps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stages.bench.scores import reader_suffix
from stages.common.statistics import Z95, Metric, Metrics

if TYPE_CHECKING:
    from stages.bench.results import Row


def groups(results: Mapping[str, Any], metrics: Metrics) -> Metrics:
    """Groups of a metric that all their tasks have: lm-eval's value, interval from those of its tasks.

    lm-eval's value is their mean, weighted by their items or not, as the group says.
    """
    found: Metrics = {}
    for name, value, tasks in _groups(results, metrics):
        members = [metrics[task] for task in tasks]
        if (by_items := _weights(value, members, asked=_asked(results, name))) is not None:
            found[name] = {**_mean(members, by_items=by_items), "value": value}
    return found


def clean_groups(results: Mapping[str, Any], metrics: Metrics, rows: Sequence[Row]) -> Metrics:
    """Groups over the items that no training row overlaps, as "group/metric/clean", where some are overlapped.

    `metrics` has the tasks' values, of all and of their clean items. A task that has no clean item weighs nothing where
    tasks weigh as many as their items; where all weigh the same, a group without it would be another: it has no value.
    """
    clean = {
        f"{row['task']}/{name}" for row in rows if row["clean"] for name in (*row["scores"], *row["parts"])
    }
    found: Metrics = {}
    for name, value, tasks in _groups(results, metrics):
        by_items = _weights(value, [metrics[task] for task in tasks], asked=_asked(results, name))
        left = [metrics.get(f"{task}/clean", metrics[task]) for task in tasks if task in clean]
        overlapped = sum(each["n"] for each in left) < sum(metrics[task]["n"] for task in tasks)
        if overlapped and left and (by_items or (by_items is False and len(left) == len(tasks))):
            found[f"{name}/clean"] = _mean(left, by_items=by_items)
    return found


def aggregates(results: Mapping[str, Any]) -> Metrics:
    """Tasks and groups that lm-eval has a standard error of, by its normal interval."""
    found: Metrics = {}
    for task, values in results["results"].items():
        for label, value in _values(results, task):
            metric, _, reader = label.partition(",")
            error = values.get(f"{metric}_stderr,{reader or 'none'}")
            if isinstance(error, float) and math.isfinite(error):
                found[f"{task}/{label}"] = _around(value, Z95 * error, int(values["sample_len"]))
    return found


def _groups(results: Mapping[str, Any], metrics: Metrics) -> Iterator[tuple[str, float, list[str]]]:
    """ "group/metric", lm-eval's value and the same metric of its tasks, where `metrics` has them all."""
    inner: Mapping[str, list[str]] = results.get("group_subtasks", {})
    for group in inner:
        tasks = list(_tasks(group, inner))
        for label, value in _values(results, group):
            names = [f"{task}/{label}" for task in tasks]
            if names and all(name in metrics for name in names):
                yield f"{group}/{label}", value, names


def _tasks(name: str, inner: Mapping[str, list[str]]) -> Iterator[str]:
    """A group's tasks, those of the groups in it too: lm-eval's mean is over them."""
    if name not in inner:
        yield name
    for member in inner.get(name, []):
        yield from _tasks(member, inner)


def _asked(results: Mapping[str, Any], name: str) -> bool:
    """Whether the group of "group/metric" is to weigh a task by its items: lm-eval's default."""
    group, _, label = name.rpartition("/")
    return bool(results.get("by_size", {}).get(group, {}).get(label.partition(",")[0], True))


def _weights(value: float, members: list[Metric], *, asked: bool) -> bool | None:
    """Whether the mean that `value` is weighs a task by its items; None where it is no mean of theirs.

    Of tasks of one size both means are the value, and then what was asked decides.
    """
    for by_items in (asked, not asked):
        if math.isclose(value, _mean(members, by_items=by_items)["value"], rel_tol=1e-9):
            return by_items
    return None


def _mean(members: list[Metric], *, by_items: bool) -> Metric:
    items = sum(each["n"] for each in members)
    weights = [each["n"] / items if by_items else 1 / len(members) for each in members]
    both = list(zip(weights, members, strict=True))
    half = math.hypot(*(weight * (each["hi"] - each["lo"]) / 2 for weight, each in both))
    return _around(sum(weight * each["value"] for weight, each in both), half, items)


def _around(value: float, half: float, count: int) -> Metric:
    return {"value": value, "lo": value - half, "hi": value + half, "n": count}


def _values(results: Mapping[str, Any], name: str) -> list[tuple[str, float]]:
    """A task's or group's values, by metric and reader."""
    found = []
    for key, value in results["results"].get(name, {}).items():
        metric, _, reader = key.partition(",")
        counts = reader and not metric.endswith("_stderr") and isinstance(value, int | float)
        if counts and math.isfinite(value):
            found.append((metric + reader_suffix(reader), float(value)))
    return found
