"""Log-likelihoods of several answers to one prompt, with the prompt read once instead of once an answer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch

Scored = tuple[float, bool]


def group_by_context(pairs: Sequence[tuple[list[int], list[int]]]) -> list[list[int]]:
    """Indices of (context, answer) pairs by equal context, longest context first."""
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, (context, _) in enumerate(pairs):
        groups[tuple(context)].append(index)
    return [groups[key] for key in sorted(groups, key=lambda key: (-len(key), key))]


def score_choices(
    model: Any, groups: list[list[int]], pairs: Sequence[tuple[list[int], list[int]]], batch_size: int
) -> dict[int, Scored]:
    """For each index in `groups`: log p(answer | context) in nats, and whether it is the greedy answer.

    A context runs once; its keys and values are repeated for its answers, at most `batch_size` rows at a time
    (or one group). The sums differ from a run over the whole text by rounding only.
    """
    found: dict[int, Scored] = {}
    for batch in _batches(groups, batch_size):
        contexts = [pairs[group[0]][0] for group in batch]
        owner = [row for row, group in enumerate(batch) for _ in group]
        indices = [index for group in batch for index in group]
        with torch.no_grad():
            scored = _score_batch(model, contexts, owner, [pairs[index][1] for index in indices])
        found.update(zip(indices, scored, strict=True))
    return found


def _batches(groups: list[list[int]], batch_size: int) -> Iterator[list[list[int]]]:
    batch: list[list[int]] = []
    for group in groups:
        if batch and sum(map(len, batch)) + len(group) > batch_size:
            yield batch
            batch = []
        batch.append(group)
    if batch:
        yield batch


def _score_batch(
    model: Any, contexts: list[list[int]], owner: list[int], answers: list[list[int]]
) -> list[Scored]:
    """Contexts are padded on the left, answers on the right, so that they meet; `owner` maps back."""
    ids, mask = _pad(contexts, model.device, left=True)
    first = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        use_cache=True,
        logits_to_keep=1,
    )
    rows = torch.tensor(owner, device=model.device)
    tokens, real = _pad(answers, model.device, left=False)
    logits = first.logits[rows, -1:]
    if tokens.shape[1] > 1:
        first.past_key_values.batch_select_indices(rows)
        positions = mask.sum(1)[rows, None] + torch.arange(tokens.shape[1] - 1, device=model.device)
        rest = model(
            input_ids=tokens[:, :-1],
            attention_mask=torch.cat([mask[rows], real[:, :-1]], 1),
            position_ids=positions,
            past_key_values=first.past_key_values,
        )
        logits = torch.cat([logits, rest.logits], 1)
    likely = torch.log_softmax(logits.float(), -1).gather(2, tokens[..., None])[..., 0] * real
    greedy = ((logits.argmax(-1) == tokens) | (real == 0)).all(1)
    return list(zip(likely.sum(1).tolist(), greedy.tolist(), strict=True))


def _pad(rows: list[list[int]], device: Any, *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask (rows, longest); the id under padding is 0 and never looked at."""
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        where = slice(width - len(row), width) if left else slice(0, len(row))
        ids[index, where] = torch.tensor(row)
        mask[index, where] = 1
    return ids.to(device), mask.to(device)
