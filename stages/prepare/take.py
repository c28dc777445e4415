"""The pass over the raw rows: which are kept, in which split, and why the others are not."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from stages.prepare.config import Prepare
from stages.prepare.read import Record, read
from stages.prepare.split import Split, split_of
from stages.prepare.validate import Conversation, Reject, conversation

# Rows that are fine in themselves: they do not speak against the data's quality.
HARMLESS = ("duplicate", "in_test")


@dataclass
class Taken:
    """What has been read so far: kept rows by split, rejected rows, and the digests already seen."""

    read: int = 0
    rows: dict[Split, list[Conversation]] = field(default_factory=lambda: {split: [] for split in Split})
    rejects: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    ids: set[str] = field(default_factory=set)
    test_questions: set[str] = field(default_factory=set)

    def reject(self, record: Record, reason: str) -> None:
        """Count a row out, with where it stood."""
        self.rejects.append({"file": record.file, "line": record.line, "reason": reason, "row": record.raw})


def take(cfg: Prepare) -> Taken:
    """Read all rows; the test file first, so that a training row that repeats a test item is seen as such."""
    taken = Taken()
    if cfg.data.test:
        for record in read(cfg.data, cfg.data.test):
            _take(cfg, taken, record, Split.test)
    for record in read(cfg.data, cfg.data.train):
        _take(cfg, taken, record, None)
    return taken


def check(cfg: Prepare, taken: Taken) -> None:
    """Stop where too much is rejected, or nothing is left. Raises ValueError that names the dominant reason."""
    counts = Counter(row["reason"] for row in taken.rejects if row["reason"] not in HARMLESS)
    if taken.read and counts.total() / taken.read > cfg.max_reject_share:
        reason, count = counts.most_common(1)[0]
        where = next(row for row in taken.rejects if row["reason"] == reason)
        raise ValueError(
            f"{counts.total()} of {taken.read} rows of {cfg.data.id or cfg.data.path} are rejected, over "
            f"prepare.max_reject_share={cfg.max_reject_share}; most often {reason} ({count}, first at "
            f"{where['file']}:{where['line']}): mend the rows, or conf/data if it names the wrong columns"
        )
    for split in (Split.train, Split.test):
        if not taken.rows[split]:
            source = cfg.data.id or cfg.data.path
            raise ValueError(
                f"no {split.value} row is left of {taken.read} read from {source}: see conf/data"
            )


def _take(cfg: Prepare, taken: Taken, record: Record, split: Split | None) -> None:
    taken.read += 1
    try:
        item = conversation(record, cfg.data)
        where = split or split_of(item.question, cfg)
        _check_new(taken, item, where)
    except Reject as reason:
        taken.reject(record, str(reason))
        return
    taken.keys.add(item.key)
    taken.ids.add(item.id)
    if where is Split.test:
        taken.test_questions.add(item.question)
    taken.rows[where].append(item)


def _check_new(taken: Taken, item: Conversation, where: Split) -> None:
    if item.key in taken.keys:
        raise Reject("duplicate")
    if item.id in taken.ids:
        raise Reject("duplicate_id")
    if where is not Split.test and item.question in taken.test_questions:
        raise Reject("in_test")
