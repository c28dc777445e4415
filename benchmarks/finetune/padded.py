"""transformers' Trainer with its defaults, as a user writes it.

`python -m benchmarks.finetune.padded FOLDER PRECISION OUT`

Batches of 8 conversations padded to the longest, -100 on the prompt, no packing, nothing saved, evaluated or reported;
a line of losses each ten steps. The time is the Trainer's own train_runtime: the loop alone.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks.finetune.corpus import read_tokens
from benchmarks.finetune.measured import WINDOW, Measured
from benchmarks.finetune.ours import LEARNING_RATE


def main(folder: Path, precision: str, out: Path) -> None:
    """Train once, with every conversation once, and write OUT/result.json."""
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    documents = [{"input_ids": ids, "labels": labels} for ids, labels in read_tokens(folder)]
    arguments = TrainingArguments(
        output_dir=str(out / "trainer"),
        num_train_epochs=1,
        learning_rate=LEARNING_RATE,
        bf16=precision == "bf16",
        logging_steps=WINDOW,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    assert arguments.per_device_train_batch_size == 8
    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    trainer = Trainer(model, arguments, collator(folder), documents)
    seconds = trainer.train().metrics["train_runtime"]
    lines = [line for line in trainer.state.log_history if "loss" in line]
    tokens = sum(len(document["input_ids"]) for document in documents)
    norm = min(line["grad_norm"] for line in lines)
    first, last = lines[0]["loss"], lines[-1]["loss"]
    steps = trainer.state.global_step
    Measured(seconds, tokens, steps, first, last, norm, [], []).write(out / "result.json")


def collator(folder: Path) -> Any:
    """Padding to the longest of the batch, on the right."""
    from transformers import AutoTokenizer, DataCollatorForSeq2Seq

    return DataCollatorForSeq2Seq(AutoTokenizer.from_pretrained(folder / "base", padding_side="right"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]).resolve())
