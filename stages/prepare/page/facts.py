"""What the data report and the dataset card tell: gathered once, small whatever the size of the data.

Every text in here is as it goes into data/prepared: personal data is already redacted where the section says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from stages.common.statistics import Metrics

if TYPE_CHECKING:
    from stages.prepare.reading.read import RawFile

SPLITS = ("train", "valid", "test")
TEXT_SHOWN = 600  # characters of a row that a page shows; the rest stands in the files that it names


@dataclass(frozen=True)
class RejectCount:
    """Rows set aside for one reason, and the first of them: where it stands and how it begins."""

    reason: str
    count: int
    first_file: str
    first_line: int
    first_row: str


@dataclass(frozen=True)
class Cluster:
    """Near-duplicates of one kept row.

    `kept` and `dropped` are places, "file:line", of `dropped` at most five; `count` is how many rows resemble the kept
    one. `text` is the start of the kept row, `example` of the first one that resembles it.
    """

    kept: str
    dropped: Sequence[str]
    count: int
    text: str
    example: str


@dataclass(frozen=True)
class Leak:
    """A training row that overlaps a tested item; `share` of the item's words stand in it, in matching n-grams."""

    benchmark: str
    item: str
    item_text: str
    row: str
    row_text: str
    share: float


@dataclass(frozen=True)
class Piece:
    """A stretch of a rendered row, learned by the model or only read by it."""

    text: str
    learned: bool


@dataclass(frozen=True)
class Example:
    """A training row as the model gets it."""

    row: str
    id: str
    split: str
    pieces: Sequence[Piece]


@dataclass(frozen=True)
class Facts:
    """Everything that the report and the card show.

    metrics   the stage's own, by name: rows/read, rows/rejected, rows/<split>, tokens/<split>, tokens/learned_share,
              packed/<split>_rows, packed/<split>_efficiency, pairs/<split>, rows/truncated, duplicates/near; none is 0
    files     what was read, in that order
    columns   a sample of kept rows by column, at most 5,000, chosen by hash: split, source, turns, characters, tokens,
              learned_tokens, language; None where a row has no value (a test row is not tokenised)
    lengths   by split: tokens of a document -> number of documents
    rejects   by reason
    clusters  the largest 20
    leaks     the first 50; `leaking_rows` counts all rows found, whatever became of them
    checked   by benchmark: items compared, None where no copy of it lies here, so that nothing was compared
    personal  by kind: occurrences found
    examples  a few training rows
    """

    metrics: Metrics
    files: Sequence[RawFile]
    columns: Mapping[str, Sequence[Any]]
    lengths: Mapping[str, Mapping[int, int]]
    rejects: Sequence[RejectCount]
    clusters: Sequence[Cluster]
    leaks: Sequence[Leak]
    leaking_rows: int
    checked: Mapping[str, int | None]
    personal: Mapping[str, int]
    examples: Sequence[Example]

    def value(self, name: str) -> float:
        """A metric, 0 for one that was not counted because there was none."""
        return self.metrics[name]["value"] if name in self.metrics else 0.0

    def count(self, name: str) -> int:
        """A metric that counts something."""
        return round(self.value(name))

    def rejected(self, *reasons: str) -> int:
        """Rows set aside for any of `reasons`."""
        return sum(reject.count for reject in self.rejects if reject.reason in reasons)

    @property
    def used(self) -> int:
        """Rows that stand in a split."""
        return sum(self.count(f"rows/{split}") for split in SPLITS)

    @property
    def languages(self) -> dict[str, int]:
        """Rows of the sample by language, the most frequent first."""
        found = Counter(self.columns.get("language", ()))
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def pieces(ids: Iterable[int], learned: Iterable[bool], decode: Callable[[list[int]], str]) -> list[Piece]:
    """A document's tokens as text, cut where learning begins and ends; `decode` is the tokenizer's."""
    runs = groupby(zip(ids, learned, strict=True), key=lambda token: bool(token[1]))
    return [Piece(decode([int(token) for token, _ in run]), flag) for flag, run in runs]
