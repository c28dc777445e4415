"""ops.comparison: false alarms and power as stated, references of scipy and statsmodels, pairing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as mcnemar_reference
from statsmodels.stats.multitest import multipletests

from ops.comparison import (
    ALPHA,
    Comparison,
    Verdict,
    compare,
    detectable,
    p_value,
    paired,
    rows,
    sign_flip,
    spread,
)
from ops.direction import higher_is_better, nearer_zero
from stages.common.statistics import holm

Array = NDArray[np.float64]
TRIALS = 200


def one(a: Array, b: Array, *, lower: bool = False, margin: float = 0.0) -> Comparison:
    """The comparison of two lists of scores as the only metric."""
    sets = ({"task/score": {f"{i:04d}": float(x) for i, x in enumerate(each)}} for each in (a, b))
    [found] = compare(*sets, {"task/score": not lower}, margin)
    return found


def right_or_wrong(rng: np.random.Generator) -> tuple[Array, Array]:
    """Two noisy runs on items of unequal difficulty, equally likely to be right on each."""
    chance = rng.beta(2, 1, 150)
    a, b = (rng.random((2, 150)) < chance).astype(float)
    return a, b


def continuous(rng: np.random.Generator) -> tuple[Array, Array]:
    """Two noisy runs with equal true scores and a heavy, skewed noise."""
    true = rng.normal(0, 1, 60)
    return true + rng.lognormal(0, 1.5, 60), true + rng.lognormal(0, 1.5, 60)


@pytest.mark.parametrize("draw", [right_or_wrong, continuous])
def test_equal_models_are_rarely_told_apart(
    draw: Callable[[np.random.Generator], tuple[Array, Array]],
) -> None:
    rng = np.random.default_rng(5)
    alarms = [one(*draw(rng)).verdict is not Verdict.none for _ in range(TRIALS)]
    assert sum(alarms) <= 21  # of 200 at 0.05: more has a probability of 0.0005
    assert any(alarms)


def test_a_family_of_equal_metrics_has_one_level() -> None:
    """Eight metrics at once, right or wrong and continuous, without correction: a third of all trials."""
    rng, alarms, uncorrected = np.random.default_rng(6), 0, 0
    for _ in range(TRIALS):
        pairs = [draw(rng) for draw in (right_or_wrong, continuous) for _ in range(4)]
        p = [p_value(a, b, len(pairs))[1] for a, b in pairs]
        alarms, uncorrected = alarms + (min(holm(p)) <= ALPHA), uncorrected + (min(p) <= ALPHA)
    assert alarms <= 21 < uncorrected


def planted_right_or_wrong(rng: np.random.Generator, shift: float) -> tuple[Array, Array]:
    """400 items of which a fifth change sides, more of them for the better."""
    draw = rng.random(400)
    rises, falls = draw < 0.1 + shift / 2, draw > 1 - (0.1 - shift / 2)
    a = np.where(rises, 0.0, np.where(falls, 1.0, (rng.random(400) < 0.5).astype(float)))
    return a, np.where(rises, 1.0, np.where(falls, 0.0, a))


def planted_continuous(rng: np.random.Generator, shift: float) -> tuple[Array, Array]:
    """80 items with noise in both runs."""
    true = rng.normal(0, 3, 80)
    return true + rng.normal(0, 1, 80), true + rng.normal(0, 1, 80) + shift


@pytest.mark.parametrize("plant", [planted_right_or_wrong, planted_continuous])
@pytest.mark.parametrize("family", [1, 10])
def test_a_planted_difference_is_found_at_the_stated_power(
    plant: Callable[[np.random.Generator, float], tuple[Array, Array]], family: int
) -> None:
    """In a family too: the others' p-values are 1."""
    rng = np.random.default_rng(7)
    a, b = (np.concatenate(each) for each in zip(*(plant(rng, 0.0) for _ in range(50)), strict=True))
    size = detectable(b - a, family)
    assert size is not None
    shift, found = size * math.sqrt(50), 0  # of one draw, not of fifty in one
    for _ in range(TRIALS):
        p = p_value(*plant(rng, shift), family)[1]
        found += holm([p, *[1.0] * (family - 1)])[0] <= ALPHA
    assert 140 <= found <= 180


