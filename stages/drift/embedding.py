"""Texts to vectors, by the model under watch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def embed(texts: Mapping[str, Sequence[str]], model: Path, batch_size: int) -> dict[str, NDArray[np.float64]]:
    """Mean over a text's tokens of the last hidden state, in fp32 on the CPU: name -> (texts, hidden).

    Texts are batched by length, so that little is spent on padding, and by name, so that the vectors of
    one window do not depend on which others there are. A text longer than the model's context is cut to
    it. Raises ValueError where `model` is no model folder.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (model / "config.json").is_file():
        raise ValueError(
            f"{model}: no model folder (drift.model); run the base stage, or name another folder"
        )
    tokenizer = AutoTokenizer.from_pretrained(model)
    # without the head on top: its logits over the vocabulary are the largest part of a small model's work
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval().base_model
    context = int(getattr(network.config, "max_position_embeddings", 0) or 512)
    vectors = {}
    for name, group in texts.items():
        tokens = [
            ids[:context] or [0] for ids in tokenizer(list(group), add_special_tokens=False)["input_ids"]
        ]
        vectors[name] = _means(tokens, network, batch_size)
    return vectors


def _means(tokens: list[list[int]], network: Any, batch_size: int) -> NDArray[np.float64]:
    import torch

    order = sorted(range(len(tokens)), key=lambda index: (len(tokens[index]), index))
    vectors = np.zeros((len(tokens), network.config.hidden_size))
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            width = len(tokens[batch[-1]])
            # the padding's id does not matter: it is masked from attention and from the mean
            ids = torch.tensor([tokens[i] + [0] * (width - len(tokens[i])) for i in batch])
            mask = torch.tensor([[1] * len(tokens[i]) + [0] * (width - len(tokens[i])) for i in batch])
            hidden = network(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            vectors[batch] = mean.double().numpy()
    return vectors
