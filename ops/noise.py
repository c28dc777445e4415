"""How far a variant's scores move by themselves: `python -m ops.noise tuned --seeds 18 19 --batch-size 7`.

    python -m ops.noise tuned                               one other seed, one other batch size, the other precision
    python -m ops.compare main . --noise .lathe/noise/tuned

Nothing of the model changes between these runs of its suite: the seed draws other few-shot examples, batches of
another size round otherwise, and so does another precision. Each repeat is kept under .lathe/noise/<variant>/ as a
file that `ops.compare` reads, the plain run among them; one that is there already, of the same model, section, items
and code, is not run again. The table has, by metric, how far each repeat moves the value, on which share of the items,
and how far two runs are apart at most in 95 of 100 cases.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from ops import comparison_sums
from ops.comparison import Spread, spread
from ops.results import Results, parse
from stages.bench import corpus, snapshot
from stages.bench.checks import check_values
from stages.bench.config import ENDPOINTS, Backend, Bench, Precision, Variant
from stages.bench.evaluation import TASKS, own_tasks
from stages.common.files import sha256, tree_digest
from stages.common.run import Loaded, hush, load, seed_everything

KEPT = Path(".lathe/noise")
BATCHED = (Backend.own, Backend.hf)
PLAIN = "plain"
T = TypeVar("T")  # what an item has: a score, or what it adds to sums
LEGEND = (
    "A repeat's column: how far it moves the plain run's value, and on which share of the items theirs differs.\n"
    "limit: how far two single runs are apart at most in 95 of 100 cases; of two or three runs a guess."
)


@dataclass(frozen=True)
class Repeat:
    """The same suite on the same model with one thing changed; `name` says which, and names its file."""

    name: str
    cfg: Bench
    variant: Variant


def main(arguments: Sequence[str], root: Path) -> None:
    """Run what is missing, print the table. Raises ValueError as the stage does, and where nothing would change."""
    options = _parser().parse_args(arguments)
    hush()
    loaded = load("bench", Bench, [options.variant], Variant)
    check_values(loaded.section)
    found = {each.name: _results(each, root / KEPT / options.variant) for each in repeats(loaded, options)}
    _print(options.variant, found)
    print(f"compare reads them: python -m ops.compare A B --noise {KEPT / options.variant}")


def repeats(loaded: Loaded, options: argparse.Namespace) -> list[Repeat]:
    """The plain run first, then one for each changed seed, batch size and precision.

    Raises ValueError where nothing would change: a run that differs in nothing would pass for one that does not move.
    """
    cfg, variant = loaded.section, loaded.target
    usual = not (options.seeds or options.batch_size or options.precision)
    seeds = [cfg.seed + 1] if usual else options.seeds
    sizes = [max(1, cfg.batch_size // 2)] if usual else options.batch_size
    other = Precision.bf16 if variant.precision is Precision.fp32 else Precision.fp32
    precisions = [other] if usual else [Precision[name] for name in options.precision]
    batched, precise = variant.backend in BATCHED, variant.backend not in ENDPOINTS
    for given, heeded, option in (
        (options.batch_size, batched, "--batch-size"),
        (options.precision, precise, "--precision"),
    ):
        if given and not heeded:
            raise ValueError(
                f"{option} changes nothing of backend {variant.backend.name}: its server decides"
            )
    sizes, precisions = sizes if batched else [], precisions if precise else []
    found = [Repeat(PLAIN, cfg, variant)]
    found += [Repeat(f"seed-{seed}", replace(cfg, seed=seed), variant) for seed in seeds if seed != cfg.seed]
    if (least := min(sizes, default=1)) < 1:
        raise ValueError(f"--batch-size {least}: give numbers from 1")
    for size in sizes:
        # Likelihoods know no batch of so many prompts: theirs is one of so many tokens
        scale = max(1, cfg.batch_tokens * size // cfg.batch_size)
        changed = replace(cfg, batch_size=size, batch_tokens=scale)
        found += [Repeat(f"batch-{size}", changed, variant)] if size != cfg.batch_size else []
    for precision in precisions:
        changed_variant = replace(variant, precision=precision)
        found += [Repeat(precision.name, cfg, changed_variant)] if precision is not variant.precision else []
    if len(found) == 1:
        raise ValueError(
            "nothing is changed: --seeds, --batch-size or --precision other than the section's own"
        )
    return found


def items_digest(tasks: list[str]) -> str:
    """Hex digest of the files that these tasks' items come from: the stage's fingerprint has none of them.

    Raises ValueError for a snapshot that is not here; a task that nobody knows is left to the run to refuse.
    """
    own = [name for name in tasks if name in own_tasks()]
    told = [snapshot.parse(TASKS / f"{name}.yaml")[0].get("dataset_kwargs") for name in own]
    files = {Path(str(each["path"])) for each in told if isinstance(each, dict) and "path" in each}
    folders = snapshot.folders([name for name in tasks if name not in own and snapshot.there(name)])
    found = [(str(path), sha256(path)) for path in sorted(files) if path.is_file()]
    found += [(str(folder), tree_digest(folder)) for folder in folders]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:8]


def _results(repeat: Repeat, folder: Path) -> Results:
    """Per-item results of a repeat, run unless its file is there."""
    from stages.bench.fingerprint import fingerprint

    digest = fingerprint(repeat.cfg, repeat.variant) + items_digest(repeat.cfg.tasks)
    path = folder / f"{repeat.name}-{digest}.parquet"
    if not path.is_file():
        # Of another model, section, items or code; where the plain run is, all are: compare reads the whole folder
        for old in folder.glob("*.parquet" if repeat.name == PLAIN else f"{repeat.name}-*.parquet"):
            old.unlink()
        _run(repeat, path, digest)
    return parse(path.read_bytes(), repeat.name, str(path))


def _run(repeat: Repeat, path: Path, digest: str) -> None:
    from stages.bench.evaluation import evaluate
    from stages.bench.processes import respondent
    from stages.bench.results import item_rows, write_rows
    from stages.common.workspace import workspace

    print(f"{repeat.name}:", flush=True)
    seed_everything(repeat.cfg)
    with workspace("noise", digest) as work:
        results = evaluate(repeat.cfg, respondent(repeat.cfg, repeat.variant, work))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_rows(path, item_rows(results, repeat.cfg.slices, set()))


def table(found: dict[str, Results]) -> list[list[str]]:
    """Heads, then a row for each metric: the plain run's value, each repeat's move and changed items, the limit.

    A value that is no mean over items (BLEU, macro F1) moves as a whole; its items change where what they add does.
    """
    others = [name for name in found if name != PLAIN]
    means = {
        metric: _row({name: each.scores.get(metric, {}) for name, each in found.items()}, spread, _mean)
        for metric in found[PLAIN].scores
    }
    wholes = {
        metric: _row(
            {name: each.parts.get(metric, {}) for name, each in found.items()},
            functools.partial(comparison_sums.spread, metric),
            functools.partial(corpus.value, metric.rpartition("/")[2]),
        )
        for metric in found[PLAIN].parts
    }
    rows = [[metric, *cells] for metric, cells in sorted((means | wholes).items())]
    return [["metric", "n", "plain", *others, "limit"], *rows]


def _row(
    found: dict[str, Mapping[str, T]],
    spread_of: Callable[[list[Mapping[str, T]]], Spread | None],
    value_of: Callable[[list[T]], float],
) -> list[str]:
    """Cells of a metric from its items in each run; a run that has not scored it has none."""
    plain = found[PLAIN]
    cells = [str(len(plain)), f"{value_of(list(plain.values())):.4f}"]
    for other in (items for name, items in found.items() if name != PLAIN):
        moved, shared = spread_of([plain, other]), sorted(plain.keys() & other.keys())
        if moved is None:
            cells.append("not scored")
            continue
        before, after = (value_of([each[item] for item in shared]) for each in (plain, other))
        cells.append(f"{after - before:+.4f} ({100 * moved.flip_rate:.1f} %)")
    whole = spread_of([items for items in found.values() if items])
    return [*cells, f"{whole.limit:.4f}" if whole else ""]


def _mean(scores: list[float]) -> float:
    return sum(scores) / len(scores)


def _print(variant: str, found: dict[str, Results]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    head, *lines = table(found)
    shown = Table(
        title=f"{variant}: what moves when the model does not", title_justify="left", box=SIMPLE_HEAD
    )
    for name in head:
        shown.add_column(name, justify="left" if name == "metric" else "right")
    for line in lines:
        shown.add_row(*line)
    console = Console(width=max(130, Console().width))
    console.print(shown)
    console.print(LEGEND, style="dim")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ops.noise", description="How far scores move by themselves."
    )
    parser.add_argument("variant", help="one of `variants` in params.yaml")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[], metavar="N", help="of the few-shot examples"
    )
    parser.add_argument("--batch-size", type=int, nargs="+", default=[], metavar="N")
    names = [precision.name for precision in Precision]
    parser.add_argument(
        "--precision", nargs="+", default=[], choices=names, metavar="P", help=", ".join(names)
    )
    return parser


if __name__ == "__main__":
    try:
        main(sys.argv[1:], Path.cwd())
    except ValueError as problem:
        sys.exit(f"noise: {problem}")
