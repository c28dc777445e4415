"""LoRA against every weight on a second task of the tiny base: `python -m benchmarks.second_task [SEEDS]`.

Needs models/base (`dvc repro base`). The task: name the department and the product of a ticket, nothing else, as one
line "technical / router"; rows and answers come from the generated helpdesk corpus. Both methods get the same rows,
steps and batch; each its own learning rate. Prints the accuracies on the same held-out tickets, their ratio, and the
share of weights that LoRA trains.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from ops.compose import composed
from stages.common.files import write_jsonl
from stages.common.run import seed_everything
from stages.common.statistics import paired_difference, wilson
from stages.finetune.__main__ import main as finetune
from stages.finetune.config import Finetune, Method, MethodConfig, Weights
from stages.prepare.__main__ import main as prepare
from stages.prepare.config import Prepare

ROOT = Path(__file__).resolve().parents[1]
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FULL = MethodConfig("full", Method.full, 0, 0, 0.0, [], False, False, Weights.fp32, True)
LORA = MethodConfig("lora", Method.lora, 6, 12, 0.0, TARGETS, False, False, Weights.fp32, True)
CONTENDERS = {"full": (FULL, 0.001), "lora": (LORA, 0.005)}
STEPS, HELD_OUT = 600, 400


def main(seeds: int) -> None:
    """Train both methods at each seed and compare."""
    for seed in range(17, 17 + seeds):
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            right = {name: contend(name, seed, Path(folder)) for name in CONTENDERS}
        share = {name: found["share"] for name, found in right.items()}
        full, lora = right["full"]["right"], right["lora"]["right"]
        ratio = sum(lora) / sum(full)
        difference = paired_difference(lora, full, seed)
        line = {
            "seed": seed,
            "n": len(full),
            "full": wilson(sum(full), len(full)),
            "lora": wilson(sum(lora), len(lora)),
            "ratio": ratio,
            "difference": difference,
            "trained_share": share["lora"],
        }
        print(json.dumps(line))


def contend(name: str, seed: int, folder: Path) -> dict[str, Any]:
    """Prepare the rows (once), train one method, and score it."""
    if not (folder / "data").exists():
        lay_out(folder)
        prepare(section("prepare", Prepare, folder))
    method, rate = CONTENDERS[name]
    cfg = replace(
        section("finetune", Finetune, folder), seed=seed, method=method, learning_rate=rate, max_steps=STEPS
    )
    seed_everything(cfg)
    metrics = finetune(cfg)
    return {"right": score(folder), "share": metrics["model/trained_share"]["value"]}


def lay_out(folder: Path) -> None:
    """A workspace with the base and the second task's rows."""
    (folder / "models").mkdir()
    (folder / "models/base").symlink_to(ROOT / "models/base")
    for name in ("rows", "labels"):
        (folder / "data/raw/route" / name).mkdir(parents=True)
    (folder / "data/benchmarks").mkdir(parents=True)
    for split in ("train", "test"):
        write_jsonl(folder / f"data/raw/route/rows/{split}.jsonl", list(rows(split)))


def rows(split: str) -> list[dict[str, Any]]:
    """Tickets with the second task's answer, from the helpdesk rows that are whole."""
    found = []
    for line in (ROOT / f"data/raw/helpdesk/rows/{split}.jsonl").read_bytes().splitlines():
        try:
            row = json.loads(line)
            ticket, answer = (turn["content"] for turn in row["messages"])
            fields = json.loads(answer.partition("\n")[0])
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        messages = [
            {"role": "user", "content": f"Which department and product?\n{ticket}"},
            {"role": "assistant", "content": f"{fields['intent']} / {fields['product']}"},
        ]
        found.append({"id": row["id"], "messages": messages, "meta": {}})
    return found


@lru_cache(maxsize=1)
def settings() -> str:
    """The default of conf/, composed."""
    with contextlib.chdir(ROOT):
        return composed([])


def section(name: str, kind: type[Any], folder: Path) -> Any:
    """The stage's section as conf/ has it, whatever experiment params.yaml holds, turned to the second task's data."""
    values = yaml.safe_load(settings())[name]
    if name == "prepare":
        values["data"] |= {"name": "route", "path": "data/raw/route"}
        values["examples_share"] = 0.0
        values["leakage"]["action"] = "report"
        values["duplicates"]["action"] = "report"
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), OmegaConf.create(values)))


def score(folder: Path) -> list[float]:
    """1.0 for each held-out ticket whose answer is right word for word, greedily generated."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "models/tuned", padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder / "models/tuned", dtype=torch.float32).eval()
    items = rows("test")[:HELD_OUT]
    right = []
    for start in range(0, len(items), 50):
        asked = [item["messages"][:1] for item in items[start : start + 50]]
        texts = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        output = model.generate(
            **inputs, max_new_tokens=12, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
        answers = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        wanted = [item["messages"][1]["content"] for item in items[start : start + 50]]
        right += [float(a.strip() == b) for a, b in zip(answers, wanted, strict=True)]
    return right


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
