"""A section `finetune` to change one value of, and adapters that do something without a training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from stages.finetune.config import (
    Finetune,
    Init,
    Method,
    MethodConfig,
    Objective,
    Precision,
    Preference,
    PreferenceLoss,
    Scheduler,
    Strategy,
    Weights,
    World,
)
from stages.finetune.model import load

FULL = MethodConfig("full", Method.full, 0, 0, 0.0, [], False, False, Weights.fp32, True)
LORA = MethodConfig(
    "lora", Method.lora, 4, 8, 0.0, ["v_proj", "down_proj", "q_proj"], False, False, Weights.fp32, True
)
EVERY_LAYER = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTERS = {
    "lora": LORA,
    "dora": replace(LORA, name="dora", dora=True),
    "rslora": replace(LORA, name="rslora", rslora=True),
}


def section(method: MethodConfig = FULL, **changes: Any) -> Finetune:
    """The section with some values changed; one process, one thread."""
    values: dict[str, Any] = {
        "seed": 3, "threads": 1, "method": method, "world": World("one", 1, 1, Strategy.ddp),
        "objective": Objective.sft, "preference": Preference(PreferenceLoss.sigmoid, 0.1), "init": Init.base,
        "precision": Precision.fp32, "max_steps": 12, "epochs": None, "batch_size": 2, "gradient_accumulation": 1,
        "gradient_checkpointing": False, "row_length": 64, "learning_rate": 0.01, "scheduler": Scheduler.cosine,
        "warmup_steps": 1, "weight_decay": 0.0, "max_grad_norm": 1.0, "eval_every": 6, "keep_best": False,
        "patience": 0, "samples": 1, "sample_tokens": 4,
    }  # fmt: skip
    return Finetune(**(values | changes))


def trained_adapter(cfg: Finetune, base: Path, folder: Path) -> Path:
    """What training leaves of an adapter: save_pretrained() of one whose every part has moved from its start."""
    import torch

    model = load(cfg, base)
    torch.manual_seed(11)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data += 0.1 * torch.randn_like(weight)
    model.save_pretrained(folder)
    return folder
