"""bench's results: lm-eval's own metrics that are no mean over items, and groups of them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from stages.bench.choices import GOLD
from stages.bench.groups import clean_groups, groups
from stages.bench.results import item_rows, summarise
from stages.bench.scores import split
from stages.bench.snapshot import ROW
from stages.common.statistics import Metrics


def results(task: str, metric: str, aggregate: Any, items: list[Any]) -> dict[str, Any]:
    """What lm-eval returns for a task of generated texts with one metric."""
    samples = [
        {
            "doc_id": at, "doc": {}, "target": "t", "arguments": [("p",)], "filtered_resps": ["o"], "filter": "none",
            "prompt_hash": "", "metrics": [metric], metric: item,
        }
        for at, item in enumerate(items)
    ]  # fmt: skip
    return {"samples": {task: samples}, "results": {}, "aggregations": {task: {metric: aggregate}}}


def reported(found: dict[str, Any]) -> dict[str, Any]:
    return dict(summarise(item_rows(found, [], set()), found, 3))


def test_lm_evals_aggregations_get_its_value_and_an_interval_over_items() -> None:
    from lm_eval.api import metrics as theirs

    texts = [
        ("the router is off", "the router is on"),
        ("we are sorry for it", "we are sorry"),
        ("a b c d", "a b c d"),
    ]
    sizes = [(-3.0, 4), (-7.0, 5), (-2.5, 9)]
    classes = [(1, 1), (0, 1), (1, 0), (1, 1)]
    for metric, name, items in (
        ("bleu", "bleu", texts), ("chrf", "chrf", texts), ("chrf++", "chrfpp", texts), ("ter", "ter", texts),
        ("word_perplexity", "weighted_perplexity", sizes), ("bits_per_byte", "bits_per_byte", sizes),
        ("perplexity", "perplexity", [-1.0, -2.0, -4.0]), ("f1", "f1_score", classes),
        ("mcc", "matthews_corrcoef", classes), ("length", "median", [1.0, 3.0, 8.0]),
    ):  # fmt: skip
        aggregate = getattr(theirs, name)
        told = reported(results("t", metric, aggregate, items))[f"t/{metric}"]
        assert told["value"] == pytest.approx(float(aggregate(items))), metric
        assert told["lo"] <= told["value"] <= told["hi"] and told["n"] == len(items), metric


def test_what_an_item_scores_by_itself_stands_beside_it() -> None:
    from lm_eval.api.metrics import perplexity

    told = reported(results("t", "perplexity", perplexity, [-1.0, -3.0]))
    assert told["t/perplexity"]["value"] == pytest.approx(math.exp(2))
    assert told["t/perplexity_item"]["value"] == 2.0  # nats, where lm-eval's own item is their negative


def test_no_value_is_no_metric_and_a_mean_over_nan_is_refused() -> None:
    from lm_eval.api.metrics import nanmean

    assert "t/x" not in reported(results("t", "x", nanmean, [math.nan, math.nan]))
    told = reported(results("t", "x", nanmean, [math.nan, 2.0, 3.0]))
    assert told["t/x"]["value"] == told["t/x_item"]["value"] == 2.5 and told["t/x_item"]["n"] == 2
    for value in (math.nan, None):
        with pytest.raises(ValueError, match=r"t/x of item 4 is (nan|None): are the model's weights\?"):
            split("t", {"metrics": ["x"], "x": value, "doc_id": 4}, {})


@pytest.mark.parametrize("value", [0.5, 0.35])
def test_a_group_has_its_tasks_weights(value: float) -> None:
    """Two tasks of 10 and 30 items with 0.8 and 0.2: the mean of both is 0.5, of their items 0.35."""
    tasks: Metrics = {
        "a/f1": {"value": 0.8, "lo": 0.7, "hi": 0.9, "n": 10}, "b/f1": {"value": 0.2, "lo": 0.2, "hi": 0.2, "n": 30},
    }  # fmt: skip
    found = {
        "group_subtasks": {"g": ["a", "b"]},
        "results": {"g": {"f1,none": value, "f1_stderr,none": "N/A"}},
    }
    half = 0.1 * (0.5 if value == 0.5 else 0.25)
    expected = {"value": value, "lo": value - half, "hi": value + half, "n": 40}
    assert groups(found, tasks)["g/f1"] == pytest.approx(expected)
    assert groups(found, {"a/f1": tasks["a/f1"]}) == {}


@pytest.mark.parametrize("by_size", [True, False])
def test_a_group_of_tasks_of_one_size_weighs_their_clean_items_as_it_says(by_size: bool) -> None:
    """Both means are 0.5 of all items; of the clean ones, 1 in 1 and 0 in 3, they are 0.5 and 0.25."""
    found = results("a", "acc", None, [1.0, 1.0, 1.0, 1.0])
    found["samples"] |= results("b", "acc", None, [0.0] * 4)["samples"]
    found |= {"aggregations": {}, "group_subtasks": {"g": ["a", "b"]}, "by_size": {"g": {"acc": by_size}}}
    found["results"] = {"g": {"acc,none": 0.5}}
    for samples in found["samples"].values():
        for at, sample in enumerate(samples):
            sample["doc"] = {ROW: at}
    rows = item_rows(found, [], {("a", f"{at:07d}") for at in range(3)} | {("b", "0000000")})
    metrics = summarise(rows, found, 3)
    clean = summarise([row for row in rows if row["clean"]], found | {"results": {}}, 3)
    told = clean_groups(found, metrics | {f"{key}/clean": value for key, value in clean.items()}, rows)
    assert told["g/acc/clean"]["value"] == pytest.approx(0.25 if by_size else 0.5)


CHOICES = [("p", " (A)"), ("p", " (B)"), ("p", " (C)")]
PROMPTS = [
    ("It is not in the box since the box", " is small."),
    ("It is not in the box since the ball", " is small."),
]


@pytest.mark.parametrize(
    ("arguments", "more", "expected"),
    [
        (CHOICES, {"target": 0}, (" (B)", " (A)")),
        (CHOICES, {"target": "(B)"}, (" (B)", " (B)")),
        (CHOICES, {"target": [1]}, (" (B)", " (B)")),
        (CHOICES, {"target": [0, 2]}, (" (B)", '[" (A)", " (C)"]')),
        ([*CHOICES, *(("", answer) for _, answer in CHOICES)], {"target": 2}, (" (B)", " (C)")),
        (PROMPTS, {"target": "is small.", GOLD: 0}, ("ball", "box")),
        (PROMPTS[:1] * 2, {"target": 0}, (" is small.", " is small.")),
    ],
)
def test_the_output_is_what_was_chosen_and_a_right_one_equals_its_target(
    arguments: list[tuple[str, str]], more: dict[str, Any], expected: tuple[str, str]
) -> None:
    found = results("t", "acc", None, [0.0]) | {"aggregations": {}}
    nats = [(-3.0, False), (-1.0, False), (-2.0, False), (-0.1, False), (-0.1, False), (-0.1, False)]
    found["samples"]["t"][0] |= {"arguments": arguments, "filtered_resps": nats[: len(arguments)], **more}
    [row] = item_rows(found, [], set())
    assert (row["output"], row["target"]) == expected


def test_where_a_task_hides_its_rows_no_item_is_called_clean(caplog: pytest.LogCaptureFixture) -> None:
    found = results("t", "acc", None, [0.0, 1.0]) | {"aggregations": {}}
    found["samples"]["t"][0]["doc"] = {ROW: 0}
    assert all(row["clean"] for row in item_rows(found, [], {("other", "0000001")}))
    assert not any(row["clean"] for row in item_rows(found, [], {("t", "0000001")}))
    assert f"t: training rows overlap items of it, and its process_docs drops the column {ROW}" in caplog.text


def test_an_empty_text_weighs_nothing() -> None:
    from lm_eval.api.metrics import weighted_perplexity

    told = reported(results("t", "byte_perplexity", weighted_perplexity, [(-3.0, 4), (0.0, 0)]))
    assert told["t/byte_perplexity"]["value"] == pytest.approx(math.exp(3 / 4))


@pytest.mark.parametrize("target", [2, -1])
def test_a_right_choice_that_is_not_there_is_refused(target: int) -> None:
    """lm-eval calls the item wrong, and warns of it."""
    found = results("t", "acc", None, [0.0])
    told = {"target": target, "arguments": [("p", "a"), ("p", "b")], "filtered_resps": [(-1.0, False)] * 2}
    found["samples"]["t"][0] |= told
    with pytest.raises(
        ValueError, match=f"item 0 of t: doc_to_target says choice {target}, .* and there are 2"
    ):
        item_rows(found, [], set())


def test_items_made_of_one_row_are_told_apart_and_overlapped_together(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As score_prompt_robustness asks each row in several wordings, the wordings one after another or rows in turn."""
    found = results("t", "acc", None, [0.0, 1.0, 0.25, 0.75]) | {"aggregations": {}}
    samples = found["samples"]["t"]
    for sample, row in zip(samples, (4, 7, 4, 7), strict=True):
        sample["doc"] = {ROW: row}
    samples += [sample | {"filter": "flexible", "acc": 0.5} for sample in reversed(samples)]
    rows = item_rows(found, ["stlye"], {("t", "0000004")})
    assert "no item of any task has stlye (bench.slices)" in caplog.text
    assert [(row["id"], row["clean"], row["scores"]) for row in rows] == [
        ("0000004", False, {"acc": 0.0, "acc,flexible": 0.5}),
        ("0000004.1", False, {"acc": 0.25, "acc,flexible": 0.5}),
        ("0000007", True, {"acc": 1.0, "acc,flexible": 0.5}),
        ("0000007.1", True, {"acc": 0.75, "acc,flexible": 0.5}),
    ]
    assert summarise(rows, found, 3)["t/acc"]["n"] == 4
