"""What the model will be tested on, and which training rows overlap with it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import orjson

from stages.prepare.config import LeakAction, Prepare
from stages.prepare.decide import Decision, Fate
from stages.prepare.ingest import pseudonym
from stages.prepare.overlap.leakage import Item
from stages.prepare.overlap.tested import benchmark_items, label_items
from stages.prepare.rows.personal import scrub
from stages.prepare.stored import batches

BENCHMARKS = Path("data/benchmarks")
OWN, JUDGE = "test", "judge"


@dataclass
class Overlap:
    """One pair: a row (counted over all shards) and an item, with the share of the item's words that match."""

    row: int
    item: int
    share: float


@dataclass
class Tested:
    """Every item that rows are compared with; `checked` is how many by benchmark, None where there is no copy."""

    items: list[Item] = field(default_factory=list)
    checked: dict[str, int | None] = field(default_factory=dict)


def tested(cfg: Prepare, folders: Sequence[Path], decision: Decision) -> Tested:
    """The project's own test rows, the items of each benchmark that lies here, and the judge's."""
    found = Tested()
    if cfg.leakage.action is LeakAction.ignore:
        return found
    _add(cfg, found, OWN, list(_own(folders, decision)))
    _add(cfg, found, JUDGE, list(label_items(Path(cfg.data.path) / "labels")))
    for name in sorted(set(cfg.leakage.benchmarks)):
        folder = BENCHMARKS / name
        _add(cfg, found, name, list(benchmark_items(folder)) if folder.is_dir() else None)
    return found


def overlaps(folders: Sequence[Path], decision: Decision) -> list[Overlap]:
    """What the second pass found, by row, the closest item first."""
    found = []
    for number, folder in enumerate(folders):
        with (folder / "hits.jsonl").open("rb") as file:
            for line in map(orjson.loads, file):
                row = int(decision.starts[number]) + line["row"]
                found.append(Overlap(row, line["item"], line["share"]))
    return found


def settle(cfg: Prepare, decision: Decision, tested: Tested, pairs: list[Overlap]) -> None:
    """Set leaking rows aside, in place, or stop. Raises ValueError that names the first pair."""
    if not pairs:
        return
    if cfg.leakage.action is LeakAction.stop:
        first = tested.items[pairs[0].item]
        rows = len({pair.row for pair in pairs})
        raise ValueError(
            f"{rows} training rows share {cfg.leakage.ngram} words in a row with tested items, first with item "
            f"{first.id} of {first.benchmark} ({' '.join(first.text.split())[:80]!r}): remove them, or set "
            "prepare.leakage.action to remove or report"
        )
    if cfg.leakage.action is LeakAction.remove:
        decision.fate[np.array([pair.row for pair in pairs])] = Fate.leak


def write_items(path: Path, decision: Decision, tested: Tested, pairs: list[Overlap]) -> int:
    """items.jsonl: each tested item, and whether any row that stays overlaps it; returns how many are not clean."""
    stays: dict[int, int] = defaultdict(int)
    removed: dict[int, int] = defaultdict(int)
    for pair in pairs:
        (removed if decision.fate[pair.row] > Fate.test else stays)[pair.item] += 1
    with path.open("wb") as file:
        for number, item in enumerate(tested.items):
            line = {"benchmark": item.benchmark, "item": item.id, "clean": number not in stays}
            line |= {"rows": stays.get(number, 0), "rows_removed": removed.get(number, 0)}
            file.write(orjson.dumps(line, option=orjson.OPT_SORT_KEYS) + b"\n")
    return len(stays)


def _add(cfg: Prepare, found: Tested, name: str, items: list[Item] | None) -> None:
    found.checked[name] = None if items is None else len(items)
    for item in items or []:
        # as rows are: otherwise an address would stand in the report, and hide the overlap with a redacted row
        (name_, text), _ = scrub([item.id, item.text], cfg.personal)
        found.items.append(Item(item.benchmark, pseudonym(item.id, name_, cfg), text))


def _own(folders: Sequence[Path], decision: Decision) -> Iterator[Item]:
    for number, folder in enumerate(folders):
        fate = decision.fate[decision.starts[number] : decision.starts[number + 1]]
        for rows in batches(folder, np.where(fate == Fate.test, fate, np.int8(Fate.leak))):
            for kept in rows:
                asked = [turn["content"] for turn in kept.row.messages if turn["role"] == "user"]
                yield Item(OWN, kept.id, "\n".join(asked))
