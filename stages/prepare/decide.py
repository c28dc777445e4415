"""What becomes of each row, decided over all of them at once, from the small columns that ingest left.

A row's split depends on its own question or group alone, never on another row: wherever rows are added, none moves
from one split to another. What ties rows together, an equal question or a near-duplicate, can only set a row aside.
Memory: 50 bytes a row, and more only for rows that resemble others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.prepare.columns import column, ragged
from stages.prepare.config import Action, Prepare
from stages.prepare.ingest import SPLITS, layout
from stages.prepare.overlap.duplicates import near
from stages.prepare.overlap.text import Ragged, grams


class Fate(IntEnum):
    """Kept in a split, or set aside for a reason, whose name stands in rejects.jsonl."""

    train = 0
    valid = 1
    test = 2
    duplicate = 3
    duplicate_id = 4
    in_test = 5
    links_splits = 6
    near_duplicate = 7
    down_weighted = 8
    leak = 9
    too_long = 10
    template_refused = 11
    answer_not_rendered = 12
    nothing_to_learn = 13


KEPT = (Fate.train, Fate.valid, Fate.test)
# Rows that are fine in themselves: they do not speak against the data's quality.
HARMLESS = {
    Fate.duplicate, Fate.in_test, Fate.links_splits, Fate.near_duplicate, Fate.down_weighted, Fate.leak
}  # fmt: skip


@dataclass
class Decision:
    """`fate` by row; `near` is the kept row that a row resembles, -1 for none; shard s has rows starts[s] to [s+1]."""

    fate: NDArray[np.int8]
    near: NDArray[np.int64]
    starts: NDArray[np.int64]


def decide(cfg: Prepare, folders: Sequence[Path]) -> Decision:
    """The fate of every row that ingest kept, in the order of the shards."""
    shape = layout(cfg)

    def every(name: str) -> NDArray[Any]:
        return np.concatenate([np.asarray(column(folder, name, shape)) for folder in folders])

    sizes = [len(column(folder, "split", shape)) for folder in folders]
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    fate = every("split").astype(np.int8)
    fate[every("copies") == 0] = Fate.down_weighted
    _exact(fate, every("key"), every("id"), every("question"), every("group"))
    found = np.full(len(fate), -1, np.int64)
    if cfg.duplicates.action is not Action.ignore:
        found = _near(cfg, folders, starts, fate)
    return Decision(fate, found, starts)


def _exact(
    fate: NDArray[np.int8],
    keys: NDArray[np.uint64],
    ids: NDArray[np.uint64],
    questions: NDArray[np.uint64],
    groups: NDArray[np.uint64],
) -> None:
    """Set aside, in place: rows and ids seen before, and rows whose question or group stands in another split.

    Only rows that share a half of a digest with another one are looked at one by one.
    """
    shared = _repeated(keys) | _repeated(ids) | _repeated(questions) | _repeated(groups)
    seen_keys: set[bytes] = set()
    seen_ids: set[bytes] = set()
    home: dict[bytes, int] = {}
    for row in np.flatnonzero(shared & (fate < len(SPLITS))).tolist():
        key, identity, split = keys[row].tobytes(), ids[row].tobytes(), int(fate[row])
        # a row without a group is its question's: one home for both is enough, for their digests differ
        ties = {questions[row].tobytes(), groups[row].tobytes()}
        homes = {home.get(tie, split) for tie in ties}
        if key in seen_keys:
            fate[row] = Fate.duplicate
        elif identity in seen_ids:
            fate[row] = Fate.duplicate_id
        elif homes != {split}:
            fate[row] = Fate.in_test if Fate.test in homes - {split} else Fate.links_splits
        else:
            home.update(dict.fromkeys(ties, split))
            seen_keys.add(key)
            seen_ids.add(identity)


def _repeated(digests: NDArray[np.uint64]) -> NDArray[np.bool_]:
    values = digests[:, 0]
    order = np.argsort(values, kind="stable")
    same = values[order[1:]] == values[order[:-1]]
    found = np.zeros(len(values), np.bool_)
    found[order[1:][same]] = True
    found[order[:-1][same]] = True
    return found


def _near(
    cfg: Prepare, folders: Sequence[Path], starts: NDArray[np.int64], fate: NDArray[np.int8]
) -> NDArray[np.int64]:
    """Near-duplicates of kept rows: set aside in place, or only reported; one across splits never stays."""
    shape = layout(cfg)
    words = [ragged(folder, "words", shape) for folder in folders]

    def keys(band: int) -> NDArray[np.uint64]:
        return np.concatenate(
            [column(folder, "bands", shape).reshape(-1, _width(shape))[:, band] for folder in folders]
        )

    def shingles(row: int) -> NDArray[np.uint64]:
        return np.unique(grams(_one(words, starts, row), cfg.duplicates.ngram).values)

    stay = fate if cfg.duplicates.action is Action.report else None
    found = near(keys, shingles, fate < len(SPLITS), cfg.duplicates, stay)
    rows = np.flatnonzero(found >= 0)
    across = fate[rows] != fate[found[rows]]
    fate[rows[across]] = Fate.links_splits
    if cfg.duplicates.action is Action.remove:
        fate[rows[~across]] = Fate.near_duplicate
    return found


def _width(shape: Any) -> int:
    return int(shape["bands"][1])


def _one(words: Sequence[Ragged], starts: NDArray[np.int64], row: int) -> Ragged:
    shard = int(np.searchsorted(starts, row, "right")) - 1
    lists, at = words[shard], row - int(starts[shard])
    values = lists.values[lists.offsets[at] : lists.offsets[at + 1]]
    return Ragged(values, np.array([0, len(values)], np.int64))
