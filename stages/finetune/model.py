"""The model that training starts from: every weight in fp32, or adapters on a frozen base in as few bits as asked."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from stages.common.adapter import CONFIG
from stages.common.quantised import INSTALL, check_quantised, layer, load_quantised
from stages.finetune.checks import QUANTISED, check_values
from stages.finetune.config import Finetune, Init, Method, MethodConfig, Precision, Weights

log = logging.getLogger("lathe")


def check(cfg: Finetune, base: Path) -> None:
    """Refuse, before any work, what cannot be trained (ValueError, one line); warn of what is only slow."""
    check_values(cfg)
    skeleton = _skeleton(base)
    if cfg.method.kind is Method.lora:
        _check_targets(cfg.method, skeleton)
    if cfg.method.weights in QUANTISED:
        _check_bitsandbytes(cfg.method)
        _warn_of_slow_bits(cfg.method)
    if cfg.precision is Precision.bf16:
        _warn_of_slow_bf16("finetune.precision=bf16")
    elif cfg.method.weights is Weights.bf16:
        asked = f"method.weights=bf16 (conf/method/{cfg.method.name}.yaml)"
        log.warning(
            "%s: layers compute in bf16 whatever finetune.precision=%s says", asked, cfg.precision.name
        )
        _warn_of_slow_bf16(asked)


def load(cfg: Finetune, base: Path) -> Any:
    """The starting model, on the CPU (int8 and nf4: on this process's device): gradients on for what is trained.

    Adapters are in fp32 and start from cfg.seed, in each process the same.
    """
    model = start(cfg, base, cfg.method.weights)
    return _with_adapters(cfg, model) if cfg.method.kind is Method.lora else model


def start(cfg: Finetune, base: Path, weights: Weights) -> Any:
    """The base, or for init=random its architecture with weights from cfg.seed, held in `weights`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if weights in QUANTISED:
        return _quantised(cfg, base, weights)
    dtype = torch.bfloat16 if weights is Weights.bf16 else torch.float32
    if cfg.init is Init.base:
        return AutoModelForCausalLM.from_pretrained(base, dtype=dtype, use_safetensors=True)
    torch.manual_seed(cfg.seed)
    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base), dtype=dtype)


def _quantised(cfg: Finetune, base: Path, weights: Weights) -> Any:
    import torch
    from peft import prepare_model_for_kbit_training

    compute = torch.bfloat16 if cfg.precision is Precision.bf16 else torch.float32
    model = load_quantised(base, compute, nf4=weights is Weights.nf4)
    # Norms and embeddings to fp32; the trainer decides about gradient checkpointing.
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def _with_adapters(cfg: Finetune, model: Any) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model

    method = cfg.method
    config = LoraConfig(
        r=method.rank,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        target_modules=sorted(method.targets),
        use_dora=method.dora,
        use_rslora=method.rslora,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(cfg.seed)
    return get_peft_model(model, config)


def _skeleton(base: Path) -> Any:
    """The base's architecture without weights. Raises ValueError where `base` cannot be trained."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if (base / CONFIG).is_file():
        raise ValueError(
            f"{base} holds an adapter ({CONFIG}): merge it into its base and name the result in conf/model"
        )
    if not (base / "config.json").is_file() or not any(base.glob("tokenizer*")):
        missing = "tokenizer" if (base / "config.json").is_file() else "config.json"
        raise ValueError(f"{base} has no {missing}: run `dvc repro base`")
    config = AutoConfig.from_pretrained(base)
    if getattr(config, "quantization_config", None):
        raise ValueError(
            f"{base} is quantised already (config.json, quantization_config): name its unquantised form in conf/model"
        )
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except ValueError as error:
        raise ValueError(
            f"{base} ({config.model_type}) is no causal language model that transformers knows: name another in "
            "conf/model"
        ) from error


def _check_targets(method: MethodConfig, skeleton: Any) -> None:
    """Every target has to match: PEFT is content with one, and trains less than was asked."""
    layers = _layers(skeleton)
    unknown = [
        target
        for target in sorted(method.targets)
        if not any(name == target or name.endswith(f".{target}") for name in layers)
    ]
    there = sorted({name.rpartition(".")[2] for name in layers})
    if unknown:
        raise ValueError(
            f"method.targets {unknown} (conf/method/{method.name}.yaml) do not fit the base model: "
            f"{type(skeleton).__name__} has {there}"
        )
    ends = [name for name in layers if skeleton.get_submodule(name) is skeleton.get_output_embeddings()]
    if chosen := [name for name in ends if name.rpartition(".")[2] in method.targets]:
        raise ValueError(
            f"method.targets {chosen} (conf/method/{method.name}.yaml): the loss is computed from the projection's own "
            "weight, so that an adapter on it would never be trained; leave it out"
        )
    tied = [name for name in _tied(skeleton) if name.rpartition(".")[2] in method.targets]
    if tied and method.merge:
        raise ValueError(
            f"method.targets {tied} (conf/method/{method.name}.yaml) share one matrix in this model, so that an "
            "adapter on one cannot be merged: leave it out, or set method.merge=false"
        )


def _layers(skeleton: Any) -> list[str]:
    """Names of the modules that can get an adapter."""
    import torch
    from transformers.pytorch_utils import Conv1D

    kinds = (torch.nn.Linear, torch.nn.Embedding, Conv1D)
    return [name for name, module in skeleton.named_modules() if isinstance(module, kinds)]


def _tied(skeleton: Any) -> list[str]:
    """Names of input and output embeddings where they are one matrix."""
    if not skeleton.config.get_text_config().tie_word_embeddings:
        return []
    ends = (skeleton.get_input_embeddings(), skeleton.get_output_embeddings())
    return [name for name, module in skeleton.named_modules() if any(module is end for end in ends)]


def _check_bitsandbytes(method: MethodConfig) -> None:
    """Train one small layer for two steps: PEFT has its part in whether that works."""
    asked = f"method.weights={method.weights.name} (conf/method/{method.name}.yaml)"
    remedy = f"{INSTALL}, or take method.weights=bf16"
    check_quantised(asked, f" with dora={method.dora}", remedy, lambda device: _try_layer(method, device))


def _try_layer(method: MethodConfig, device: str) -> None:
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    frozen = torch.nn.Sequential(layer(nf4=method.weights is Weights.nf4)).requires_grad_(False).to(device)
    model = inject_adapter_in_model(LoraConfig(r=1, target_modules=["0"], use_dora=method.dora), frozen).to(
        device
    )
    for _ in range(2):  # what is lost in a step is missed in the next
        model(torch.ones(1, 64, device=device)).sum().backward()


def _warn_of_slow_bits(method: MethodConfig) -> None:
    import torch

    if not torch.cuda.is_available():
        log.warning(
            "method.weights=%s (conf/method/%s.yaml) on a CPU: it saves memory and takes longer than fp32, each layer "
            "is unpacked whenever it is used",
            method.weights.name,
            method.name,
        )


def _warn_of_slow_bf16(asked: str) -> None:
    import torch

    if torch.cuda.is_available():
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            log.warning("%s: %s has none and emulates it", asked, torch.cuda.get_device_name())
        return
    flags = torch.cpu.get_capabilities()
    if not any(flags.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")):  # the last is ARM's
        log.warning(
            "%s: this processor has neither avx512_bf16 nor amx_bf16 and takes about 3 times as long as in fp32 with "
            "AVX-512, 22 times with AVX2: take fp32",
            asked,
        )
