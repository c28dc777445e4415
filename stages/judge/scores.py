"""Numbers of a judge: agreement with labels, biases, canaries, and the win rate corrected for its error."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stages.common.statistics import (
    Metric,
    Metrics,
    bootstrap,
    bootstrap_means,
    cohen_kappa,
    exact,
    wilson,
)
from stages.judge.pairs import TUNED
from stages.judge.verdicts import Chances, Judged

RESAMPLES = 2000


def metrics(judged: Sequence[Judged], seed: int) -> Metrics:
    """Every number of metrics/judge.json; what has no items behind it is left out."""
    labelled = [item for item in judged if item.pair.kind == "agreement"]
    compared = [item for item in judged if item.pair.kind == "comparison"]
    canaries = [item for item in judged if item.pair.kind == "canary"]
    asked = 2 * sum(item.asked for item in judged)
    return {
        "judge/evaluated": exact(1.0, len(labelled)),
        "judge/malformed": wilson(sum(item.malformed for item in judged), asked),
        **agreement(labelled, seed),
        **comparison(compared, labelled, seed),
        **canary(canaries, labelled),
    }


def agreement(labelled: Sequence[Judged], seed: int) -> Metrics:
    """Agreement with labels: ties count one half in judge/agreement and are a class of their own in kappa.

    judge/position_bias is the share of answers that pick what was shown first: 0.5 is none.
    judge/verdict_mass is the mean probability of saying A or B at all: low where a model does not answer in
    the asked form, whatever it then prefers.
    """
    found = {
        "judge/agreement": _agreed(labelled),
        "judge/kappa": _kappa(labelled, seed),
        "judge/ties": wilson(sum(item.verdict == "tie" for item in labelled), len(labelled)),
        "judge/position_bias": bootstrap([_first(item) for item in labelled], seed, RESAMPLES),
    }
    decided = [item for item in labelled if item.verdict != "tie"]
    if decided:
        found["judge/agreement_decided"] = _agreed(decided)
    for kind in sorted({item.pair.group for item in labelled}):
        found[f"judge/agreement/{kind}"] = _agreed([item for item in labelled if item.pair.group == kind])
    mass = [chances.a + chances.b for item in labelled for chances in (item.ab, item.ba) if chances]
    if mass:
        found["judge/verdict_mass"] = bootstrap(mass, seed, RESAMPLES)
    return found


def _agreed(items: Sequence[Judged]) -> Metric:
    return wilson(sum(item.score(item.pair.label) for item in items), len(items))


def _kappa(items: Sequence[Judged], seed: int) -> Metric:
    labels, verdicts = [item.pair.label for item in items], [item.verdict for item in items]
    rng, draws = np.random.default_rng(seed), []
    for _ in range(RESAMPLES):
        drawn = rng.integers(0, len(items), len(items)).tolist()
        draws.append(cohen_kappa([labels[i] for i in drawn], [verdicts[i] for i in drawn]))
    lo, hi = np.percentile(draws, [2.5, 97.5])
    return {"value": cohen_kappa(labels, verdicts), "lo": float(lo), "hi": float(hi), "n": len(items)}


def _first(item: Judged) -> float:
    def picked(chances: Chances | None) -> float:
        return {"A": 1.0, "B": 0.0}.get(chances.verdict if chances else "", 0.5)

    return (picked(item.ab) + picked(item.ba)) / 2


def comparison(compared: Sequence[Judged], labelled: Sequence[Judged], seed: int) -> Metrics:
    """Win rate of the tuned model (ties one half), its correction, and the pull of the longer answer.

    judge/length_bias is the share of decided verdicts for the longer answer (in characters; pairs of equal
    length are left out): it is bias only in so far as longer answers are not better.
    """
    if not compared:
        return {}
    wins = [item.score(TUNED) for item in compared]
    found = {"judge/win_rate": wilson(sum(wins), len(wins))}
    corrected = corrected_win_rate(wins, [item.score(item.pair.label) for item in labelled], seed)
    if corrected:
        found["judge/win_rate_corrected"] = corrected
    longer = [_longer(item) == item.verdict for item in compared if item.verdict != "tie" and _longer(item)]
    if longer:
        found["judge/length_bias"] = wilson(sum(longer), len(longer))
    return found


def _longer(item: Judged) -> str:
    a, b = len(item.pair.answer_a), len(item.pair.answer_b)
    return "A" if a > b else "B" if b > a else ""


def rogan_gladen(observed: float, agreement: float) -> float:
    """True share of wins behind an observed one, in [0, 1] (Rogan & Gladen 1978, Am J Epidemiol 107, 71).

    (q + Sp - 1) / (Se + Sp - 1), with sensitivity = specificity = the judge's agreement: asking in both
    orders makes the verdict on (A, B) the mirror of that on (B, A), so that which answer is called A cannot
    matter. Ties count one half in both numbers; a tie stays a tie, as 0.5 is a fixed point. Raises
    ValueError at an agreement of 0.5 or less, where the verdict says nothing about the truth.
    """
    if agreement <= 0.5:
        raise ValueError(f"a judge that agrees with {agreement:.3f} of labels cannot be corrected for")
    return min(1.0, max(0.0, (observed + agreement - 1) / (2 * agreement - 1)))


def corrected_win_rate(wins: Sequence[float], agreements: Sequence[float], seed: int) -> Metric | None:
    """`rogan_gladen` with a 95 % bootstrap interval over both samples; None for a judge at chance.

    Each resampled set holds one win and one loss more than were seen, so that a sample without a single
    loss does not claim an interval of width zero. A draw with a judge no better than chance bounds nothing:
    it counts as 0 for the lower end and as 1 for the upper.
    """
    agreed = float(np.mean(agreements))
    if agreed <= 0.5:
        return None
    observed = bootstrap_means([*wins, 0.0, 1.0], seed, RESAMPLES)
    trusted = bootstrap_means([*agreements, 0.0, 1.0], seed + 1, RESAMPLES)
    draws = list(zip(observed.tolist(), trusted.tolist(), strict=True))
    low = [rogan_gladen(q, a) if a > 0.5 else 0.0 for q, a in draws]
    high = [rogan_gladen(q, a) if a > 0.5 else 1.0 for q, a in draws]
    return {
        "value": rogan_gladen(float(np.mean(wins)), agreed),
        "lo": float(np.percentile(low, 2.5)),
        "hi": float(np.percentile(high, 97.5)),
        "n": len(wins),
    }


def canary(canaries: Sequence[Judged], labelled: Sequence[Judged]) -> Metrics:
    """Shares of identical answers that tie, and of injected orders that leave the verdict as it was."""
    before = {item.pair.id: item.verdict for item in labelled}
    identical = [item.verdict == "tie" for item in canaries if item.pair.group == "identical"]
    injected = [item.verdict == before[item.pair.id] for item in canaries if item.pair.group == "injection"]
    if not canaries:
        return {}
    return {
        "judge/canary_identical": wilson(sum(identical), len(identical)),
        "judge/canary_injection": wilson(sum(injected), len(injected)),
    }
