"""A judge from a folder: one prefill per comparison, and no word is generated."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.common.adapter import attach, base_of
from stages.common.prompt import stop_clock
from stages.judge.config import Judge
from stages.judge.verdicts import Chances, Rendered


class LocalJudge:
    """A causal language model in cfg.model, asked through its own chat template, in fp32.

    Its chances are those of the tokens "A" and "B" as the first of its answer. It cannot ramble, so the
    only malformed answer is to a comparison longer than its context: cutting one would judge something else.
    """

    def __init__(self, cfg: Judge) -> None:
        """Load model and tokenizer, an adapter onto its base. Raises ValueError where that is no chat model."""
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        base = base_of(Path(cfg.model))
        if not base and not (Path(cfg.model) / "config.json").is_file():
            raise ValueError(f"judge.model={cfg.model} has no config.json; name a folder with a model")
        self.tokenizer: Any = AutoTokenizer.from_pretrained(cfg.model, local_files_only=True)
        if not self.tokenizer.chat_template:
            raise ValueError(f"judge.model={cfg.model} has no chat template; take a model tuned for chat")
        stop_clock(self.tokenizer)
        model: Any = AutoModelForCausalLM.from_pretrained(
            base or cfg.model, dtype=torch.float32, use_safetensors=True, local_files_only=True
        )
        if base:
            model = attach(model, Path(cfg.model))
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self.batch_size = cfg.batch_size
        self.context = int(getattr(model.config, "max_position_embeddings", 0)) or None

    def __call__(self, comparisons: Sequence[Rendered]) -> list[Chances | None]:
        """Chances per comparison, in order; independent of the batch size up to rounding."""
        found: list[Chances | None] = [None] * len(comparisons)
        if not comparisons:
            return found
        texts = [self.text(item) for item in comparisons]
        verdicts = self.verdict_tokens(texts[0])
        rows: list[list[int]] = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        fitting = [i for i, row in enumerate(rows) if self.context is None or len(row) <= self.context]
        order = sorted(fitting, key=lambda i: (len(rows[i]), i))  # little padding, and the same each time
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            for index, chances in zip(batch, self.chances([rows[i] for i in batch], verdicts), strict=True):
                found[index] = chances
        return found

    def text(self, item: Rendered) -> str:
        """The comparison in the model's chat format, up to where its answer starts.

        Control tokens spelled out in a question or an answer become spaces: they would end the user's turn
        and let an answer speak as the judge.
        """
        control = sorted(filter(str.strip, self.tokenizer.get_added_vocab()), key=len, reverse=True)
        pattern = re.compile("|".join(map(re.escape, control)) or r"(?!)")
        turns = [{**turn, "content": pattern.sub(" ", turn["content"])} for turn in item.messages()]
        return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

    def verdict_tokens(self, text: str) -> list[int]:
        """Ids of "A" and "B" as they follow `text`. Raises ValueError where one is not a token of its own."""
        before: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        found = []
        for letter in "AB":
            after: list[int] = self.tokenizer(text + letter, add_special_tokens=False)["input_ids"]
            if after[:-1] != before:
                raise ValueError(f"{letter} is not one token after this model's prompt; take another model")
            found.append(after[-1])
        return found

    def chances(self, rows: Sequence[list[int]], verdicts: Sequence[int]) -> list[Chances | None]:
        """One forward pass over left-padded rows; logits at the last position only."""
        import torch

        width = max(map(len, rows))
        pad = self.tokenizer.pad_token_id or 0  # masked: any id will do
        device = self.model.device
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        with torch.inference_mode():
            logits = self.model(
                input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=1
            ).logits[:, -1]
        shares = torch.softmax(logits.double(), -1)[:, list(verdicts)].tolist()
        return [Chances(a, b) if a + b > 0 else None for a, b in shares]  # nan fails the test too
