"""finetune: what each method trains, from which weights, and what is refused before any work."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from stages.common.files import read_json, tree_digest, write_json
from stages.finetune.config import Finetune, Init, Objective, Precision, Strategy, Weights, World
from stages.finetune.model import check, load
from stages.finetune.outs import load_out, write_out
from tests.stages.finetune_section import ADAPTERS, FULL, LORA, section

needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="no bitsandbytes: pip install -r requirements-qlora.txt"
)


@pytest.fixture
def base(tmp_path: Path, tiny_model: Path) -> Path:
    """A base to break."""
    return Path(shutil.copytree(tiny_model, tmp_path / "base"))


def trainable(model: Any) -> dict[str, Any]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def test_full_trains_every_weight_in_fp32(tiny_model: Path) -> None:
    import torch

    cfg = section(FULL)
    check(cfg, tiny_model)
    model = load(cfg, tiny_model)
    assert len(trainable(model)) == len(list(model.parameters()))
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("weights", [Weights.fp32, Weights.bf16], ids=lambda weights: weights.name)
def test_adapters_train_in_fp32_and_start_as_the_base(tiny_model: Path, name: str, weights: Weights) -> None:
    import torch

    cfg = section(replace(ADAPTERS[name], weights=weights))
    check(cfg, tiny_model)
    model = load(cfg, tiny_model).eval()
    learned = trainable(model)
    kinds = {part for key in learned for part in key.split(".") if part.startswith("lora_")}
    assert kinds == {"lora_A", "lora_B"} | ({"lora_magnitude_vector"} if name == "dora" else set())
    assert {key.split(".lora_", maxsplit=1)[0].rpartition(".")[2] for key in learned} == set(LORA.targets)
    assert {weight.dtype for weight in learned.values()} == {torch.float32}
    frozen = {weight.dtype for weight in model.parameters() if not weight.requires_grad}
    assert frozen == {getattr(torch, weights.value)}
    scale = model.base_model.model.model.layers[0].self_attn.q_proj.scaling["default"]
    assert scale == (8 / 4**0.5 if name == "rslora" else 8 / 4)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad(), model.disable_adapter():
        before = model(input_ids=ids).logits
    with torch.no_grad():
        moved = (model(input_ids=ids).logits - before).abs().max() / before.abs().max()
    rounded = (
        name == "dora" and weights is Weights.bf16
    )  # DoRA computes the length of each frozen row, in bf16
    assert moved < (0.05 if rounded else 1e-5)


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_starts_from_its_seed(tiny_model: Path, name: str) -> None:
    import torch

    torch.rand(7)
    one, same, other = (trainable(load(section(ADAPTERS[name], seed=seed), tiny_model)) for seed in (3, 3, 4))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_a_random_start_has_the_bases_shape_and_none_of_its_weights(tiny_model: Path) -> None:
    import torch

    base, one, same = (
        load(section(FULL, init=init), tiny_model).state_dict()
        for init in (Init.base, Init.random, Init.random)
    )
    assert {key: value.shape for key, value in one.items()} == {
        key: value.shape for key, value in base.items()
    }
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["lm_head.weight"], base["lm_head.weight"])


DPO = {"objective": Objective.dpo}
REFUSED: list[tuple[Finetune, str]] = [
    (section(replace(FULL, weights=Weights.bf16)), "method.weights=bf16 with method.kind=full .* only a frozen base"),
    (section(replace(FULL, dora=True)), "method.dora=True with method.kind=full .* take method=lora"),
    (section(replace(FULL, merge=False)), "method.merge=False with method.kind=full"),
    *((section(replace(FULL, **{name: value})), f"method.{name}={said} with method.kind=full .* take method=lora")
        for name, value, said in (
            ("rank", 8, 8), ("alpha", 8, 8), ("dropout", 0.1, 0.1), ("targets", ["a"], r"\['a'\]"),
        )),
    (section(replace(LORA, rank=0)), "method.rank=0, .* rank and alpha are 1 or more"),
    (section(replace(LORA, dropout=1.0)), "dropout=1.0 .* dropout is in"),
    (section(replace(LORA, targets=[])), "method.targets is empty"),
    (section(replace(LORA, targets=["q_proj", "qkv_proj"])), r"\['qkv_proj'\] .* LlamaForCausalLM has .*'q_proj'"),
    (section(replace(LORA, targets=["mlp"])), r"\['mlp'\] .* do not fit"),
    (section(replace(LORA, merge=False), init=Init.random), "init=random with method.merge=false: the random weights"),
    (section(replace(LORA, weights=Weights.nf4), init=Init.random), "init=random with method.weights=nf4"),
    (section(init=Init.random, **DPO), "init=random with finetune.objective=dpo"),
    (section(replace(LORA, dropout=0.1), **DPO), "method.dropout=0.1 .* compared without dropout"),
    (section(**DPO, preference=replace(section().preference, beta=0.0)), "preference.beta=0.0 .* above 0"),
    (section(replace(LORA, weights=Weights.nf4), world=World("w", 1, 2, Strategy.fsdp)), "fsdp cannot shard .*nf4"),
    (section(batch_size=6, world=World("w", 2, 2, Strategy.ddp)), "batch_size=6 is not divisible by 4 processes"),
    (section(batch_size=6, gradient_accumulation=4), "not divisible by 1 processes .* gradient_accumulation=4"),
    (section(world=World("w", 1, 0, Strategy.ddp)), "finetune.world.processes=0 .* give 1 or more"),
    (section(world=World("w", 1, 1, Strategy.fsdp)), "fsdp .*w.yaml\\) with one process: .* world.strategy=ddp"),
    *((section(**{name: -1}), f"finetune.{name}=-1 .* give [01] or more") for name in (
        "max_steps", "batch_size", "gradient_accumulation", "warmup_steps", "eval_every", "patience", "samples",
    )),
    (section(max_steps=0), "finetune.max_steps=0"),
    (section(sample_tokens=0), "finetune.sample_tokens=0 .* give 1 or more"),
    (section(max_steps=None, epochs=0.0), "finetune.epochs=0.0 .* above 0"),
    (section(learning_rate=float("nan")), "finetune.learning_rate=nan"),
]  # fmt: skip


@pytest.mark.parametrize(("cfg", "said"), REFUSED, ids=[said[:40] for _, said in REFUSED])
def test_what_cannot_be_meant_is_one_clear_line(tiny_model: Path, cfg: Finetune, said: str) -> None:
    with pytest.raises(ValueError, match=said) as refusal:
        check(cfg, tiny_model)
    assert "\n" not in str(refusal.value)


def test_no_tokens_are_fine_where_nothing_is_sampled(tiny_model: Path) -> None:
    check(section(samples=0, sample_tokens=0), tiny_model)


def an_adapter(base: Path) -> None:
    write_json(base / "adapter_config.json", {})


def no_tokenizer(base: Path) -> None:
    for file in base.glob("tokenizer*"):
        file.unlink()


def quantised(base: Path) -> None:
    write_json(base / "config.json", read_json(base / "config.json") | {"quantization_config": {"bits": 4}})


def not_causal(base: Path) -> None:
    write_json(base / "config.json", {"model_type": "vit"})


BASES: list[tuple[Callable[[Path], None], str]] = [
    (an_adapter, "holds an adapter .*: merge it into its base"),
    (no_tokenizer, "has no tokenizer: run `dvc repro base`"),
    (lambda base: (base / "config.json").unlink(), "has no config.json: run `dvc repro base`"),
    (quantised, "is quantised already"),
    (not_causal, r"\(vit\) is no causal language model"),
]


@pytest.mark.parametrize(("break_it", "said"), BASES, ids=[said[:20] for _, said in BASES])
def test_a_base_that_cannot_be_trained_is_one_clear_line(
    base: Path, break_it: Callable[[Path], None], said: str
) -> None:
    break_it(base)
    with pytest.raises(ValueError, match=said) as refusal:
        check(section(), base)
    assert "\n" not in str(refusal.value)


def test_a_tied_matrix_takes_no_adapter_that_is_to_be_merged(base: Path) -> None:
    write_json(base / "config.json", read_json(base / "config.json") | {"tie_word_embeddings": True})
    method = replace(LORA, targets=["q_proj", "embed_tokens"])
    with pytest.raises(ValueError, match=r"\['model.embed_tokens'\] .* share one matrix"):
        check(section(method), base)
    check(section(replace(method, merge=False)), base)
    check(section(LORA), base)


def test_an_adapter_on_the_projection_would_never_be_trained(base: Path) -> None:
    method = replace(LORA, targets=["q_proj", "lm_head"], merge=False)
    with pytest.raises(ValueError, match=r"\['lm_head'\] .* never be trained; leave it out"):
        check(section(method), base)


@pytest.mark.parametrize("weights", [Weights.int8, Weights.nf4])
def test_fewer_bits_without_the_library_name_what_to_install(
    tiny_model: Path, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        sys.modules, "bitsandbytes", None
    )  # Python's own way to say that a module is not there
    with pytest.raises(
        ValueError, match=f"{weights.name} .* needs bitsandbytes: .*requirements-qlora.txt"
    ) as refusal:
        check(section(replace(LORA, weights=weights)), tiny_model)
    assert "\n" not in str(refusal.value)


@needs_bitsandbytes
@pytest.mark.parametrize(
    ("weights", "name"), [(Weights.int8, "lora"), (Weights.nf4, "lora"), (Weights.nf4, "dora")]
)
def test_fewer_bits_train_on_this_processor_and_merge_into_the_unquantised_base(
    tiny_model: Path, tmp_path: Path, weights: Weights, name: str
) -> None:
    """Each step by hand lowers the loss; twice the same bytes; the merged model has learned too, past its rounding."""
    cfg = section(replace(ADAPTERS[name], weights=weights))
    check(cfg, tiny_model)
    losses = [steps_by_hand(cfg, tiny_model, tmp_path / each) for each in ("one", "two")]
    assert losses[0] == sorted(losses[0], reverse=True) and losses[0] == losses[1]
    assert tree_digest(tmp_path / "one") == tree_digest(tmp_path / "two")
    write_out(cfg, tiny_model, tmp_path / "one", tmp_path / "tuned")
    before, after = (loss_of(load_out(folder, tiny_model)) for folder in (tiny_model, tmp_path / "tuned"))
    assert after < before
    assert read_json(tmp_path / "tuned/config.json").get("quantization_config") is None


@needs_bitsandbytes
def test_an_evaluation_leaves_frozen_weights_of_four_bits_as_they_were(tiny_model: Path) -> None:
    """bitsandbytes repacks them for evaluation on processors with AVX512-BF16, and rounds."""
    import torch

    model = load(section(replace(LORA, weights=Weights.nf4)), tiny_model)
    with torch.no_grad():
        before = model.train()(input_ids=tokens()).logits
        model.eval()(input_ids=tokens())
        assert torch.equal(model.train()(input_ids=tokens()).logits, before)


@needs_bitsandbytes
def test_what_the_library_fails_at_is_one_clear_line(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT 0.21.2 loses the scales of int8 weights on the CPU when it sets DoRA up."""
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        ValueError, match=r"int8 .* with dora=True does not work on .*cpu \(.*\): "
    ) as refusal:
        check(section(replace(ADAPTERS["dora"], weights=Weights.int8)), tiny_model)
    assert "\n" not in str(refusal.value)


