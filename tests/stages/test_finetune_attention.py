"""finetune: attention a document at a time is, to rounding, what transformers computes under the whole mask."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from stages.finetune import attention
from stages.finetune.attention import parts_of, within_documents
from stages.finetune.data import collate_rows
from tests.stages.finetune_shapes import SOUND, tiny

HEADS, GROUPS, WIDTH = 4, 2, 8


class Layer(torch.nn.Module):
    """What transformers' function reads of a layer."""

    num_key_value_groups = GROUPS


def mask_of(rows: list[list[int]], window: int | None = None) -> torch.Tensor:
    """(rows, 1, length, length), from the definition, token by token: `rows` are the documents' sizes."""
    length = sum(rows[0])
    mask = torch.zeros(len(rows), 1, length, length, dtype=torch.bool)
    for row, sizes in enumerate(rows):
        document = [number for number, size in enumerate(sizes) for _ in range(size)]
        for asking in range(length):
            for seen in range(asking + 1):
                near = window is None or asking - seen < window
                mask[row, 0, asking, seen] = document[asking] == document[seen] and near
    return mask


def states(rows: int, length: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """Query, key and value as a model's projections leave them, with gradients."""
    torch.manual_seed(0)
    heads = (HEADS, HEADS // GROUPS, HEADS // GROUPS)
    return [
        torch.randn(rows, length, count, WIDTH, dtype=torch.float64).to(dtype).requires_grad_()
        for count in heads
    ]


def attended(mask: torch.Tensor, made: list[torch.Tensor], **kwargs: Any) -> list[torch.Tensor]:
    """Output and the gradients of all three by what transformers looks up now."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    inputs = [state.detach().clone().requires_grad_() for state in made]
    turned = [state.transpose(1, 2) for state in inputs]
    output = ALL_ATTENTION_FUNCTIONS["sdpa"](Layer(), *turned, mask, scaling=0.3, **kwargs)[0]
    weights = torch.arange(output.numel(), dtype=output.dtype).reshape(output.shape).sin()
    (output * weights).sum().backward()  # type: ignore[no-untyped-call]
    return [output.detach(), *(state.grad for state in inputs if state.grad is not None)]


@st.composite
def packed_rows(draw: st.DrawFn) -> list[list[int]]:
    """One to three rows of equal length, some with padding: documents of one token at the end."""
    rows = [draw(st.lists(st.integers(1, 6), min_size=1, max_size=5)) for _ in range(draw(st.integers(1, 3)))]
    length = max(map(sum, rows))
    return [sizes + [1] * (length - sum(sizes)) for sizes in rows]


@given(packed_rows())
def test_the_parts_are_the_documents(rows: list[list[int]]) -> None:
    sizes = [size for row in rows for size in row]
    wanted: list[tuple[int, bool]] = []
    for alone, group in groupby(sizes, lambda size: size == 1):
        together = list(group)
        wanted += [(len(together), True)] if alone else [(size, False) for size in together]
    assert parts_of(mask_of(rows)) == (wanted if max(sizes) > 1 else None)


@given(packed_rows(), st.integers(1, 4))
def test_a_window_that_cuts_a_document_is_seen(rows: list[list[int]], window: int) -> None:
    mask = mask_of(rows, window)
    assert parts_of(mask) == (parts_of(mask_of(rows)) if torch.equal(mask, mask_of(rows)) else None)


@given(packed_rows(), st.randoms(use_true_random=False))
def test_any_other_mask_is_left_to_transformers(rows: list[list[int]], random: Any) -> None:
    """One position turned anywhere, on either side of the diagonal."""
    mask = mask_of(rows)
    row, asking, seen = (random.randrange(size) for size in (len(rows), mask.shape[2], mask.shape[3]))
    mask[row, 0, asking, seen] ^= True
    found = parts_of(mask)
    if found is not None:  # a first token cut off from its document leaves two documents
        sizes = [size for count, alone in found for size in ([1] * count if alone else [count])]
        again, rest = [], iter(sizes)
        for _ in rows:
            again.append([])
            while sum(again[-1]) < mask.shape[2]:
                again[-1].append(next(rest))
        assert torch.equal(mask, mask_of(again))


@given(packed_rows())
def test_output_and_gradients_are_those_under_the_whole_mask(rows: list[list[int]]) -> None:
    mask, made = mask_of(rows), states(len(rows), sum(rows[0]))
    plain = attended(mask, made)
    with within_documents():
        found = attended(mask, made)
    for ours, theirs in zip(found, plain, strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("size", [5, attention.SHORT + 1])
def test_in_bf16_it_is_at_least_as_exact(size: int, autocast: bool) -> None:
    mask, made = mask_of([[size, 3]]), states(1, size + 3, torch.float32 if autocast else torch.bfloat16)
    exact = attended(mask, [state.double() for state in made])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        plain = attended(mask, made)
        with within_documents():
            found = attended(mask, made)
    for ours, theirs, right in zip(found, plain, exact, strict=True):
        assert ours.dtype == theirs.dtype
        error, their_error = ((values.double() - right).norm() / right.norm() for values in (ours, theirs))
        assert error < max(1.1 * float(their_error), 1e-6), (error, their_error)


def test_a_layer_with_a_bias_of_its_own_is_left_to_transformers() -> None:
    mask, made = mask_of([[4, 3]]), states(1, 7)
    bias = torch.randn(1, HEADS, 7, 7, dtype=torch.float64)
    plain = attended(mask, made, position_bias=bias)
    with within_documents():
        found = attended(mask, made, position_bias=bias)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, plain, strict=True))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt-neox", "mistral"])
def test_a_packed_batch_never_comes_to_the_whole_mask(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = []
    monkeypatch.setattr(
        attention,
        "sdpa_attention_forward",
        lambda *args, **kwargs: (masks.append(args[4]), sdpa_attention_forward(*args, **kwargs))[1],
    )
    model = tiny(SOUND[name], "sdpa")
    row = {"input_ids": list(range(3, 15)), "labels": [-100] * 12, "lengths": [5, 4, 3]}
    batch = {key: value for key, value in collate_rows([row, row], 16, 0).items() if key != "labels"}
    with within_documents():
        model(**batch, use_cache=False)
        assert not masks
        model(input_ids=batch["input_ids"], use_cache=False)  # no documents, no mask
        assert masks == [None, None]
    model(**batch, use_cache=False)
    assert len(masks) == 2, "the function was not given back"
