"""Section `finetune`: how the base becomes the tuned model."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Method(Enum):
    """What is trained."""

    full = "every weight"
    lora = "low-rank adapters, merged into the base at the end"


class Precision(Enum):
    """Arithmetic of the forward and backward pass; the optimizer stays in fp32."""

    fp32 = "float32"
    bf16 = "bfloat16 autocast"


class Init(Enum):
    """Where the weights start."""

    base = "from models/base"
    random = "the base's architecture with fresh weights: the ablation that shows what pretraining gave"


@dataclass
class MethodConfig:
    """conf/method/<name>.yaml."""

    name: str
    kind: Method
    rank: int
    alpha: int
    dropout: float
    targets: list[str]


@dataclass
class Finetune:
    """Everything that decides the bytes of models/tuned."""

    seed: int
    threads: int
    method: MethodConfig
    init: Init
    precision: Precision
    max_steps: int
    batch_size: int
    gradient_accumulation: int
    row_length: int
    learning_rate: float
    scheduler: str
    warmup_steps: int
    weight_decay: float
    max_grad_norm: float
    eval_every: int
    samples: int
    sample_tokens: int
