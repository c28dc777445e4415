"""finetune: sound packing, a loss that falls, the same bytes twice, and outs that plain transformers loads."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.common.files import tree_digest
from stages.finetune.__main__ import main
from stages.finetune.config import Init, MethodConfig
from stages.finetune.evaluate import heldout_losses
from stages.finetune.pack import IGNORED, Documents, padded, read_documents, read_rows
from tests.stages.finetune_rows import write
from tests.stages.finetune_section import FULL, LORA, section

documents = st.lists(st.integers(2, 40), min_size=1, max_size=40).map(
    lambda lengths: [(list(range(1, n + 1)), [IGNORED, *range(2, n + 1)]) for n in lengths]
)


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(documents, st.integers(40, 60))
def test_what_prepare_packed_comes_back_whole_and_in_order(
    tmp_path: Path, docs: Documents, length: int
) -> None:
    write(tmp_path / "rows.parquet", docs, 40)
    assert read_documents(tmp_path / "rows.parquet") == docs
    found = []
    for packed in read_rows(tmp_path / "rows.parquet", length).to_pylist():
        row = padded(packed, length, pad=0)
        assert len(row.input_ids) == len(row.labels) == len(row.position_ids) == length
        starts = [index for index, position in enumerate(row.position_ids) if position == 0] + [length]
        pieces = [(row.input_ids[a:b], row.labels[a:b]) for a, b in pairwise(starts)]
        found += [piece for piece in pieces if piece[0][0] != 0]
        assert all(label == IGNORED for ids, labels in pieces if ids[0] == 0 for label in labels)
    assert sorted(found) == sorted(docs)


def test_the_order_of_documents_does_not_depend_on_packing(tmp_path: Path) -> None:
    docs = [([n] * n, [IGNORED] * (n - 1) + [n]) for n in (5, 30, 2, 17, 17, 9)]
    for capacity in (30, 40, 80):
        write(tmp_path / "rows.parquet", docs, capacity)
        assert read_documents(tmp_path / "rows.parquet") == docs


def test_a_document_without_loss_measures_nothing(tmp_path: Path) -> None:
    write(tmp_path / "rows.parquet", [([1, 2], [IGNORED, IGNORED]), ([3, 4], [IGNORED, 4])], 4)
    assert read_documents(tmp_path / "rows.parquet") == [([3, 4], [IGNORED, 4])]


def test_a_packed_row_longer_than_a_training_row_is_one_clear_line(prepared: Path) -> None:
    message = r"train.parquet has a packed row of \d+ tokens, over finetune.row_length=32: raise it, or lower"
    with pytest.raises(ValueError, match=message):
        main(section(row_length=32))


def test_without_a_validation_split_there_is_no_heldout_loss(prepared: Path) -> None:
    write(prepared / "data/prepared/valid.parquet", [], 64)
    metrics = main(section(max_steps=1))
    assert not any(name.startswith("heldout") for name in metrics)


@pytest.mark.parametrize("method", [FULL, LORA], ids=["full", "lora"])
def test_training_learns_saves_and_repeats_to_the_last_bit(prepared: Path, method: MethodConfig) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    metrics = main(section(method=method, learning_rate=0.05 if method is LORA else 0.01))
    change = metrics["heldout/loss_change"]
    assert change["hi"] < 0 and change["n"] == 6
    assert (
        metrics["model/trained_share"]["value"] == 1.0
        if method is FULL
        else metrics["model/trained_share"]["value"] < 0.2
    )
    first = tree_digest(Path("models/tuned")), tree_digest(Path("reports"))
    names = {path.name for path in Path("models/tuned").iterdir()}
    assert {"model.safetensors", "tokenizer.json", "chat_template.jinja", "config.json"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in names)
    AutoModelForCausalLM.from_pretrained("models/tuned"), AutoTokenizer.from_pretrained("models/tuned")
    main(section(method=method, learning_rate=0.05 if method is LORA else 0.01))
    assert first == (tree_digest(Path("models/tuned")), tree_digest(Path("reports")))
    curve = Path("reports/loss.csv").read_text(encoding="utf-8").splitlines()
    assert curve[0] == "step,split,loss" and any(line.startswith("12,heldout,") for line in curve)


def test_random_start_does_not_read_the_bases_weights(prepared: Path) -> None:
    metrics = main(section(init=Init.random, max_steps=1, learning_rate=1e-9))
    base = main(section(init=Init.base, max_steps=1, learning_rate=1e-9))
    assert abs(metrics["heldout/loss"]["value"] - base["heldout/loss"]["value"]) > 0.01


def test_a_loss_that_is_not_finite_stops_and_leaves_no_model(prepared: Path) -> None:
    with pytest.raises(
        ValueError, match=r"(loss|norm) is (nan|inf) at step \d+: .*lower finetune.learning_rate"
    ):
        main(section(learning_rate=1e30, max_grad_norm=0.0, warmup_steps=0))
    assert not Path("models/tuned").exists()


def test_heldout_losses_do_not_depend_on_batching(prepared: Path, tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    docs = [(list(range(5, 5 + n)), [IGNORED, *range(6, 5 + n)]) for n in (3, 17, 9, 2)]
    alone = heldout_losses(model, docs, 0, 1)
    assert heldout_losses(model, docs, 0, 4) == pytest.approx(alone, abs=1e-5)
