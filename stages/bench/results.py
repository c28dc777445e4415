"""From lm-eval's samples to one row per item and task, and from rows to means with intervals."""

from __future__ import annotations

import io
import json
import logging
import math
from collections import defaultdict
from pathlib import Path
from typing import Any, TypedDict

from stages.bench.choices import output_and_target
from stages.bench.corpus import Parts, other, summary
from stages.bench.groups import aggregates, groups
from stages.bench.programs import Tried
from stages.bench.scores import reader_suffix, split, summed
from stages.bench.snapshot import ROW
from stages.common.files import write_bytes
from stages.common.statistics import Metric, Metrics, bootstrap, wilson

log = logging.getLogger("lathe")
OPTIONAL = ("parts", "verdicts")


class Row(TypedDict):
    """One item of one task.

    `slices` maps a field to the item's value, `scores` a metric to a number, `parts` a metric that is no mean over
    items to what this one adds to it; `loglikelihoods` (nats) has one number for each answer that was scored, none
    where the answer was generated; `clean` is False where a training row overlaps it; `verdicts` says how each program
    that was generated ended. A column of `OPTIONAL` that no row fills is left out.
    """

    task: str
    id: str
    slices: dict[str, str]
    prompt_hash: str
    output: str
    target: str
    scores: dict[str, float]
    parts: dict[str, Parts]
    loglikelihoods: list[float]
    clean: bool
    verdicts: list[str]


def item_rows(results: dict[str, Any], fields: list[str], dirty: set[tuple[str, str]]) -> list[Row]:
    """The rows of lm-eval's `samples`, sorted by task and id; an answer read by several filters is one row.

    `fields` of the items become slices; `dirty` are the (task, id) that training rows overlap. A task that makes
    several items of one row, in other wordings say, has them as 0000003, 0000003.1 and so on, all overlapped or none.
    Where a task hides which row an item is from, all are overlapped if one is. Raises ValueError on a score that is not
    finite, and on a right choice that is not there.
    """
    rows: dict[tuple[str, str], Row] = {}
    for task, samples in results["samples"].items():
        lost = _hidden(task, samples, dirty)
        names: dict[str, list[int]] = defaultdict(list)  # by id, the places of the items that have it
        for sample in sorted(
            samples, key=lambda sample: int(sample["doc_id"])
        ):  # stable: filters keep their order
            row = _row(task, sample, fields, results["aggregations"].get(task, {}))
            row["clean"] = not lost and (task, row["id"]) not in dirty
            places = names[row["id"]]
            if sample["doc_id"] not in places:
                places.append(sample["doc_id"])
            if number := places.index(sample["doc_id"]):
                row["id"] += f".{number}"
            known = rows.setdefault((task, row["id"]), row)
            known["scores"].update(row["scores"])
            known["parts"].update(row["parts"])
    if unknown := [field for field in fields if not any(field in row["slices"] for row in rows.values())]:
        log.warning("no item of any task has %s (bench.slices): no slices by it", ", ".join(unknown))
    return [rows[key] for key in sorted(rows)]


