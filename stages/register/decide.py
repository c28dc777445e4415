"""The decision, as a pure function of the evidence.

Every check must pass at its own 95 % level. That is an intersection-union test (Berger 1982, Technometrics 24,
295-300): the chance to promote a model that fails any one of them is at most that check's own level, so no
correction for their number is needed. "Inconclusive" promotes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from stages.common.statistics import Metric, minimum_detectable_effect, paired_difference
from stages.register.config import Register, Score
from stages.register.evidence import Evidence, Rival, key


class Outcome(Enum):
    """Of a check, and of the whole."""

    promote = "promote"
    reject = "reject"
    inconclusive = "inconclusive"
    not_evaluated = "not evaluated"
    noted = "noted"


@dataclass
class Check:
    """One question to the evidence. `difference` is in the direction of better; None where nothing was measured."""

    name: str
    outcome: Outcome
    difference: Metric | None
    detectable: float | None
    why: str


def decide(cfg: Register, evidence: Evidence) -> tuple[Outcome, list[Check]]:
    """The verdict and the checks it rests on, in reading order."""
    checks = [_compare(cfg, cfg.target, evidence.candidate, evidence.base, superior=True)]
    checks += [
        _compare(cfg, guard, evidence.candidate, evidence.base, superior=False) for guard in cfg.guards
    ]
    if evidence.champion is not None:
        for score in (cfg.target, *cfg.guards):
            checks.append(_compare(cfg, score, evidence.candidate, evidence.champion, superior=False))
    judged = _judge(cfg, evidence)
    required = [*checks, judged] if cfg.require_judge else checks
    return _verdict(required), [*checks, judged, _drift(evidence)]


def _verdict(checks: list[Check]) -> Outcome:
    outcomes = {check.outcome for check in checks}
    if Outcome.reject in outcomes:
        return Outcome.reject
    return Outcome.promote if outcomes == {Outcome.promote} else Outcome.inconclusive


def _compare(cfg: Register, score: Score, candidate: Rival, rival: Rival, *, superior: bool) -> Check:
    """Superiority (the interval above 0) or non-inferiority (above -margin) on the items both answered."""
    name = f"{key(score)} {'better than' if superior else 'not worse than'} {rival.name}"
    ours, theirs = candidate.scores.get(key(score), {}), rival.scores.get(key(score), {})
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        return Check(name, Outcome.not_evaluated, None, None, "no item was scored for both")
    if len(shared) < cfg.min_items:
        why = f"{len(shared)} items were scored for both, fewer than register.min_items={cfg.min_items}"
        return Check(name, Outcome.inconclusive, None, None, why)
    sign = 1.0 if score.higher_is_better else -1.0
    a, b = ([sign * scores[item] for item in shared] for scores in (ours, theirs))
    difference = paired_difference(a, b, cfg.seed, cfg.resamples, cfg.confidence)
    bound = 0.0 if superior else -score.margin
    outcome = _against(difference, bound)
    detectable = minimum_detectable_effect([x - y for x, y in zip(a, b, strict=True)])
    return Check(
        name, outcome, difference, detectable, f"{_interval(difference)} against a bound of {bound:+g}"
    )


def _against(metric: Metric, bound: float) -> Outcome:
    if metric["lo"] > bound:
        return Outcome.promote
    return Outcome.reject if metric["hi"] < bound else Outcome.inconclusive


def _judge(cfg: Register, evidence: Evidence) -> Check:
    """The judge counts only where its agreement with labels is proven, and then by its corrected win rate."""
    name, judge = "judge prefers the candidate to the base", evidence.judge
    agreement, wins = judge.get("judge/agreement"), judge.get("judge/win_rate_corrected")
    if agreement is None or wins is None:
        missing = "no labelled pairs" if agreement is None else "no answers to compare"
        return Check(name, Outcome.not_evaluated, None, None, missing)
    if agreement["lo"] <= cfg.judge_floor:
        why = (
            f"agreement with labels {_interval(agreement)} is not above register.judge_floor={cfg.judge_floor:g}: "
            "its verdicts do not count"
        )
        return Check(name, Outcome.inconclusive, None, None, why)
    why = f"corrected win rate {_interval(wins)}, agreement with labels {_interval(agreement)}"
    return Check(name, _against(wins, 0.5), wins, None, why)


def _drift(evidence: Evidence) -> Check:
    """Said beside the verdict, never part of it: drift makes the live model stale, not the candidate worse."""
    name = "production windows (not part of the verdict)"
    alarms = evidence.drift.get("drift/alarms")
    if alarms is None:
        return Check(name, Outcome.not_evaluated, None, None, "no logs")
    windows = sorted(
        name.removesuffix("/alarm") for name, m in evidence.drift.items() if name.endswith("/alarm")
    )
    alarmed = [window for window in windows if evidence.drift[f"{window}/alarm"]["value"] > 0]
    why = f"alarm in {', '.join(alarmed)}" if alarmed else "no alarm"
    return Check(name, Outcome.noted, None, None, why)


def _interval(metric: Metric) -> str:
    return f"{metric['value']:.3f} [{metric['lo']:.3f}, {metric['hi']:.3f}] (n={metric['n']})"
