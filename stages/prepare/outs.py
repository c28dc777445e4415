"""Every out of the stage, complete or not there at all: data/prepared, the data report, the dataset in MLflow."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from stages.common.files import fresh_dir, tree_digest, write_text
from stages.common.statistics import Metrics, exact
from stages.common.tracking import track
from stages.prepare.account import account, measure
from stages.prepare.assemble import Documents, documents, write_packed, write_pairs, write_rejects, write_test
from stages.prepare.columns import column
from stages.prepare.config import Prepare
from stages.prepare.decide import Decision, Fate
from stages.prepare.encode import Part
from stages.prepare.ingest import layout
from stages.prepare.overlap.items import Overlap, Tested, write_items
from stages.prepare.page.card import card
from stages.prepare.page.gather import Found, References, Rejects, gather
from stages.prepare.page.report import page
from stages.prepare.reading.read import RawFile, Shard
from stages.prepare.stored import row_ids

OUT, DRAFT, REPORT = Path("data/prepared"), Path("data/.prepared"), Path("reports/data.html")

FILES_NAMED = 20  # MLflow takes 64 KiB


@dataclass
class Prepared:
    """What the passes found, as the outs are written from it."""

    cfg: Prepare
    base: Path
    files: Sequence[RawFile]
    shards: Sequence[Shard]
    ingested: Sequence[Path]
    encoded: Sequence[Path]
    decision: Decision
    tested: Tested
    pairs: list[Overlap]


def write(found: Prepared) -> Metrics:
    """Write data/prepared and reports/data.html; returns the metrics."""
    cfg, decision, draft = found.cfg, found.decision, fresh_dir(DRAFT)
    made, ids = documents(found.encoded, decision), row_ids(found.ingested)
    counted, rejects = account(found.ingested, decision), Rejects()
    refs = References(found.shards, found.ingested, decision)
    metrics = measure(counted, decision, made) | _write_documents(draft, found, made, ids)
    write_test(draft / "test.jsonl", found.ingested, decision)
    write_rejects(draft / "rejects.jsonl", found.shards, found.ingested, decision, rejects.see)
    metrics |= _write_likeness(draft, found, refs)
    left = (found.base, found.files, found.encoded, decision, made, ids, found.tested, found.pairs)
    facts = gather(Found(*left, refs, rejects, counted), metrics)
    write_text(draft / "card.md", card(cfg, facts))
    write_text(REPORT, page(cfg, facts))
    _swap(draft)
    _log(cfg, found.files, metrics)
    return metrics


def _write_documents(draft: Path, found: Prepared, made: Documents, ids: Any) -> Metrics:
    metrics: Metrics = {}
    chosen = {fate: _chosen(found, made, fate) for fate in (Fate.train, Fate.valid)}
    for fate, part in chosen.items():
        whole = part[made.part[part] == Part.whole]
        rows = write_packed(draft / f"{fate.name}.parquet", whole, made, ids, found.cfg.row_length)
        metrics |= packing(fate.name, rows, int(made.length[whole].sum()), found.cfg.row_length)
    write_pairs(draft / "pairs.parquet", np.concatenate(list(chosen.values())), made, ids, found.decision)
    return metrics


def _write_likeness(draft: Path, found: Prepared, refs: References) -> Metrics:
    """What resembles what: tested items and whether they are clean, rows that overlap them, near-duplicates."""
    not_clean = write_items(draft / "items.jsonl", found.decision, found.tested, found.pairs)
    _write_leaks(draft / "leaks.jsonl", found, refs)
    _write_near(draft / "near_duplicates.jsonl", found.decision, refs)
    return {
        "leakage/items": exact(len(found.tested.items)),
        "leakage/items_not_clean": exact(not_clean),
    }


def packing(split: str, rows: int, tokens: int, capacity: int) -> Metrics:
    """Rows of a packed file, and the share of their room that holds tokens."""
    metrics = {f"packed/{split}_rows": exact(rows)}
    if rows:
        metrics[f"packed/{split}_efficiency"] = exact(tokens / (rows * capacity))
    return metrics


def _chosen(found: Prepared, made: Documents, fate: Fate) -> NDArray[np.int64]:
    """A split's documents in order; those of a weighted source as often as its weight says."""
    own = np.flatnonzero(found.decision.fate[made.row] == fate)
    shape = layout(found.cfg)
    copies = np.concatenate([column(folder, "copies", shape) for folder in found.ingested])
    # both documents of a pair have their row's number of copies, and pairs are read by their first one
    return np.repeat(own, copies[made.row[own]])


def _write_leaks(path: Path, found: Prepared, refs: References) -> None:
    with path.open("wb") as file:
        for pair in found.pairs:
            item = found.tested.items[pair.item]
            line = {
                "row": refs.name(pair.row),
                "benchmark": item.benchmark,
                "item": item.id,
                "share": pair.share,
                "removed": bool(found.decision.fate[pair.row] > Fate.test),
            }
            file.write(orjson.dumps(line, option=orjson.OPT_SORT_KEYS) + b"\n")


def _write_near(path: Path, decision: Decision, refs: References) -> None:
    with path.open("wb") as file:
        for row in np.flatnonzero(decision.near >= 0).tolist():
            fate = Fate(int(decision.fate[row])).name
            line = {"row": refs.name(row), "like": refs.name(int(decision.near[row])), "fate": fate}
            file.write(orjson.dumps(line, option=orjson.OPT_SORT_KEYS) + b"\n")


def _swap(draft: Path) -> None:
    if OUT.is_symlink() or OUT.is_file():
        OUT.unlink()
    elif OUT.exists():
        shutil.rmtree(OUT)
    draft.rename(OUT)


def _log(cfg: Prepare, files: Sequence[RawFile], metrics: Metrics) -> None:
    profile = {key: metric["value"] for key, metric in metrics.items()}
    source = ", ".join(f"{file.name} {file.sha256[:16]}" for file in files[:FILES_NAMED])
    source += f" and {len(files) - FILES_NAMED} more" if len(files) > FILES_NAMED else ""
    track.dataset(cfg.data.name, tree_digest(OUT), source, profile)
    track.artifact(REPORT)
    track.artifact(OUT / "card.md")
