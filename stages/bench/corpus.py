"""Values of a suite that are no mean over its items: BLEU, chrF, TER, macro F1, perplexity, BBQ's bias scores.

Each is a function of sums over the items, so an item keeps what it adds to them (its parts): the value of any draw of
items is then a sum away, for the bootstrap here and for the paired test of ops.compare.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.bench.faults import WRONG
from stages.common.statistics import Metric

Array = NDArray[np.float64]
Parts = dict[str, float]  # what an item adds to each sum
RESAMPLES, FEW = 1000, 200
ITEM = "_item"  # "bleu_item" is the item's own score, whose mean is not the suite's BLEU
SIGNED = "bias_score"  # in the names of BBQ's, which have their ideal at 0
TRANSLATION = ("bleu", "chrf", "chrf++", "ter")


def value(metric: str, items: Sequence[Parts]) -> float:
    """The suite's value of a metric, named with or without ",filter"."""
    keys, matrix = table(items)
    return float(values(metric, keys, matrix.sum(0, keepdims=True))[0])


def values(metric: str, keys: Sequence[str], sums: Array) -> Array:
    """(draws) values of (draws, keys) sums. Raises ValueError for a metric that has no sums."""
    name = metric.partition(",")[0]
    if name in TRANSLATION:
        scorer = translation(name)
        return np.array([scorer._compute_score_from_stats(row.tolist()).score for row in sums])
    columns = dict(zip(keys, sums.T, strict=True))
    if name == "f1_macro":
        return macro_f1(columns)
    if name.endswith("perplexity"):
        return np.asarray(np.exp(columns["nats"] / columns["size"]))
    if name == "bits_per_byte":
        return np.asarray(columns["nats"] / columns["size"] / math.log(2))
    if SIGNED in name:
        return bias(columns, ambiguous=name.startswith("amb_"))
    raise ValueError(f"{metric} is no metric of sums over items")


def summary(metric: str, items: Sequence[Parts], seed: int) -> Metric:
    """The suite's value with its 95 % percentile bootstrap interval over items (Koehn 2004, for BLEU)."""
    lo, hi = np.percentile(drawn(metric, items, seed), [2.5, 97.5])
    return {"value": value(metric, items), "lo": float(lo), "hi": float(hi), "n": len(items)}


def drawn(metric: str, items: Sequence[Parts], seed: int) -> Array:
    """The value of RESAMPLES bootstrap draws of the items."""
    keys, matrix = table(items)
    rng, count = np.random.default_rng(seed), len(items)
    draws = [np.bincount(rng.integers(0, count, count), minlength=count) for _ in range(RESAMPLES)]
    return values(metric, keys, np.array(draws, np.float64) @ matrix)


def other(aggregate: Callable[[list[Any]], float], items: list[Any], seed: int) -> Metric | None:
    """Value and interval of a function of lm-eval's that nothing is known of; None where it has no value.

    Few draws: what one costs is not known either. A draw that it has no value for, or fails on since a class is missing
    in it, does not count.
    """
    rng, count = np.random.default_rng(seed), len(items)
    draws = [[items[at] for at in rng.integers(0, count, count)] for _ in range(FEW)]
    with np.errstate(all="ignore"):
        found = float(aggregate(items))
        others = []
        for draw in draws:
            with contextlib.suppress(*WRONG):
                others.append(float(aggregate(draw)))
    if not math.isfinite(found):
        return None
    lo, hi = np.percentile([each for each in others if math.isfinite(each)] or [found], [2.5, 97.5])
    return {"value": found, "lo": float(lo), "hi": float(hi), "n": count}


def table(items: Iterable[Parts]) -> tuple[list[str], Array]:
    """Names of the sums, sorted, and (items, names) what each item adds."""
    rows = list(items)
    keys = sorted({key for row in rows for key in row})
    return keys, np.array([[row.get(key, 0.0) for key in keys] for row in rows])


@functools.cache
def translation(name: str, *, sentence: bool = False) -> Any:
    """sacrebleu's scorer with its defaults; a sentence's BLEU leaves out the orders that it is too short for."""
    from sacrebleu.metrics import BLEU, CHRF, TER

    if name == "bleu":
        return BLEU(effective_order=sentence)
    return TER() if name == "ter" else CHRF(word_order=2 if name == "chrf++" else 0)


def translation_parts(name: str, output: str, targets: Sequence[str]) -> tuple[float, Parts]:
    """An item's own score, 0 to 100, and its parts: sacrebleu's counts of it, in their order."""
    [counts] = translation(name)._extract_corpus_statistics([output], [[target] for target in targets])
    own = translation(name, sentence=True)._compute_score_from_stats(counts).score
    return float(own), {f"{place:02d}": float(count) for place, count in enumerate(counts)}


def label_parts(target: str, output: str) -> Parts:
    """An item as one cell of the confusion matrix, which macro F1 is computed from."""
    return {json.dumps([target, output], ensure_ascii=False): 1.0}


def cell(key: str) -> tuple[str, str]:
    """(target, output) of a cell's name."""
    target, output = json.loads(key)
    return target, output


def macro_f1(columns: dict[str, Array]) -> Array:
    """Mean F1 of the targets' classes: scikit-learn's with `labels` the targets of the draw.

    An output that is no class is a miss of its target's class and no class of its own.
    """
    right, wanted, given = (defaultdict[str, Any](float) for _ in range(3))
    for key, count in columns.items():
        target, output = cell(key)
        wanted[target] = wanted[target] + count
        given[output] = given[output] + count
        if target == output:
            right[target] = right[target] + count
    there = np.array([wanted[name] > 0 for name in wanted])
    scores = [2 * right[name] / np.maximum(wanted[name] + given[name], 1) for name in wanted]
    return np.asarray((np.array(scores) * there).sum(0) / there.sum(0))


def bias(columns: dict[str, Array], *, ambiguous: bool) -> Array:
    """BBQ's bias score, -1 to 1 (Parrish et al. 2022, arXiv:2110.08193, section 5).

    2 * biased / known - 1 over answers that are not "unknown", in ambiguous contexts times 1 - accuracy. Where every
    answer is "unknown" the paper's is 0 / 0: no bias is shown, so 0.
    """
    known = columns["known"]
    score = np.where(known > 0, 2 * columns["biased"] / np.maximum(known, 1) - 1, 0.0)
    return np.asarray(score * (1 - columns["right"] / columns["items"]) if ambiguous else score)
