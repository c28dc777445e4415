"""Score one variant: `python -m stages.bench <variant>` writes its items and their means.

Reads the variant's model folder, data/prepared and data/benchmarks; writes data/results/<variant>.parquet and
reports/confusion/<variant>/. A killed run is taken up again with the task that it was in.
"""

from __future__ import annotations

from pathlib import Path

from stages.bench.checks import check_values
from stages.bench.config import Bench, Variant
from stages.bench.confusion import FOLDER, confusions, write
from stages.bench.evaluation import benchmarks, evaluate
from stages.bench.fingerprint import fingerprint
from stages.bench.groups import clean_groups
from stages.bench.results import item_rows, summarise, write_rows
from stages.bench.slices import dirty_items, slice_metrics
from stages.common.process import importing
from stages.common.run import run
from stages.common.statistics import Metrics
from stages.common.tracking import track
from stages.common.workspace import workspace

RESULTS = Path("data/results")


def main(cfg: Bench, name: str, variant: Variant) -> Metrics:
    """Ask every item of every task, keep one row each, return means with intervals as "task/metric".

    Raises ValueError on numbers out of range, a missing model, missing or empty test rows, a task without a snapshot,
    a prompt longer than the model's context, and NaN.
    """
    check_values(cfg)
    # Here, not above: torch, transformers and lm-eval take seconds that a wrong parameter should not cost.
    with importing():
        import lm_eval.evaluator  # noqa: F401 - for evaluate

        from stages.bench.processes import respondent

    with workspace(f"bench.{name}", fingerprint(cfg, variant)) as work:
        results = evaluate(cfg, respondent(cfg, variant, work))
        rows = item_rows(results, cfg.slices, dirty_items(benchmarks(results)))
        path = RESULTS / f"{name}.parquet"
        write_rows(path, rows)
        write(FOLDER / name, confusions(rows, cfg.tasks))
        # Inside: what fails or is killed here asks nothing again
        metrics = summarise(rows, results, cfg.seed) | slice_metrics(rows, cfg.seed)
        metrics |= clean_groups(results, metrics, rows)
    track.artifact(path, f"{name}_{cfg.name}")
    return dict(sorted(metrics.items()))


if __name__ == "__main__":
    run(Bench, main, Variant)