def steps_by_hand(cfg: Finetune, base: Path, folder: Path) -> list[float]:
    import torch

    model = load(cfg, base)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj.base_layer
    assert layer.weight.dtype == (torch.uint8 if cfg.method.weights is Weights.nf4 else torch.int8)
    learned = trainable(model)
    assert {weight.dtype for weight in learned.values()} == {torch.float32}
    optimizer = torch.optim.SGD(learned.values(), lr=0.01)
    losses = []
    for _ in range(12):
        loss = model(input_ids=tokens(), labels=tokens()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    return losses


def tokens() -> Any:
    import torch

    return torch.arange(5, 45)[None]


def loss_of(model: Any) -> float:
    import torch

    with torch.no_grad():
        return float(model(input_ids=tokens(), labels=tokens()).loss)


@pytest.mark.parametrize("flag", ["", "avx512_bf16", "amx_bf16"])
def test_bf16_where_the_processor_has_none_is_said_once(
    tiny_model: Path, flag: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, flag: True})
    with caplog.at_level(logging.WARNING, "lathe"):
        check(section(precision=Precision.fp32), tiny_model)
        assert caplog.messages == []
        check(section(precision=Precision.bf16), tiny_model)
    assert len(caplog.messages) == (0 if flag else 1)
    assert flag or "take fp32" in caplog.messages[0]


def test_weights_in_few_bits_say_what_they_compute_in(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import torch

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setattr("stages.finetune.model._check_bitsandbytes", lambda _: None)
    with caplog.at_level(logging.WARNING, "lathe"):
        check(section(replace(LORA, weights=Weights.bf16), precision=Precision.bf16), tiny_model)
        assert caplog.messages == []
        check(section(replace(LORA, weights=Weights.bf16)), tiny_model)
        check(section(replace(LORA, weights=Weights.nf4)), tiny_model)
    first, second = caplog.messages
    assert "layers compute in bf16 whatever finetune.precision=fp32 says" in first
    assert "method.weights=nf4 (conf/method/lora.yaml) on a CPU: it saves memory and takes longer" in second
