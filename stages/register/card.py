"""The model card: what the model is, what it was measured to do, and why it may or may not go live."""

from __future__ import annotations

from typing import Any

from stages.register.config import Register
from stages.register.decide import Check, Outcome


def card(cfg: Register, manifest: dict[str, Any], outcome: Outcome, checks: list[Check]) -> str:
    """Markdown, a pure function of its arguments."""
    rows = "\n".join(
        f"| {check.name} | {_word(check)} | {check.why} | {_detectable(check)} |" for check in checks
    )
    hashes = "\n".join(f"- {name}: `{manifest[name]}`" for name in ("model", "base", "prepared", "results"))
    return (
        f"# {cfg.registered_model}\n\n"
        f"**Verdict of the gate: {outcome.value}.** Paired differences over the same items, "
        f"{100 * cfg.confidence:g} % bootstrap intervals, positive is better.\n\n"
        f"| check | outcome | evidence | detectable at 80 % power |\n|---|---|---|---|\n{rows}\n\n"
        f"## Made from\n\n{cfg.note}\n\n{hashes}\n"
    )


def _word(check: Check) -> str:
    return {Outcome.promote: "pass", Outcome.reject: "fail"}.get(check.outcome, check.outcome.value)


def _detectable(check: Check) -> str:
    return "" if check.detectable is None else f"{check.detectable:.3f}"
