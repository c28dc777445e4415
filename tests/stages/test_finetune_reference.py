"""finetune: training on packed rows is, step by step, a plain loop over documents alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from stages.finetune.config import Finetune, MethodConfig
from stages.finetune.data import read_split
from stages.finetune.model import load
from stages.finetune.order import order_of
from stages.finetune.train import BASE, PREPARED, _trainer
from tests.stages.finetune_rows import made, trained, weights, workspace
from tests.stages.finetune_section import ADAPTERS, FULL, LORA, section
from tests.stages.finetune_shapes import SOUND, tiny

STEPS = 32
CFG = section(
    max_steps=STEPS, learning_rate=1e-3, warmup_steps=4, weight_decay=0.1, max_grad_norm=0.5, eval_every=STEPS
)


@pytest.fixture
def rows(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> list[list[tuple[list[int], list[int]]]]:
    """The documents of each packed row; the workspace is the current directory."""
    workspace(tmp_path, tiny_model, {"train": made(60, 8), "valid": made(4, 9)}, 64)
    monkeypatch.chdir(tmp_path)
    return [list(documents(row)) for row in pq.read_table("data/prepared/train.parquet").to_pylist()]


def documents(row: dict[str, Any]) -> Iterator[tuple[list[int], list[int]]]:
    for begin, end in pairwise(accumulate(row["lengths"], initial=0)):
        yield row["input_ids"][begin:end], row["labels"][begin:end]


def plain(cfg: Finetune, rows: list[list[tuple[list[int], list[int]]]]) -> tuple[list[float], Any]:
    """Losses and trained model of a loop that knows of no packing, no batch and no accumulation."""
    import torch

    model = load(cfg, BASE).train()
    learned = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    decays = [
        weight for weight in learned.values() if weight.dim() > 1
    ]  # norms are vectors, a Llama has no bias
    spared = [weight for weight in learned.values() if weight.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decays, "weight_decay": cfg.weight_decay}, {"params": spared, "weight_decay": 0.0}],
        betas=(0.9, 0.999),
        eps=1e-8,
    )
    losses, order = [], order_of(cfg, len(rows))
    for step in range(STEPS):
        chosen = [document for row in order.step(step) for document in rows[row]]
        count = sum(label != -100 for _, labels in chosen for label in labels)
        parts = [loss_of(model, ids, labels) / count for ids, labels in chosen]
        torch.stack(parts).sum().backward()
        torch.nn.utils.clip_grad_norm_(learned.values(), cfg.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = cfg.learning_rate * scale(cfg, step)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(sum(part.detach() for part in parts)))
    return losses, model


def loss_of(model: Any, ids: list[int], labels: list[int]) -> Any:
    """Nats of a document's learned tokens, summed."""
    import torch

    logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
    return torch.nn.functional.cross_entropy(
        logits, torch.tensor(labels[1:]), ignore_index=-100, reduction="sum"
    )


def heldout(model: Any) -> float:
    """Nats for each learned token of the held-out documents."""
    import torch

    rows = pq.read_table(PREPARED / "valid.parquet").to_pylist()
    alone = [document for row in rows for document in documents(row)]
    with torch.no_grad():
        total = sum(float(loss_of(model.eval(), ids, labels)) for ids, labels in alone)
    return total / sum(label != -100 for _, labels in alone for label in labels)


def scale(cfg: Finetune, step: int) -> float:
    """Linear warm-up, then half a cosine to nothing."""
    if step < cfg.warmup_steps:
        return step / cfg.warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - cfg.warmup_steps) / (STEPS - cfg.warmup_steps)))


