"""Of which metrics higher is better."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from stages.bench.corpus import ITEM

TASKS = "stages/bench/tasks"
# Metrics of lm-eval and of ours of which less is better, for tasks that do not declare it themselves.
LOWER = {
    "nll_per_token", "nll_per_byte", "perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score",
    "ter", "likelihood_diff",
}  # fmt: skip


def higher_is_better(name: str, declared: Mapping[str, bool]) -> bool:
    """Of "task/metric", with or without lm-eval's ",filter": as declared, else by the metric's usual meaning.

    What an item scores by itself ("bleu_item") has the direction of its metric.
    """
    plain = name.partition(",")[0].removesuffix(ITEM)
    metric = plain.rpartition("/")[2]
    return declared.get(plain, metric not in LOWER and "_bias_score" not in metric)


def directions(root: Path) -> dict[str, bool]:
    """Whether higher is better, by "task/metric": as the tasks' files and register's section declare it."""
    found: dict[str, bool] = {}
    for path in sorted((root / TASKS).glob("*.yaml")):
        task = yaml.load(path.read_text(encoding="utf-8"), _Tagless)  # noqa: S506 - a SafeLoader
        for metric in task.get("metric_list", []):
            if "higher_is_better" in metric:
                found[f"{task['task']}/{metric['metric']}"] = metric["higher_is_better"]
    path = root / "params.yaml"
    params = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if "register" in params:
        for score in [params["register"]["target"], *params["register"]["guards"]]:
            found[f"{score['task']}/{score['metric']}"] = score["higher_is_better"]
    return found


class _Tagless(yaml.SafeLoader):
    """Reads a task's file and runs nothing that it names."""


_Tagless.add_multi_constructor("!", lambda loader, suffix, node: None)
