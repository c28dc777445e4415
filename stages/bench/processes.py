"""Answers by several processes: each takes its share, and the stage finds them all kept, without the model itself.

LATHE_BENCH_PROCESSES says how many, one for each GPU say. They read the same rows and batches in the same way as one
process does, so the results are the same bytes, and their number is no parameter.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer

from stages.bench.config import Backend, Bench, Variant
from stages.bench.encoding import Pair
from stages.bench.foreign import connect
from stages.bench.load import check_source
from stages.bench.model import Scorer
from stages.bench.prompts import Prompts, Seen
from stages.bench.respondent import Respondent
from stages.common.adapter import base_of
from stages.common.agent import Team, plain, section_of, start
from stages.common.files import read_json, write_json

PROCESSES, JOB, WORKER = "LATHE_BENCH_PROCESSES", "job.json", "stages.bench.worker"


def respondent(cfg: Bench, variant: Variant, work: Path) -> Respondent:
    """The variant, ready to be asked; with several processes it has been. Raises ValueError as each of them does."""
    if variant.backend is not Backend.own:
        return connect(cfg, variant, work)
    count = processes()
    if count == 1:
        return Scorer(cfg, variant, work)
    check_source(variant)
    work.mkdir(parents=True, exist_ok=True)
    write_json(work / JOB, {"bench": plain(asdict(cfg)), "variant": plain(asdict(variant))})
    start(Team(WORKER, count), work, "the next run asks no finished task again")
    return Answered(cfg, variant, work)


def processes() -> int:
    """How many processes are asked for. Raises ValueError where that is no number, or more than there are GPUs."""
    asked = os.environ.get(PROCESSES, "1")
    if not asked.isdecimal() or int(asked) < 1:
        raise ValueError(f"{PROCESSES}={asked!r}: give a number of processes, 1 or more")
    if 0 < torch.cuda.device_count() < int(asked):
        raise ValueError(f"{PROCESSES}={asked}: this machine has {torch.cuda.device_count()} GPUs")
    return int(asked)


def read_job(work: Path) -> tuple[Bench, Variant]:
    """Section and variant that `respondent` wrote down for the processes it starts."""
    told = read_json(work / JOB)
    return section_of(Bench, told["bench"]), section_of(Variant, told["variant"])


class Answered(Respondent):
    """A variant that other processes have asked: whatever is asked of it is kept."""

    def __init__(self, cfg: Bench, variant: Variant, kept: Path) -> None:
        """Tokenizer and configuration alone."""
        folder = Path(variant.path)
        config = AutoConfig.from_pretrained(base_of(folder) or folder)
        super().__init__(variant.path, AutoTokenizer.from_pretrained(folder), config, cfg.seed, kept)

    def score(self, pairs: Sequence[Pair], seen: Seen) -> list[tuple[float, bool]]:
        """Never needed."""
        raise ValueError(f"{self.source} was asked what no process was asked: run bench with one process")

    def complete(self, asked: Prompts) -> list[str]:
        """Never needed."""
        self.score([], asked.seen)
        return []
