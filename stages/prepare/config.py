"""Section `prepare`: which rows come in and what a good row is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from stages.common.prompt import Prompt


class Format(Enum):
    """The shape of a row: one function each in formats.py."""

    messages = "a list of {role, content} turns, as OpenAI's; tools, tool calls and system turns are kept"
    sharegpt = "a list of {from, value} turns; function_call and observation turns become tool calls"
    instruction = "columns for instruction, optional input and system, and answer, as Alpaca's"
    completion = "columns for a prompt and its completion, each a text or a list of turns"
    preference = "columns for prompt, chosen and rejected, each a text or a list of turns"


class Use(Enum):
    """Which split a source's rows go to."""

    split = "by hash of the question (or of the group), so that adding rows never moves an old one"
    train = "all to training"
    valid = "all to validation"
    test = "all to the test split"


class Action(Enum):
    """What happens to a row that is found."""

    ignore = "nothing is looked for"
    report = "it is kept and counted"
    remove = "it is set aside, with its reason"


class LeakAction(Enum):
    """What happens to a training row that overlaps an item it will be tested on."""

    ignore = "nothing is looked for"
    report = "it is kept, and the item is listed as not clean"
    remove = "it is set aside"
    stop = "the stage stops"


class PersonalAction(Enum):
    """What happens to personal data."""

    ignore = "nothing is looked for"
    report = "it is counted"
    redact = "it is replaced by its kind, everywhere: [EMAIL]"


class Kind(Enum):
    """Kinds of personal data; what has a checksum is believed only if it is right."""

    email = "[EMAIL]"
    phone = "[PHONE]"
    ip = "[IP]"
    card = "[CARD]"
    iban = "[IBAN]"


class Overlong(Enum):
    """What happens to a row of more than max_length tokens."""

    reject = "it is set aside"
    truncate = "its end is cut, and it is counted"


@dataclass
class Columns:
    """Names of a row's columns and of a turn's keys; "" where the data has none."""

    id: str
    group: str
    meta: str
    tools: str
    messages: str
    role: str
    content: str
    system: str
    prompt: str
    input: str
    answer: str
    chosen: str
    rejected: str


@dataclass
class Source:
    """One source of rows, from files or from a hub; starts as conf/source/<name>.yaml.

    `files` are globs under data.path; `weight` is how often a training row is seen in an epoch (0.5: half of the
    rows, chosen by hash; 2: each twice). `hub` names a dataset, with `subset` ("" for none), `revision` (a full
    commit hash) and `part` (the hub's name of the split).
    """

    name: str
    format: Format
    columns: Columns
    roles: dict[str, str]
    use: Use
    weight: float
    files: list[str]
    hub: str
    subset: str
    revision: str
    part: str


@dataclass
class Data:
    """The dataset as a person names it in conf/data/<name>.yaml; sources are read in the order of their names."""

    name: str
    note: str
    licence: str
    path: str
    sources: dict[str, Source]


@dataclass
class Duplicates:
    """Near-duplicates: Jaccard of word n-grams at least `threshold`, found by MinHash-LSH, verified exactly."""

    action: Action
    threshold: float
    ngram: int
    permutations: int


@dataclass
class Leakage:
    """Overlap with what the model is tested on: any common n-gram of words (GPT-3, arXiv:2005.14165, app. C).

    `benchmarks` are task names; those with a folder data/benchmarks/<task>/ are compared. An item shorter than
    `ngram` words counts as one n-gram; one shorter than `min_words` only when a whole turn is equal to it.
    """

    action: LeakAction
    ngram: int
    min_words: int
    benchmarks: list[str]


@dataclass
class Personal:
    """Personal data: what is looked for, and the countries whose phone numbers may come without +."""

    action: PersonalAction
    kinds: list[Kind]
    regions: list[str]


@dataclass
class Prepare:
    """Everything that decides the bytes of data/prepared."""

    seed: int
    data: Data
    prompt: Prompt
    examples_share: float
    max_row_bytes: int
    max_length: int
    overlong: Overlong
    row_length: int
    valid_share: float
    test_share: float
    max_reject_share: float
    duplicates: Duplicates
    leakage: Leakage
    personal: Personal
