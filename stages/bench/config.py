"""Section `bench`: which tasks, on how many items, asked how."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from stages.common.prompt import Prompt


class Precision(Enum):
    """What the weights are held in, and what is computed in."""

    fp32 = "float32"
    bf16 = "bfloat16"
    int8 = "linear layers in 8 bits by bitsandbytes, all else in float32"
    nf4 = "linear layers in 4 bits by bitsandbytes, all else in float32"


QUANTISED = (Precision.int8, Precision.nf4)


class Backend(Enum):
    """What computes: our engine, or a model class of lm-eval's by its name there."""

    own = ""
    hf = "hf"
    vllm = "vllm"
    sglang = "sglang"
    completions = "local-completions"  # any OpenAI-compatible server with `echo` and `logprobs`
    chat = "local-chat-completions"  # any OpenAI-compatible chat endpoint: generated answers alone


# Where the server decides what it computes in; the end of its address in the field's standard
ENDPOINTS = {Backend.completions: "completions", Backend.chat: "chat/completions"}


@dataclass
class Variant:
    """One model to score: a folder, and what it is a copy of where `ops.variant` brought it (else empty)."""

    path: str
    revision: str
    precision: Precision
    backend: Backend
    model_args: dict[str, Any]  # what lm-eval's class of the back end takes besides


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
    fewshot: int | None  # None: each task's own number
    chat_template: bool
    slices: list[str]
    code: Code
