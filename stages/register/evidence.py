"""What the decision reads: per-item scores of candidate, base and champion, and the other stages' metrics."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.common.files import read_json, sha256
from stages.common.statistics import Metrics
from stages.register.config import Register, Score

Scores = dict[str, dict[str, float]]


@dataclass
class Rival:
    """A model to compare with: who it is, its content hash, and its per-item scores by "task/metric" and id."""

    name: str
    model: str
    scores: Scores


@dataclass
class Evidence:
    """Everything the gate may look at. Absent evidence is None or an empty mapping, never a default number."""

    candidate: Rival
    base: Rival
    champion: Rival | None
    judge: Metrics
    drift: Metrics


def key(score: Score) -> str:
    """How a score is named in scores and reports."""
    return f"{score.task}/{score.metric}"


def read_scores(path: Path, cfg: Register) -> Scores:
    """The scores that the gate reads, by item. A task that bench did not run is simply absent."""
    import pyarrow.parquet as pq

    wanted = [cfg.target, *cfg.guards]
    found: Scores = {}
    for row in pq.read_table(path, columns=["task", "id", "scores"]).to_pylist():
        scores: dict[str, Any] = json.loads(row["scores"])
        for score in wanted:
            if score.task == row["task"] and score.metric in scores:
                found.setdefault(key(score), {})[row["id"]] = float(scores[score.metric])
    return found


def read_champion(registry: Path, name: str, candidate: str) -> Rival | None:
    """Recorded scores of the champion under the name; for a candidate that is the champion, its predecessor's.

    So a decision reads the same before and after it is carried out, and the committed state is a fixpoint.
    Raises ValueError where champion.json names an items file that is missing or was changed.
    """
    state = read_json(registry / "champion.json").get(name, {})
    entry = state.get("champion")
    if entry and entry["model"] == candidate:
        entry = state.get("previous")
    if not entry:
        return None
    path = registry / "items" / f"{entry['items'][:16]}.json"
    if not path.is_file() or sha256(path) != entry["items"]:
        raise ValueError(
            f"{path}, the champion's per-item scores that {registry / 'champion.json'} names, is "
            f"{'changed' if path.is_file() else 'missing'}: restore it from git"
        )
    return Rival("champion", entry["model"], read_json(path))
