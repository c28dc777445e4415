"""register: a pure decision with three outcomes; unclear evidence promotes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.common.files import sha256, tree_digest, write_json
from stages.common.statistics import Metrics, exact, wilson
from stages.register.__main__ import main
from stages.register.config import Promotion, Register, Score
from stages.register.decide import Outcome, decide
from stages.register.evidence import Evidence, Rival

N = 300


def config(**changes: Any) -> Register:
    values: dict[str, Any] = {
        "seed": 5, "name": "test", "note": "", "registered_model": "Helper", "confidence": 0.95, "resamples": 400,
        "target": Score("triage", "fields", True, 0.01), "guards": [Score("loss", "nll", False, 0.05)],
        "min_items": 50, "require_judge": True, "judge_floor": 0.5, "promote": Promotion.auto,
    }  # fmt: skip
    return Register(**(values | changes))


def scores(fields: float, nll: float, seed: int = 0, n: int = N) -> dict[str, dict[str, float]]:
    rng = np.random.default_rng(seed)
    return {
        "triage/fields": {f"i{k}": float(v) for k, v in enumerate(rng.random(n) < fields)},
        "loss/nll": {f"i{k}": float(v) for k, v in enumerate(rng.normal(nll, 0.1, n))},
    }


def judge(agreement: float = 0.8, wins: float = 0.7) -> Metrics:
    return {
        "judge/agreement": wilson(agreement * 200, 200),
        "judge/win_rate_corrected": wilson(wins * 200, 200),
    }


def evidence(candidate: Any = None, base: Any = None, champion: Any = None, judged: Any = None) -> Evidence:
    return Evidence(
        candidate=Rival("candidate", "c", candidate or scores(0.95, 0.5, 1)),
        base=Rival("base", "b", base or scores(0.4, 1.5, 2)),
        champion=Rival("champion", "h", champion) if champion else None,
        judge=judge() if judged is None else judged,
        drift={"drift/alarms": exact(1), "w1/alarm": exact(0), "w2/alarm": exact(1)},
    )


def verdict(found: Evidence, **changes: Any) -> Outcome:
    return decide(config(**changes), found)[0]


def test_better_on_every_count_is_promoted() -> None:
    assert verdict(evidence()) is Outcome.promote


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (evidence(candidate=scores(0.2, 0.5, 1)), Outcome.reject),
        (evidence(candidate=scores(0.41, 0.5, 1)), Outcome.inconclusive),
        (evidence(candidate=scores(0.95, 2.5, 1)), Outcome.reject),
        (evidence(champion=scores(0.99, 0.2, 3)), Outcome.reject),
        (evidence(champion=scores(0.95, 0.5, 1)), Outcome.promote),
        (evidence(judged=judge(agreement=0.52)), Outcome.inconclusive),
        (evidence(judged=judge(wins=0.3)), Outcome.reject),
        (evidence(judged=judge(wins=0.52)), Outcome.inconclusive),
        (evidence(judged={}), Outcome.inconclusive),
        (evidence(candidate=scores(0.95, 0.5, 1, n=20)), Outcome.inconclusive),
        (evidence(candidate={"triage/fields": scores(0.95, 0.5, 1)["triage/fields"]}), Outcome.inconclusive),
    ],
)
def test_anything_worse_rejects_and_anything_unclear_promotes_nothing(
    found: Evidence, expected: Outcome
) -> None:
    assert verdict(found) is expected


def test_a_judge_that_is_not_required_does_not_hold_up_the_rest() -> None:
    assert verdict(evidence(judged={}), require_judge=False) is Outcome.promote


def test_an_untrusted_judge_does_not_count_even_when_it_is_against() -> None:
    assert verdict(evidence(judged=judge(agreement=0.5, wins=0.01))) is Outcome.inconclusive


def test_drift_is_told_and_not_counted() -> None:
    outcome, checks = decide(config(), evidence())
    assert outcome is Outcome.promote and checks[-1].why == "alarm in w2"


def test_a_candidate_that_is_no_better_is_seldom_promoted() -> None:
    """Equal true scores: at most 5 % one-sided 2.5 % tests plus noise, over 200 draws."""
    promoted = sum(
        verdict(evidence(candidate=scores(0.7, 0.5, 2 * k), base=scores(0.7, 0.5, 2 * k + 1)), resamples=200)
        is Outcome.promote
        for k in range(200)
    )
    assert promoted <= 12


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, fields, nll in (("base", 0.4, 1.5), ("tuned", 0.95, 0.5)):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "model.safetensors").write_text(name)
        write_results(name, fields, nll)
    write_json(tmp_path / "metrics/judge.json", judge())
    write_json(tmp_path / "metrics/drift.json", {})
    write_json(tmp_path / "registry/champion.json", {})
    (tmp_path / "data/prepared").mkdir(parents=True)
    (tmp_path / "data/prepared/test.jsonl").write_text("{}\n")
    return tmp_path


def write_results(name: str, fields: float, nll: float) -> None:
    made = scores(fields, nll, len(name))
    rows = [
        {"task": key.split("/")[0], "id": item, "scores": json.dumps({key.split("/")[1]: value})}
        for key, values in made.items()
        for item, value in values.items()
    ]
    Path("data/results").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), f"data/results/{name}.parquet")


def crown() -> None:
    """What ops.promote does to the registry, without MLflow."""
    items = Path("reports/decision/items.json")
    entry = {"model": tree_digest(Path("models/tuned")), "items": sha256(items)}
    Path("registry/items").mkdir(exist_ok=True)
    Path(f"registry/items/{entry['items'][:16]}.json").write_bytes(items.read_bytes())
    previous = json.loads(Path("registry/champion.json").read_text()).get("Helper", {}).get("champion")
    write_json(Path("registry/champion.json"), {"Helper": {"champion": entry, "previous": previous}})


def decision() -> dict[str, Any]:
    return json.loads(Path("reports/decision/decision.json").read_text())  # type: ignore[no-any-return]


def test_the_committed_state_is_a_fixpoint(workspace: Path) -> None:
    """Before and after its own promotion, a candidate's decision is the same bytes."""
    main(config())
    assert decision()["verdict"] == "promote"
    before = tree_digest(Path("reports/decision"))
    crown()
    main(config())
    assert tree_digest(Path("reports/decision")) == before


