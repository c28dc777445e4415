"""Section `bench`: which tasks, on how many items, asked how."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from stages.common.prompt import Prompt


class Precision(Enum):
    """Arithmetic of the forward pass."""

    fp32 = "float32"
    bf16 = "bfloat16"


@dataclass
class Variant:
    """One model to score: a folder, or a hub id at a pinned revision."""

    path: str
    revision: str
    precision: Precision


@dataclass
class Code:
    """Whether programs that the model writes are executed, in the sandbox, and what each of them may use.

    `wall` and `cpu` are seconds, `memory` is address space in bytes; `file_bytes` is also what it may have in /tmp.
    """

    run: bool
    wall: float
    cpu: int
    memory: int
    processes: int
    file_bytes: int


@dataclass
class Bench:
    """Everything but the variant that decides a result."""

    seed: int
    threads: int
    name: str
    tasks: list[str]
    limit: int
    batch_size: int
    batch_tokens: int
    prompt: Prompt
    fewshot: int
    chat_template: bool
    slices: list[str]
    code: Code
