"""ops.comparison_sums: values of a suite that are no mean, of two models, paired by item."""

from __future__ import annotations

import json
import random
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ops import compare
from ops.comparison import Comparison, Verdict, rows
from ops.comparison import compare as compared
from ops.comparison_sums import compare_sums, swap
from stages.bench.corpus import Parts, label_parts, table, translation_parts, value, values

WORDS = [
    "the",
    "router",
    "is",
    "on",
    "and",
    "off",
    "again",
    "we",
    "are",
    "sorry",
    "send",
    "it",
    "back",
    "to",
    "us",
]
TRIALS = 100


def labels(targets: list[str], right: float, seed: int) -> list[Parts]:
    """Items that are given their own class with probability `right`."""
    draw = random.Random(seed)
    return [label_parts(each, each if draw.random() < right else draw.choice("abc")) for each in targets]


def sums(name: str, items: list[Parts]) -> dict[str, dict[str, Parts]]:
    return {f"t/{name}": {f"{at:04d}": item for at, item in enumerate(items)}}


def one(name: str, a: list[Parts], b: list[Parts]) -> Comparison:
    [found] = compare_sums(sums(name, a), sums(name, b), {}, 1)
    return found


def test_all_swaps_of_few_items_are_counted() -> None:
    """Against every swap done on the items themselves, one at a time."""
    a, b = (labels(list("abcabc"), right, seed) for right, seed in ((0.3, 1), (1.0, 2)))
    keys, matrix = table([*a, *b])
    observed = abs(value("f1_macro", b) - value("f1_macro", a))
    apart = []
    for swaps in product((False, True), repeat=6):
        left = [y if swapped else x for x, y, swapped in zip(a, b, swaps, strict=True)]
        right = [x if swapped else y for x, y, swapped in zip(a, b, swaps, strict=True)]
        apart.append(abs(value("f1_macro", right) - value("f1_macro", left)))
    expected = np.mean(np.array(apart) >= observed - 1e-12)
    assert swap("f1_macro", keys, matrix[:6], matrix[6:], 1, 10_000) == pytest.approx(expected)
    assert swap("f1_macro", keys, matrix[:6], matrix[6:], 1, 60) == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize("nats", [0.1, 3.0, 12.0, 20.0])
def test_the_swap_of_all_items_counts_however_large_the_value(nats: float) -> None:
    """It is as far apart as none swapped, but for its rounding, which grows with the value."""
    draw = random.Random(9)
    for seed in range(20):
        a, b = (
            [{"nats": nats + shift + draw.random() / 10, "size": 1.0} for _ in range(6)] for shift in (0, 1)
        )
        keys, matrix = table([*a, *b])
        assert swap("perplexity", keys, matrix[:6], matrix[6:], seed, 10_000) == 2 / 2**6


def test_equal_models_are_rarely_told_apart_and_a_planted_difference_is_found() -> None:
    draw = random.Random(5)
    false, true = 0, 0
    for trial in range(TRIALS):
        targets = draw.choices("abc", k=60)
        a, b, better = (labels(targets, right, 3 * trial + at) for at, right in enumerate((0.6, 0.6, 0.95)))
        keys, matrix = table([*a, *b, *better])
        parts = matrix[:60], matrix[60:120], matrix[120:]
        false += swap("f1_macro", keys, parts[0], parts[1], trial, 400) <= 0.05
        true += swap("f1_macro", keys, parts[0], parts[2], trial, 400) <= 0.05
    assert false <= 12  # binomial, alpha 0.05: more in 0.2 % of cases
    assert true >= 90


def test_bleu_says_which_is_better_on_how_many_items() -> None:
    draw = random.Random(2)
    targets = [" ".join(draw.choices(WORDS, k=12)) for _ in range(30)]
    worse = [" ".join(target.split()[:8] + draw.choices(WORDS, k=4)) for target in targets]
    a = [
        translation_parts("bleu", output, [target])[1] for output, target in zip(worse, targets, strict=True)
    ]
    b = [translation_parts("bleu", target, [target])[1] for target in targets]
    found = one("bleu", a, b)
    assert (found.a, found.b) == pytest.approx((value("bleu", a), 100.0))
    assert found.difference["value"] == pytest.approx(100 - found.a)
    assert found.difference["lo"] < found.difference["value"] < found.difference["hi"]
    assert found.gained > 25 and found.lost == 0 and found.p == pytest.approx(1e-4) and found.n == 30
    same = one("bleu", b, b)
    assert same.same and same.p == 1.0 and same.detectable is None


