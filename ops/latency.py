"""How fast a variant answers here: `python -m ops.latency tuned --batch 1 8 --prompt 128 --new 64 --repeats 20`.

Time to the first token, time of each further one, tokens a second and peak memory, at stated batch sizes and lengths,
by the loop that bench generates with (keys and values kept, logits of the last place only, greedy). Prompts are random
tokens of exactly that length, and no answer ends early. A batch size gets one run in MLflow. Nothing is a DVC out:
these are facts of this machine, on this day, and not of the model. A percentile is the smallest value that at least
that share of the measurements do not exceed; of few measurements the high ones are their largest, so n is shown.
"""

from __future__ import annotations

import argparse
import math
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ops import sync
from stages.bench.config import Backend, Bench, Variant
from stages.common import provenance
from stages.common.files import write_json
from stages.common.run import Loaded, flat, hush, load, run_name, seed_everything
from stages.common.store import one_line
from stages.common.tracking import track

if TYPE_CHECKING:
    import torch

WARM_UP = 2  # repeats that are not counted: kernels are chosen and memory is taken in them
QUANTILES = (0.5, 0.95, 0.99)


@dataclass(frozen=True)
class Shape:
    """What is asked: `batch` prompts of `prompt` tokens at once, `new` tokens written for each."""

    batch: int
    prompt: int
    new: int


@dataclass
class Timings:
    """Seconds: `first` has one value a repeat, `further` one for each later token of each repeat."""

    first: list[float] = field(default_factory=list)
    further: list[float] = field(default_factory=list)
    peak_mib: float = 0.0


def main(arguments: Sequence[str], root: Path) -> None:
    """Measure, print a table, log.

    Raises ValueError on a model that is not there or that another back end than ours computes, lengths it has no room
    for, and last of all on a batch too large for the memory and a tracking server that does not answer.
    """
    options = _parser().parse_args(arguments)
    hush()
    loaded = load("bench", Bench, [options.variant], Variant)
    if loaded.target.backend is not Backend.own:
        raise ValueError(
            f"variants.{options.variant} of params.yaml has backend: {loaded.target.backend.name}, and what is timed "
            "here is bench's own engine: measure that back end by its own tools, or name a variant with backend: own"
        )
    # The small ones first: on CPUs the peak is the process's own, and never falls
    shapes = [Shape(batch, options.prompt, options.new) for batch in sorted(set(options.batch))]
    seed_everything(loaded.section)
    found, problem = dict[Shape, dict[str, float]](), ""
    for shape, timings in _measured(loaded, shapes, options.repeats):
        if isinstance(timings, Exception):
            problem = f"batch {shape.batch}: {one_line(timings) or 'out of memory'}"
            break
        found[shape] = figures(timings, shape)
        _log(root, loaded, shape, options.repeats, found[shape])
    if found:
        _print(options.variant, found)
    if options.json:
        made = [{"shape": asdict(shape), "figures": values} for shape, values in found.items()]
        write_json(
            options.json, {"variant": options.variant, "processor": provenance.cpu_model(), "measured": made}
        )
    if problem:
        problem += "; smaller ones are measured and logged" if found else "; lower --batch, --prompt or --new"
    try:
        sync.main(root)
    except ValueError as unsent:
        problem = "; ".join(filter(None, (problem, str(unsent))))
    if problem:
        raise ValueError(problem)


def measure(model: Any, shape: Shape, repeats: int, seed: int) -> Timings:
    """Time `repeats` batches after WARM_UP uncounted ones."""
    import torch

    draw = torch.Generator().manual_seed(seed)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    found = Timings()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    for repeat in range(WARM_UP + repeats):
        prompts = torch.randint(vocabulary, (shape.batch, shape.prompt), generator=draw).to(model.device)
        first, further = _answer(model, prompts, shape.new)
        if repeat >= WARM_UP:
            found.first.append(first)
            found.further += further
    found.peak_mib = _peak_mib()
    return found


