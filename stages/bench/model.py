"""lm-eval's model class over our engine: any Hugging Face causal model or adapter, with the numbers of its `hf`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from stages.bench.config import Bench, Precision, Variant
from stages.bench.encoding import Pair
from stages.bench.generation import Generation
from stages.bench.likelihood import Likelihood, NotANumber
from stages.bench.load import SAMPLING, end_of_turn, greedy, load, settings
from stages.bench.prompts import Prompts, Seen
from stages.bench.ranks import ALONE, Ranks
from stages.bench.respondent import Respondent

log = logging.getLogger("lathe")
DECODING = {
    "do_sample",
    "temperature",
    "until",
}  # what greedy decoding knows; anything else is left to `generate`


class Scorer(Respondent):
    """One variant, greedy, in the asked precision."""

    def __init__(self, cfg: Bench, variant: Variant, kept: Path | None = None, ranks: Ranks = ALONE) -> None:
        """Load the variant; answers are kept under `kept` task by task. Raises ValueError as `load` does."""
        self.model, tokenizer = load(variant)
        super().__init__(variant.path, tokenizer, self.model.config, cfg.seed, kept, ranks)
        self._device = self.model.device
        self.settings = settings(self.model.generation_config)
        if heeded := self.settings.keys() - SAMPLING:
            told = ", ".join(f"{name}={self.settings[name]}" for name in sorted(heeded))
            log.info("%s asks for %s: heeded in lm-eval's tasks, as at its command line", variant.path, told)
        self.model.generation_config = greedy(self.model, tokenizer)
        self.model.register_forward_hook(self._refuse_nan)
        # int8 picks the columns that it leaves in 16 bits by what is in a batch: an item would depend on its neighbours
        apart = variant.precision is Precision.int8
        self.likelihood = Likelihood(self.model, cfg.batch_tokens, apart=apart, ranks=ranks)
        ends = set(self.model.generation_config.eos_token_id)
        if cfg.chat_template and tokenizer.chat_template and end_of_turn(tokenizer) not in ends:
            log.warning(
                "%s: neither its generation_config.json nor its tokenizer says that %s ends an answer, as its chat "
                "template does: in lm-eval's tasks it speaks on, as at its command line; add the token to eos_token_id",
                variant.path,
                self.end,
            )
        self.generation = Generation(self.model, tokenizer, ends, cfg.batch_size, ranks)

    def score(self, pairs: Sequence[Pair], seen: Seen) -> list[tuple[float, bool]]:
        """As Respondent's, by a tree of shared prefixes."""
        return self.likelihood.score(pairs, seen)

    def complete(self, asked: Prompts) -> list[str]:
        """As Respondent's; what is not greedy, and a model that heeds no trees, by transformers' `generate`.

        So is a task that may cross where longrope turns: all that was read before is then read again.
        """
        longest, turn = max(map(len, asked.tokens), default=0) + asked.most, self.likelihood.turn
        plain = not asked.decoding.get("do_sample") and set(asked.decoding) <= DECODING
        own = plain and self.likelihood.trees and (turn is None or longest <= turn)
        answers = (
            self.generation.complete(asked.tokens, asked.stops, asked.most, asked.seen)
            if own
            else self.generation.sample(asked)
        )
        return list(self.tokenizer.batch_decode(answers, skip_special_tokens=True))

    def _refuse_nan(self, _: torch.nn.Module, __: Any, output: Any) -> None:
        if torch.isnan(output.logits).any():
            raise NotANumber(
                f"{self.source} computes NaN: its weights are broken, or its precision is too low"
            )
