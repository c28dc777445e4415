"""Three models side by side, the third of another architecture: one run, one table, and a change scores one anew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.life import Finished, copy, ran
from tests.stages.chat import CHATML, MARKS, byte_level

pytestmark = pytest.mark.slow


def make(folder: Path, seed: int) -> None:
    """A random GPT-NeoX with a tokenizer and a chat template of its own."""
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    tokenizer = byte_level(MARKS)
    tokenizer.chat_template = CHATML
    torch.manual_seed(seed)
    shape = GPTNeoXConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    GPTNeoXForCausalLM(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def test_a_third_model_is_scored_beside_the_two_and_a_change_scores_one_anew(
    finished: Finished, tmp_path: Path
) -> None:
    clone = copy(finished.clone, tmp_path / "lathe")
    theirs = tmp_path / "theirs"
    results = clone.root / "data/results"
    two = {name: (results / f"{name}.parquet").read_bytes() for name in ("base", "tuned")}

    make(theirs, seed=1)
    clone.module("ops.variant", "third", str(theirs))
    clone.module("ops.compose", "experiment=smoke")
    output = clone.module("ops.pipeline").stdout
    assert ran(output) == ["conf", "bench@third"]
    [header] = [line for line in output.splitlines() if line.split()[:1] == ["metric"]]
    assert header.split() == ["metric", "base", "tuned", "third", "n"]
    [row] = [line for line in output.splitlines() if line.split()[:1] == ["helpdesk_intent/acc"]]
    assert row.count("[") == 3
    first = json.loads((clone.root / "metrics/bench/third.json").read_text())
    clone.commit()

    make(theirs, seed=2)
    clone.module("ops.variant", "third", str(theirs))
    clone.module("ops.compose", "experiment=smoke")
    assert "variants.third.path" in clone.dvc("params", "diff").stdout
    assert ran(clone.dvc("repro").stdout) == ["conf", "bench@third"]
    assert json.loads((clone.root / "metrics/bench/third.json").read_text()) != first
    assert two == {name: (results / f"{name}.parquet").read_bytes() for name in two}