def test_the_interval_is_that_of_drawn_pairs() -> None:
    a, b = (labels(list("abc") * 20, right, 1) for right in (0.5, 0.9))
    keys, matrix = table([*a, *b])
    rng = np.random.default_rng(17)
    drawn = [rng.integers(0, 60, 60) for _ in range(1000)]
    apart = [
        values("f1_macro", keys, matrix[60 + at].sum(0)[None])[0]
        - values("f1_macro", keys, matrix[at].sum(0)[None])[0]
        for at in drawn
    ]
    found = one("f1_macro", a, b).difference
    assert (found["lo"], found["hi"]) == pytest.approx(tuple(np.percentile(apart, [2.5, 97.5])))


def biases(biased: int, known: int, count: int = 60) -> list[Parts]:
    """Items of BBQ's disambiguated contexts: of the `known` answers, so many are biased."""
    return [
        {"right": 0.0, "biased": float(at < biased), "known": float(at < known), "items": 1.0}
        for at in range(count)
    ]


def test_a_bias_is_the_better_the_nearer_to_zero_on_either_side() -> None:
    """-1 against 0 is a bias that is gone, though the value rises; 0 against 1 is one that is new."""
    against, fair, stereotyped = biases(0, 60), biases(30, 60), biases(60, 60)
    for a, b, rise, verdict in (
        (against, fair, -1.0, Verdict.better),
        (stereotyped, fair, -1.0, Verdict.better),
        (fair, stereotyped, 1.0, Verdict.worse),
        (fair, against, 1.0, Verdict.worse),
    ):
        name = "t/disamb_bias_score"
        summed = compare_sums(sums("disamb_bias_score", a), sums("disamb_bias_score", b), {name: True}, 1)
        [found] = [each for each in compared({"t/x": {"1": 1.0}}, {"t/x": {"1": 1.0}}, {}, 0.0, (), summed)
                   if each.metric == name]  # fmt: skip
        assert found.difference["value"] == rise and found.verdict is verdict
        assert (found.a, found.b) == (value("disamb_bias_score", a), value("disamb_bias_score", b))
    [_, row] = rows([found], noise=False)
    assert row[0] == "t/disamb_bias_score →0"
    turned = one("disamb_bias_score", against, stereotyped)
    assert turned.difference["value"] == 0.0 and not turned.same  # as far from 0, on the other side


def write_rows(path: str, parts: list[Parts]) -> str:
    rows: list[dict[str, Any]] = [
        {"task": "t", "id": f"{at:04d}", "scores": json.dumps({"f1_macro_item": float(len(item))}), "target": "",
         "prompt_hash": "", "parts": json.dumps({"f1_macro": item})}
        for at, item in enumerate(parts)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_compare_has_them_in_its_table_and_its_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    targets = list("abc") * 40
    good, bad = (write_rows(f"{right}.parquet", labels(targets, right, 3)) for right in (0.95, 0.6))
    assert compare.main([good, bad, "--json", "told.json"]) == 1
    told = json.loads(Path("told.json").read_text())["metrics"]["t/f1_macro"]
    assert (told["test"], told["verdict"], told["n"]) == ("swap", Verdict.worse.value, 120)
    assert told["p_holm"] == pytest.approx(2 * told["p"]) and told["gained"] < told["lost"]
    assert compare.main([bad, good]) == 0
    again = write_rows("again.parquet", labels(targets, 0.6, 4))
    assert compare.main([good, bad, "--noise", bad, again, "--json", "told.json"]) == 1
    spread = json.loads(Path("told.json").read_text())["metrics"]["t/f1_macro"]["spread"]
    assert spread["repeats"] == 2 and spread["n"] == 120 and spread["sd"] > 0
    assert "t/f1_macro" in capsys.readouterr().out