def test_what_is_detectable_is_printed_of_the_items_at_hand() -> None:
    a, b = planted_right_or_wrong(np.random.default_rng(8), 0.0)
    compared = one(a, b)
    assert compared.detectable == pytest.approx((1.96 + 0.8416) * (b - a).std(ddof=1) / 20, rel=1e-4)
    assert one(a, a).detectable is None and one(a[:1], b[:1]).detectable is None


def test_mcnemar_is_scipys_and_statsmodels() -> None:
    rng = np.random.default_rng(9)
    for _ in range(20):
        a, b = right_or_wrong(rng)
        name, p = p_value(a, b, 1)
        rises, falls = int(((b - a) > 0).sum()), int(((b - a) < 0).sum())
        assert name == "mcnemar"
        assert p == pytest.approx(stats.binomtest(rises, rises + falls).pvalue, abs=1e-12)
        table = [[0, falls], [rises, 0]]
        assert p == pytest.approx(mcnemar_reference(table, exact=True).pvalue, abs=1e-12)


@pytest.mark.parametrize("n", [2, 5, 11])
def test_sign_flips_of_few_items_are_scipys_exact_test(n: int) -> None:
    rng = np.random.default_rng(n)
    for differences in (rng.normal(0.5, 1, n), rng.integers(-3, 4, n) / 7.0):
        theirs = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=1e5)
        assert sign_flip(differences, 0, 10_000) == pytest.approx(theirs.pvalue, abs=1e-12)


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.2])
def test_sign_flips_of_many_items_are_near_scipys(shift: float) -> None:
    differences = np.random.default_rng(4).lognormal(0, 1, 150) - math.exp(0.5) + shift
    theirs = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=9_999, vectorized=True, rng=1
    )
    assert sign_flip(differences, 0, 10_000) == pytest.approx(theirs.pvalue, abs=0.02)


