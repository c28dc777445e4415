"""From a pair to a verdict: the prompt, both orders, and the one interface that every judge has."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from stages.judge.config import JudgePrompt
from stages.judge.pairs import Pair

FIELDS = ("question", "answer_a", "answer_b")
OTHER = {"A": "B", "B": "A", "tie": "tie", "malformed": "malformed"}


class Rendered(NamedTuple):
    """One comparison as the judge is asked it."""

    system: str
    user: str

    def messages(self) -> list[dict[str, str]]:
        """Chat turns; no system turn where there is no system text."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.user}]


class Chances(NamedTuple):
    """The judge's probabilities that its verdict is "A" (the answer shown first) or "B"; sum at most 1."""

    a: float
    b: float

    @property
    def verdict(self) -> str:
        """The likelier letter, or tie."""
        return "A" if self.a > self.b else "B" if self.b > self.a else "tie"


EVEN = Chances(0.5, 0.5)


class Asks(Protocol):
    """A judge."""

    def __call__(self, comparisons: Sequence[Rendered]) -> list[Chances | None]:
        """Its chances for each comparison, in order; None where its answer names no verdict."""


@dataclass(frozen=True)
class Judged:
    """A pair with the judge's answers: in `ab` A was shown first, in `ba` B. None is malformed."""

    pair: Pair
    ab: Chances | None
    ba: Chances | None
    asked: bool = True

    @property
    def key(self) -> tuple[str, str, str]:
        """Identity of the pair, and the order of rows."""
        return self.pair.kind, self.pair.group, self.pair.id

    @property
    def malformed(self) -> int:
        """How many of the two answers name no verdict."""
        return (self.ab is None) + (self.ba is None)

    @property
    def verdict_ab(self) -> str:
        """A, B, tie or malformed, with A shown first."""
        return self.ab.verdict if self.ab else "malformed"

    @property
    def verdict_ba(self) -> str:
        """The same pair with B shown first, in the pair's own names."""
        return OTHER[self.ba.verdict] if self.ba else "malformed"

    @property
    def verdict(self) -> str:
        """A or B where both orders agree on it, else tie: a judge who changes its mind has not decided."""
        return self.verdict_ab if self.verdict_ab == self.verdict_ba != "malformed" else "tie"

    def score(self, answer: str) -> float:
        """1 where the verdict is `answer` (A or B), one half on a tie, else 0."""
        return 0.5 if self.verdict == "tie" else float(self.verdict == answer)

    def row(self) -> dict[str, str | float | None]:
        """The pair's row of data/results/judge.parquet; probabilities to six digits, null where malformed."""
        kind, group, name = self.key
        return {
            "kind": kind,
            "group": group,
            "id": name,
            "verdict_ab": self.verdict_ab,
            "verdict_ba": self.verdict_ba,
            "p_first_ab": _share(self.ab),
            "p_first_ba": _share(self.ba),
            "label": self.pair.label,
            "verdict": self.verdict,
        }


def _share(chances: Chances | None) -> float | None:
    return round(chances.a / (chances.a + chances.b), 6) if chances else None


def judge_pairs(pairs: Sequence[Pair], prompt: JudgePrompt, ask: Asks) -> list[Judged]:
    """Ask about every pair in both orders. Equal answers of a comparison tie unasked, a canary's do not."""
    asked = [p for p in pairs if p.kind != "comparison" or p.answer_a != p.answer_b]
    rendered = [
        render(prompt, p.question, *order)
        for p in asked
        for order in ((p.answer_a, p.answer_b), (p.answer_b, p.answer_a))
    ]
    chances = ask(rendered)
    judged = {p: Judged(p, chances[2 * i], chances[2 * i + 1]) for i, p in enumerate(asked)}
    return [judged.get(p, Judged(p, EVEN, EVEN, asked=False)) for p in pairs]


def check_template(prompt: JudgePrompt) -> None:
    """Raise ValueError where the template does not name the question and both answers."""
    missing = [name for name in FIELDS if f"{{{name}}}" not in prompt.template]
    if missing:
        raise ValueError(f"prompt/judge/{prompt.name}: the template has no {{{missing[0]}}}; write it in")


def render(prompt: JudgePrompt, question: str, first: str, second: str) -> Rendered:
    """Fill the template in one pass, so that a {answer_b} inside an answer stays text."""
    values = dict(zip(FIELDS, (question, first, second), strict=True))
    pattern = "|".join(f"{{{name}}}" for name in FIELDS)
    return Rendered(prompt.system, re.sub(pattern, lambda match: values[match[0][1:-1]], prompt.template))
