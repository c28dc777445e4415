"""What the model knows before and after: held-out loss per document, and sample generations."""

from __future__ import annotations

from typing import Any

from stages.finetune.config import Finetune
from stages.finetune.data import context_of, padding
from stages.finetune.pack import IGNORED, Documents

LOGITS = 1 << 28  # of a pass at most, in fp32 1 GiB


def heldout_losses(model: Any, documents: Documents, pad: int, batch_size: int) -> list[float]:
    """Mean negative log-likelihood (nats) over each document's learned tokens, in the given order."""
    import torch

    order = sorted(range(len(documents)), key=lambda index: len(documents[index][0]))
    losses = [0.0] * len(documents)
    model.eval()
    vocabulary = model.get_output_embeddings().weight.shape[0]
    while order:
        widths = [len(documents[index][0]) for index in order[:batch_size]]
        fit = next(
            (n for n, width in enumerate(widths) if (n + 1) * width * vocabulary > LOGITS), len(widths)
        )
        chosen, order = order[: max(1, fit)], order[max(1, fit) :]
        width = max(len(documents[index][0]) for index in chosen)
        ids = torch.full((len(chosen), width), pad)
        labels = torch.full((len(chosen), width), IGNORED)
        for row, index in enumerate(chosen):
            tokens, targets = documents[index]
            ids[row, : len(tokens)] = torch.tensor(tokens)
            labels[row, : len(tokens)] = torch.tensor(targets)
        sums = _nll(model, ids, labels)
        counts = (labels[:, 1:] != IGNORED).sum(1).clamp(min=1)
        for index, value in zip(chosen, (sums / counts).tolist(), strict=True):
            losses[index] = value
    return losses


def preferences(model: Any, pairs: list[Documents], pad: int, batch_size: int) -> list[float]:
    """How much likelier (nats, summed over the answer) the model finds each pair's chosen answer than the rejected."""
    sides = [document for pair in pairs for document in pair]
    means = heldout_losses(model, sides, pad, batch_size)
    sums = [
        mean * sum(label != IGNORED for label in labels[1:])
        for mean, (_, labels) in zip(means, sides, strict=True)
    ]
    return [rejected - chosen for chosen, rejected in zip(sums[::2], sums[1::2], strict=True)]


def _nll(model: Any, ids: Any, labels: Any) -> Any:
    """Summed negative log-likelihood of each row's learned tokens."""
    import torch

    with torch.no_grad():  # right padding under a causal mask: no document sees it
        logits = model(input_ids=ids.to(model.device), use_cache=False).logits[:, :-1].float()
        targets = labels[:, 1:].to(model.device)
        losses = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none"
        )
    return losses.sum(1).cpu()


def generate(model: Any, tokenizer: Any, documents: Documents, cfg: Finetune) -> list[tuple[str, str, str]]:
    """(prompt, greedy continuation, reference) of the first `cfg.samples` held-out documents."""
    import torch

    model.eval()
    room = context_of(model.config.get_text_config()) or 1 << 30
    found = []
    for ids, labels in documents[: cfg.samples]:
        start = next(index for index, label in enumerate(labels) if label != IGNORED)
        prompt = torch.tensor([ids[:start]], device=model.device)
        with torch.no_grad():
            output = model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=min(cfg.sample_tokens, room - start),  # the document itself fits
                do_sample=False,
                pad_token_id=padding(tokenizer),
            )
        texts = (ids[:start], output[0, start:].tolist(), ids[start:])
        prompt_text, answer, reference = (tokenizer.decode(part, skip_special_tokens=True) for part in texts)
        found.append((prompt_text, answer, reference))
    return found


def samples_page(before: list[tuple[str, str, str]], after: list[tuple[str, str, str]]) -> str:
    """Markdown of the same prompts answered before and after."""
    parts = ["# Sample generations on held-out rows (greedy)\n"]
    for number, ((prompt, old, reference), (_, new, _)) in enumerate(zip(before, after, strict=True), 1):
        sections = {"Prompt": prompt, "Base": old, "Tuned": new, "Reference": reference}
        body = "\n\n".join(f"**{title}**\n\n```text\n{text.strip()}\n```" for title, text in sections.items())
        parts.append(f"## {number}\n\n{body}\n")
    return "\n".join(parts)
