"""finetune: sound packing, a loss that falls, the same bytes twice, and outs that plain transformers loads."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.common.files import tree_digest
from stages.finetune.__main__ import main
from stages.finetune.config import Finetune, Init, Method, MethodConfig, Precision
from stages.finetune.evaluate import heldout_losses
from stages.finetune.pack import IGNORED, Documents, padded, read_documents, read_rows
from stages.finetune.train import Curve, collate
from stages.prepare.tokens.pack import pack

FULL = MethodConfig("full", Method.full, 0, 0, 0.0, [])
LORA = MethodConfig("lora", Method.lora, 4, 8, 0.0, ["q_proj", "v_proj"])


def config(**changes: Any) -> Finetune:
    values: dict[str, Any] = {
        "seed": 3, "threads": 1, "method": FULL, "init": Init.base, "precision": Precision.fp32, "max_steps": 12,
        "batch_size": 2, "gradient_accumulation": 1, "row_length": 64, "learning_rate": 0.01, "scheduler": "cosine",
        "warmup_steps": 1, "weight_decay": 0.0, "max_grad_norm": 1.0, "eval_every": 6, "samples": 1,
        "sample_tokens": 4,
    }  # fmt: skip
    return Finetune(**(values | changes))


def write(path: Path, documents: Documents, capacity: int) -> None:
    """Documents as prepare writes them: packed, with their ids and lengths, no padding, no loss on a first token."""
    found = pack(np.array([len(ids) for ids, _ in documents], np.int64), capacity)
    rows = []
    for begin, end in pairwise(found.offsets.tolist()):
        members = found.order[begin:end].tolist()
        rows.append(
            {
                "ids": [f"{member:03}" for member in members],
                "lengths": [len(documents[member][0]) for member in members],
                "input_ids": [token for member in members for token in documents[member][0]],
                "labels": [label for member in members for label in [IGNORED, *documents[member][1][1:]]],
            }
        )
    numbers = pa.list_(pa.int32())
    kinds = {"ids": pa.list_(pa.string()), "lengths": numbers, "input_ids": numbers, "labels": numbers}
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(kinds)), path)


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> Path:
    from transformers import AutoTokenizer

    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models/base").symlink_to(tiny_model)
    (tmp_path / "data/prepared").mkdir(parents=True)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    for split, count in (("train", 24), ("valid", 6)):
        docs = []
        for number in range(count):
            prompt = tokenizer(f"<|user|>item {number}<|end|><|assistant|>", add_special_tokens=False)[
                "input_ids"
            ]
            answer = tokenizer("yes<|end|>", add_special_tokens=False)["input_ids"]
            docs.append((prompt + answer, [IGNORED] * len(prompt) + answer))
        write(tmp_path / f"data/prepared/{split}.parquet", docs, 64)
    return tmp_path


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
        main(config(row_length=32))


def test_without_a_validation_split_there_is_no_heldout_loss(prepared: Path) -> None:
    write(prepared / "data/prepared/valid.parquet", [], 64)
    metrics = main(config(max_steps=1))
    assert not any(name.startswith("heldout") for name in metrics)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_no_token_attends_across_documents(tiny_model: Path, attention: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation=attention).eval()
    docs = [([7, 8, 9, 10, 11], [7, 8, 9, 10, 11]), ([20, 21, 22], [20, 21, 22])]
    row = {"input_ids": [7, 8, 9, 10, 11, 20, 21, 22], "labels": [IGNORED] * 8, "lengths": [5, 3]}
    with torch.no_grad():
        batch = {k: v for k, v in collate([row, row], length=12, pad=0).items() if k != "labels"}
        packed = model(**batch, use_cache=False).logits[1]  # a cache would switch the block mask off
        alone = torch.cat([model(input_ids=torch.tensor([ids])).logits[0] for ids, _ in docs])
    assert (packed[:8] - alone).abs().max() < 1e-5 * alone.abs().max()


@pytest.mark.parametrize("method", [FULL, LORA], ids=["full", "lora"])
def test_training_learns_saves_and_repeats_to_the_last_bit(prepared: Path, method: MethodConfig) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    metrics = main(config(method=method, learning_rate=0.05 if method is LORA else 0.01))
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
    main(config(method=method, learning_rate=0.05 if method is LORA else 0.01))
    assert first == (tree_digest(Path("models/tuned")), tree_digest(Path("reports")))
    curve = Path("reports/loss.csv").read_text(encoding="utf-8").splitlines()
    assert curve[0] == "step,split,loss" and any(line.startswith("12,heldout,") for line in curve)


def test_random_start_does_not_read_the_bases_weights(prepared: Path) -> None:
    metrics = main(config(init=Init.random, max_steps=1, learning_rate=1e-9))
    base = main(config(init=Init.base, max_steps=1, learning_rate=1e-9))
    assert abs(metrics["heldout/loss"]["value"] - base["heldout/loss"]["value"]) > 0.01


def test_a_loss_that_is_not_finite_stops_and_leaves_no_model(prepared: Path) -> None:
    with pytest.raises(ValueError, match=r"loss is (nan|inf) at step \d+: lower finetune.learning_rate"):
        main(config(learning_rate=1e30, max_grad_norm=0.0, warmup_steps=0))
    assert not Path("models/tuned").exists()


def test_targets_that_the_model_does_not_have_are_one_clear_line(prepared: Path) -> None:
    method = MethodConfig("lora", Method.lora, 4, 8, 0.0, ["no_such_layer"])
    with pytest.raises(ValueError, match=r"method.targets \['no_such_layer'\] do not fit the base model"):
        main(config(method=method))


def test_heldout_losses_do_not_depend_on_batching(prepared: Path, tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    docs = [(list(range(5, 5 + n)), [IGNORED, *range(6, 5 + n)]) for n in (3, 17, 9, 2)]
    alone = heldout_losses(model, docs, 0, 1)
    assert heldout_losses(model, docs, 0, 4) == pytest.approx(alone, abs=1e-5)


def test_the_curve_says_where_it_broke() -> None:
    with pytest.raises(ValueError, match="heldout loss is nan at step 7"):
        Curve().add(7, "heldout", float("nan"))
