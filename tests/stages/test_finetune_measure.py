"""finetune: what a step costs, counted by hand, and tokens that are real ones."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stages.common.tracking import track
from stages.finetune.config import Objective, Precision, Weights
from stages.finetune.data import read_split
from stages.finetune.measure import Meter, peak, stated
from stages.finetune.model import load
from stages.finetune.order import order_of
from stages.finetune.progress import Progress
from tests.stages.finetune_rows import made, workspace
from tests.stages.finetune_section import FULL, LORA, section
from tests.stages.finetune_shapes import COMMON, SOUND, tiny

TRAIN = made(20, 6)
# tests/conftest.py's Llama: width 32, 2 layers, 2 heads of 16, as many for keys and values, inner width 64.
WIDTH, LAYERS, INNER = 32, 2, 64
BODY = (
    LAYERS * (4 * WIDTH * WIDTH + 3 * WIDTH * INNER + 2 * WIDTH) + WIDTH
)  # projections, MLP, norms; the last norm
ATTENTION = 12 * LAYERS * WIDTH  # PaLM (arXiv:2204.02311), appendix B: 12 * L * H * Q * T for each token
ADAPTERS = LAYERS * 4 * ((32 + 32) + (32 + 32) + (64 + 32))  # rank 4 on q_proj, v_proj and down_proj


def meter(cfg: Any, prepared: Path, base: Path) -> Meter:
    data = read_split(cfg, prepared, "train")
    return Meter(cfg, load(cfg, base), data, order_of(cfg, len(data)))


@pytest.fixture
def rows(tmp_path: Path, tiny_model: Path) -> Path:
    return workspace(tmp_path, tiny_model, {"train": TRAIN, "valid": []}, 64) / "data/prepared"


def counted() -> tuple[int, int, int]:
    """Tokens, learned ones, and squares of the documents' lengths in all documents."""
    tokens = sum(len(ids) for ids, _ in TRAIN)
    learned = sum(label != -100 for _, labels in TRAIN for label in labels)
    return tokens, learned, sum(len(ids) ** 2 for ids, _ in TRAIN)


def pass_over_all(found: Meter) -> tuple[int, float]:
    """Tokens and FLOPs of the first pass, one row a step."""
    costs = [found.step_cost(step) for step in range(len(found.rows))]
    return sum(tokens for tokens, _ in costs), math.fsum(flops for _, flops in costs)


def test_a_step_of_full_training_is_counted_as_by_hand(rows: Path, tiny_model: Path) -> None:
    tokens, learned, squares = counted()
    head = vocabulary(tiny_model) * WIDTH
    assert pass_over_all(meter(section(FULL, batch_size=1), rows, tiny_model)) == (
        tokens,
        6 * BODY * tokens + 6 * head * learned + ATTENTION * squares,
    )


def test_frozen_weights_cost_two_thirds(rows: Path, tiny_model: Path) -> None:
    tokens, learned, squares = counted()
    head = vocabulary(tiny_model) * WIDTH
    assert pass_over_all(meter(section(LORA, batch_size=1), rows, tiny_model)) == (
        tokens,
        (4 * BODY + 6 * ADAPTERS) * tokens + 4 * head * learned + ATTENTION * squares,
    )


@pytest.mark.parametrize("method", [FULL, LORA], ids=["full", "lora"])
def test_preference_pairs_cost_the_references_forward_too(
    prepared_pairs: Path, tiny_model: Path, method: Any
) -> None:
    """A forward pass is 2 for each weight: a third of full training, half of what a frozen weight costs."""
    import pyarrow.parquet as pq

    prepared = prepared_pairs / "data/prepared"
    rows = pq.read_table(prepared / "pairs.parquet", filters=[("split", "=", "train")]).to_pylist()
    sides = [(row[f"{side}_ids"], row[f"{side}_labels"]) for row in rows for side in ("chosen", "rejected")]
    tokens = sum(len(ids) for ids, _ in sides)
    learned = sum(label != -100 for _, labels in sides for label in labels)
    squares = sum(len(ids) ** 2 for ids, _ in sides)
    body, head = 8 * BODY, 8 * vocabulary(tiny_model) * WIDTH
    if method is LORA:
        body, head = 6 * BODY + 6 * ADAPTERS, 6 * vocabulary(tiny_model) * WIDTH
    cfg = section(method, batch_size=1, objective=Objective.dpo)
    assert pass_over_all(meter(cfg, prepared, tiny_model)) == (
        tokens,
        body * tokens + head * learned + ATTENTION * 4 / 3 * squares,
    )


def vocabulary(base: Path) -> int:
    from transformers import AutoConfig

    return int(AutoConfig.from_pretrained(base).vocab_size)


