"""Fixtures that the finetune tests share: a workspace as prepare and base leave it."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.finetune.pack import IGNORED, Documents
from tests.stages.finetune_rows import PAIRS, workspace


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> Path:
    """A workspace, the current directory: a base and packed rows in which every answer is "yes"."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    splits: dict[str, Documents] = {}
    for split, count in (("train", 24), ("valid", 6)):
        splits[split] = []
        for number in range(count):
            prompt = tokenizer(f"<|user|>item {number}<|end|><|assistant|>")["input_ids"]
            answer = tokenizer("yes<|end|>")["input_ids"]
            splits[split].append((prompt + answer, [IGNORED] * len(prompt) + answer))
    monkeypatch.chdir(tmp_path)
    return workspace(tmp_path, tiny_model, splits, 64)


@pytest.fixture
def prepared_pairs(prepared: Path) -> Path:
    """`prepared` with preference pairs: the answer is "yes", not "no"."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(prepared / "models/base")
    rows = []
    for split, count in (("train", 24), ("valid", 12)):
        for number in range(count):
            row: dict[str, object] = {"id": f"{split}-{number}", "split": split}
            for side, word in (("chosen", "yes"), ("rejected", "no, never")):
                prompt = tokenizer(f"<|user|>item {number}<|end|><|assistant|>")["input_ids"]
                answer = tokenizer(f"{word}<|end|>")["input_ids"]
                row |= {f"{side}_ids": prompt + answer, f"{side}_labels": [IGNORED] * len(prompt) + answer}
            rows.append(row)
    pq.write_table(pa.Table.from_pylist(rows, schema=PAIRS), prepared / "data/prepared/pairs.parquet")
    return prepared
