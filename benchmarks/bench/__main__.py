"""bench's engine against lm-eval's own: `python -m benchmarks.bench [--rounds N] [--items N] [WHAT ...]`.

cold      a process from its start to the scores of one item: the `lm_eval` command line, and what the stage does
build     requests of each task out of its items
zero, arc, few, drawn, generate      the answers to a task's requests, by `hf` at the best of four batch sizes
suite     the stage's own tasks on models/base (`dvc repro base prepare`): load, build, answer, score

Both sides in one process, one after the other, the order turned each round; cold in fresh processes. Equal answers are
asserted first: log-likelihoods within 1e-3, all else the same.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.bench.corpus import TASKS
from benchmarks.bench.corpus import main as make_corpus
from benchmarks.finetune.corpus import ROOT

SCRATCH = Path(os.environ.get("BENCH_DIR", "/tmp/lathe-bench")).resolve()  # noqa: S108 - it is thrown away
BATCHES = (4, 8, 16, 32)
NATS = 1e-3
Sides = dict[str, Callable[[], Any]]


def main(arguments: list[str]) -> None:
    """Measure and print the seconds of each round, then the ratios."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("what", nargs="*", metavar="WHAT")
    chosen = parser.parse_args(arguments)
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(SCRATCH / "huggingface"), "CUDA_VISIBLE_DEVICES": ""}
    folder = make_corpus(SCRATCH, chosen.items)
    for what in chosen.what or ["cold", "build", *TASKS, "suite"]:
        made = {"cold": cold, "build": build, "suite": suite}.get(what, functools.partial(answer, name=what))
        sides = made(folder)
        report(what, rounds(sides, chosen.rounds))


def rounds(sides: Sides, count: int) -> dict[str, list[float]]:
    """Seconds of each side, by round."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(count):
        names = list(sides) if number % 2 == 0 else list(sides)[::-1]
        for name in names:
            began = time.perf_counter()
            sides[name]()
            found[name].append(time.perf_counter() - began)
    return found


def report(what: str, seconds: dict[str, list[float]]) -> None:
    """A line for a person, and one for a program."""
    theirs, ours = seconds["lm-eval"], seconds["ours"]
    ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
    middle, load = statistics.median(ratios), os.getloadavg()[0]
    print(
        f"{what}: lm-eval {statistics.median(theirs):.2f} s, ours {statistics.median(ours):.2f} s, "
        f"{middle:.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f}, n={len(ratios)}, load {load:.1f})"
    )
    print(json.dumps({"what": what, "lm-eval": theirs, "ours": ours}), flush=True)


def cold(folder: Path) -> Sides:
    """Processes from start to end, one item of one task."""
    theirs = [
        *(
            str(Path(sys.executable).with_name("lm_eval")),
            "--model",
            "hf",
            "--device",
            "cpu",
            "--tasks",
            "arc",
        ),
        *("--model_args", f"pretrained={folder / 'model'},dtype=float32", "--limit", "1"),
        *("--include_path", str(folder / "tasks"), "--batch_size", "8"),
    ]
    ours = [sys.executable, "-m", "benchmarks.bench.cold", str(folder)]

    def run(command: list[str]) -> None:
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    return {"lm-eval": lambda: run(theirs), "ours": lambda: run(ours)}


def build(folder: Path) -> Sides:
    """All requests of all tasks; lm-eval's way first, since ours keeps compiled templates for good."""
    from lm_eval import utils

    from stages.bench.evaluation import compile_templates_once

    loaded = tasks(folder, list(TASKS))
    plain = utils.env.from_string
    compile_templates_once()
    kept = utils.env.from_string

    def requests(compiler: Any) -> list[Any]:
        utils.env.from_string = compiler
        found = []
        for task in loaded.values():
            task.set_fewshot_seed(1)
            task.build_all_requests(rank=0, world_size=1)
            found.append([(request.args, request.doc_id) for request in task.instances])
        return found

    assert requests(plain) == requests(kept), "the requests differ"
    return {"lm-eval": lambda: requests(plain), "ours": lambda: requests(kept)}


