"""The gate: `python -m stages.register` decides, and changes nothing (`python -m ops.promote` acts on it).

reports/decision/: decision.json (verdict and checks), manifest.json (what made the model), card.md (the model
card), items.json (the candidate's per-item scores, which become the champion's if it is promoted).
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from stages.common.files import fresh_dir, read_json, sha256, tree_digest, write_json, write_text
from stages.common.run import run
from stages.common.statistics import Metrics, exact
from stages.common.tracking import track
from stages.register.card import card
from stages.register.config import Register
from stages.register.decide import Check, Outcome, decide
from stages.register.evidence import Evidence, Rival, read_champion, read_scores

MODEL, BASE, RESULTS = Path("models/tuned"), Path("models/base"), Path("data/results")
METRICS, REGISTRY, OUT = Path("metrics"), Path("registry"), Path("reports/decision")


def main(cfg: Register) -> Metrics:
    """Decide and write reports/decision; returns the differences behind the verdict."""
    evidence = read_evidence(cfg)
    outcome, checks = decide(cfg, evidence)
    out = fresh_dir(OUT)
    write_json(out / "items.json", evidence.candidate.scores)
    manifest = read_manifest(cfg, evidence, sha256(out / "items.json"))
    write_json(out / "manifest.json", manifest)
    write_json(
        out / "decision.json", {"verdict": outcome.value, "checks": [_plain(check) for check in checks]}
    )
    write_text(out / "card.md", card(cfg, manifest, outcome, checks))
    track.artifact(out)
    track.tag("decision", outcome.value)
    return _metrics(outcome, checks)


def read_evidence(cfg: Register) -> Evidence:
    """Collect what the gate looks at from the other stages' outs and the registry."""
    model = tree_digest(MODEL)
    return Evidence(
        candidate=Rival("candidate", model, read_scores(RESULTS / "tuned.parquet", cfg)),
        base=Rival("base", tree_digest(BASE), read_scores(RESULTS / "base.parquet", cfg)),
        champion=read_champion(REGISTRY, cfg.registered_model, model),
        judge=read_json(METRICS / "judge.json"),
        drift=read_json(METRICS / "drift.json"),
    )


def read_manifest(cfg: Register, evidence: Evidence, items: str) -> dict[str, Any]:
    """Content hashes of everything that made the candidate, and of the champion that it was compared with."""
    return {
        "registered_model": cfg.registered_model,
        "model": evidence.candidate.model,
        "base": evidence.base.model,
        "champion": evidence.champion.model if evidence.champion else None,
        "items": items,
        "prepared": tree_digest(Path("data/prepared")),
        "results": sha256(RESULTS / "tuned.parquet"),
        "promote": cfg.promote.name,
    }


def _plain(check: Check) -> dict[str, Any]:
    return asdict(check) | {"outcome": check.outcome.value}


def _metrics(outcome: Outcome, checks: list[Check]) -> Metrics:
    metrics = {
        "gate/promote": exact(outcome is Outcome.promote),
        "gate/reject": exact(outcome is Outcome.reject),
        "gate/inconclusive": exact(outcome is Outcome.inconclusive),
    }
    for check in checks:
        if check.difference is not None:
            metrics[f"gate/{check.name.replace(' ', '_')}"] = check.difference
    return metrics


if __name__ == "__main__":
    run(Register, main)
