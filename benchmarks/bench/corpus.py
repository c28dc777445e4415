"""What both sides are asked: tasks of several shapes over GSM8K's real questions, and a Llama with random weights.

`FOLDER/` is made once: tasks/*.yaml, items.jsonl and model/ (benchmarks.finetune's small one, a vocabulary of 49,152).
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

from benchmarks.finetune.corpus import ROOT
from benchmarks.finetune.corpus import main as make_model

QUESTIONS = ROOT.parent / "shared/data/gsm8k/test.jsonl"
METRICS = "metric_list:\n" + "".join(
    f"  - {{metric: {name}, aggregation: mean, higher_is_better: true}}\n" for name in ("acc", "acc_norm")
)
CHOICE = "output_type: multiple_choice\ndoc_to_target: '{{gold}}'\n"
ARC = 'doc_to_text: "Question: {{q}}\\nAnswer:"\ndoc_to_choice: "{{short}}"\n'
# zero: HellaSwag's shape, a story of a few sentences and four ends of a sentence each; arc: a question and four answers
# of a few words; few: the same behind five fixed examples; drawn: behind five that are drawn for each item, as most of
# lm-eval's tasks do.
TASKS = {
    "zero": f'{CHOICE}doc_to_text: "{{{{q}}}}"\ndoc_to_choice: "{{{{long}}}}"\nnum_fewshot: 0\n{METRICS}',
    "arc": f"{CHOICE}{ARC}num_fewshot: 0\n{METRICS}",
    "few": f"{CHOICE}{ARC}num_fewshot: 5\nfewshot_config: {{sampler: first_n}}\n{METRICS}",
    "drawn": f"{CHOICE}{ARC}num_fewshot: 5\n{METRICS}",
    "generate": (
        'output_type: generate_until\ndoc_to_text: "Question: {{q}}\\nAnswer:"\ndoc_to_target: "{{answer}}"\n'
        "num_fewshot: 0\ngeneration_kwargs: {until: ['Question:'], do_sample: false, max_gen_toks: 32}\n"
        "metric_list:\n  - {metric: exact_match, aggregation: mean, higher_is_better: true}\n"
    ),
}


def main(folder: Path, count: int) -> Path:
    """Make the folder with `count` items a task unless it is there: complete or absent. Returns it."""
    found = folder / f"bench-{count}"
    if found.is_dir():
        return found
    draft = folder / f".bench-{count}"
    shutil.rmtree(draft, ignore_errors=True)
    (draft / "tasks").mkdir(parents=True)
    make_model(draft / "made", "gsm8k", "small", 160)
    (draft / "made/base").rename(draft / "model")
    shutil.rmtree(draft / "made")
    lines = [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()[:count]]
    (draft / "items.jsonl").write_text(
        "".join(json.dumps(item(line)) + "\n" for line in lines), encoding="utf-8"
    )
    items = found / "items.jsonl"
    data = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {items}, train: {items}}}}}\n"
    for name, body in TASKS.items():
        text = (
            f"task: {name}\n{data}test_split: test\nfewshot_split: train\n{body}metadata: {{version: 1.0}}\n"
        )
        (draft / f"tasks/{name}.yaml").write_text(text, encoding="utf-8")
    draft.rename(found)
    return found


def item(line: dict[str, str]) -> dict[str, Any]:
    """A question, ends and short answers made of its words, and which is right."""
    draw, words = random.Random(line["question"]), line["question"].split()
    return {
        "q": line["question"],
        "long": [" ".join(draw.sample(words, min(len(words), 20))) for _ in range(4)],
        "short": [" ".join(draw.sample(words, 3)) for _ in range(4)],
        "gold": draw.randrange(4),
        "answer": line["answer"].rpartition("#### ")[2],
    }
