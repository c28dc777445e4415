"""Section `finetune`: how the base becomes the tuned model."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Method(Enum):
    """What is trained."""

    full = "every weight"
    lora = "low-rank adapters"


class Objective(Enum):
    """What is learned from."""

    sft = "the assistant's tokens of the packed rows"
    dpo = "preference pairs: the chosen answer against the rejected one (arXiv:2305.18290)"


class PreferenceLoss(Enum):
    """TRL's name of the preference loss."""

    sigmoid = "DPO, arXiv:2305.18290"
    ipo = "IPO, arXiv:2310.12036"
    hinge = "SLiC, arXiv:2305.10425"


class Precision(Enum):
    """Arithmetic of the forward and backward pass; the optimizer stays in fp32."""

    fp32 = "float32"
    bf16 = "bfloat16 autocast"


class Weights(Enum):
    """What the base's weights are held in; only frozen ones may be in less than fp32."""

    fp32 = "float32"
    bf16 = "bfloat16"
    int8 = "8 bits, bitsandbytes"
    nf4 = "4 bits, bitsandbytes: QLoRA (arXiv:2305.14314)"


class Strategy(Enum):
    """How several processes share the model."""

    ddp = "each process holds all of it"
    fsdp = "FSDP2: each process holds a shard of weights, gradients and optimizer state"


class Init(Enum):
    """Where the weights start."""

    base = "from models/base"
    random = "the base's architecture with fresh weights: the ablation that shows what pretraining gave"


class Scheduler(Enum):
    """How the learning rate goes after the warm-up; transformers' names, of those that need no further number."""

    constant_with_warmup = "stays"
    linear = "falls to 0 in a line"
    cosine = "falls to 0 along half a cosine"
    polynomial = "falls in a line to 1e-7"
    inverse_sqrt = "falls with the square root of the steps"


@dataclass
class MethodConfig:
    """conf/method/<name>.yaml."""

    name: str
    kind: Method
    rank: int
    alpha: int
    dropout: float
    targets: list[str]
    dora: bool
    rslora: bool
    weights: Weights
    merge: bool


@dataclass
class World:
    """conf/world/<name>.yaml: the processes that train together; their number is part of the result."""

    name: str
    nodes: int
    processes: int
    strategy: Strategy


@dataclass
class Preference:
    """What only objective=dpo reads."""

    loss: PreferenceLoss
    beta: float


@dataclass
class Finetune:
    """Everything that decides the bytes of models/tuned."""

    seed: int
    threads: int
    method: MethodConfig
    world: World
    objective: Objective
    preference: Preference
    init: Init
    precision: Precision
    max_steps: int | None
    epochs: float | None
    batch_size: int
    gradient_accumulation: int
    gradient_checkpointing: bool
    row_length: int
    learning_rate: float
    scheduler: Scheduler
    warmup_steps: int
    weight_decay: float
    max_grad_norm: float
    eval_every: int
    keep_best: bool
    patience: int
    samples: int
    sample_tokens: int
