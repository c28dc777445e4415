"""bench's scores apart: by slices, on clean items, of means and of values that are none, and of groups of tasks."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.bench import __main__ as bench
from stages.bench import corpus, processes
from stages.bench.groups import clean_groups
from stages.bench.slices import ITEMS, MEAN, gap, slice_metrics
from stages.bench.snapshot import ROW
from stages.common.files import write_jsonl
from tests.stages.test_bench import section, variant
from tests.stages.test_bench_results import results as answers


def rows(scores: dict[str, list[float]], dirty: int = 0) -> list[Any]:
    found = []
    for style, values in scores.items():
        found += [
            {"task": "t", "slices": {"style": style}, "scores": {"acc": value}, "parts": {}, "clean": True}
            for value in values
        ]
    for row in found[:dirty]:
        row["clean"] = False
    return found


def test_slices_and_their_gap_by_hand() -> None:
    found = slice_metrics(rows({"a": [1.0] * 30 + [0.0] * 10, "b": [1.0] * 10 + [0.0] * 10}, dirty=8), 7)
    assert found["t/acc/style:a"]["value"] == 0.75 and found["t/acc/style:b"]["n"] == 20
    whole = found["t/acc/style:gap"]
    assert whole["value"] == 0.25 and whole["n"] == 60 and whole["lo"] < 0.25 < whole["hi"]
    # sqrt(.75*.25/40 + .5*.5/20) = 0.131: the normal interval is 0.25 -+ 0.257
    assert whole["lo"] == pytest.approx(-0.007, abs=0.04) and whole["hi"] == pytest.approx(0.507, abs=0.04)
    assert found["t/acc/clean"] | {"lo": 0, "hi": 0} == {"value": 32 / 52, "lo": 0, "hi": 0, "n": 52}
    assert gap([[1.0, 1.0], [0.0, 0.0]], MEAN, 1) == {"value": 1.0, "lo": 1.0, "hi": 1.0, "n": 4}


def test_one_slice_alone_is_the_whole_and_is_not_shown_twice() -> None:
    assert slice_metrics(rows({"a": [1.0, 0.0]}), 7) == {}
    assert json.loads(json.dumps(slice_metrics([], 7))) == {}


def test_perplexity_is_sliced_as_its_loss_is() -> None:
    losses = rows({"a": [1.0, 3.0], "b": [1.0, 1.0]}, dirty=1)
    for row in losses:
        row["scores"] = {"nll_per_token": row["scores"]["acc"]}
    found = slice_metrics(losses, 7)
    value = {name: metric["value"] for name, metric in found.items()}
    assert value["t/perplexity/style:a"] == pytest.approx(math.exp(2))
    assert value["t/perplexity/style:gap"] == pytest.approx(math.exp(2) - math.exp(1))
    assert value["t/perplexity/clean"] == pytest.approx(math.exp(5 / 3))
    loss, perplexity = found["t/nll_per_token/style:a"], found["t/perplexity/style:a"]
    assert (perplexity["lo"], perplexity["hi"]) == pytest.approx((math.exp(loss["lo"]), math.exp(loss["hi"])))


@pytest.mark.parametrize("metric", ["f1_macro", "bleu", "bits_per_byte", "amb_bias_score"])
def test_values_that_are_no_mean_are_those_of_the_slices_items(metric: str) -> None:
    """And the gap's interval is that of draws within the two slices."""
    made: Callable[[int], corpus.Parts] = {
        "f1_macro": lambda at: corpus.label_parts("ab"[at % 2], "ab"[at % 3 % 2]),
        "bleu": lambda at: corpus.translation_parts("bleu", f"a b c d e {at % 4}", ["a b c d e 1"])[1],
        "bits_per_byte": lambda at: {"nats": 1.0 + at % 5, "size": 2.0},
        "amb_bias_score": lambda at: {"right": 0.0, "biased": at % 3 % 2, "known": 1.0, "items": 1.0},
    }[metric]
    given = rows({"a": [0.0] * 20, "b": [0.0] * 30}, dirty=4)
    for at, row in enumerate(given):
        row["scores"], row["parts"] = {}, {f"{metric},all": made(at // (1 + (at > 20)))}
    parts = [row["parts"][f"{metric},all"] for row in given]
    found = slice_metrics(given, 7)
    assert found[f"t/{metric},all/style:a"] == corpus.summary(metric, parts[:20], 7)
    assert found[f"t/{metric},all/clean"] == corpus.summary(metric, parts[4:], 7)
    values = sorted(corpus.value(metric, each) for each in (parts[:20], parts[20:]))
    told = found[f"t/{metric},all/style:gap"]
    assert told["value"] == pytest.approx(values[1] - values[0]) and told["n"] == 50
    assert told["lo"] <= told["value"] <= told["hi"] and told["lo"] < told["hi"]


def grouped(value: float, *, nested: bool = False) -> dict[str, Any]:
    """Of lm-eval's for a group of tasks t and u, which may lie in groups of their own."""
    inner = {"g": ["h", "u"], "h": ["t"]} if nested else {"g": ["t", "u"]}
    return {
        "group_subtasks": inner,
        "results": {"g": {"acc,none": value, "acc_stderr,none": 0.1, "sample_len": 6}},
    }


def scored(task: str, scores: list[float], dirty: int) -> list[Any]:
    return [row | {"task": task} for row in rows({"a": scores}, dirty=dirty)]


@pytest.mark.parametrize("nested", [False, True])
def test_a_groups_clean_value_is_of_the_clean_items_with_its_own_weights(nested: bool) -> None:
    """t has 4 items, 1 right of 3 clean ones; u has 2, both clean and right."""
    given = [*scored("t", [1.0, 1.0, 0.0, 0.0], 1), *scored("u", [1.0, 1.0], 0)]
    metrics = {"t/acc": MEAN.metric([1.0, 1.0, 0.0, 0.0], 7), "u/acc": MEAN.metric([1.0, 1.0], 7)}
    metrics |= slice_metrics(given, 7)
    by_items = clean_groups(grouped(4 / 6, nested=nested), metrics, given)["g/acc/clean"]
    assert by_items["value"] == pytest.approx(3 / 5) and by_items["n"] == 5
    assert clean_groups(grouped(3 / 4), metrics, given)["g/acc/clean"]["value"] == pytest.approx(2 / 3)
    assert clean_groups(grouped(0.123), metrics, given) == {}  # no mean of theirs


def test_a_task_without_a_clean_item_weighs_nothing_or_the_group_has_no_clean_value() -> None:
    given = [*scored("t", [1.0, 0.0], 2), *scored("u", [1.0, 1.0, 1.0], 0)]
    metrics = {"t/acc": MEAN.metric([1.0, 0.0], 7), "u/acc": MEAN.metric([1.0] * 3, 7)} | slice_metrics(
        given, 7
    )
    assert clean_groups(grouped(4 / 5), metrics, given)["g/acc/clean"]["value"] == 1.0
    assert clean_groups(grouped(3 / 4), metrics, given) == {}
    clean = [*scored("t", [1.0, 0.0], 0), *scored("u", [1.0, 1.0, 1.0], 0)]
    assert clean_groups(grouped(4 / 5), metrics, clean) == {}


def test_the_stage_tells_a_groups_clean_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = [
        answers(task, "acc", None, items) for task, items in (("t", [1.0, 1.0, 0.0, 0.0]), ("u", [1.0, 1.0]))
    ]
    samples = {task: found for each in told for task, found in each["samples"].items()}
    for found in samples.values():
        for at, sample in enumerate(found):
            sample["doc"] = {ROW: at}
    monkeypatch.setattr(
        bench, "evaluate", lambda *_: grouped(4 / 6) | {"samples": samples, "aggregations": {}}
    )
    monkeypatch.setattr(processes, "respondent", lambda *_: None)
    write_jsonl(ITEMS, [{"benchmark": "t", "item": "0000000", "clean": False}])
    metrics = bench.main(section(), "base", variant(tmp_path / "none"))
    assert metrics["g/acc"]["value"] == pytest.approx(4 / 6)
    assert metrics["g/acc/clean"]["value"] == pytest.approx(3 / 5)
