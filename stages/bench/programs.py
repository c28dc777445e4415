"""Answers that are programs: each executed with its tests in the sandbox, and scored by whether it came to its end."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from stages.bench.config import Code
from stages.bench.responses import Responses
from stages.bench.sandbox import Limits, Outcome, Verdict, run_programs

# Below these a program's verdict would be chance: the watch looks every 20 ms, the kernel counts whole seconds.
LEAST = Limits(wall=1, cpu=1, memory=128 << 20, processes=1, file_bytes=64 << 10)


class Tried(str):
    """An answer that knows how its program ended."""

    verdict: Verdict

    def __new__(cls, text: str, verdict: Verdict) -> Tried:
        """A text with a verdict beside it."""
        self = super().__new__(cls, text)
        self.verdict = verdict
        return self


def limits_of(code: Code) -> Limits:
    """The section's limits as the sandbox takes them. Raises ValueError for one that Python itself would exceed."""
    for name, least in asdict(LEAST).items():
        if not (value := getattr(code, name)) >= least:
            raise ValueError(
                f"bench.code.{name}={value}: no program ends within that, give it at least {least}"
            )
    return Limits(code.wall, code.cpu, code.memory, code.processes, code.file_bytes)


def execute(programs: list[str], limits: Limits, count: int, task: str, kept: Responses) -> list[Verdict]:
    """How each program of a task ends, `count` at a time; equal ones are executed once.

    Those of a task that a killed run had executed are not executed again. Raises ValueError where there is no sandbox.
    """
    different = list(dict.fromkeys(programs))

    def ask() -> list[Any]:
        ended = run_programs(different, limits, count)
        return [[verdict.outcome.value, verdict.reason] for verdict in ended]

    told = kept.of("verdicts", task, different, ask)
    verdicts = {
        program: Verdict(Outcome(outcome), reason)
        for program, (outcome, reason) in zip(different, told, strict=True)
    }
    return [verdicts[program] for program in programs]


def pass_at_k(tried: int, passed: int, k: int) -> float:
    """Chance that one of `k` drawn from the programs tried passes, without bias (arXiv:2107.03374, equation 1).

    Raises ValueError where fewer than `k` were tried.
    """
    if k > tried:
        raise ValueError(
            f"pass@{k} of {tried} answers: `repeats` in the task's YAML says how many are asked, and without a "
            "`filter_list` lm-eval keeps the first alone"
        )
    return 1.0 - math.comb(tried - passed, k) / math.comb(tried, k)
