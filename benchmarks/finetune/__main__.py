"""Fine-tuning against its peers on the CPU: `python -m benchmarks.finetune [OPTION ...] [SIDE ...]`.

ours          the stage's training, packed rows, tracking on
bare          the same work as a plain PyTorch loop: what the framework around it costs
lean          the same without token accuracy, entropy and deterministic mode: what these cost
padded        transformers' Trainer with its defaults, in the same precision as ours
padded-default    transformers' Trainer with its defaults: fp32
trl           `trl sft` with its defaults, in the same precision as ours
trl-default   `trl sft` with its defaults: bf16
trl-packing   `trl sft --packing` with ours' row length and rows a batch, in the same precision
trl-stored    `trl sft --gradient_checkpointing false`, in the same precision

Every measurement in a fresh process, the sides one after the other in each round, the order turned each round. Equal
work is asserted first, ours and bare have the same losses step by step, and no figure stands for a model that did not
learn. The measure is real tokens a second of the training loop, the same conversations for all: no start-up, no saving.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.finetune.corpus import LENGTHS, ROOT, SHAPES
from benchmarks.finetune.corpus import main as make_corpus
from benchmarks.finetune.measured import Measured

SCRATCH = Path(os.environ.get("BENCH_DIR", "/tmp/lathe-bench")).resolve()  # noqa: S108 - it is thrown away
BATCH = 8  # the peers' default
SAME = 1e-5  # relative, between ours and bare
# As stages/common/run.py sets them; accelerate would give a process without a GPU one thread.
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "2") | {
    "GOMP_SPINCOUNT": "2000",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HOME": str(SCRATCH / "huggingface"),
    "DO_NOT_TRACK": "true",
}
SIDES = (
    "ours",
    "bare",
    "lean",
    "padded",
    "padded-default",
    "trl",
    "trl-default",
    "trl-packing",
    "trl-stored",
)
Rounds = list[dict[str, Measured]]


def main(arguments: list[str]) -> None:
    """Measure and print."""
    chosen = _parser().parse_args(arguments)
    sides = ["ours", *(side for side in chosen.sides or _usual(chosen.precision) if side != "ours")]
    folder = _corpus(chosen.lengths, chosen.model, chosen.steps * BATCH)
    print(_run("equal", "benchmarks.finetune.equal", str(folder)).strip().splitlines()[-1], flush=True)
    rounds: Rounds = []
    loads = []
    for number in range(chosen.rounds):
        loads.append(os.getloadavg()[0])
        order = sides if number % 2 == 0 else sides[::-1]
        rounds.append({side: _measure(side, folder, chosen.precision) for side in order})
        _same_work(rounds[-1])
        speeds = ", ".join(f"{side} {rounds[-1][side].speed:,.0f}" for side in sides)
        print(f"round {number + 1}, load {loads[-1]:.1f}, real tokens/s: {speeds}", flush=True)
    _table(chosen, sides, rounds)
    print(json.dumps(_record(chosen, sides, rounds) | {"load": loads}))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.finetune",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--lengths", choices=LENGTHS, default="gsm8k")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--model", choices=SHAPES, default="small")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--steps", type=int, default=40, help="updates of the peers, of 8 conversations each: 20, 30, ..."
    )
    parser.add_argument("sides", nargs="*", metavar="SIDE", type=_side, help=", ".join(SIDES))
    return parser


def _side(name: str) -> str:
    if name not in SIDES:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(SIDES)}")
    return name


def _usual(precision: str) -> list[str]:
    """In bf16, `trl-default` is `trl`; in fp32, `padded-default` is `padded`."""
    return ["bare", "padded", "trl", "trl-default" if precision == "fp32" else "padded-default"]


def _corpus(lengths: str, shape: str, count: int) -> Path:
    """The folder, made once: complete or absent."""
    folder = SCRATCH / "finetune" / f"{lengths}-{shape}-{count}"
    if not folder.is_dir():
        draft = folder.with_name(f".{folder.name}")
        shutil.rmtree(draft, ignore_errors=True)
        make_corpus(draft, lengths, shape, count)
        draft.rename(folder)
    return folder


def _measure(side: str, folder: Path, precision: str) -> Measured:
    out = SCRATCH / "finetune/out" / side
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    _run(side, *_command(side, folder, precision, out))
    measured = Measured.read(out / "result.json")
    measured.check(side)
    return measured


def _command(side: str, folder: Path, precision: str, out: Path) -> list[str]:
    """Module and arguments of a side."""
    if side == "lean":
        return ["benchmarks.finetune.bare", str(folder), precision, str(out), "lean"]
    if side == "padded-default":
        return ["benchmarks.finetune.padded", str(folder), "fp32", str(out)]
    if not side.startswith("trl"):
        return [f"benchmarks.finetune.{side}", str(folder), precision, str(out)]
    lengths = LENGTHS[folder.name.partition("-")[0]]
    rows = ["--max_length", str(lengths.row_length), "--per_device_train_batch_size", str(lengths.batch_size)]
    extra = {"trl-packing": ["--packing", *rows], "trl-stored": ["--gradient_checkpointing", "false"]}.get(
        side, []
    )
    if side != "trl-default" and precision == "fp32":
        extra += ["--bf16", "false"]
    return ["benchmarks.finetune.trl_sft", str(folder), str(out), *extra]


def _run(name: str, module: str, *arguments: str) -> str:
    """What a fresh process writes. Raises RuntimeError with the end of it where it fails."""
    found = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=os.environ | THREADS,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if found.returncode:
        raise RuntimeError(f"{name}: {found.stdout[-2000:]}")
    return found.stdout


def _same_work(found: dict[str, Measured]) -> None:
    counts = {side: measured.tokens for side, measured in found.items()}
    assert len(set(counts.values())) == 1, f"not the same number of real tokens: {counts}"
    if "bare" not in found:
        return
    pairs = list(zip(found["ours"].losses, found["bare"].losses, strict=True))
    worst = max(abs(ours - bare) / bare for ours, bare in pairs)
    assert worst <= SAME, f"ours and bare differ by {worst:.1e} in a step's loss"


def _ratios(side: str, rounds: Rounds) -> list[float]:
    """Ours against a side by round: of steps after the warm-up where both tell them, else of the whole loop."""
    if rounds[0][side].step_seconds:
        return [found[side].steady / found["ours"].steady for found in rounds]
    return [found["ours"].speed / found[side].speed for found in rounds]


def _spread(values: list[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)


def _table(chosen: argparse.Namespace, sides: list[str], rounds: Rounds) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{chosen.lengths}, model {chosen.model}, {chosen.precision}, n={len(rounds)} rounds")
    for column in ("side", "updates", "real tokens/s", "range", "ours is faster by", "range"):
        table.add_column(column, justify="left" if column == "side" else "right")
    for side in sides:
        speed, slowest, fastest = _spread([found[side].speed for found in rounds])
        ratio, low, high = _spread(_ratios(side, rounds))
        ours = ("", "") if side == "ours" else (f"{ratio:.3f}", f"{low:.3f} to {high:.3f}")
        table.add_row(
            side, str(rounds[0][side].steps), f"{speed:,.0f}", f"{slowest:,.0f} to {fastest:,.0f}", *ours
        )
    Console(width=110).print(table)


def _record(chosen: argparse.Namespace, sides: list[str], rounds: Rounds) -> dict[str, object]:
    import torch
    import transformers
    import trl

    return {
        "lengths": chosen.lengths,
        "model": chosen.model,
        "precision": chosen.precision,
        "rounds": len(rounds),
        "tokens": rounds[0]["ours"].tokens,
        "tokens_per_second": {side: [round(found[side].speed, 1) for found in rounds] for side in sides},
        "ours_faster_by": {side: [round(ratio, 4) for ratio in _ratios(side, rounds)] for side in sides[1:]},
        "processor": torch.backends.cpu.get_cpu_capability(),
        "versions": {library.__name__: library.__version__ for library in (torch, transformers, trl)},
    }


if __name__ == "__main__":
    main(sys.argv[1:])