@pytest.mark.parametrize(("batch", "parts"), [(1, 1), (2, 1), (2, 2), (4, 2)])
@pytest.mark.parametrize("method", [FULL, LORA], ids=["full", "lora"])
def test_losses_and_weights_equal_those_of_documents_alone(
    rows: list[list[tuple[list[int], list[int]]]], method: MethodConfig, batch: int, parts: int
) -> None:
    cfg = replace(CFG, method=method, batch_size=batch, gradient_accumulation=parts)
    wanted, model = plain(cfg, rows)
    progress = trained(cfg, Path("work"))
    found = progress.losses
    assert len(found) == STEPS and max(abs(a - b) for a, b in zip(found, wanted, strict=True)) < 1e-4
    assert sum(wanted[-8:]) < sum(wanted[:8])
    assert progress.evaluations == [(STEPS, pytest.approx(heldout(model), abs=1e-4))]
    kept = weights(Path("work/result/trained"))
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            same = kept[name.replace(".default", "")]
            assert float((weight.detach() - same).abs().max()) < 1e-3, name


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2", "gpt2", "phi"])
def test_norms_and_biases_do_not_decay(
    rows: list[list[tuple[list[int], list[int]]]], tiny_model: Path, tmp_path: Path, name: str
) -> None:
    """The optimizer's groups of a real trainer, for architectures with biases and with other names for norms."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tiny(SOUND[name]).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    BASE.unlink()
    BASE.symlink_to(tmp_path / "other")
    cfg = replace(CFG, batch_size=2)
    trainer = _trainer(
        cfg, tokenizer, (read_split(cfg, PREPARED, "train"), read_split(cfg, PREPARED, "valid"))
    )
    names = {weight: name for name, weight in trainer.model.named_parameters()}
    groups = {group["weight_decay"]: group["params"] for group in trainer.create_optimizer().param_groups}
    assert set(groups) == {0.1, 0.0} and sum(map(len, groups.values())) == len(names)
    assert all(weight.dim() == 1 for weight in groups[0.0]), "a matrix is spared"
    assert all(weight.dim() > 1 for weight in groups[0.1]), [
        names[weight] for weight in groups[0.1] if weight.dim() == 1
    ]


def test_doras_magnitudes_do_not_decay(
    rows: list[list[tuple[list[int], list[int]]]], tiny_model: Path
) -> None:
    """They are the lengths of weights, as a norm's are: decayed, they would pull what is frozen to nothing."""
    from transformers import AutoTokenizer

    cfg = replace(CFG, method=ADAPTERS["dora"])
    splits = (read_split(cfg, PREPARED, "train"), read_split(cfg, PREPARED, "valid"))
    trainer = _trainer(cfg, AutoTokenizer.from_pretrained(tiny_model), splits)
    kinds = {weight: name.split(".lora_")[1][0] for name, weight in learned(trainer.model)}
    groups = {group["weight_decay"]: group["params"] for group in trainer.create_optimizer().param_groups}
    found = {decay: {kinds[weight] for weight in weights} for decay, weights in groups.items()}
    assert found == {0.1: {"A", "B"}, 0.0: {"m"}}


def learned(model: Any) -> list[tuple[str, Any]]:
    return [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]


def test_every_token_counts_the_same_whatever_the_architecture_says_of_its_own_loss(
    rows: list[list[tuple[list[int], list[int]]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gemma 3 has accepts_loss_kwargs = False: the trainer would make a mean of the parts' means."""
    from transformers import LlamaForCausalLM

    cfg = replace(CFG, batch_size=4, gradient_accumulation=2, max_steps=4)
    wanted = trained(cfg, Path("plain"))
    monkeypatch.setattr(LlamaForCausalLM, "accepts_loss_kwargs", False, raising=False)
    assert trained(cfg, Path("other")) == wanted


@pytest.mark.parametrize("method", [FULL, LORA], ids=["full", "lora"])
def test_only_what_is_trained_is_in_the_optimizer(
    rows: list[list[tuple[list[int], list[int]]]], tiny_model: Path, method: MethodConfig
) -> None:
    from transformers import AutoTokenizer

    cfg = replace(CFG, method=method)
    splits = (read_split(cfg, PREPARED, "train"), read_split(cfg, PREPARED, "valid"))
    trainer = _trainer(cfg, AutoTokenizer.from_pretrained(tiny_model), splits)
    held = {weight for group in trainer.create_optimizer().param_groups for weight in group["params"]}
    assert held == {weight for weight in trainer.model.parameters() if weight.requires_grad}
    assert {str(weight.dtype) for weight in held} == {"torch.float32"}
    frozen = [weight for weight in trainer.model.parameters() if not weight.requires_grad]
    assert bool(frozen) == (method is LORA)
