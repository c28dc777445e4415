"""finetune: projecting onto the vocabulary only where the loss is changes nothing that is trained or measured."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from stages.finetune.config import Objective
from stages.finetune.data import collate_pairs, read_split
from stages.finetune.head import IGNORED, project_supervised_only
from stages.finetune.order import order_of
from stages.finetune.train import BASE, PREPARED, _trainer
from tests.stages.finetune_section import section
from tests.stages.finetune_shapes import COMMON, EXPERTS, SOUND, tiny

OUTPUTS = ("log_probs", "entropy", "mean_logits", "is_top1")


def batch(rows: int, learned: bool = True) -> dict[str, Any]:
    """Rows of 24 tokens, the loss on some of them; documents of 10 and 14 tokens."""
    import torch

    draw = torch.Generator().manual_seed(rows)
    ids = torch.randint(6, 300, (rows, 24), generator=draw)
    chosen = torch.rand((rows, 24), generator=draw) < 0.4
    chosen[0] &= rows == 1  # a row without loss beside ones that have some
    labels = torch.where(chosen & torch.tensor(learned), ids, IGNORED)
    positions = torch.cat([torch.arange(10), torch.arange(14)]).expand(rows, -1)
    return {"input_ids": ids, "labels": labels, "position_ids": positions, "use_cache": False}


def pair(model: Any) -> tuple[Any, Any]:
    """The model with TRL's own head, and with ours on top of it."""
    from trl.trainer.utils import add_fused_lm_head

    ours = copy.deepcopy(model)
    for each in (model, ours):
        add_fused_lm_head(base_of(each), outputs=OUTPUTS)
    project_supervised_only(base_of(ours))
    return model, ours


