"""What the report and the card tell, gathered from the passes: counts, the first of each kind, a sample."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from stages.common.statistics import Metrics
from stages.prepare.account import Account
from stages.prepare.assemble import Documents
from stages.prepare.decide import KEPT, Decision, Fate
from stages.prepare.encode import Part
from stages.prepare.ingest import texts
from stages.prepare.overlap.items import Overlap, Tested
from stages.prepare.page.facts import TEXT_SHOWN, Cluster, Example, Facts, Leak, RejectCount, pieces
from stages.prepare.page.languages import languages
from stages.prepare.reading.read import RawFile, Shard
from stages.prepare.stored import payloads, row_lines, unpack

CLUSTERS, MEMBERS, LEAKS, EXAMPLES = 10, 5, 10, 4


class References:
    """Places and texts of rows counted over all shards."""

    def __init__(self, shards: Sequence[Shard], folders: Sequence[Path], decision: Decision) -> None:
        """Lines are read when a shard is first asked for."""
        self._shards, self._folders, self._starts = shards, folders, decision.starts
        self._lines: dict[int, NDArray[np.int64]] = {}

    def name(self, row: int) -> str:
        """Where a row stood: file:line."""
        shard, at = self._place(row)
        if shard not in self._lines:
            self._lines[shard] = row_lines(self._folders[shard])
        return f"{self._shards[shard].name}:{self._lines[shard][at]}"

    def texts(self, rows: Sequence[int]) -> dict[int, str]:
        """What each of a few rows says, cut to what a page shows."""
        wanted: dict[int, dict[int, int]] = defaultdict(dict)
        for row in rows:
            shard, at = self._place(row)
            wanted[shard][at] = row
        return {
            own[at]: "\n".join(texts(unpack(packed, "")))[:TEXT_SHOWN]
            for shard, own in wanted.items()
            for at, packed in payloads(self._folders[shard], list(own)).items()
        }

    def _place(self, row: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._starts, row, "right")) - 1
        return shard, row - int(self._starts[shard])


@dataclass
class Rejects:
    """Rejects seen one by one, as they are written: how many for each reason, and the first."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, dict[str, Any]] = field(default_factory=dict)

    def see(self, entry: dict[str, Any]) -> None:
        """Count one line of rejects.jsonl."""
        self.counts[entry["reason"]] += 1
        self.first.setdefault(entry["reason"], entry)

    def facts(self) -> list[RejectCount]:
        """The most frequent reason first."""
        order = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        return [_reject(reason, count, self.first[reason]) for reason, count in order]


@dataclass
class Found:
    """What the passes left behind."""

    base: Path
    files: Sequence[RawFile]
    encoded: Sequence[Path]
    decision: Decision
    made: Documents
    ids: Any
    tested: Tested
    pairs: list[Overlap]
    refs: References
    rejects: Rejects
    account: Account


def gather(found: Found, metrics: Metrics) -> Facts:
    """Everything that the report and the card show."""
    return Facts(
        metrics=metrics,
        files=found.files,
        columns=_columns(found.encoded, found.decision),
        lengths=_lengths(found.made, found.decision),
        rejects=found.rejects.facts(),
        clusters=_clusters(found.decision, found.refs),
        leaks=_leaks(found),
        leaking_rows=len({pair.row for pair in found.pairs}),
        checked=found.tested.checked,
        personal=dict(sorted(found.account.personal.items())),
        examples=_examples(found),
    )


def _reject(reason: str, count: int, first: dict[str, Any]) -> RejectCount:
    return RejectCount(reason, count, first["file"], first["line"], str(first["row"])[:TEXT_SHOWN])


def _columns(encoded: Sequence[Path], decision: Decision) -> dict[str, list[Any]]:
    """The sampled rows that stayed, by column, with their language in place of their text."""
    rows = []
    for number, folder in enumerate(encoded):
        with (folder / "sample.jsonl").open("rb") as file:
            for line in map(orjson.loads, file):
                if decision.fate[decision.starts[number] + line.pop("row")] in KEPT:
                    rows.append(line)
    columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
    if rows:
        columns["language"] = languages(columns.pop("text"))
    return columns


def _lengths(made: Documents, decision: Decision) -> dict[str, dict[int, int]]:
    fates = decision.fate[made.row]
    found = {}
    for fate in (Fate.train, Fate.valid):
        lengths, counts = np.unique(made.length[fates == fate], return_counts=True)
        found[fate.name] = dict(zip(lengths.tolist(), counts.tolist(), strict=True))
    return found


def _clusters(decision: Decision, refs: References) -> list[Cluster]:
    rows = np.flatnonzero(decision.near >= 0)
    kept, counts = np.unique(decision.near[rows], return_counts=True)
    largest = np.lexsort((kept, -counts))[:CLUSTERS]
    members = {int(kept[at]): rows[decision.near[rows] == kept[at]][:MEMBERS].tolist() for at in largest}
    shown = refs.texts([*members, *(rows[0] for rows in members.values())])
    return [
        Cluster(
            kept=refs.name(row),
            dropped=[refs.name(other) for other in others],
            count=int(counts[at]),
            text=shown[row],
            example=shown[others[0]],
        )
        for at, (row, others) in zip(largest, members.items(), strict=True)
    ]


def _leaks(found: Found) -> list[Leak]:
    first = found.pairs[:LEAKS]
    shown = found.refs.texts([pair.row for pair in first])
    leaks = []
    for pair in first:
        item = found.tested.items[pair.item]
        where = found.refs.name(pair.row)
        leaks.append(
            Leak(item.benchmark, item.id, item.text[:TEXT_SHOWN], where, shown[pair.row], pair.share)
        )
    return leaks


def _examples(found: Found) -> list[Example]:
    from transformers import AutoTokenizer

    decode = AutoTokenizer.from_pretrained(found.base).decode
    made, fates = found.made, found.decision.fate[found.made.row]
    shown = np.flatnonzero((fates == Fate.train) & (made.part != Part.rejected))[:EXAMPLES].tolist()
    examples = []
    for document in shown:
        row = int(made.row[document])
        ids, labels = made.of([document])
        text = pieces(ids.tolist(), (labels >= 0).tolist(), lambda part: str(decode(part)))
        examples.append(Example(found.refs.name(row), found.ids[row].as_py(), Fate.train.name, text))
    return examples
