"""A variant's model and tokenizer in memory: a folder, an adapter on its base, or a hub model at a pinned revision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from stages.bench.config import Precision, Variant
from stages.common.adapter import CONFIG, attach, base_of

DTYPES = {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16}


def load(variant: Variant) -> tuple[Any, PreTrainedTokenizerBase]:
    """(model in evaluation mode, tokenizer), on the GPU where there is one.

    Raises ValueError where there is no such folder and no pinned revision, or not the adapter's base.
    """
    _check_source(variant)
    base, revision = base_of(Path(variant.path)), variant.revision or None
    tokenizer = AutoTokenizer.from_pretrained(variant.path, revision=revision)
    model = AutoModelForCausalLM.from_pretrained(
        base or variant.path, revision=revision, dtype=DTYPES[variant.precision]
    )
    if base:  # not PEFT's own way: it resizes the embeddings to the tokenizer first
        model = attach(model, Path(variant.path))
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer


def greedy(model: Any, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Decoding is the prompt's matter: a repetition penalty or sampling of the model's folder is dropped."""
    own = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
    if tokenizer.chat_template:
        ends.add(end_of_turn(tokenizer))
    return GenerationConfig(do_sample=False, eos_token_id=sorted(ends - {None}))


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the token that the chat template writes after an answer; else the tokenizer's eos."""
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "answer"}]
    tail = str(tokenizer.apply_chat_template(turns, tokenize=False)).rpartition("answer")[2]
    added = set(tokenizer.added_tokens_decoder) | set(tokenizer.all_special_ids)
    ids = tokenizer(tail, add_special_tokens=False)["input_ids"]
    return int(next((token for token in ids if token in added), tokenizer.eos_token_id))


def _check_source(variant: Variant) -> None:
    held = any((Path(variant.path) / name).is_file() for name in ("config.json", CONFIG))
    if not variant.revision and not held:
        raise ValueError(
            f"no model folder at {variant.path!r} (variants.<name>.path): run `dvc repro`, "
            "or, for a hub model, set its `revision` to a commit"
        )
