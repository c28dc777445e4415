"""Rows by fate: what is counted, and when the stage stops because of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson

from stages.common.files import read_json
from stages.common.statistics import Metrics, exact
from stages.prepare.assemble import Documents
from stages.prepare.columns import column
from stages.prepare.config import Prepare
from stages.prepare.decide import HARMLESS, KEPT, Decision, Fate
from stages.prepare.encode import REFUSED, Part
from stages.prepare.reading.read import Shard
from stages.prepare.stored import row_lines


@dataclass
class Account:
    """Rows read, and rows set aside by reason: at first reading, and later."""

    read: int
    unread: Counter[str]
    late: Counter[Fate]
    personal: Counter[str]

    @property
    def rejected(self) -> Counter[str]:
        """Every row that is not used, by reason."""
        return self.unread + Counter({fate.name: number for fate, number in self.late.items()})

    @property
    def harmful(self) -> Counter[str]:
        """Those that speak against the data's quality."""
        late = {fate.name: number for fate, number in self.late.items() if fate not in HARMLESS}
        return self.unread + Counter(late)


def account(folders: Sequence[Path], decision: Decision) -> Account:
    """Count every row that was read. Raises RuntimeError if one is missing: nothing is lost silently."""
    total: Counter[str] = Counter()
    for folder in folders:
        total.update(read_json(folder / "counts.json"))
    fates = Counter(decision.fate.tolist())
    found = Account(
        read=total["read"],
        unread=_under(total, "rejected/"),
        late=Counter({Fate(fate): number for fate, number in fates.items() if fate not in KEPT}),
        personal=_under(total, "personal/"),
    )
    if found.read != found.rejected.total() + sum(fates[fate] for fate in KEPT):
        raise RuntimeError(
            f"rows are missing: {found.read} read, {found.rejected.total()} set aside, {fates} decided"
        )
    return found


def refuse(decision: Decision, encoded: Sequence[Path]) -> None:
    """Set aside, in place, what could not be tokenised."""
    for number, folder in enumerate(encoded):
        rows = column(folder, "refused", REFUSED)
        decision.fate[decision.starts[number] + rows[:, 0]] = rows[:, 1]


def check(cfg: Prepare, shards: Sequence[Shard], folders: Sequence[Path], decision: Decision) -> None:
    """Stop where too much is set aside, or nothing is left. Raises ValueError that names the dominant reason."""
    found, source = account(folders, decision), cfg.data.path
    harmful = found.harmful
    if found.read and harmful.total() / found.read > cfg.max_reject_share:
        reason, count = sorted(harmful.items(), key=lambda item: (-item[1], item[0]))[0]
        raise ValueError(
            f"{harmful.total()} of {found.read} rows of {source} are rejected, over "
            f"prepare.max_reject_share={cfg.max_reject_share}; most often {reason} ({count}, first at "
            f"{_first(reason, shards, folders, decision)}): mend the rows, or conf/data if it names the wrong columns"
        )
    for fate in (Fate.train, Fate.test):
        if not (decision.fate == fate).any():
            raise ValueError(f"no {fate.name} row is left of {found.read} read from {source}: see conf/data")


def measure(found: Account, decision: Decision, documents: Documents) -> Metrics:
    """Rows by fate and tokens by split."""
    metrics = {"rows/read": exact(found.read), "rows/rejected": exact(found.rejected.total())}
    metrics |= {f"rows/{fate.name}": exact(int((decision.fate == fate).sum())) for fate in KEPT}
    metrics |= {f"rejected/{reason}": exact(number) for reason, number in sorted(found.rejected.items())}
    metrics |= {f"personal/{kind}": exact(number) for kind, number in sorted(found.personal.items())}
    metrics["duplicates/near"] = exact(int((decision.near >= 0).sum()))
    fates = decision.fate[documents.row]
    cut = documents.row[(fates <= Fate.valid) & (documents.cut > 0)]
    metrics["rows/truncated"] = exact(len(np.unique(cut)))
    for fate in (Fate.train, Fate.valid):
        own = fates == fate
        metrics[f"pairs/{fate.name}"] = exact(int((own & (documents.part == Part.chosen)).sum()))
        metrics[f"tokens/{fate.name}"] = exact(int(documents.length[own].sum()))
    train = fates == Fate.train
    learned, tokens = documents.learned[train].sum(), documents.length[train].sum()
    metrics["tokens/learned_share"] = exact(float(learned / tokens))
    return metrics


def _under(total: Counter[str], prefix: str) -> Counter[str]:
    return Counter(
        {key.removeprefix(prefix): number for key, number in total.items() if key.startswith(prefix)}
    )


def _first(reason: str, shards: Sequence[Shard], folders: Sequence[Path], decision: Decision) -> str:
    for number, (shard, folder) in enumerate(zip(shards, folders, strict=True)):
        with (folder / "rejects.jsonl").open("rb") as file:
            lines = [entry["line"] for entry in map(orjson.loads, file) if entry["reason"] == reason]
        if reason in Fate.__members__:
            fate = decision.fate[decision.starts[number] : decision.starts[number + 1]]
            at = np.flatnonzero(fate == Fate[reason])
            lines += row_lines(folder)[at[:1]].tolist()
        if lines:
            return f"{shard.name}:{min(lines)}"
    raise RuntimeError(f"no row was set aside as {reason!r}")