def base_of(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def backward(model: Any, inputs: dict[str, Any], precision: Any = None) -> tuple[Any, dict[str, Any]]:
    """Outputs and gradients of a loss that is made of both what SFT and what a bonus on entropy would use."""
    with precision or nullcontext():
        found = model(**inputs, fused_lm_head=True)
    (-found.log_probs.sum() / found.label_mask.sum().clamp(min=1)).backward()
    return found, {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def compare(model: Any, inputs: dict[str, Any], tolerance: float = 1e-5, precision: Any = None) -> None:
    import torch

    theirs, ours = (backward(each, dict(inputs), precision) for each in pair(model))
    for name in (*OUTPUTS, "label_mask"):
        wanted, found = getattr(theirs[0], name), getattr(ours[0], name)
        assert found.shape == wanted.shape and found.dtype == wanted.dtype, name
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
    assert ours[1].keys() == theirs[1].keys() and ours[1]
    scale = max(float(gradient.abs().max()) for gradient in theirs[1].values())
    for name, gradient in theirs[1].items():
        torch.testing.assert_close(ours[1][name], gradient, rtol=0, atol=tolerance * max(scale, 1e-3))


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", SOUND)
def test_loss_gradients_and_measures_equal_trls_own(name: str, rows: int) -> None:
    compare(tiny(SOUND[name]).train(), batch(rows))


@pytest.mark.parametrize("name", ["llama", "gemma2", "granite", "cohere"])
def test_log_probabilities_equal_those_of_plain_logits(name: str) -> None:
    """With softcapping and scaled logits, without TRL in between."""
    import torch

    model, inputs = tiny(SOUND[name]), batch(3)
    with torch.no_grad():
        plain = model(**{key: value for key, value in inputs.items() if key != "labels"}).logits.log_softmax(
            -1
        )
        found = pair(model)[1](**inputs, fused_lm_head=True)
    targets, mask = inputs["labels"][:, 1:], inputs["labels"][:, 1:] != IGNORED
    wanted = plain[:, :-1].gather(-1, targets.clamp(min=0)[..., None])[..., 0] * mask
    torch.testing.assert_close(found.log_probs, wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(found.is_top1, (plain[:, :-1].argmax(-1) == targets) & mask)
    torch.testing.assert_close(
        found.entropy, -(plain.exp() * plain).sum(-1)[:, :-1] * mask, rtol=1e-5, atol=1e-5
    )


def test_adapters_get_the_same_gradients() -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    adapters = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(tiny(SOUND["llama"]), adapters)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    compare(model.train(), batch(3))


def test_gradient_checkpointing_recomputes_the_same() -> None:
    model = tiny(SOUND["llama"]).train()
    model.gradient_checkpointing_enable()
    compare(model, batch(3))


def test_bf16_autocast_stays_as_near_as_bf16_is() -> None:
    import torch

    compare(
        tiny(SOUND["llama"]).train(),
        batch(3),
        tolerance=0.05,
        precision=torch.autocast("cpu", torch.bfloat16),
    )


def test_of_equal_logits_the_first_is_the_likeliest_as_to_argmax() -> None:
    """In bf16 many are equal."""
    import torch

    from stages.finetune.log_probabilities import LogProbabilities

    logits = torch.tensor([[1.0, 3.0, 3.0, 0.0]] * 4 + [[0.0] * 4] * 40)
    targets = torch.tensor([0, 1, 2, 3] + [0, 1, 2, 3] * 10)
    found = LogProbabilities.apply(logits.clone(), targets)[3]
    assert torch.equal(found, logits.argmax(-1) == targets)


def test_a_second_backward_is_refused_rather_than_wrong() -> None:
    import torch

    from stages.finetune.log_probabilities import LogProbabilities

    weight = torch.randn(5, 7, requires_grad=True)
    loss = LogProbabilities.apply(weight * 1.0, torch.arange(5))[0].sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@pytest.mark.parametrize("rows", [1, 3])
def test_a_batch_without_any_learned_token_is_a_differentiable_zero(rows: int) -> None:
    model = pair(tiny(SOUND["llama"]).train())[1]
    found, gradients = backward(model, batch(rows, learned=False))
    assert not found.log_probs.any() and not found.entropy.any()
    assert not found.label_mask.any() and not found.is_top1.any()
    assert gradients and all(float(gradient.abs().sum()) == 0.0 for gradient in gradients.values())


def test_the_loss_that_balances_experts_arrives() -> None:
    import torch

    model = tiny(("mixtral", COMMON | EXPERTS | {"output_router_logits": True})).train()
    theirs, ours = (each(**batch(3), fused_lm_head=True).aux_loss for each in pair(model))
    assert float(theirs.detach()) > 0
    torch.testing.assert_close(ours, theirs)


def positions(model: Any, inputs: dict[str, Any], **kwargs: Any) -> list[int]:
    """How many positions the head projected in one call."""
    seen: list[int] = []
    handle = model.get_output_embeddings().register_forward_hook(
        lambda _, __, logits: seen.append(logits.shape[:-1].numel())
    )
    model(**inputs, **kwargs)
    handle.remove()
    return seen


@pytest.mark.parametrize("name", SOUND)
def test_only_learned_positions_are_projected(name: str) -> None:
    model, inputs = pair(tiny(SOUND[name]))[1], batch(3)
    learned = int((inputs["labels"][:, 1:] != IGNORED).sum())
    assert 0 < learned < inputs["input_ids"].numel()
    assert positions(model, inputs, fused_lm_head=True) == [learned]
    assert positions(model, inputs) == [inputs["input_ids"].numel()]  # as the model's own forward, hooks gone
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_of_pairs_the_reference_too_projects_only_answers(prepared_pairs: Path) -> None:
    """It is half of the work, and its numbers are TRL's own."""
    import torch
    from transformers import AutoTokenizer

    cfg = section(objective=Objective.dpo)
    splits = (read_split(cfg, PREPARED, "train"), read_split(cfg, PREPARED, "valid"))
    trainer = _trainer(cfg, AutoTokenizer.from_pretrained(BASE), splits)
    inputs = collate_pairs([splits[0][index] for index in (0, 12)], pad=0)
    torch.nn.init.normal_(trainer.model.get_output_embeddings().weight)  # apart from the reference
    before = float(trainer.compute_loss(trainer.model, dict(inputs)))
    trainer.begin(cfg, order_of(cfg, len(splits[0])), splits, prepared_pairs / "work")
    seen: list[int] = []
    for model in (trainer.model, trainer.ref_model):
        model.get_output_embeddings().register_forward_hook(
            lambda _, __, logits: seen.append(logits.shape[:-1].numel())
        )
    assert float(trainer.compute_loss(trainer.model, dict(inputs))) == pytest.approx(before, rel=1e-6)
    assert seen == [int(inputs["completion_mask"].sum())] * 2


def test_plain_calls_and_generation_are_as_before() -> None:
    import torch

    plain = tiny(SOUND["llama"])
    model, inputs = pair(plain)[1], batch(3)
    with torch.no_grad():
        assert torch.equal(model(**inputs).loss, tiny(SOUND["llama"])(**inputs).loss)
    prompt = {"input_ids": inputs["input_ids"][:1], "max_new_tokens": 5, "do_sample": False}
    assert torch.equal(model.generate(**prompt), tiny(SOUND["llama"]).generate(**prompt))


def test_a_failure_inside_leaves_no_hook_behind() -> None:
    model, inputs = pair(tiny(SOUND["llama"]))[1], batch(3)
    with pytest.raises((TypeError, ValueError, AttributeError, RuntimeError)):
        model(**inputs | {"position_ids": "no tensor"}, fused_lm_head=True)
    assert not model.get_output_embeddings()._forward_pre_hooks