def figures(timings: Timings, shape: Shape) -> dict[str, float]:
    """Percentiles (first/p50_ms, further/p99_ms, ...), tokens a second over all rows of a batch, peak memory, n."""
    found: dict[str, float] = {}
    for name, seconds in (("first", timings.first), ("further", timings.further)):
        for share in QUANTILES if seconds else ():
            found[f"{name}/p{100 * share:.0f}_ms"] = 1000 * quantile(seconds, share)
    total, later = sum(timings.first) + sum(timings.further), sum(timings.further)
    found["tokens_per_second"] = shape.batch * shape.new * len(timings.first) / total
    if later:
        found["decode_tokens_per_second"] = shape.batch * len(timings.further) / later
    return found | {"peak_memory_mib": timings.peak_mib, "n": float(len(timings.first))}


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed (the nearest rank)."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def _measured(
    loaded: Loaded, shapes: list[Shape], repeats: int
) -> Iterator[tuple[Shape, Timings | Exception]]:
    """The timings of each shape, or the error where there is no memory for so many."""
    from tqdm import tqdm

    from stages.bench.load import load as load_model
    from stages.common.memory import out_of_memory

    model, _ = load_model(loaded.target)
    room = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if room and shapes[0].prompt + shapes[0].new > room:
        raise ValueError(
            f"--prompt {shapes[0].prompt} and --new {shapes[0].new} are more than the {room} tokens that "
            f"{loaded.target.path} has room for"
        )
    if getattr(model, "_is_stateful", False):
        raise ValueError(f"{type(model).__name__} keeps a state instead of keys and values: not measured")
    for shape in tqdm(shapes, desc="latency", unit="batch size"):
        try:
            yield shape, measure(model, shape, repeats, loaded.section.seed)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            yield shape, error


def _answer(model: Any, prompts: torch.Tensor, new: int) -> tuple[float, list[float]]:
    """Seconds to the first token of the batch, and of each further one."""
    import torch

    from stages.bench.cache import growing_cache

    cache, ids, marks = growing_cache(), prompts, [_now()]
    with torch.no_grad():
        for _ in range(new):
            logits = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            ids = logits[:, -1:].argmax(-1)
            marks.append(_now())
    seconds = [after - before for before, after in pairwise(marks)]
    return seconds[0], seconds[1:]


def _now() -> float:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _peak_mib() -> float:
    """Of the GPU where there is one, else of this process since its start, the model's loading included."""
    import torch

    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated() / 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _log(root: Path, loaded: Loaded, shape: Shape, repeats: int, values: dict[str, float]) -> None:
    params = {f"latency.{name}": str(value) for name, value in asdict(shape).items()}
    params |= {"latency.repeats": str(repeats), "threads": str(loaded.section.threads)}
    params |= flat({"variant": loaded.params["variants"][loaded.variant]})
    tags = provenance.facts("latency")
    tags |= {"dvc.stage": f"latency@{loaded.variant}", "experiment": str(loaded.params["experiment"])}
    track.start(root, run_name(loaded.params, "latency", loaded.variant), tags, params, follow=False)
    track.text("environment.txt", provenance.packages())
    for name, value in values.items():
        track.metric(f"latency/{name}", value)
    track.close("FINISHED")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ops.latency", description="How fast a variant answers here."
    )
    parser.add_argument("variant", help="one of `variants` in params.yaml")
    numbers = {"--prompt": (128, "tokens of each prompt"), "--new": (64, "tokens written for each")}
    for name, (usual, text) in (numbers | {"--repeats": (20, "batches measured")}).items():
        parser.add_argument(name, type=_count, default=usual, metavar="N", help=f"{text} (default: {usual})")
    parser.add_argument("--batch", type=_count, nargs="+", default=[1, 8], metavar="N", help="at once")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1")
    return int(text)


def _print(variant: str, found: dict[Shape, dict[str, float]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    asked = next(iter(found))
    title = f"{variant}: prompts of {asked.prompt} tokens, {asked.new} written, {provenance.cpu_model()}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    parts = [f"{part} p50,p95,p99" for part in ("first token ms", "further ms")]
    for head in ",".join(["batch", *parts, "tokens/s,peak MiB,n"]).split(","):
        table.add_column(head, justify="right")
    for shape, values in found.items():
        spans = [values.get(f"{part}/p{q}_ms") for part in ("first", "further") for q in (50, 95, 99)]
        cells = ["" if span is None else f"{span:.2f}" for span in spans]
        rest = [f"{values[name]:,.0f}" for name in ("tokens_per_second", "peak_memory_mib", "n")]
        table.add_row(str(shape.batch), *cells, *rest)
    Console(width=max(120, Console().width)).print(table)


if __name__ == "__main__":
    try:
        main(sys.argv[1:], Path.cwd())
    except ValueError as problem:
        sys.exit(f"latency: {problem}")
