"""One item, as the stage does it, from the start of the process: `python -m benchmarks.bench.cold FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

from stages.common.process import importing


def main(folder: Path) -> None:
    """Load, ask, score, print the accuracy."""
    with importing():
        from lm_eval.evaluator import evaluate
        from lm_eval.tasks import TaskManager

        from stages.bench.config import Backend, Bench, Code, Precision, Variant
        from stages.bench.evaluation import compile_templates_once
        from stages.bench.model import Scorer
        from stages.common.prompt import Prompt

    compile_templates_once()
    code = Code(False, 30, 3, 1 << 30, 8, 1 << 23)
    cfg = Bench(1, 2, "cold", ["arc"], 1, 8, 512, Prompt("none", "", [], 256), 0, False, [], code)
    model = Scorer(cfg, Variant(str(folder / "model"), "", Precision.fp32, Backend.own, {}))
    loaded = TaskManager(include_path=str(folder / "tasks"), include_defaults=False).load(["arc"])
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(1)
    print(evaluate(model, loaded, limit=1, bootstrap_iters=0)["results"]["arc"]["acc,none"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
