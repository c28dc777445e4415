"""Which settings worked best, out of MLflow: `python -m ops.runs --since 7d --sort helpdesk_triage/fields`.

    python -m ops.runs --since 7d --failed      what failed, and with which words
    python -m ops.runs --sort heldout/loss --stage finetune --csv > runs.csv

The stages of one experiment log a run each; here they are one line: the score of one stage, the settings of all. Only
settings that differ between the lines are shown, "-" where a line has none: a stage from the cache logs no run.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from ops.direction import directions, higher_is_better, nearer_zero
from stages.common.store import connect, metric_name, one_line, shown, tracking_uri

if TYPE_CHECKING:
    from mlflow.entities import Run

SPANS = {"h": "hours", "d": "days", "w": "weeks"}
PAGE = 1000
OF_NO_INTEREST = ("threads", "name")  # last parts of parameters that decide no result


@dataclass(frozen=True)
class Line:
    """One experiment: when its scored stage ran, what it is called, its score, all its stages' settings."""

    when: datetime
    name: str
    score: float
    settings: dict[str, str]
    run: str


def main(arguments: list[str], root: Path) -> None:
    """Print a table, or CSV. Raises ValueError where the server does not answer or nothing is found."""
    options = _parser().parse_args(arguments)
    runs = fetch(root, _since(options.since))
    if options.failed:
        header, rows = ["when", "experiment", "stage", "status", "error"], failures(runs)
    else:
        metric = metric_name(options.sort or _target(root))
        lines = ranked(runs, metric, options.stage, root)
        header, rows = _columns(lines, metric)
    if not rows:
        raise ValueError(f"no {'failed ' if options.failed else ''}run since {options.since}")
    _write(header, rows, as_csv=options.csv)


def fetch(root: Path, since: datetime) -> list[Run]:
    """Every run of the store that began since then, newest first. Raises ValueError where it does not answer."""
    from mlflow.exceptions import MlflowException

    asked = f"attributes.start_time >= {int(since.timestamp() * 1000)}"
    try:
        client = connect(root)
        experiments = [each.experiment_id for each in client.search_experiments()]
        found, token = [], None
        while experiments:
            page = client.search_runs(experiments, asked, max_results=PAGE, page_token=token)
            found += list(page)
            if not (token := page.token):
                break
    except MlflowException as error:
        raise ValueError(
            f"{shown(tracking_uri(root))}: {one_line(error)}; run it again when it answers"
        ) from error
    return found


def ranked(runs: list[Run], metric: str, stage: str, root: Path) -> list[Line]:
    """The experiments whose `stage` (as in dvc.yaml, "bench@tuned") has `metric`, the best first.

    Raises ValueError where none has, naming metrics that are there.
    """
    groups: dict[tuple[str, str], dict[str, Run]] = defaultdict(dict)
    for run in runs:  # newest first, so that the first of a stage is its latest
        tags = run.data.tags
        if run.info.status == "FINISHED" and "lathe.stage" in tags:
            key = tags.get("dvc.experiment", ""), tags.get("params.digest", run.info.run_id)
            groups[key].setdefault(tags.get("dvc.stage", tags["lathe.stage"]), run)
    scored = [group for group in groups.values() if stage in group and metric in group[stage].data.metrics]
    if not scored:
        there = sorted(
            {name for group in groups.values() if stage in group for name in group[stage].data.metrics}
        )
        raise ValueError(
            f"no run of stage {stage} has metric {metric!r}; it has: {', '.join(there) or 'no runs'}"
        )
    lines = [_line(group, stage, metric) for group in scored]
    lower = "loss" in metric.rpartition("/")[2] or not higher_is_better(metric, directions(root))
    sign = 1 if lower else -1
    worth = abs if nearer_zero(metric) else float
    return sorted(lines, key=lambda line: (sign * worth(line.score), -line.when.timestamp()))


def failures(runs: list[Run]) -> list[list[str]]:
    """When, experiment, stage, status and error of each run that did not end well, newest first."""
    return [
        [
            f"{_when(run):%Y-%m-%d %H:%M}",
            _name(run),
            run.data.tags.get("dvc.stage", run.data.tags["lathe.stage"]),
            run.info.status,
            " ".join(run.data.tags.get("error", "").split()),
        ]
        for run in runs
        if run.info.status in ("FAILED", "KILLED") and "lathe.stage" in run.data.tags
    ]


def _line(group: dict[str, Run], stage: str, metric: str) -> Line:
    settings = {}
    for run in group.values():
        section = run.data.tags["lathe.stage"]
        for name, value in run.data.params.items():
            if name.rpartition(".")[2] not in OF_NO_INTEREST:
                settings[f"{section}.{name}"] = value
    run = group[stage]
    return Line(_when(run), _name(run), run.data.metrics[metric], settings, run.info.run_id)


def _columns(lines: list[Line], metric: str) -> tuple[list[str], list[list[str]]]:
    """The settings that are not the same in all lines that have them, each a column; "-" where a line has it not.

    A stage that came from the cache logs no run, so its settings are not known of that line.
    """
    found: dict[str, set[str]] = defaultdict(set)
    for line in lines:
        for name, value in line.settings.items():
            found[name].add(value)
    varied = sorted(name for name, values in found.items() if len(values) > 1)
    rows = [
        [
            f"{line.when:%Y-%m-%d %H:%M}",
            line.name,
            f"{line.score:.4f}",
            *(line.settings.get(name, "-") for name in varied),
            line.run[:8],
        ]
        for line in lines
    ]
    return ["when", "experiment", metric, *varied, "run"], rows


def _write(header: list[str], rows: list[list[str]], *, as_csv: bool) -> None:
    if as_csv:
        csv.writer(sys.stdout, lineterminator="\n").writerows([header, *rows])
        return
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(markup=False, highlight=False).print(table)  # an error's words may be in brackets


def _when(run: Run) -> datetime:
    return datetime.fromtimestamp(run.info.start_time / 1000, UTC)


def _name(run: Run) -> str:
    tags = run.data.tags
    return str(
        tags.get("dvc.experiment") or f"{tags.get('git.branch', '')} {tags.get('git.commit', '')[:7]}".strip()
    )


def _target(root: Path) -> str:
    """What the register stage decides by."""
    target = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))["register"]["target"]
    return f"{target['task']}/{target['metric']}"


def _since(text: str) -> datetime:
    """7d, 12h, 2w, or a date. Raises ValueError."""
    if found := re.fullmatch(r"(\d+)([hdw])", text):
        return datetime.now(UTC) - timedelta(**{SPANS[found[2]]: int(found[1])})
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError as error:
        raise ValueError(f"--since {text!r}: give 12h, 7d, 2w or a date such as 2026-11-20") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ops.runs", description="Which settings worked best?")
    parser.add_argument("--since", default="7d", help="12h, 7d, 2w or a date; the default is 7d")
    parser.add_argument(
        "--sort", metavar="METRIC", help="the best first; the default is the register stage's target"
    )
    parser.add_argument(
        "--stage", default="bench@tuned", help="whose metric, as in dvc.yaml: finetune, bench@base"
    )
    parser.add_argument("--failed", action="store_true", help="what failed, instead")
    parser.add_argument("--csv", action="store_true", help="for a spreadsheet")
    return parser


if __name__ == "__main__":
    try:
        main(sys.argv[1:], Path.cwd())
    except ValueError as problem:
        sys.exit(f"runs: {problem}")
