"""From lm-eval's samples to one row per item and task, and from rows to means with intervals."""

from __future__ import annotations

import io
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any, TypedDict

from stages.bench.programs import Tried
from stages.common.files import write_bytes
from stages.common.statistics import Z95, Metric, Metrics, bootstrap, wilson


class Row(TypedDict):
    """One item of one task.

    `slices` maps a field to the item's value, `scores` a metric to a number; `loglikelihoods` (nats) has one number for
    each answer that was scored, none where the answer was generated; `clean` is False where a training row overlaps it;
    `verdicts` says how each program that was generated ended, and is no column of results without programs.
    """

    task: str
    id: str
    slices: dict[str, str]
    prompt_hash: str
    output: str
    target: str
    scores: dict[str, float]
    loglikelihoods: list[float]
    clean: bool
    verdicts: list[str]


def item_rows(results: dict[str, Any], fields: list[str], dirty: set[tuple[str, str]]) -> list[Row]:
    """The rows of lm-eval's `samples`, sorted by task and id; an answer read by several filters is one row.

    `fields` of the items become slices; `dirty` are the (task, id) that training rows overlap. Raises ValueError on a
    score that is not finite.
    """
    rows: dict[tuple[str, str], Row] = {}
    for task, samples in results["samples"].items():
        for sample in samples:
            row = _row(task, sample, fields)
            row["clean"] = (task, row["id"]) not in dirty
            known = rows.setdefault((task, row["id"]), row)
            known["scores"].update(row["scores"])
    return [rows[key] for key in sorted(rows)]


def write_rows(path: Path, rows: list[Row]) -> None:
    """Rows as parquet, `scores` and `slices` as JSON text: equal rows make equal bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"loglikelihoods": pa.list_(pa.float64()), "clean": pa.bool_(), "verdicts": pa.list_(pa.string())}
    names = [
        name for name in Row.__annotations__ if name != "verdicts" or any(row["verdicts"] for row in rows)
    ]
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in names])
    flat = [row | {name: _json(row[name]) for name in ("scores", "slices")} for row in rows]
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


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)


def _row(task: str, sample: dict[str, Any], fields: list[str]) -> Row:
    doc, suffix = sample["doc"], "" if sample["filter"] == "none" else f",{sample['filter']}"
    output, target = _texts(sample)
    item = doc | json.loads(doc["meta"]) if "turns" in doc else doc
    return {
        "task": task,
        "id": str(doc["id"]) if "turns" in doc else f"{sample['doc_id']:07d}",
        "slices": {field: str(item[field]) for field in fields if item.get(field) is not None},
        "prompt_hash": sample["prompt_hash"],
        "output": output,
        "target": target,
        "scores": {f"{name}{suffix}": value for name, value in _numbers(task, sample).items()},
        "loglikelihoods": _loglikelihoods(sample["filtered_resps"]),
        "clean": True,
        "verdicts": [str(answer.verdict) for answer in _programs(sample["filtered_resps"])],
    }


def _loglikelihoods(responses: list[Any]) -> list[float]:
    """Of each answer (nats, greedy) or whole text (nats) that was scored; a generated answer has none."""
    first = [response[0] if isinstance(response, tuple) else response for response in responses]
    return [float(nats) for nats in first if not isinstance(nats, str | list)]


def _programs(responses: list[Any]) -> list[Tried]:
    """All answers to one item, where they were executed."""
    return [
        answer
        for found in responses
        if isinstance(found, list)
        for answer in found
        if isinstance(answer, Tried)
    ]


def _texts(sample: dict[str, Any]) -> tuple[str, str]:
    """Output and target as texts: of choices the likeliest, several programs as JSON; "" for a likelihood alone."""
    arguments, responses, target = sample["arguments"], sample["filtered_resps"], sample["target"]
    if programs := _programs(responses):
        return programs[0] if len(programs) == 1 else _json(programs), str(target)
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