@given(st.lists(st.integers(-5, 5), max_size=25), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_sign_flips_know_neither_direction_nor_unit_nor_ties(differences: list[int], unit: int) -> None:
    array = np.array(differences, dtype=float)
    p = sign_flip(array, 1, 2_000)
    assert 1 / 2_000 <= p <= 1
    assert sign_flip(-array / unit, 1, 2_000) == p
    assert sign_flip(np.append(array, [0.0, 0.0]), 1, 2_000) == p


def test_equal_scores_have_p_1_and_a_large_family_can_still_be_told_apart() -> None:
    assert sign_flip(np.zeros(30), 0, 10_000) == 1.0
    assert sign_flip(np.ones(60), 0, 10_000) == 1 / 10_000
    p = p_value(np.zeros(50), np.full(50, 0.5), 1_000)[1]
    assert holm([p, *[1.0] * 999])[0] <= ALPHA


def test_the_interval_is_scipys_paired_bootstrap() -> None:
    rng = np.random.default_rng(10)
    for a, b in (right_or_wrong(rng), planted_continuous(rng, 0.3)):
        ours = one(a, b).difference
        theirs = stats.bootstrap(
            (b, a),
            lambda x, y, axis: np.mean(x - y, axis=axis),
            paired=True,
            vectorized=True,
            n_resamples=9_999,
            method="percentile",
            rng=2,
        ).confidence_interval
        width = theirs.high - theirs.low
        assert ours["value"] == pytest.approx((b - a).mean())
        assert (ours["lo"], ours["hi"]) == pytest.approx((theirs.low, theirs.high), abs=0.06 * width)


def test_the_correction_is_statsmodels_holm_over_all_metrics() -> None:
    rng = np.random.default_rng(11)
    names = [f"task/m{number}" for number in range(6)]
    drawn = [planted_continuous(rng, shift) for shift in (0.0, 0.2, 0.3, 0.4, 0.5, 0.9)]
    a, b = (
        {name: dict(enumerate_ids(pair[side])) for name, pair in zip(names, drawn, strict=True)}
        for side in (0, 1)
    )
    found = compare(a, b, {}, 0.0)
    _, theirs, _, _ = multipletests([each.p for each in found], method="holm")
    assert [each.p_holm for each in found] == pytest.approx(list(theirs))
    assert [each.verdict is Verdict.better for each in found] == [p <= ALPHA for p in theirs]


def enumerate_ids(scores: Array) -> list[tuple[str, float]]:
    return [(str(number), float(score)) for number, score in enumerate(scores)]


score_sets = st.dictionaries(
    st.sampled_from([f"i{number}" for number in range(12)]), st.sampled_from([0.0, 0.25, 1.0]), min_size=1
)


@given(score_sets, score_sets)
@settings(max_examples=60, deadline=None)
def test_items_are_paired_by_id(a: dict[str, float], b: dict[str, float]) -> None:
    shared = a.keys() & b.keys()
    if not shared:
        with pytest.raises(ValueError, match="no item is scored in both"):
            compare({"t/m": a}, {"t/m": b}, {}, 0.0)
        return
    [found] = compare({"t/m": a}, {"t/m": b}, {}, 0.0)
    assert (found.n, found.only_a, found.only_b) == (len(shared), len(a) - len(shared), len(b) - len(shared))
    assert found.difference["value"] == pytest.approx(sum(b[i] - a[i] for i in shared) / len(shared))
    assert found.gained == sum(b[i] > a[i] for i in shared)
    assert found.lost == sum(b[i] < a[i] for i in shared)
    reordered, trimmed = dict(reversed(a.items())), {item: b[item] for item in shared}
    [again] = compare({"t/m": reordered}, {"t/m": trimmed}, {}, 0.0)
    assert asdict(again) == asdict(found) | {"only_b": 0}


@given(score_sets, score_sets, st.booleans())
@settings(max_examples=40, deadline=None)
def test_b_against_a_mirrors_a_against_b(a: dict[str, float], b: dict[str, float], higher: bool) -> None:
    if not a.keys() & b.keys():
        return
    [one_way], [other_way] = (
        compare({"t/m": x}, {"t/m": y}, {"t/m": higher}, 0.0) for x, y in ((a, b), (b, a))
    )
    assert one_way.difference["value"] == pytest.approx(-other_way.difference["value"])
    assert one_way.difference["lo"] == pytest.approx(-other_way.difference["hi"], abs=1e-9)
    assert (one_way.gained, one_way.lost) == (other_way.lost, other_way.gained)
    assert one_way.p == pytest.approx(other_way.p)
    mirror = {Verdict.better: Verdict.worse, Verdict.worse: Verdict.better, Verdict.none: Verdict.none}
    assert one_way.verdict is mirror[other_way.verdict]


def test_what_is_worse_depends_on_the_direction() -> None:
    a = np.linspace(1, 2, 60)
    assert one(a, a - 0.1).verdict is Verdict.worse and one(a, a - 0.1).fails
    fall = one(a, a - 0.1, lower=True)
    assert fall.verdict is Verdict.better and (fall.gained, fall.lost) == (60, 0)
    assert one(a, a + 0.1, lower=True).fails and not one(a, a + 0.1).fails


@pytest.mark.parametrize(
    "name",
    ["t/nll_per_token", "t/bits_per_byte", "t/word_perplexity,none", "a/b/ter", "t/nll_per_byte/style:terse"],
)
def test_known_metrics_of_which_less_is_better(name: str) -> None:
    assert not higher_is_better(name, {})
    assert higher_is_better(name, {"/".join(name.partition(",")[0].split("/")[:2]): True})
    assert higher_is_better("t/exact_match,strict-match", {}) and higher_is_better("t/bleu_item", {})
    assert not higher_is_better("t/perplexity_item,none", {}) and not higher_is_better(
        "t/a_item", {"t/a": False}
    )


def test_slices_have_their_metrics_direction_and_gaps_and_biases_their_own() -> None:
    declared = {"t/wer": False, "t/amb_bias_score": True}
    assert not higher_is_better("t/wer,all/clean", declared) and higher_is_better("t/acc/clean", declared)
    assert not higher_is_better("t/acc/style:gap", declared)
    assert not higher_is_better("t/amb_bias_score", declared) and nearer_zero("t/amb_bias_score_Age/clean")


def test_a_fall_within_the_margin_does_not_fail() -> None:
    rng = np.random.default_rng(12)
    a = rng.normal(0, 1, 200)
    b = a - 0.1 + rng.normal(0, 0.1, 200)
    for lower, x, y in ((False, a, b), (True, b, a)):
        tolerated, strict = one(x, y, lower=lower, margin=0.12), one(x, y, lower=lower, margin=0.05)
        assert (tolerated.word, tolerated.fails) == ("worse (within margin)", False)
        assert (strict.word, strict.fails) == ("worse", True)
        # The whole interval must lie beyond: the mean alone is not enough.
        assert not one(x, y, lower=lower, margin=0.099).fails
    assert one(b, a, margin=0.12).word == "better"


def test_the_spread_of_repeats_by_hand() -> None:
    repeats = [{"a": 1.0, "b": 0.0, "c": 1.0, "d": 1.0}, {"a": 1.0, "b": 1.0, "c": 0.0, "d": 1.0}]
    repeats += [{"a": 1.0, "b": 0.0, "c": 0.0, "d": 1.0, "e": 0.0}]
    found = spread(repeats)
    assert found is not None and (found.repeats, found.n) == (3, 4)
    assert found.flip_rate == pytest.approx((2 + 1 + 1) / 3 / 4)
    assert found.sd == pytest.approx(np.std([0.75, 0.75, 0.5], ddof=1))
    assert found.limit == pytest.approx(2.7718 * found.sd, rel=1e-4)
    assert spread(repeats[:1]) is None and spread([{"a": 1.0}, {"b": 1.0}]) is None


def test_two_runs_of_one_model_are_apart_by_the_limit_at_most() -> None:
    """In about 95 of 100 cases, where the repeats are many enough to know their spread."""
    rng, inside = np.random.default_rng(13), 0
    for _ in range(400):
        means = rng.normal(0, 1, 22)
        found = spread([{"a": mean, "b": mean + 1} for mean in means[:20]])
        assert found is not None
        inside += abs(means[20] - means[21]) <= found.limit
    assert 0.91 <= inside / 400 <= 0.98


def test_a_significant_difference_smaller_than_the_spread_is_within_noise() -> None:
    """A run moves all its items together, as another precision does: pairing alone takes that for a difference."""
    items = np.random.default_rng(14).normal(0, 1, 100)
    sets = [{"t/m": dict(enumerate_ids(items + shift))} for shift in (0.0, -0.02, 0.01, -0.015, 0.02)]
    a, b, *repeats = sets
    [bare], [told] = compare(a, b, {}, 0.0), compare(a, b, {}, 0.0, repeats)
    assert bare.fails and not told.fails
    assert told.word == "worse (within noise)" and told.p_holm == bare.p_holm
    [far] = compare(a, {"t/m": dict(enumerate_ids(items - 0.2))}, {}, 0.0, repeats)
    assert far.fails
    [other] = compare(a, b, {}, 0.0, [{"t/other": each["t/m"]} for each in repeats])
    assert other.spread is None and other.fails


def test_metrics_of_one_side_and_items_of_no_side_are_left_out() -> None:
    a = {"t/x": {"1": 1.0, "2": 0.0}, "t/y": {"1": 1.0}, "t/z": {"1": 1.0}}
    b = {"t/x": {"2": 1.0, "3": 0.0}, "t/y": {"2": 1.0}}
    [found] = compare(a, b, {}, 0.0)
    assert (found.metric, found.n, found.only_a, found.only_b) == ("t/x", 1, 1, 1)
    assert [len(each) for each in paired(a["t/y"], b["t/y"])] == [0, 0]


def test_every_row_of_the_table_is_as_wide_as_its_head() -> None:
    a, b = right_or_wrong(np.random.default_rng(15))
    found = [one(a, b), one(a, a)]
    for noise in (False, True):
        table = rows(found, noise=noise)
        assert {len(row) for row in table} == {10 if noise else 9}
    assert table[2][4] == "0 (all items equal)" and table[1][0] == "task/score ↑"
    assert json.dumps(asdict(found[0]), default=lambda value: value.value, allow_nan=False)
