"""The short table at the end of `make`: what ran, every variant, judge, drift, verdict, where to look next.

`python -m ops.summary` prints it again from the committed metrics.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.common.files import read_json
from stages.common.statistics import Metric, Metrics

if TYPE_CHECKING:
    from rich.table import Table

METRICS = Path("metrics")


def main(ran: list[str] | None) -> None:
    """Print the tables; `ran` is None where nothing was run just now."""
    from rich.console import Console

    console = Console(width=max(110, Console().width))  # a log file is as wide as a reader's screen
    if ran is not None:
        console.print(
            f"\n[bold]Ran[/bold]  {', '.join(ran) if ran else 'nothing: every stage is up to date'}"
        )
    files = {name: METRICS / "bench" / f"{name}.json" for name in variants()}
    console.print(compare({name: read_json(path) for name, path in files.items() if path.is_file()}))
    if waiting := [name for name, path in files.items() if not path.is_file()]:
        console.print(f"{', '.join(waiting)}: not benched")  # named, and `dvc repro` has not run since
    console.print(evidence(read_json(METRICS / "judge.json"), read_json(METRICS / "drift.json")))
    console.print(verdict(read_json(Path("reports/decision/decision.json"))))
    console.print(
        "[bold]Next[/bold] reports/decision/card.md  reports/drift.html  reports/data.html  `make ui`"
    )


def variants() -> list[str]:
    """Names of the models that bench scores, in the order of conf/config.yaml."""
    import yaml

    return list(yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))["variants"])


def compare(found: dict[str, Metrics]) -> Table:
    """Each benchmark metric of each variant with its 95 % interval, "-" where it has none.

    Slices ("task/metric/field:value") are left out; n is the first variant's that has the metric.
    """
    table = _table("Held-out rows", "metric", *found, "n")
    for key in sorted({key for metrics in found.values() for key in metrics if ":" not in key}):
        cells = [interval(metrics[key]) if key in metrics else "-" for metrics in found.values()]
        table.add_row(
            key, *cells, str(next(metrics[key]["n"] for metrics in found.values() if key in metrics))
        )
    return table


def evidence(judge: Metrics, drift: Metrics) -> Table:
    """Judge and drift in one table; what was not evaluated says so."""
    table = _table("Judge and drift", "what", "value", "n")
    rows = {
        "judge agrees with labels": judge.get("judge/agreement"),
        "judge prefers tuned to base (corrected)": judge.get("judge/win_rate_corrected"),
        "false alarms, reference against itself": drift.get("reference/false_alarm_rate"),
    }
    for name, metric in rows.items():
        table.add_row(
            name, interval(metric) if metric else "not evaluated", str(metric["n"]) if metric else ""
        )
    for key in sorted(drift):
        if key.endswith("/alarm"):
            table.add_row(
                f"window {key.removesuffix('/alarm')}", "ALARM" if drift[key]["value"] else "quiet", ""
            )
    return table


def verdict(decision: dict[str, Any]) -> Table:
    """The gate's checks and its word."""
    table = _table(f"Gate: {decision['verdict']}", "check", "outcome", "evidence")
    for check in decision["checks"]:
        outcome = {"promote": "pass", "reject": "FAIL"}.get(check["outcome"], check["outcome"])
        table.add_row(check["name"], outcome, check["why"])
    return table


def interval(metric: Metric) -> str:
    """value [lo, hi], without the interval where there is none."""
    if metric["lo"] == metric["hi"]:
        return f"{metric['value']:.3f}"
    return f"{metric['value']:.3f} [{metric['lo']:.3f}, {metric['hi']:.3f}]"


def _table(title: str, *columns: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column == "n" else "left")
    return table


if __name__ == "__main__":
    try:
        main(None)
    except FileNotFoundError as problem:
        sys.exit(f"summary: {problem.filename} is not there: run `make` first")
