"""From lm-eval's samples to one row per item and task, and from rows to means with intervals."""

from __future__ import annotations

import io
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any, TypedDict

from stages.common.files import write_bytes
from stages.common.statistics import Z95, Metric, Metrics, bootstrap, wilson


class Row(TypedDict):
    """One item of one task; `scores` maps metric to number."""

    task: str
    id: str
    slice: str
    prompt_hash: str
    output: str
    target: str
    scores: dict[str, float]


def item_rows(results: dict[str, Any]) -> list[Row]:
    """The rows of lm-eval's `samples`, sorted by task and id; an answer read by several filters is one row.

    Raises ValueError on a score that is not finite.
    """
    rows: dict[tuple[str, str], Row] = {}
    for task, samples in results["samples"].items():
        for sample in samples:
            row = _row(task, sample)
            known = rows.setdefault((task, row["id"]), row)
            known["scores"].update(row["scores"])
    return [rows[key] for key in sorted(rows)]


def write_rows(path: Path, rows: list[Row]) -> None:
    """Rows as parquet, `scores` as JSON text: equal rows make equal bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.string()) for name in Row.__annotations__])
    flat = [{**row, "scores": json.dumps(row["scores"], sort_keys=True, allow_nan=False)} for row in rows]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(flat, schema=schema), buffer)
    write_bytes(path, buffer.getvalue())


def summarise(rows: list[Row], results: dict[str, Any], seed: int) -> Metrics:
    """Means over items as "task/metric" with 95 % intervals: Wilson's for 0/1 scores, bootstrap for others.

    Perplexity is exp of the mean loss per token and its bounds. A metric that is no mean over items (a group
    of tasks, F1) is lm-eval's own value, with its standard error.
    """
    scores: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for name, value in row["scores"].items():
            scores[f"{row['task']}/{name}"].append(value)
    metrics = {key: interval(values, seed) for key, values in scores.items()}
    for key in [key for key in metrics if key.endswith("/nll_per_token")]:
        metrics[key.replace("nll_per_token", "perplexity")] = _exponential(metrics[key])
    return dict(sorted((_aggregates(results) | metrics).items()))


def interval(values: list[float], seed: int) -> Metric:
    """Mean and 95 % interval of per-item scores."""
    if set(values) <= {0.0, 1.0}:
        return wilson(sum(values), len(values))
    return bootstrap(values, seed)


def _row(task: str, sample: dict[str, Any]) -> Row:
    doc, suffix = sample["doc"], "" if sample["filter"] == "none" else f",{sample['filter']}"
    output, target = _texts(sample)
    return {
        "task": task,
        "id": str(doc["id"]) if "turns" in doc else f"{sample['doc_id']:07d}",
        "slice": str(doc.get("slice", "")) if "turns" in doc else "",
        "prompt_hash": sample["prompt_hash"],
        "output": output,
        "target": target,
        "scores": {f"{name}{suffix}": value for name, value in _numbers(task, sample).items()},
    }


def _texts(sample: dict[str, Any]) -> tuple[str, str]:
    """Output and target as texts: of choices the likeliest; "" is the output of a likelihood alone."""
    arguments, responses, target = sample["arguments"], sample["filtered_resps"], sample["target"]
    if not isinstance(responses[0], tuple):
        return str(responses[0]), str(target)
    if len(arguments) == 1:
        return "", str(target)
    likeliest = max(range(len(responses)), key=lambda index: float(responses[index][0]))
    gold = arguments[target][1] if isinstance(target, int) else str(target)
    return arguments[likeliest][1], gold


def _numbers(task: str, sample: dict[str, Any]) -> dict[str, float]:
    values = {name: sample[name] for name in sample["metrics"]}
    single = {name: value for name, value in values.items() if not isinstance(value, (tuple, list, str))}
    numbers = {name: float(value) for name, value in single.items()}
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise ValueError(f"{task}/{name} of item {sample['doc_id']} is {value}: are the model's weights?")
    return numbers


def _exponential(metric: Metric) -> Metric:
    return {
        "value": math.exp(metric["value"]),
        "lo": math.exp(metric["lo"]),
        "hi": math.exp(metric["hi"]),
        "n": metric["n"],
    }


def _aggregates(results: dict[str, Any]) -> Metrics:
    found: Metrics = {}
    for task, values in results["results"].items():
        for key, value in values.items():
            name, _, reader = key.partition(",")
            error = values.get(f"{name}_stderr,{reader}")
            if reader and not name.endswith("_stderr") and isinstance(error, float):
                label = f"{task}/{name}" + ("" if reader == "none" else f",{reader}")
                half, count = Z95 * error, int(values["sample_len"])
                found[label] = {"value": float(value), "lo": value - half, "hi": value + half, "n": count}
    return found
