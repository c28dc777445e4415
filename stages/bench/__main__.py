"""Score one variant: `python -m stages.bench <variant>` writes its items and their means.

Reads the variant's model folder and data/prepared/test.jsonl; writes data/results/<variant>.parquet.
"""

from __future__ import annotations

from pathlib import Path

from stages.bench.config import Bench, Variant
from stages.bench.evaluation import evaluate
from stages.bench.results import item_rows, summarise, write_rows
from stages.common.run import run
from stages.common.statistics import Metrics
from stages.common.tracking import track

RESULTS = Path("data/results")


def main(cfg: Bench, name: str, variant: Variant) -> Metrics:
    """Ask every item of every task, keep one row each, return means with intervals as "task/metric".

    Raises ValueError on a missing model, missing or empty test rows, an unknown task, a prompt longer than
    the model's context, and NaN.
    """
    # Here, not above: torch, transformers and lm-eval take seconds that a wrong parameter should not cost.
    from stages.bench.model import Scorer

    results = evaluate(cfg, Scorer(variant, cfg.batch_size))
    rows = item_rows(results)
    path = RESULTS / f"{name}.parquet"
    write_rows(path, rows)
    track.artifact(path, f"{name}_{cfg.name}")
    return summarise(rows, results, cfg.seed)


if __name__ == "__main__":
    run(Bench, main, Variant)
