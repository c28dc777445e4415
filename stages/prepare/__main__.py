"""Any dataset to validated, deduplicated, decontaminated, split, packed rows: `python -m stages.prepare`.

Rows in = rows out + rejected: every row that is not used stands in rejects.jsonl with file, line and reason. Two passes
over shards (ingest, encode), each resumable after a kill and equal for any number of workers, with the decisions
that need all rows between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stages.common.files import fresh_dir
from stages.common.run import run
from stages.common.shards import map_shards
from stages.common.statistics import Metrics
from stages.common.workspace import workspace
from stages.prepare import encode, ingest
from stages.prepare.account import check, refuse
from stages.prepare.config import LeakAction, Prepare
from stages.prepare.decide import KEPT, Decision, decide
from stages.prepare.fingerprint import fingerprint
from stages.prepare.outs import Prepared, write
from stages.prepare.overlap.items import BENCHMARKS, overlaps, settle, tested
from stages.prepare.overlap.leakage import Index
from stages.prepare.reading.read import Shard, plan
from stages.prepare.sanity import sane

BASE = Path("models/base")
SAMPLE_ROWS = 5000  # what the report's distributions are drawn from


def main(cfg: Prepare) -> Metrics:
    """Write data/prepared and the data report; returns counts (unit: rows, tokens)."""
    sane(cfg)
    files, shards = plan(cfg.data)
    if not shards:
        raise ValueError(f"every file of {cfg.data.path} is empty: see data.sources in conf/data")
    mark = fingerprint(cfg, files, BASE, [Path(cfg.data.path) / "labels", BENCHMARKS])
    with workspace("prepare", mark) as scratch:
        jobs = [ingest.Job(shard, cfg.data.sources[shard.source], cfg) for shard in shards]
        ingested = map_shards(ingest.ingest, jobs, scratch / "ingested", label="read")
        decision = decide(cfg, ingested)
        check(cfg, shards, ingested, decision)
        items = tested(cfg, ingested, decision)
        if cfg.leakage.action is not LeakAction.ignore:
            Index.build(items.items, cfg.leakage).save(fresh_dir(scratch / "index"))
        encoded = _encode(cfg, shards, ingested, decision, scratch)
        refuse(decision, encoded)
        pairs = overlaps(encoded, decision)
        settle(cfg, decision, items, pairs)
        check(cfg, shards, ingested, decision)
        return write(Prepared(cfg, BASE, files, shards, ingested, encoded, decision, items, pairs))


def _encode(
    cfg: Prepare, shards: Sequence[Shard], ingested: Sequence[Path], decision: Decision, scratch: Path
) -> list[Path]:
    kept = int(np.isin(decision.fate, KEPT).sum())
    jobs = [
        encode.Job(
            ingested=folder.resolve(),
            fate=decision.fate[decision.starts[number] : decision.starts[number + 1]],
            index=(scratch / "index").resolve(),
            base=BASE.resolve(),
            cfg=cfg,
            sample_share=SAMPLE_ROWS / max(SAMPLE_ROWS, kept),
            source=shard.source,
        )
        for number, (shard, folder) in enumerate(zip(shards, ingested, strict=True))
    ]
    return map_shards(encode.encode, jobs, scratch / "encoded", label="tokenise")


if __name__ == "__main__":
    run(Prepare, main)
