"""Of which metrics higher is better."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from stages.bench import snapshot
from stages.bench.corpus import ITEM, SIGNED

TASKS = "stages/bench/tasks"
# Metrics of lm-eval and of ours of which less is better, for tasks that do not declare it themselves.
LOWER = {
    "nll_per_token", "nll_per_byte", "perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score",
    "ter", "likelihood_diff",
}  # fmt: skip


def higher_is_better(name: str, declared: Mapping[str, bool]) -> bool:
    """Of "task/metric", with or without lm-eval's ",filter": as declared, else by the metric's usual meaning.

    What an item scores by itself ("bleu_item"), and some of the items ("t/acc/style:terse", "t/acc/clean"), have the
    direction of their metric; a gap between slices is never welcome. Of a metric `nearer_zero`: of its |value|.
    """
    if name.endswith(":gap") or nearer_zero(name):
        return False
    task, *rest = (part.removesuffix(ITEM) for part in name.partition(",")[0].split("/"))
    return declared.get("/".join([task, *rest[:1]]), LOWER.isdisjoint(rest))


def nearer_zero(name: str) -> bool:
    """Whether a metric has a sign and its ideal at 0, as BBQ's bias scores: of two values, the nearer one is better."""
    return SIGNED in name


def directions(root: Path) -> dict[str, bool]:
    """Whether higher is better, by "task/metric": as the files of our tasks, the snapshots of lm-eval's and register's
    section declare it.

    Raises ValueError for a task's file that cannot be read.
    """
    found: dict[str, bool] = {}
    for name, task in _tasks(root):
        for metric in task.get("metric_list") or []:
            if "higher_is_better" in metric:
                # Of a function, lm-eval takes its own name
                found[f"{name}/{str(metric['metric']).rpartition('.')[2]}"] = metric["higher_is_better"]
    path = root / "params.yaml"
    params = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if "register" in params:
        for score in [params["register"]["target"], *params["register"]["guards"]]:
            found[f"{score['task']}/{score['metric']}"] = score["higher_is_better"]
    return found


def _tasks(root: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and configurations of our tasks, then of the snapshots' ones; nothing that they name is run."""
    for path in sorted((root / TASKS).glob("*.yaml")):
        yield path.stem, snapshot.parse(path)[0]
    for path in sorted((root / snapshot.SNAPSHOTS).glob("*/task.yaml")):
        yield path.parent.name, snapshot.parse(path)[0]