def answer(folder: Path, name: str) -> Sides:
    """Answers to one task's requests."""
    task = tasks(folder, [name])[name]
    task.build_all_requests(rank=0, world_size=1)
    requests = task.instances
    theirs, ours = hf(folder / "model"), scorer(folder / "model")
    kind = requests[0].request_type

    def ask(model: Any) -> list[Any]:
        found: list[Any] = getattr(model, kind)(requests, disable_tqdm=True)
        return found

    seconds = {}
    for theirs.batch_size_per_gpu in BATCHES:
        began = time.perf_counter()
        expected = ask(theirs)
        seconds[theirs.batch_size_per_gpu] = time.perf_counter() - began
    theirs.batch_size_per_gpu = min(seconds, key=seconds.__getitem__)
    print(f"{name}: hf is fastest with batches of {theirs.batch_size_per_gpu}")
    same(expected, ask(ours))
    return {"lm-eval": lambda: ask(theirs), "ours": lambda: ask(ours)}


def suite(_: Path) -> Sides:
    """The committed section `bench` on models/base, from loading to scores."""
    import yaml
    from omegaconf import OmegaConf

    from stages.bench.config import Bench
    from stages.bench.evaluation import evaluate

    os.chdir(ROOT)
    section = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))["bench"]
    cfg: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Bench), section))
    model = Path("models/base")

    def theirs() -> Any:
        return evaluate(cfg, hf(model, cfg.batch_size))

    def ours() -> Any:
        return evaluate(cfg, scorer(model, cfg))

    one, two = theirs()["samples"], ours()["samples"]
    for name in one:
        same(
            [response for sample in one[name] for response in sample["filtered_resps"]],
            [response for sample in two[name] for response in sample["filtered_resps"]],
        )
    return {"lm-eval": theirs, "ours": ours}


def tasks(folder: Path, names: list[str]) -> dict[str, Any]:
    """Loaded tasks."""
    from lm_eval.tasks import TaskManager

    found: dict[str, Any] = TaskManager(include_path=str(folder / "tasks"), include_defaults=False).load(
        names
    )["tasks"]
    for task in found.values():
        task.set_fewshot_seed(1)
    return found


def hf(folder: Path, batch: int = 8) -> Any:
    """lm-eval's own model class, with what the stage's own tasks ask of a model beside it."""
    from lm_eval.models.huggingface import HFLM

    from stages.bench.load import end_of_turn, greedy
    from stages.bench.respondent import Nats
    from stages.bench.responses import Responses
    from stages.bench.turns import ChatTemplate

    class Counted(HFLM):  # type: ignore[misc]
        def _loglikelihood_tokens(self, requests: Any, **named: Any) -> Any:
            found = super()._loglikelihood_tokens(requests, **named)
            return [
                (Nats(nats, len(asked[2])), is_greedy)
                for (nats, is_greedy), asked in zip(found, requests, strict=True)
            ]

    model = Counted(
        pretrained=str(folder), device="cpu", dtype="float32", batch_size=batch, add_bos_token=False
    )
    model.source, model.responses, model.rendered, model.speaks = str(folder), Responses(None), set(), True
    model.template = ChatTemplate(model.tokenizer, str(folder))
    model.end = model.tokenizer.convert_ids_to_tokens(end_of_turn(model.tokenizer))
    model.model.generation_config = greedy(model.model, model.tokenizer)
    return model


def scorer(model: Path, cfg: Any = None) -> Any:
    """Ours."""
    from stages.bench.config import Backend, Bench, Code, Precision, Variant
    from stages.bench.model import Scorer
    from stages.common.prompt import Prompt

    code = Code(False, 30, 3, 1 << 30, 8, 1 << 23)
    plain = Bench(1, 2, "benchmark", [], 0, 32, 512, Prompt("none", "", [], 256), 0, False, [], code)
    return Scorer(cfg or plain, Variant(str(model), "", Precision.fp32, Backend.own, {}))


def same(theirs: list[Any], ours: list[Any]) -> None:
    """Assert equal answers."""
    for one, two in zip(theirs, ours, strict=True):
        if isinstance(one, str):
            assert one == two, f"{one!r} is not {two!r}"
        else:
            assert abs(one[0] - two[0]) < NATS and one[1] == two[1], f"{one} is not {two}"


if __name__ == "__main__":
    main(sys.argv[1:])
