"""Section `prepare`: which rows come in and what a good row is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from stages.common.prompt import Prompt


class Source(Enum):
    """Where rows come from."""

    jsonl = "JSON lines in data/raw/<name>"
    hub = "a hub dataset at a pinned revision; train and test are its split names"


class Format(Enum):
    """The shape of a row."""

    messages = "{messages: [{role, content}, ...]}, as OpenAI's"
    instruction = "columns for instruction, optional input, and response"


@dataclass
class Columns:
    """Names of an instruction row's columns ("" where there is none)."""

    instruction: str
    input: str
    response: str


@dataclass
class Data:
    """The dataset as a person names it in conf/data/<name>.yaml."""

    name: str
    note: str
    path: str
    source: Source
    format: Format
    columns: Columns
    id: str
    subset: str
    revision: str
    train: str
    test: str


@dataclass
class Prepare:
    """Everything that decides the bytes of data/prepared."""

    seed: int
    data: Data
    prompt: Prompt
    examples_share: float
    max_length: int
    valid_share: float
    test_share: float
    max_reject_share: float
