"""What lm-eval says of one item: scores, whose mean is the suite's value, and parts, whose sums give it (corpus.py)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from stages.bench.corpus import ITEM, Parts, translation_parts

T = TypeVar("T")
Aggregate = Callable[[list[Any]], float]
Split = tuple[dict[str, float], dict[str, Parts]]
METRICS = "lm_eval.api.metrics"
TEXTS = {
    "bleu": "bleu",
    "chrf": "chrf",
    "chrfpp": "chrf++",
    "ter": "ter",
}  # lm-eval's functions and their metrics


def split(task: str, sample: dict[str, Any], aggregations: dict[str, Aggregate]) -> Split:
    """Scores and parts of a sample; `aggregations` has the metrics that are no mean over items, and how lm-eval
    computes them. Raises ValueError on a score that is not finite, where a mean needs it.
    """
    scores: dict[str, float] = {}
    parts: dict[str, Parts] = {}
    for name in sample["metrics"]:
        value, aggregate = sample[name], aggregations.get(name)
        if isinstance(value, dict):  # of a ready scorer of ours
            parts[name] = value
        elif aggregate is None:
            scores |= _number(name, value, f"{task}/{name} of item {sample['doc_id']}")
        elif summed(name, aggregate):
            own, added = _known(name, value, aggregate.__name__)
            scores, parts = scores | own, parts | added
        elif isinstance(value, int | float) and math.isfinite(value):
            scores[name + ITEM] = float(value)
    return scores, parts


def summed(metric: str, aggregate: Aggregate) -> bool:
    """Whether we compute the suite's value ourselves, from items' parts or as a mean of some of the items."""
    name, module = getattr(aggregate, "__name__", ""), str(getattr(aggregate, "__module__", ""))
    if module.endswith("bbq.utils"):
        return name in (
            "agg_accuracy_amb",
            "agg_accuracy_disamb",
            "agg_amb_bias_scores",
            "agg_disamb_bias_scores",
        )
    if module != METRICS:
        return False
    perplexity = name in ("perplexity", "weighted_perplexity") and metric.endswith("perplexity")
    return perplexity or TEXTS.get(name) == metric or (name == metric == "bits_per_byte")


def chosen(choices: Sequence[T], at: int, what: str) -> T:
    """The right one of an item's choices. Raises ValueError where it has fewer."""
    if not 0 <= at < len(choices):
        raise ValueError(
            f"{what}: doc_to_target says choice {at}, counted from 0, and there are {len(choices)}: look at the task's "
            "YAML and at the item"
        )
    return choices[at]


def reader_suffix(reader: str) -> str:
    """What one of lm-eval's filters adds to a metric's name; nothing where there is but one."""
    return "" if reader == "none" else f",{reader}"


def _number(name: str, value: Any, what: str) -> dict[str, float]:
    if isinstance(value, tuple | list | str):
        return {}
    if value is None or not math.isfinite(value):
        raise ValueError(f"{what} is {value}: are the model's weights?")
    return {name: float(value)}


def _known(name: str, value: Any, aggregate: str) -> Split:
    if aggregate.startswith("agg_"):
        return _bbq(name, value, aggregate)
    if aggregate in TEXTS:
        targets, output = value
        own, parts = translation_parts(name, output, [targets] if isinstance(targets, str) else targets)
        return {name + ITEM: own}, {name: parts}
    nats, size = value if isinstance(value, tuple) else (value, 1)
    return likelihood(name, -float(nats), size)


def likelihood(name: str, nats: float, size: int) -> Split:
    """Of a text of `size` tokens, bytes or words: nats each (bits for bits_per_byte), and the parts."""
    unit = math.log(2) if name == "bits_per_byte" else 1.0
    own = {name + ITEM: nats / size / unit} if size else {}  # an empty text weighs nothing
    return own, {name: {"nats": nats, "size": float(size)}}


def _bbq(name: str, value: Any, aggregate: str) -> Split:
    """lm-eval gives each item to each metric, and NaN where it is of another category than the metric's.

    Its sums are the paper's; but no biased answer among some is -1 by the paper, and 0 there.
    """
    right, *counts, disambiguated = value
    if any(math.isnan(each) for each in (*counts, disambiguated)) or bool(disambiguated) != (
        "disamb" in aggregate
    ):
        return {}, {}
    if not counts:
        return {name: float(right)}, {}
    biased, known = map(float, counts)
    return {}, {name: {"right": float(right), "biased": biased, "known": known, "items": 1.0}}
