"""Greedy generation in batches of about one length: a common beginning is read once, a row that has ended leaves.

The tokens are those of transformers' `generate` with do_sample=False, which takes over where a task asks for anything
but greedy decoding, or the architecture has a state instead of keys and values.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import StoppingCriteria

from stages.bench.cache import growing_cache
from stages.bench.likelihood import sliding_window
from stages.bench.prompts import Prompts
from stages.bench.ranks import ALONE, Ranks
from stages.common.memory import give_back_memory, out_of_memory

log = logging.getLogger("lathe")
WORTH_SHARING = 16  # tokens
LEAVING = 0.25  # of a batch: a row that has ended leaves with as many others, since to leave copies the cache


class Generation:
    """Greedy continuations under one causal model."""

    def __init__(self, model: Any, tokenizer: Any, ends: set[int], rows: int, ranks: Ranks = ALONE) -> None:
        """`ends` are tokens that end an answer; a batch has at most `rows` prompts."""
        self.model, self.tokenizer, self.ends, self.ranks = model, tokenizer, ends, ranks
        self.asked = self.rows = rows
        self.stem: tuple[list[int], Any] = [], None
        # A sliding window counts places, so that padding after what is shared would narrow it
        self.shares = sliding_window(model.config) is None

    def complete(
        self, prompts: Sequence[list[int]], stops: list[str], most: int, seen: Callable[[float], object]
    ) -> list[list[int]]:
        """Up to `most` new tokens for each prompt, to the end token (left out) or until a stop string is in their text.

        Memory that runs out halves the batch, and says so.
        """
        order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), prompts[index]))
        batches = [order[begin : begin + self.asked] for begin in range(0, len(order), self.asked)]
        # Every so manieth, since they are sorted by length; the last, which may be short, is some process's last
        order = [index for batch in batches[self.ranks.rank :: self.ranks.world] for index in batch]
        found: dict[int, list[int]] = {}
        while order:
            batch = order[: self.rows]
            answers: list[list[int]] | None = None
            try:
                answers = self._batch([prompts[index] for index in batch], stops, most)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error) or self.rows == 1:
                    raise
                self.rows, self.stem = max(1, len(batch) // 2), ([], None)
                log.warning("out of memory: bench.batch_size is halved to %d", self.rows)
            if answers is None:
                give_back_memory()
                continue
            for index, answer in zip(batch, answers, strict=True):
                found[index] = answer
            seen(len(batch))
            order = order[len(batch) :]
        found = self.ranks.merged(found)
        return [found[index] for index in range(len(prompts))]

    @torch.no_grad()
    def sample(self, asked: Prompts) -> list[list[int]]:
        """As `complete`, by transformers' `generate` with `decoding` as its arguments, a prompt at a time.

        Sampling draws from torch's generator, so that a batch's make-up would change the answers, and each process
        draws them all.
        """
        prompts, decoding = asked.tokens, asked.decoding
        greedily = not decoding.get("do_sample")
        chosen = {name: value for name, value in decoding.items() if not (greedily and name == "temperature")}
        found = {}
        begin, end = self.ranks.span([1] * len(prompts)) if greedily else (0, len(prompts))
        for index, prompt in enumerate(prompts[begin:end], begin):
            ids = torch.tensor([prompt], device=self.model.device)
            output = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=asked.most,
                pad_token_id=self.tokenizer.pad_token_id,
                stopping_criteria=[_Until(len(prompt), lambda answer: self._said(answer, asked.stops))],
                **chosen,
            )
            answer = output[0, len(prompt) :].tolist()
            stopped = next((at for at, token in enumerate(answer) if token in self.ends), len(answer))
            found[index] = answer[:stopped]
            asked.seen(1)
        if greedily:
            found = self.ranks.merged(found)
        return [found[index] for index in range(len(prompts))]

    @torch.no_grad()
    def _batch(self, prompts: list[list[int]], stops: list[str], most: int) -> list[list[int]]:
        shared = _shared(prompts) if self.shares else 0
        width = max(map(len, prompts)) - shared
        rest = [prompt[shared:] for prompt in prompts]
        ids = torch.tensor([[0] * (width - len(own)) + own for own in rest], device=self.model.device)
        # The padding stands between what is shared and each prompt's own
        mask = torch.tensor(
            [[1] * shared + [0] * (width - len(own)) + [1] * len(own) for own in rest],
            device=self.model.device,
        )
        cache = self._cache(prompts[0][:shared], len(prompts))
        answers: list[list[int]] = [[] for _ in prompts]
        going = dict(enumerate(range(len(prompts))))  # place in the batch -> prompt
        look = max([len(stop.encode()) for stop in stops], default=0) + 4
        size = len(prompts)
        for step in range(most):
            positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            logits = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            tokens = logits.argmax(-1)
            for place, token in enumerate(tokens.tolist()):
                if place in going and self._ends(answers[going[place]], token, stops, look):
                    del going[place]
            if not going or step == most - 1:
                break
            if len(going) <= (1 - LEAVING) * size:
                places = torch.tensor(list(going), device=self.model.device)
                cache.batch_select_indices(places)
                mask, tokens, size = mask[places], tokens[places], len(going)
                going = dict(enumerate(going.values()))
            ids, mask = tokens[:, None], torch.cat([mask, mask.new_ones(size, 1)], 1)
        return answers

    def _ends(self, answer: list[int], token: int, stops: list[str], look: int) -> bool:
        """Append the token, and tell whether the answer ends there."""
        if token in self.ends:
            return True
        answer.append(token)
        return self._said(answer, stops, look)

    def _said(self, answer: list[int], stops: list[str], look: int = 0) -> bool:
        """Whether a stop string is in the answer; without `look` all of it is read."""
        # Most steps end nothing, and the last few tokens show it: each is a byte or more of the text
        return self._holds(answer[-look:], stops) and self._holds(answer, stops)

    def _holds(self, tokens: list[int], stops: list[str]) -> bool:
        # With special tokens, as `hf` looks for them: a stop string may be one, of a task made for another model
        text = self.tokenizer.decode(tokens) if stops else ""
        return any(stop in text for stop in stops)

    def _cache(self, stem: list[int], rows: int) -> Any:
        """Keys and values of the stem for each row, read once for all batches that begin alike."""
        if not stem:
            return growing_cache()
        if self.stem[0] != stem:
            cache = growing_cache()
            self.model(
                input_ids=torch.tensor([stem], device=self.model.device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            self.stem = stem, cache
        found = copy.deepcopy(self.stem[1])
        found.batch_repeat_interleave(rows)
        return found


class _Until(StoppingCriteria):  # type: ignore[misc]  # transformers carries no types here
    """Stops where what follows the prompt is enough: transformers' own stop strings may begin in the prompt."""

    def __init__(self, prompt: int, enough: Callable[[list[int]], bool]) -> None:
        self.prompt, self.enough = prompt, enough

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        found = [self.enough(row[self.prompt :].tolist()) for row in input_ids]
        return torch.tensor(found, device=input_ids.device)


def _shared(prompts: list[list[int]]) -> int:
    """Tokens that all prompts begin with, of which one at least remains their own; 0 where it is not worth it."""
    first, last = min(prompts), max(prompts)
    size = min(len(first), len(last), *map(len, prompts)) - 1
    same = next((place for place in range(size) if first[place] != last[place]), size)
    return same if same >= WORTH_SHARING and len(prompts) > 1 else 0
