"""Ready scorers, which a task's YAML names in its metric_list; docs/task.yaml shows one.

An item's score and, where the suite's value is no mean of those, its parts (stages/bench/corpus.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from stages.bench.corpus import ITEM, label_parts, translation_parts, value
from stages.bench.scores import likelihood
from stages.bench.tasks.rouge import rouge_l, rouge_n
from stages.bench.tasks.scoring import final_number

# By output_type: what lm-eval computes itself, without downloading code, with the options that it takes; then ours.
THEIRS: dict[str, dict[str, set[str]]] = {
    "generate_until": {
        "exact_match": {"ignore_case", "ignore_punctuation", "ignore_numbers", "regexes_to_ignore"}
    },
    "multiple_choice": {"acc": set(), "acc_norm": set()},
}
OURS: dict[str, dict[str, set[str]]] = {
    "generate_until": {
        "numeric_match": set(), "f1_macro": set(), "bleu": set(), "chrf": set(), "rouge_1": set(), "rouge_2": set(),
        "rouge_l": set(), "json_schema": {"schema"},
    },
    "multiple_choice": {"f1_macro": set()},
    "loglikelihood": {"perplexity": set(), "bits_per_byte": set()},
    "loglikelihood_rolling": {"perplexity": set(), "bits_per_byte": set()},
}  # fmt: skip
LOWER = {"perplexity", "bits_per_byte"}
SUMMED = {"f1_macro", "bleu", "chrf", "perplexity", "bits_per_byte"}
DECLARED = {"metric", "higher_is_better", "aggregation"}
Entry = dict[str, Any]


def entries(task: str, kind: str, listed: list[Entry] | None) -> tuple[list[Entry], list[Entry]]:
    """lm-eval's entries of a metric_list and ours, complete. Raises ValueError, one line, for what is neither.

    lm-eval would look for an unknown metric on the hub and run what it finds.
    """
    theirs, ours = THEIRS.get(kind, {}), OURS.get(kind, {})
    if not ours:
        raise ValueError(f"{task}: output_type {kind!r} has no ready scorers; known: {', '.join(OURS)}")
    if not listed:
        raise ValueError(
            f"{task}: its metric_list names no scorer; for {kind}: {', '.join([*theirs, *ours])}"
        )
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise ValueError(
            f"{task}: metric_list is {listed!r}: it wants a list of scorers, each `- metric: <name>` with its options"
        )
    for entry in listed:
        _check(task, kind, entry, theirs | ours)
    complete = [
        {"aggregation": "mean", "higher_is_better": entry["metric"] not in LOWER} | entry for entry in listed
    ]
    mine = [
        entry | {"aggregation": aggregation(entry["metric"])} for entry in complete if entry["metric"] in ours
    ]
    return [entry for entry in complete if entry["metric"] in theirs], mine


def aggregation(metric: str) -> Any:
    """What lm-eval is to compute a suite's value with: a registered name or a function of the items' values."""
    return (lambda items: value(metric, items)) if metric in SUMMED else "mean"


def schema(task: str, listed: list[Entry]) -> Callable[[str], bool] | None:
    """Whether an answer is JSON that fits the schema of the entry json_schema; None where there is no such entry.

    Raises ValueError for a schema that is none. Nothing is fetched: what another file defines is an error.
    """
    found = [entry["schema"] for entry in listed if entry["metric"] == "json_schema"]
    if not found:
        return None
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import Draft202012Validator, validator_for
    from referencing import Registry

    kind = validator_for(found[0], default=Draft202012Validator)
    try:
        kind.check_schema(found[0])
    except SchemaError as error:
        raise ValueError(
            f"{task}: json_schema's schema is none ({' '.join(error.message.split())})"
        ) from error
    validator = kind(found[0], registry=Registry())
    return lambda text: _fits(task, validator, text)


def generated(listed: list[Entry], target: str, output: str, fits: Callable[[str], bool] | None) -> Entry:
    """Scores and parts of a generated answer."""
    found: Entry = {}
    for name in (entry["metric"] for entry in listed):
        if name in ("bleu", "chrf"):
            found[name + ITEM], found[name] = translation_parts(name, output, [target])
        elif name == "f1_macro":
            found |= label(target, output)
        elif name == "numeric_match":
            found[name] = float(_number(target) == final_number(output))
        elif name == "rouge_l":
            found[name] = rouge_l(target, output)
        elif name.startswith("rouge_"):
            found[name] = rouge_n(target, output, int(name[-1]))
        elif fits is not None:
            found[name] = float(fits(output))
    return found


def label(target: str, output: str) -> Entry:
    """An answer as the name of a class: all of it, without white space around."""
    target, output = target.strip(), output.strip()
    return {"f1_macro": label_parts(target, output), "f1_macro" + ITEM: float(target == output)}


def likely(listed: list[Entry], target: str, nats: Any) -> Entry:
    """Scores and parts of a text's log-likelihood, which knows its number of tokens. Raises ValueError for no text."""
    found: Entry = {}
    if not target:
        raise ValueError("an item's target is empty: nothing has a likelihood")
    for name in (entry["metric"] for entry in listed):
        scores, parts = likelihood(
            name, -float(nats), nats.tokens if name == "perplexity" else len(target.encode())
        )
        found |= scores | parts
    return found


def _check(task: str, kind: str, entry: Entry, known: dict[str, set[str]]) -> None:
    name = entry.get("metric")
    if name not in known:
        raise ValueError(f"{task}: unknown scorer {name!r} in metric_list; for {kind}: {', '.join(known)}")
    if foreign := entry.keys() - DECLARED - known[name]:
        raise ValueError(f"{task}: scorer {name} has no option {', '.join(sorted(foreign))}")
    if entry.get("aggregation", "mean") != "mean" or (name in SUMMED and "aggregation" in entry):
        raise ValueError(f"{task}: scorer {name} knows its aggregation: leave the key out")
    if name == "json_schema" and not isinstance(entry.get("schema"), dict):
        raise ValueError(f"{task}: scorer json_schema wants the schema itself, under `schema:`")


def _number(target: str) -> Any:
    number = final_number(target)
    if number is None:
        raise ValueError(f"the target {target[:60]!r} has no number: numeric_match cannot score it")
    return number


def _fits(task: str, validator: Any, text: str) -> bool:
    import re

    from referencing.exceptions import Unresolvable

    try:
        return bool(validator.is_valid(json.loads(text, parse_constant=_refuse)))
    except (Unresolvable, re.error) as error:
        raise ValueError(
            f"{task}: json_schema's schema is not whole ({' '.join(str(error).split())})"
        ) from error
    except (ValueError, RecursionError):
        return False


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
