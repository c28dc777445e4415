"""An adapter in models/tuned, beside its base, is scored and judged as the same model merged."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ops.variant_sources import fetch
from stages.bench.__main__ import main
from stages.bench.config import Backend, Bench, Precision, Variant
from stages.common.prompt import Prompt
from stages.finetune.outs import write_out
from stages.judge.local import LocalJudge
from stages.judge.verdicts import Rendered
from tests.stages.finetune_section import LORA, section, trained_adapter
from tests.stages.judge_server import config
from tests.stages.test_bench import NO_CODE

TASKS = ("helpdesk_triage", "heldout_loss", "helpdesk_intent")
FIELDS = {"intent": "refund", "product": "router", "priority": "high", "sentiment": "negative"}
MERGED, ADAPTER = "merged", "models/tuned"


@pytest.fixture
def workspace(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The base, an adapter beside it, the same merged, and two test rows."""
    monkeypatch.chdir(tmp_path)
    base = Path(shutil.copytree(tiny_model, "models/base"))
    trained = trained_adapter(section(LORA), base, Path("trained"))
    write_out(section(LORA), base, trained, Path(MERGED))
    write_out(section(replace(LORA, merge=False)), base, trained, Path(ADAPTER))
    answer = json.dumps(FIELDS) + "\nWe are sorry."
    rows = [
        {
            "id": f"t{number}",
            "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": answer}],
            "meta": {"style": "terse"},
        }
        for number, text in enumerate(["the router is broken", "wo ist mein Paket?"])
    ]
    Path("data/prepared").mkdir(parents=True)
    Path("data/prepared/test.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )
    return tmp_path


def score(name: str, path: str) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    prompt = Prompt("p", "You triage.", [], 12)
    main(
        Bench(7, 2, "sample", list(TASKS), 0, 2, 256, prompt, 0, True, [], NO_CODE),
        name,
        Variant(path, "", Precision.fp32, Backend.own, {}),
    )
    rows: list[dict[str, Any]] = pq.read_table(f"data/results/{name}.parquet").to_pylist()
    return [row | {"scores": json.loads(row["scores"])} for row in rows]


def test_bench_scores_an_adapter_as_the_merged_model(workspace: Path) -> None:
    merged, adapter, base = score("merged", MERGED), score("adapter", ADAPTER), score("base", "models/base")
    assert len(adapter) == 2 * len(TASKS)
    assert [row["output"] for row in adapter] == [row["output"] for row in merged]
    assert [row["output"] for row in adapter] != [row["output"] for row in base]
    for one, other in zip(merged, adapter, strict=True):
        assert other["scores"] == pytest.approx(one["scores"], rel=1e-4)


def test_an_adapter_that_brought_its_base_along_is_scored_on_it(workspace: Path) -> None:
    """As a variant (ops/variant.py), whatever models/base is by then."""
    expected = score("adapter", ADAPTER)
    fetch(ADAPTER, Path("variant"), workspace)
    shutil.rmtree("models/base")
    assert score("variant", "variant") == expected


def test_a_judge_that_is_an_adapter_says_what_the_merged_model_says(workspace: Path) -> None:
    items = [Rendered("sys", "q" * n) for n in (1, 50, 7)]
    merged, adapter, base = (
        LocalJudge(config(model=path))(items) for path in (MERGED, ADAPTER, "models/base")
    )
    assert all(one == pytest.approx(other, rel=1e-4) for one, other in zip(merged, adapter, strict=True))
    assert all(one != pytest.approx(other, rel=1e-2) for one, other in zip(base, adapter, strict=True))


def test_an_adapter_that_lost_its_base_is_neither_scored_nor_asked(workspace: Path) -> None:
    Path("models/base").rename("elsewhere")
    for use in (lambda: score("adapter", ADAPTER), lambda: LocalJudge(config(model=ADAPTER))):
        with pytest.raises(
            ValueError, match=r"models/tuned is an adapter of 'models/base'.*run `dvc repro base`"
        ) as no:
            use()
        assert "\n" not in str(no.value)