def test_tokens_are_real_ones_of_the_whole_batch(rows: Path, tiny_model: Path) -> None:
    """Neither the rows' padding nor the share of one process."""
    found = meter(section(batch_size=4, row_length=512), rows, tiny_model)
    import pyarrow.parquet as pq

    table = pq.read_table(rows / "train.parquet").to_pylist()
    for step in range(5):
        assert found.step_cost(step)[0] == sum(len(table[row]["input_ids"]) for row in found.order.step(step))


@pytest.mark.parametrize("name", ["gemma2", "qwen3", "gpt2", "phi"])
def test_attention_counts_heads_times_their_size_and_not_the_width(
    rows: Path, tiny_model: Path, name: str
) -> None:
    kind, values = SOUND[name]
    if name in ("gemma2", "qwen3"):
        values = values | {"head_dim": 24}
    cfg = section(batch_size=1)
    data = read_split(cfg, rows, "train")
    model = tiny((kind, values))
    narrow = Meter(cfg, model, data, order_of(cfg, len(data)))
    squares = int(data.squares[narrow.order.step(0)].sum())
    tokens, learned = (
        int(data.tokens[narrow.order.step(0)].sum()),
        int(data.learned[narrow.order.step(0)].sum()),
    )
    embedded = model.get_input_embeddings().weight
    head = model.get_output_embeddings().weight
    rest = sum(
        weight.numel() for weight in model.parameters() if weight is not embedded and weight is not head
    )
    size = 2 * values.get("head_dim", 16)
    assert narrow.step_cost(0)[1] == 6 * (rest * tokens + head.numel() * learned) + 12 * 2 * size * squares


def test_a_tied_projection_is_counted_once_and_for_learned_tokens_only(rows: Path) -> None:
    cfg = section(batch_size=1)
    data = read_split(cfg, rows, "train")
    tied, untied = (
        Meter(cfg, tiny(("llama", COMMON | {"tie_word_embeddings": each})), data, order_of(cfg, len(data)))
        for each in (True, False)
    )
    assert tied.step_cost(3) == untied.step_cost(3)


@pytest.mark.parametrize("precision", list(Precision))
def test_a_processor_has_a_peak(precision: Precision) -> None:
    found = peak(replace(section(), precision=precision))
    assert found and 1e6 < found < 1e17


# As torch.cuda.get_device_name() gives them; TRL's own table (trainer/utils.py) has the same figures in bf16.
GPUS = {
    "NVIDIA H100 80GB HBM3": (989e12, 67e12),
    "NVIDIA H100 PCIe": (756e12, 51e12),
    "NVIDIA H100 NVL": (835e12, 60e12),
    "NVIDIA H200": (989e12, 67e12),
    "NVIDIA H200 NVL": (835e12, 60e12),
    "NVIDIA B200": (2250e12, 75e12),
    "NVIDIA GB200": (2500e12, None),
    "NVIDIA A100-SXM4-80GB": (312e12, 19.5e12),
    "NVIDIA L4": (121e12, 30.3e12),
    "NVIDIA H20": (None, None),
    "NVIDIA GeForce RTX 4090": (None, None),
    "NVIDIA H100 80GB HBM3 MIG 1g.10gb": (None, None),
}


@pytest.mark.parametrize("name", GPUS)
def test_a_gpu_has_the_peaks_of_its_own_data_sheet_or_none(name: str) -> None:
    assert (stated(name, Precision.bf16), stated(name, Precision.fp32)) == GPUS[name]


def test_a_peak_is_that_of_what_the_layers_compute_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen weights in bf16 compute in it, whatever finetune.precision says; packed ones are unpacked to that."""
    device(monkeypatch, "NVIDIA H200")
    bf16, nf4 = (section(replace(LORA, weights=weights)) for weights in (Weights.bf16, Weights.nf4))
    assert (peak(bf16), peak(nf4), peak(replace(nf4, precision=Precision.bf16))) == (989e12, 67e12, 989e12)


def test_of_a_gpu_that_is_not_known_no_mfu_is_logged(
    rows: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A product measured there would be the time of its launch: thousands of per cent on a large GPU."""
    logged: list[str] = []
    monkeypatch.setattr(track, "metric", lambda name, *_: logged.append(name))
    found = {}
    for name in ("NVIDIA H200", "NVIDIA X900"):
        device(monkeypatch, name)
        shown = meter(section(batch_size=1), rows, tiny_model)
        shown.begin(Progress(trained_share=1.0, processor=name))
        shown.report(1, {})
        found[name] = [metric for metric in logged if metric.startswith("speed/")]
        logged.clear()
    assert (
        found["NVIDIA H200"]
        == [*found["NVIDIA X900"], "speed/mfu"]
        == ["speed/tokens_per_second", "speed/mfu"]
    )
    (line,) = [record.getMessage() for record in caplog.records if "MFU" in record.getMessage()]
    assert "NVIDIA X900" in line and "stages/finetune/measure.py" in line


def device(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Have torch say that there is a GPU of this name."""
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
