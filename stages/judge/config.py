"""Section `judge`: who judges, by which prompt, and how far it is trusted."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Backend(Enum):
    """Who reads the answers."""

    local = "a causal model in a folder"
    openai = "an OpenAI-compatible HTTP endpoint"


@dataclass
class JudgePrompt:
    """conf/prompt/judge/<name>.yaml: the template names {question}, {answer_a} and {answer_b}."""

    name: str
    system: str
    template: str


@dataclass
class Judge:
    """Everything that decides a verdict."""

    seed: int
    threads: int
    name: str
    backend: Backend
    model: str
    endpoint: str
    prompt: JudgePrompt
    labels: str
    task: str
    limit: int
    canaries: int
    batch_size: int
    max_tokens: int
    max_malformed_share: float
