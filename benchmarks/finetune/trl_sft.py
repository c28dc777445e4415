"""`trl sft` as a user starts it: `python -m benchmarks.finetune.trl_sft FOLDER OUT [ARGUMENT ...]`.

A local model folder and a local JSONL of conversations; all else is TRL's default (batches of 8, gradient
checkpointing, bf16, a line of losses each ten steps) but for what ARGUMENT says, one pass over the rows instead of
three, and no checkpoint at the end. The time is the trainer's own train_runtime: neither imports nor tokenising count.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.finetune.corpus import read_tokens
from benchmarks.finetune.measured import WINDOW, Measured
from benchmarks.finetune.ours import LEARNING_RATE

TOLERANCE = 0.001  # the log has four digits


def main(folder: Path, out: Path, extra: list[str]) -> None:
    """Train once, with every conversation once, and write OUT/result.json."""
    command = [
        *(str(Path(sys.executable).with_name("trl")), "sft"),
        *("--model_name_or_path", str(folder / "base"), "--dataset_name", str(folder / "rows")),
        *("--output_dir", str(out / "trainer"), "--num_train_epochs", "1"),
        *("--learning_rate", str(LEARNING_RATE), "--save_strategy", "no", "--disable_tqdm", "true"),
        *("--use_cpu", "true"),  # without a GPU it refuses its own default, bf16, otherwise
        *extra,
    ]
    found = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    (out / "trl.log").write_text(found.stdout, encoding="utf-8")
    if found.returncode:
        raise RuntimeError(found.stdout[-2000:])
    _measured(found.stdout, sum(len(ids) for ids, _ in read_tokens(folder))).write(out / "result.json")


def _measured(log: str, tokens: int) -> Measured:
    """From the lines of the log; the tokens that it counted are ours."""
    lines = [_numbers(text) for text in re.findall(r"\{'.*\}", log)]
    steps = [line for line in lines if "loss" in line]
    seen = max(line["num_tokens"] for line in lines if "num_tokens" in line)
    assert abs(seen - tokens) <= TOLERANCE * tokens, f"trl trained on {seen} tokens, not {tokens}"
    runtime = next(line["train_runtime"] for line in lines if "train_runtime" in line)
    norm = min(line["grad_norm"] for line in steps)
    count = round(WINDOW / steps[0]["epoch"])
    return Measured(runtime, tokens, count, steps[0]["loss"], steps[-1]["loss"], norm, [], [])


def _numbers(text: str) -> dict[str, Any]:
    return {key: float(value) for key, value in ast.literal_eval(text).items()}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]).resolve(), sys.argv[3:])