def write_rows(path: Path, rows: list[Row]) -> None:
    """Rows as parquet, `scores`, `slices` and `parts` (where there are any) as JSON text: equal rows, equal bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"loglikelihoods": pa.list_(pa.float64()), "clean": pa.bool_(), "verdicts": pa.list_(pa.string())}
    filled = [name for name in OPTIONAL if any(dict(row)[name] for row in rows)]
    names = [name for name in Row.__annotations__ if name not in OPTIONAL or name in filled]
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in names])
    flat = [row | {name: _json(row[name]) for name in ("scores", "slices", "parts")} for row in rows]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(flat, schema=schema), buffer)
    write_bytes(path, buffer.getvalue())


def summarise(rows: list[Row], results: dict[str, Any], seed: int) -> Metrics:
    """Means over items as "task/metric" with 95 % intervals: Wilson's for 0/1 scores, bootstrap for others.

    Perplexity is exp of the mean loss per token and its bounds. A metric that is no mean over items (BLEU, macro F1)
    has a bootstrap over items; a group of tasks is lm-eval's own value, with its standard error.
    """
    scores: dict[str, list[float]] = defaultdict(list)
    parts: dict[str, list[Parts]] = defaultdict(list)
    for row in rows:
        for name, value in row["scores"].items():
            scores[f"{row['task']}/{name}"].append(value)
        for name, added in row["parts"].items():
            parts[f"{row['task']}/{name}"].append(added)
    metrics = {key: interval(values, seed) for key, values in scores.items()}
    for key in [key for key in metrics if key.endswith("/nll_per_token")]:
        metrics[key.replace("nll_per_token", "perplexity")] = exponential(metrics[key])
    metrics |= {key: summary(key.rpartition("/")[2], items, seed) for key, items in parts.items()}
    metrics |= _others(results, seed)
    return dict(sorted((groups(results, metrics) | aggregates(results) | metrics).items()))


def interval(values: list[float], seed: int) -> Metric:
    """Mean and 95 % interval of per-item scores."""
    if set(values) <= {0.0, 1.0}:
        return wilson(sum(values), len(values))
    return bootstrap(values, seed)


def exponential(metric: Metric) -> Metric:
    """Perplexity of a mean loss per token and its bounds."""
    return {
        "value": math.exp(metric["value"]),
        "lo": math.exp(metric["lo"]),
        "hi": math.exp(metric["hi"]),
        "n": metric["n"],
    }


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)


def _row(task: str, sample: dict[str, Any], fields: list[str], aggregations: dict[str, Any]) -> Row:
    doc, suffix = sample["doc"], reader_suffix(sample["filter"])
    output, target = _texts(task, sample)
    item = doc | json.loads(doc["meta"]) if "turns" in doc else doc
    scores, parts = split(task, sample, aggregations)
    return {
        "task": task,
        "id": str(doc["id"]) if "turns" in doc else f"{doc.get(ROW, sample['doc_id']):07d}",
        "slices": {field: str(item[field]) for field in fields if item.get(field) is not None},
        "prompt_hash": sample["prompt_hash"],
        "output": output,
        "target": target,
        "scores": {f"{name}{suffix}": value for name, value in scores.items()},
        "parts": {f"{name}{suffix}": added for name, added in parts.items()},
        "loglikelihoods": _loglikelihoods(sample["filtered_resps"]),
        "clean": True,
        "verdicts": [str(answer.verdict) for answer in _programs(sample["filtered_resps"])],
    }


def _hidden(task: str, samples: list[dict[str, Any]], dirty: set[tuple[str, str]]) -> bool:
    """Whether training rows overlap items of the task, and its own code drops the column that tells which."""
    hidden = any(ROW not in sample["doc"] and "turns" not in sample["doc"] for sample in samples)
    if hidden and any(name == task for name, _ in dirty):
        log.warning(
            "%s: training rows overlap items of it, and its process_docs drops the column %s that tells which: no "
            "score of it is called clean",
            task,
            ROW,
        )
        return True
    return False


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


def _texts(task: str, sample: dict[str, Any]) -> tuple[str, str]:
    """Output and target as texts: of choices the likeliest, several programs as JSON; "" for a likelihood alone."""
    responses, target = sample["filtered_resps"], sample["target"]
    if programs := _programs(responses):
        return programs[0] if len(programs) == 1 else _json(programs), str(target)
    if not isinstance(responses[0], tuple):
        return str(responses[0]), str(target)
    return output_and_target(task, sample)


def _others(results: dict[str, Any], seed: int) -> Metrics:
    """Metrics by functions of lm-eval's that are neither means nor known to corpus.py."""
    found: Metrics = {}
    for task, functions in results["aggregations"].items():
        for name, function in functions.items():
            by_reader: dict[str, list[Any]] = defaultdict(list)
            for sample in results["samples"].get(task, []):
                if name in sample["metrics"] and not (
                    summed(name, function) or isinstance(sample[name], dict)
                ):
                    by_reader[reader_suffix(sample["filter"])].append(sample[name])
            for suffix, items in by_reader.items():
                if metric := other(function, items, seed):
                    found[f"{task}/{name}{suffix}"] = metric
    return found
