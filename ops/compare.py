"""Is B worse than A, item by item? `python -m ops.compare A B [--json FILE] [--markdown FILE]`.

    python -m ops.compare main .                                 # a revision against the working tree
    python -m ops.compare .:base .:tuned                         # two variants
    python -m ops.compare HelpdeskAssistant@champion my-experiment --margin 0.01
    python -m ops.compare main . --noise .lathe/noise/tuned

What A and B may be stands in ops/results.py. Right or wrong is tested by McNemar's exact test, other scores by
flipping signs, values that are no mean over items (BLEU, macro F1, a bias score) by swapping items, all corrected
together (Holm). `--noise` takes repeats of one model (a folder that `ops.noise` filled, or what A and B may be; of
three or more, or their spread is a guess): a difference that two of them would show too does not count, if they have
every item that A and B have.
Exit status: 0 nothing is significantly worse, 1 something is, 2 the two cannot be compared.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from ops.comparison import ALPHA, POWER, Comparison, Verdict, compare, rows
from ops.comparison_sums import compare_sums, shared
from ops.direction import directions
from ops.results import Results, Texts, read
from stages.common.files import write_json, write_text

LEGIBLE, SHOWN = 24, 4  # a warning shows so many characters of a setting, and names
WIDTH = 160  # a table that is cut to a narrow terminal cannot be read
LEGEND = (
    "B - A with its 95 % interval; items: on how many B is better (+) and worse (-); ↓ lower is better; "
    "→0 nearer to 0 is better, and B - A is |B| - |A|.",
    f"p: corrected for all metrics together (Holm), the verdict is at {ALPHA:g}; "
    f"detectable: the true difference that is found {100 * POWER:.0f} % of the time.",
)
NUMBERS = {"n", "A", "B", "items", "p (Holm)", "detectable"}
STYLES = {Verdict.better: "green", Verdict.worse: "bold red", Verdict.none: "dim"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return _compare(options, Path.cwd())
    except (ValueError, OSError, yaml.YAMLError) as problem:
        print("compare:", *str(problem).split(), file=sys.stderr)
        return 2


def warnings(a: Results, b: Results) -> list[str]:
    """What else differs between A and B, so that a difference of scores may not be the models'."""
    return [*item_warnings(a, b, "A", "B"), *_setting_warnings(a, b)]


def item_warnings(a: Results, b: Results, left: str, right: str) -> list[str]:
    """Metrics, items, prompts and targets that are not the same in both, which the text calls left and right."""
    found = []
    for this, other, name in ((a, b, left), (b, a, right)):
        if alone := this.scores.keys() - other.scores.keys():
            found.append(f"only {name} holds {_listed(alone)}")
    mine, theirs = _items(a), _items(b)
    for task in sorted(mine.keys() & theirs.keys()):
        if mine[task] != theirs[task]:
            counts = [len(items) for items in (mine[task] - theirs[task], theirs[task] - mine[task])]
            found.append(f"{task}: {counts[0]} items only in {left}, {counts[1]} only in {right}")
    if not (a.prompts and b.prompts):
        found.append(f"prompts of {left} and {right} were not compared: not both are recorded")
    found += _changed(a.prompts, b.prompts, f"asked with another prompt in {left} than in {right}")
    return found + _changed(a.targets, b.targets, f"scored against another target in {left} than in {right}")


def report(
    a: Results, b: Results, comparisons: list[Comparison], noted: list[str], options: argparse.Namespace
) -> dict[str, Any]:
    """The comparison as plain values: no time and no path of this machine, so equal results make equal files."""
    metrics = {each.metric: asdict(each) | {"verdict": each.verdict.value} for each in comparisons}
    return {
        "a": {"name": a.name, "source": a.source},
        "b": {"name": b.name, "source": b.source},
        "alpha": ALPHA,
        "power": POWER,
        "margin": options.margin,
        "noise": options.noise,
        "metrics": metrics,
        "warnings": noted,
        "worse": [each.metric for each in comparisons if each.fails],
    }


