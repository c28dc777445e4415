"""Statistics against published or independent references."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from stages.common.statistics import (
    benjamini_hochberg,
    bootstrap,
    cohen_kappa,
    holm,
    mcnemar,
    minimum_detectable_effect,
    paired_difference,
    wilson,
)

p_values = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def test_wilson_is_scipys() -> None:
    for successes, n in ((0, 10), (81, 263), (10, 10), (1, 1)):
        ours = wilson(successes, n)
        theirs = stats.binomtest(successes, n).proportion_ci(method="wilson")
        assert (ours["lo"], ours["hi"]) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    with pytest.raises(ValueError, match="at least one item"):
        wilson(0, 0)


def test_wilsons_interval_covers() -> None:
    rng = np.random.default_rng(0)
    hits = sum(
        m["lo"] <= 0.8 <= m["hi"] for m in (wilson(int(rng.binomial(200, 0.8)), 200) for _ in range(2000))
    )
    assert 0.93 < hits / 2000 < 0.97


def test_bootstrap_is_near_the_normal_interval_and_repeats() -> None:
    scores = np.random.default_rng(1).normal(3, 2, 500)
    ours = bootstrap(scores, seed=4)
    half = 1.96 * scores.std(ddof=1) / math.sqrt(500)
    assert ours["lo"] == pytest.approx(scores.mean() - half, abs=0.03)
    assert ours["hi"] == pytest.approx(scores.mean() + half, abs=0.03)
    assert bootstrap(scores, seed=4) == ours != bootstrap(scores, seed=5)


@pytest.mark.parametrize("bad", [[], [1.0, math.nan], [math.inf]])
def test_a_mean_of_nothing_or_of_nan_is_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="finite score"):
        bootstrap(bad, seed=0)


def test_paired_scores_need_the_same_items() -> None:
    with pytest.raises(ValueError, match=r"\(2,\) against \(3,\)"):
        paired_difference([1, 2], [1, 2, 3], seed=0)


def test_mcnemar_against_the_binomial_and_a_published_table() -> None:
    # Agresti, Categorical Data Analysis, table 10.1: 86 and 150 discordant answers.
    a = [True] * 150 + [False] * 86 + [True] * 794
    b = [False] * 150 + [True] * 86 + [True] * 794
    assert mcnemar(a, b) == pytest.approx(2 * stats.binom.cdf(86, 236, 0.5), rel=1e-9)
    assert mcnemar([True, False], [True, False]) == 1.0


def test_holm_and_bh_on_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    values = [0.01, 0.04, 0.03, 0.005]
    assert benjamini_hochberg(values) == pytest.approx(list(stats.false_discovery_control(values)))


@given(p_values)
def test_adjusted_p_values_keep_order_and_bounds(values: list[float]) -> None:
    for adjusted in (holm(values), benjamini_hochberg(values)):
        assert all(raw - 1e-12 <= new <= 1 for raw, new in zip(values, adjusted, strict=True))
        order = np.argsort(values, kind="stable")
        assert all(np.diff(np.array(adjusted)[order]) >= -1e-12)


def test_kappa_on_cohens_kind_of_table() -> None:
    a = ["yes"] * 25 + ["no"] * 25
    b = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert cohen_kappa(a, b) == pytest.approx(0.4)
    assert cohen_kappa(["x"] * 3, ["x"] * 3) == 0.0


def test_the_detectable_effect_is_detected_at_the_stated_power() -> None:
    rng = np.random.default_rng(2)
    effect = minimum_detectable_effect(rng.normal(0, 1, 400))
    found = sum(stats.ttest_1samp(rng.normal(effect, 1, 400), 0).pvalue < 0.05 for _ in range(1000))
    assert 0.74 < found / 1000 < 0.87
