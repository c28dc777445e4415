"""Attention of packed rows a document at a time, on CPUs.

transformers gives PyTorch's attention a mask of a row's length squared, and the CPU's kernel computes all of it, also
what lies between documents. On GPUs the mask stays: there many small kernels would cost more than they save.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

# Tokens up to which the CPU's kernel is faster in fp32 than in bf16, its backward by a factor of 3 at 80 of them: on
# Zen 4 (avx512_bf16) fp32 wins at 320 and bf16 at 576 (docs/LOG.md).
SHORT = 400
KEPT = "_lathe_parts"
Parts = list[tuple[int, bool]]


@contextmanager
def within_documents() -> Iterator[None]:
    """While open, what transformers calls `sdpa` looks only within documents where the mask allows no more anyway."""
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    ALL_ATTENTION_FUNCTIONS["sdpa"] = _attend
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = before


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers' sdpa_attention_forward: (batch, heads, length, width) to (batch, length, heads, width)."""
    parts = None
    if attention_mask is not None and _alone_decides(attention_mask, query, key, kwargs):
        parts = parts_of(attention_mask)
    if parts is None:
        found: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **kwargs
        )
        return found
    asked = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    short = max(size for size, alone in parts if not alone) <= SHORT
    computed = torch.promote_types(asked, torch.float32) if short else asked
    groups = getattr(module, "num_key_value_groups", 1)
    rows, heads, length, _ = query.shape
    sizes = [size for size, _ in parts]

    def cut(states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        flat = states.to(computed).transpose(1, 2).reshape(1, rows * length, heads, -1)
        return torch.split(flat.transpose(1, 2), sizes, 2)

    with torch.autocast("cpu", enabled=False):
        states = zip(cut(query), cut(repeat_kv(key, groups)), cut(repeat_kv(value, groups)), strict=True)
        outputs = [
            own if alone else _causal(asking, asked_of, own, kwargs)
            for (_, alone), (asking, asked_of, own) in zip(parts, states, strict=True)
        ]
    return torch.cat(outputs, 2).transpose(1, 2).reshape(rows, length, heads, -1).to(asked), None


def _causal(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kwargs: dict[str, Any]
) -> torch.Tensor:
    return scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=kwargs.get("scaling"), dropout_p=kwargs.get("dropout", 0.0)
    )


def _alone_decides(
    mask: torch.Tensor, query: torch.Tensor, key: torch.Tensor, kwargs: dict[str, Any]
) -> bool:
    """Whether the mask says of every position of every row whom it sees and nothing else weighs in, on a CPU."""
    if query.device.type != "cpu" or mask.dtype is not torch.bool:
        return False
    shape = (query.shape[0], 1, query.shape[2], query.shape[2])
    own = any(kwargs.get(name) is not None for name in ("position_bias", "cache", "softcap"))
    return tuple(mask.shape) == shape and key.shape[2] == query.shape[2] and not own


def parts_of(mask: torch.Tensor) -> Parts | None:
    """Rows one after the other, as (tokens, is each of them a document by itself).

    None if what `mask` (rows, 1, length, length) allows is not causal attention within documents. A token that sees
    itself alone gets its own value, so that padding needs no kernel. Found once for all layers that share the mask.
    """
    if not hasattr(mask, KEPT):
        setattr(mask, KEPT, _parts(mask[:, 0]))
    found: Parts | None = getattr(mask, KEPT)
    return found


def _parts(mask: torch.Tensor) -> Parts | None:
    """`mask` is (rows, length, length)."""
    position = torch.arange(mask.shape[1])
    first = mask.int().argmax(-1)
    starts = first == position
    document = torch.where(starts, position, 0).cummax(-1).values
    causal = (position[:, None] >= position) & (position >= document[:, :, None])
    if not torch.equal(causal, mask):
        return None
    begins = starts.flatten().nonzero()[:, 0]
    sizes = begins.diff(append=begins.new_tensor([starts.numel()])).tolist()
    if max(sizes) == 1:  # nothing to gain, and nothing to learn from
        return None
    found: Parts = []
    for alone, group in groupby(sizes, lambda size: size == 1):
        together = list(group)
        found += [(len(together), True)] if alone else [(size, False) for size in together]
    return found
