"""Tiny models of many architectures, made from their configurations."""

from __future__ import annotations

from typing import Any

COMMON = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 128, "initializer_range": 0.3, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
HEADS = {"head_dim": 16}
PLAIN = {key: value for key, value in COMMON.items() if key != "num_key_value_heads"}
GPT2 = {
    "vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128, "initializer_range": 0.3,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
}  # fmt: skip
EXPERTS = {"num_experts_per_tok": 2, "num_local_experts": 4}
SOFT = {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 16}
LONGROPE = {
    "original_max_position_embeddings": 32,
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 10000.0, "long_factor": [4.0] * 8, "short_factor": [1.0] * 8,
        "partial_rotary_factor": 1.0,
    }
}  # fmt: skip

# Name: transformers' model_type, and its configuration.
SOUND: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", COMMON),
    "smollm": ("llama", COMMON | {"tie_word_embeddings": True}),
    "qwen2": ("qwen2", COMMON),
    "qwen3": ("qwen3", COMMON | HEADS),
    "mistral": ("mistral", COMMON | {"sliding_window": None}),
    "mistral-window": ("mistral", COMMON | {"sliding_window": 4}),
    "mixtral": ("mixtral", COMMON | EXPERTS),
    "gemma": ("gemma", COMMON | HEADS),
    "gemma2": ("gemma2", COMMON | HEADS | SOFT | {"sliding_window": 4}),
    "gemma3": ("gemma3_text", COMMON | HEADS | {"sliding_window": 4, "query_pre_attn_scalar": 16}),
    "phi": ("phi", COMMON),
    "phi3": ("phi3", COMMON),
    "phi4-mini": ("phi3", COMMON | LONGROPE),
    "granite": ("granite", COMMON | {"logits_scaling": 4.0, "embedding_multiplier": 3.0}),
    "cohere": ("cohere", COMMON | {"logit_scale": 0.25}),
    "olmo2": ("olmo2", COMMON),
    "smollm3": ("smollm3", COMMON),
    "gpt-neox": ("gpt_neox", PLAIN),
    "gpt2": ("gpt2", GPT2),
}
# Attention without a mask between documents, absolute positions that are counted anew, or a state that flows on.
UNSOUND: dict[str, tuple[str, dict[str, Any]]] = {
    "opt": ("opt", PLAIN | {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "bloom": (
        "bloom",
        {"vocab_size": 300, "hidden_size": 32, "n_layer": 2, "n_head": 2, "initializer_range": 0.3},
    ),
    "gpt-oss": ("gpt_oss", COMMON | HEADS | EXPERTS),
    "qwen3.5": ("qwen3_5_text", COMMON | HEADS | {"layer_types": ["linear_attention", "full_attention"]}),
    "mamba": ("mamba", {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
}


def tiny(shape: tuple[str, dict[str, Any]], attention: str | None = None) -> Any:
    """The model with weights from seed 0, in fp32 and evaluation mode; ValueError where it has no such attention."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, values = shape
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **values)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