def markdown(
    a: Results, b: Results, comparisons: list[Comparison], noted: list[str], table: list[list[str]]
) -> str:
    """The comparison for a pull request."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in table]
    lines = [f"**{_summary(comparisons)}**", "", *(f"- {line}" for line in _sides(a, b)), ""]
    lines += ["| " + " | ".join(row) + " |" for row in cells[:1]]
    lines += ["|" + "---|" * len(table[0]), *("| " + " | ".join(row) + " |" for row in cells[1:]), ""]
    lines += [*(f"- warning: {each}" for each in noted), *([""] if noted else []), *LEGEND]
    return "\n".join(lines) + "\n"


def _compare(options: argparse.Namespace, root: Path) -> int:
    if not 0 <= options.margin < math.inf:
        raise ValueError(f"--margin {options.margin:g}: give the fall that is tolerated, 0 or more")
    noise = [each for name in options.noise for each in _repeats(name, root)]
    if len(noise) == 1:
        raise ValueError("--noise takes at least two repeats of one model; A or B may be one of them")
    a, b, *repeats = (read(name, options.variant, root) for name in (options.a, options.b, *noise))
    repeats = _independent(a, b, repeats)
    declared, scores = directions(root), [each.scores for each in repeats]
    family = len(a.scores.keys() & b.scores.keys()) + len(shared(a.parts, b.parts))
    summed = compare_sums(a.parts, b.parts, declared, family, [each.parts for each in repeats])
    comparisons = compare(a.scores, b.scores, declared, options.margin, scores, summed)
    noted = warnings(a, b)
    noted += item_warnings(a, repeats[0], "A", repeats[0].name) if repeats else []
    for each in repeats[1:]:
        noted += item_warnings(repeats[0], each, repeats[0].name, each.name)
    table = rows(comparisons, noise=bool(repeats))
    if options.json:
        write_json(options.json, report(a, b, comparisons, noted, options))
    if options.markdown:
        write_text(options.markdown, markdown(a, b, comparisons, noted, table))
    _print(a, b, comparisons, noted, table)
    return 1 if any(each.fails for each in comparisons) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ops.compare", description="Is B worse than A?")
    parser.add_argument("a", metavar="A", help="revision, experiment, registry version, folder or file")
    parser.add_argument("b", metavar="B", help="the same")
    parser.add_argument("--variant", default="tuned", help="of A and B that do not say theirs (rev:variant)")
    parser.add_argument("--margin", type=float, default=0.0, help="fall tolerated, in the metric's unit")
    parser.add_argument("--noise", nargs="+", default=[], metavar="X", help="repeats of one model")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    return parser


def _independent(a: Results, b: Results, repeats: list[Results]) -> list[Results]:
    """The repeats without B where A is among them too: by a spread that has their difference in it, it would be noise.

    Raises ValueError where too few stay.
    """
    if _same(a, b) or not all(any(_same(side, each) for each in repeats) for side in (a, b)):
        return repeats
    kept = [each for each in repeats if not _same(b, each)]
    if len(kept) < 2:
        raise ValueError(
            "A and B are both among the repeats of --noise, and without B they are too few: whatever the two differ "
            "by would be noise; give more repeats"
        )
    return kept


def _same(a: Results, b: Results) -> bool:
    return (a.scores, a.parts) == (b.scores, b.parts)


def _repeats(name: str, root: Path) -> list[str]:
    """A folder of repeats stands for its files."""
    files = sorted((root / name).glob("*.parquet")) if (root / name).is_dir() else []
    return [
        path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path) for path in files
    ] or [name]


def _changed(a: Texts, b: Texts, what: str) -> list[str]:
    shared = {task: a[task].keys() & b[task].keys() for task in sorted(a.keys() & b.keys())}
    counts = {task: sum(a[task][item] != b[task][item] for item in items) for task, items in shared.items()}
    return [
        f"{task}: {count} of {len(shared[task])} items were {what}" for task, count in counts.items() if count
    ]


def _setting_warnings(a: Results, b: Results) -> list[str]:
    if a.settings is None or b.settings is None:
        unknown = " and ".join(name for name, each in (("A", a), ("B", b)) if each.settings is None)
        return [f"no record of how {unknown} came about: limit, precision and versions were not compared"]
    found = []
    for key in sorted(a.settings.keys() | b.settings.keys()):
        values = [each.get(key, "not recorded") for each in (a.settings, b.settings)]
        if values[0] != values[1]:
            short = max(map(len, values)) <= LEGIBLE
            found.append(f"{key}: {values[0]} in A, {values[1]} in B" if short else f"{key} is not the same")
    return found


def _items(results: Results) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name, scores in results.scores.items():
        found.setdefault(name.rpartition("/")[0], set()).update(scores)
    return found


def _listed(names: Collection[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(sorted(names)[:SHOWN]) + more


def _sides(a: Results, b: Results) -> list[str]:
    return [f"{side}: {each.name} ({each.source})" for side, each in (("A", a), ("B", b))]


def _summary(comparisons: list[Comparison]) -> str:
    if all(each.same for each in comparisons):
        return f"Every score of B equals that of A ({len(comparisons)} metrics)."
    order = sorted(comparisons, key=lambda each: (list(Verdict).index(each.verdict), each.mark))
    counts = Counter(each.word for each in order)
    said = ", ".join(f"{count} {word}" for word, count in counts.items())
    return f"B against A in {len(comparisons)} metrics: {said}."


def _print(
    a: Results, b: Results, comparisons: list[Comparison], noted: list[str], table: list[list[str]]
) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(width=max(WIDTH, Console().width), markup=False, highlight=False)
    shown = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in table[0]:
        shown.add_column(name, justify="right" if name in NUMBERS else "left", overflow="fold")
    for each, cells in zip(comparisons, table[1:], strict=True):
        shown.add_row(*cells, style="yellow" if each.mark else STYLES[each.verdict])
    console.print(*_sides(a, b), sep="\n", soft_wrap=True)
    console.print(shown)
    for line in noted:
        console.print(f"warning: {line}", style="yellow", soft_wrap=True)
    console.print(_summary(comparisons), style="bold", soft_wrap=True)
    console.print(*LEGEND, sep="\n", style="dim", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