def test_a_successor_is_compared_with_the_champion(workspace: Path) -> None:
    main(config())
    crown()
    Path("models/tuned/model.safetensors").write_text("one step")
    write_results("tuned", 0.5, 0.5)
    main(config())
    assert decision()["verdict"] == "reject"
    assert any("champion" in check["name"] and check["outcome"] == "reject" for check in decision()["checks"])


def test_the_manifest_names_the_champion_that_was_compared(workspace: Path) -> None:
    """Before and after the promotion the one before; of a successor the one that lives."""

    def named() -> Any:
        return json.loads(Path("reports/decision/manifest.json").read_text())["champion"]

    main(config())
    assert named() is None
    first = tree_digest(Path("models/tuned"))
    crown()
    main(config())
    assert named() is None
    Path("models/tuned/model.safetensors").write_text("another")
    main(config())
    assert named() == first
    crown()
    main(config())
    assert named() == first


@pytest.mark.parametrize(
    ("harm", "word"), [(Path.unlink, "missing"), (lambda p: p.write_text("{}"), "changed")]
)
def test_a_champion_whose_scores_are_gone_is_one_clear_line(workspace: Path, harm: Any, word: str) -> None:
    main(config())
    crown()
    Path("models/tuned/model.safetensors").write_text("another")
    harm(next(Path("registry/items").glob("*.json")))
    with pytest.raises(
        ValueError, match=f"that registry/champion.json names, is {word}: restore it from git"
    ):
        main(config())


def test_the_card_tells_the_verdict_and_the_evidence(workspace: Path) -> None:
    metrics = main(config())
    card = Path("reports/decision/card.md").read_text(encoding="utf-8")
    assert "**Verdict of the gate: promote.**" in card and "(n=300)" in card
    assert metrics["gate/promote"]["value"] == 1
