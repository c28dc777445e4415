"""A variant's model and tokenizer in memory: a whole model or an adapter on its base, in the asked precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers.modeling_utils  # noqa: F401 - from_pretrained's, with the other imports: see `importing`
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from stages.bench.config import QUANTISED, Precision, Variant
from stages.common.adapter import CONFIG, attach, base_of
from stages.common.quantised import INSTALL, check_quantised, layer, load_quantised

# Of a folder's generation settings: what each request says itself, and what greedy decoding does not heed
SAID = {"do_sample", "max_length", "max_new_tokens", "bos_token_id", "eos_token_id", "pad_token_id"}
SAMPLING = {"temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"}
DTYPES = {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16}


def load(variant: Variant) -> tuple[Any, PreTrainedTokenizerBase]:
    """(model in evaluation mode, tokenizer), on the GPU where there is one.

    Raises ValueError where there is no such folder, not the adapter's base, or no way to compute in that precision.
    """
    check_source(variant)
    if variant.model_args:
        raise ValueError(
            f"variants.<name>.model_args of {variant.path} mean nothing to backend: own; leave them empty"
        )
    folder = Path(variant.path)
    base = base_of(folder)
    if base:
        _check_adapter(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if variant.precision in QUANTISED:
        _check_precision(variant)
        model = load_quantised(base or folder, torch.float32, nf4=variant.precision is Precision.nf4)
    else:
        model = AutoModelForCausalLM.from_pretrained(base or folder, dtype=DTYPES[variant.precision])
        model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    if base:  # not PEFT's own way: it resizes the embeddings to the tokenizer first
        model = attach(model, folder)
    return model.eval(), tokenizer


def greedy(model: Any, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Plain greedy decoding, in place of what the model's folder says, to the ends that the folder names."""
    own = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
    return GenerationConfig(do_sample=False, eos_token_id=sorted(ends - {None}))


def settings(config: GenerationConfig) -> dict[str, Any]:
    """What a model folder asks of `generate` that is not neutral, a repetition penalty say, by known names."""
    neutral = GenerationConfig._get_default_generation_params()
    known = GenerationConfig().to_dict().keys() - SAID - {"transformers_version", "_from_model_config"}
    own = config.to_diff_dict()
    return {name: own[name] for name in sorted(own.keys() & known) if own[name] != neutral.get(name)}


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the token that the chat template writes after an answer; else the tokenizer's eos."""
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "answer"}]
    tail = str(tokenizer.apply_chat_template(turns, tokenize=False)).rpartition("answer")[2]
    added = set(tokenizer.added_tokens_decoder) | set(tokenizer.all_special_ids)
    ids = tokenizer(tail, add_special_tokens=False)["input_ids"]
    return int(next((token for token in ids if token in added), tokenizer.eos_token_id))


def check_source(variant: Variant) -> None:
    """Raise ValueError where the variant's folder holds no model."""
    if not any((Path(variant.path) / name).is_file() for name in ("config.json", CONFIG)):
        raise ValueError(
            f"no model folder at {variant.path!r} (variants.<name>.path): run `dvc repro` or `dvc pull`; "
            f"`python -m ops.variant <name> {variant.revision or '<source>'}` brings a model from elsewhere"
        )


def _check_adapter(folder: Path) -> None:
    """Raise ValueError on an adapter that writes tokens of its own before the prompt: lengths assume none."""
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(folder)
    if config.is_prompt_learning:
        raise ValueError(
            f"the adapter in {folder} is of kind {config.peft_type.value}, which puts tokens of its own before a "
            "prompt: bench scores adapters of weights (LoRA and its kin), so merge it or take `backend: hf`"
        )


def _check_precision(variant: Variant) -> None:
    """Raises ValueError where this machine cannot compute in so few bits."""

    def attempt(device: str) -> None:
        layer(nf4=variant.precision is Precision.nf4).to(device)(torch.ones(1, 64, device=device))

    asked = f"precision {variant.precision.name} of {variant.path} (variants.<name>.precision)"
    check_quantised(asked, "", f"{INSTALL}, or take precision=bf16", attempt)
