"""Section `base`: which base model, and how the embedded one is made."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Source(Enum):
    """Where the base model comes from."""

    tiny = "made here from the data's pretraining file"
    hub = "a hub repository at a pinned revision"
    local = "a folder on this machine"


@dataclass
class Tiny:
    """Shape and pretraining of the embedded Llama-architecture model."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    context: int
    steps: int
    batch_size: int
    row_length: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float


@dataclass
class Model:
    """The model as a person names it in conf/model/<name>.yaml."""

    name: str
    family: str
    source: Source
    id: str
    revision: str
    trust_remote_code: bool  # true is refused: no model's own code is run here
    tiny: Tiny | None  # only where the source is tiny


@dataclass
class Base:
    """Everything that decides the bytes of models/base."""

    seed: int
    threads: int
    model: Model
    corpus: str
