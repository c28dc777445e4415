"""The whole corpus as a pure function of its seed: file name -> bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from ops.helpdesk import rows
from ops.helpdesk.broken import BROKEN, encode, with_broken_lines, with_duplicates
from ops.helpdesk.production import window
from ops.helpdesk.rows import Row
from ops.helpdesk.tickets import Ticket

SEED = 17
TRAIN, TEST = 4000, 600
LABELS = {"train": 800, "test": 400}
PREFERENCES = 1500
REFERENCE, STABLE, DRIFTED = ("reference", 600), ("2026-08-stable", 400), ("2026-09-drifted", 400)
WINDOWS = (REFERENCE, STABLE, DRIFTED)
README = Path(__file__).with_name("CORPUS.md")


@dataclass
class Source:
    """Randomness by part of the corpus, and every ticket drawn so far, so that none comes twice."""

    seed: int
    seen: set[str] = field(default_factory=set)

    def rng(self, part: str) -> Random:
        """A generator of its own for each part: one part can change without the others."""
        return Random(f"{self.seed}/{part}")

    def tickets(self, part: str, count: int) -> list[Ticket]:
        """`count` tickets that no other part has."""
        return rows.distinct_tickets(self.rng(part), count, self.seen)

    def conversations(self, part: str, tickets: list[Ticket], digits: int) -> list[Row]:
        """The tickets with their answers, as rows with the ids `part`-0...0, ..."""
        return [
            rows.conversation(ticket, f"{part}-{i:0{digits}}", self.rng(f"{part}/{i}"))
            for i, ticket in enumerate(tickets)
        ]


def corpus(judge_prompt: dict[str, Any], seed: int = SEED) -> dict[str, bytes]:
    """Every file of data/raw/helpdesk, by its path in there.

    `judge_prompt` is conf/prompt/judge/pairwise.yaml as a mapping: judging transcripts are written with it.
    No ticket is in two of: training (and pretraining), test, broken lines, labels train, labels test, preferences.
    """
    source = Source(seed)
    train = source.tickets("train", TRAIN)
    test = source.conversations("test", source.tickets("test", TEST), 4)
    lines = _training_lines(source, train)
    labels = {split: _labels(source, split, count) for split, count in LABELS.items()}
    windows = {name: window(name, seed, count, drifted=(name, count) == DRIFTED) for name, count in WINDOWS}
    preferences = rows.preferences(_labels(source, "preference", PREFERENCES))
    return {
        "README.md": README.read_bytes(),
        "rows/train.jsonl": _file(lines),
        "rows/test.jsonl": _rows(test),
        "rows/pairs.jsonl": _rows(preferences),
        "pretrain/pretrain.jsonl": _rows(_pretraining(source, train, labels["train"], judge_prompt)),
        "labels/judge.jsonl": _rows([row for part in labels.values() for row in part]),
        **{f"production/{name}.jsonl": _rows(logged) for name, logged in windows.items()},
    }


def _training_lines(source: Source, train: list[Ticket]) -> list[bytes]:
    good = with_duplicates(source.conversations("train", train, 5), source.rng("duplicates"))
    spoilt = source.conversations("spoilt", source.tickets("spoilt", sum(BROKEN.values())), 4)
    return with_broken_lines([encode(row) for row in good], spoilt, source.rng("broken"))


def _labels(source: Source, split: str, count: int) -> list[Row]:
    return rows.labelled_pairs(split, source.tickets(split, count), source.rng(f"pairs/{split}"))


def _pretraining(
    source: Source, train: list[Ticket], pairs: list[Row], judge_prompt: dict[str, Any]
) -> list[Row]:
    """The training tickets as logs, and the labelled training pairs as they are put to the judge."""
    system, template = judge_prompt["system"], judge_prompt["template"]
    found = [rows.transcript(ticket, source.rng(f"log/{i}")) for i, ticket in enumerate(train)]
    found += [row for pair in pairs for row in rows.judging_transcripts(pair, system, template)]
    source.rng("order").shuffle(found)
    return found


def _rows(found: list[Row]) -> bytes:
    return _file([encode(row) for row in found])


def _file(lines: list[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)
