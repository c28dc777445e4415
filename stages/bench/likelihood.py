"""Log-likelihoods of answers given contexts, every shared token read once and logits only where an answer is scored.

Rows come from tree.py. Where an architecture does not heed positions and masks as a tree needs them (found by a probe,
not by name), or where a sequence outruns its sliding window, each sequence runs by itself in a padded batch.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from stages.bench.cache import growing_cache
from stages.bench.encoding import Pair
from stages.bench.ranks import ALONE, Ranks
from stages.bench.tree import Ints, Row, behind, plan
from stages.common.memory import give_back_memory, out_of_memory

log = logging.getLogger("lathe")
Scored = tuple[float, bool]
APART = 1e-3
LOGITS = 1 << 27  # at most so many in a row: 512 MiB in fp32


class NotANumber(ValueError):
    """A model computes NaN."""


class Likelihood:
    """log p(answer | context) in nats under one causal model, and whether the answer is the greedy one."""

    def __init__(self, model: Any, tokens: int, *, apart: bool = False, ranks: Ranks = ALONE) -> None:
        """`tokens` is the most that one forward pass reads, but for a longer sequence; `apart`: one sequence a pass."""
        self.model, self.ranks = model, ranks
        self.asked = self.tokens = 1 if apart else tokens
        self.window, self.turn = sliding_window(model.config), turning_length(model.config)
        self.vocabulary = model.get_output_embeddings().weight.shape[0]
        # An adapter's class passes it on
        whole = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.picks = "logits_to_keep" in inspect.signature(whole.forward).parameters
        stateful = getattr(model, "_is_stateful", False)
        self.trees = not apart and not stateful and self._heeds_trees()

    def score(self, pairs: Sequence[Pair], seen: Callable[[float], object]) -> list[Scored]:
        """One (nats, greedy) for each (context, answer), both of one token or more; `seen` is told how many are done.

        Memory that runs out halves the tokens of a pass, and says so.
        """
        sequences = [np.array((context + answer)[:-1], np.int64) for context, answer in pairs]
        counts = [len(answer) for _, answer in pairs]
        found: dict[int, Scored] = {}
        rows = self._share(self._rows(sequences, counts, range(len(pairs)), self.asked))
        if self.tokens < self.asked:
            rows = self._rows(sequences, counts, _members(rows), self.tokens)
        while rows:
            try:
                for index, scored in self._scored(sequences, pairs, rows):
                    seen(index not in found)
                    found[index] = scored
                break
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error) or self.tokens == 1:
                    raise
                self.tokens //= 2
                log.warning("out of memory: bench.batch_tokens is halved to %d", self.tokens)
            give_back_memory()
            left = [index for index in _members(rows) if index not in found]
            rows = self._rows(sequences, counts, left, self.tokens)
        found = self.ranks.merged(found)
        return [found[index] for index in range(len(pairs))]

    def _rows(
        self, sequences: Sequence[Ints], counts: Sequence[int], chosen: Sequence[int], tokens: int
    ) -> list[Row]:
        """Rows of a tree of the chosen sequences, or padded batches; their members are indices of all sequences."""
        lengths = [len(sequences[index]) for index in chosen]
        fits = self.window is None or max(lengths, default=0) <= self.window
        cut = plan if self.trees and fits else _padded
        far = [self.turn is not None and length > self.turn for length in lengths]
        rows = []
        for side in (False, True):
            group = [index for index, beyond in zip(chosen, far, strict=True) if beyond is side]
            mine, own = [sequences[index] for index in group], [counts[index] for index in group]
            for row in cut(mine, own, tokens, max(1, LOGITS // self.vocabulary)):
                rows.append(replace(row, members=[group[member] for member in row.members]))
        return rows

    def _share(self, rows: list[Row]) -> list[Row]:
        """This process's rows, after those whose cache the first needs: the same passes as one process makes."""
        begin, end = self.ranks.span([len(row.tokens) or len(row.members) for row in rows])
        return [*behind(rows, begin), *rows[begin:end]] if begin < end else []

    def _scored(
        self, sequences: list[Ints], pairs: Sequence[Pair], rows: list[Row]
    ) -> Iterator[tuple[int, Scored]]:
        if len(rows[0].tokens):
            runs: Iterator[tuple[Row, tuple[Ints, torch.Tensor]]] = zip(rows, self._logits(rows), strict=True)
        else:
            runs = ((row, self._alone(sequences, row)) for row in rows)
        for row, (places, logits) in runs:
            yield from self._read(row, places, logits, [pairs[member][1] for member in row.members])

    def _read(
        self, row: Row, places: Ints, logits: torch.Tensor, answers: list[list[int]]
    ) -> Iterator[tuple[int, Scored]]:
        """`logits` (n, vocabulary) of the n sorted `places` of a row, read for its answers."""
        logits = logits.float()
        where = torch.from_numpy(np.searchsorted(places, np.concatenate(row.scored))).to(logits.device)
        tokens = torch.tensor([token for answer in answers for token in answer], device=logits.device)
        likely = logits[where, tokens] - logits.logsumexp(-1)[where]
        greedy = logits.argmax(-1)[where] == tokens
        starts = np.cumsum([0, *(len(answer) for answer in answers[:-1])])
        sums = np.add.reduceat(likely.double().cpu().numpy(), starts)
        all_greedy = np.logical_and.reduceat(greedy.cpu().numpy(), starts)
        yield from zip(row.members, zip(sums.tolist(), all_greedy.tolist(), strict=True), strict=True)

    def _logits(self, rows: list[Row]) -> Iterator[tuple[Ints, torch.Tensor]]:
        """The places of each row that are scored, sorted, and their logits."""
        cache, size = growing_cache(), 0
        for number, row in enumerate(rows):
            kept = rows[number + 1].cached if number + 1 < len(rows) else 0
            if row.cached == 0:
                cache = growing_cache()
            elif size > row.cached:
                cache.crop(row.cached - size)
            places = np.unique(np.concatenate(row.scored))
            logits = self._forward(row, places, cache if row.cached or kept else None)
            size = row.cached + len(row.tokens)
            yield places, logits

    @torch.no_grad()
    def _forward(self, row: Row, places: Ints, cache: Any) -> torch.Tensor:
        device, dtype = self.model.device, self.model.dtype
        here = torch.arange(len(row.tokens), device=device)
        ends = torch.from_numpy(row.ends).to(device)
        seen = (here[None] <= here[:, None]) & (here[:, None] < ends[None])
        mask = torch.zeros(1, 1, len(here), row.cached + len(here), dtype=dtype, device=device)
        mask[0, 0, :, row.cached :].masked_fill_(~seen, torch.finfo(dtype).min)
        wanted = torch.from_numpy(places).to(device)
        found: torch.Tensor = self.model(
            input_ids=torch.from_numpy(row.tokens).to(device)[None],
            position_ids=torch.from_numpy(row.positions).to(device)[None],
            attention_mask=mask,
            past_key_values=cache,
            use_cache=cache is not None,
            **({"logits_to_keep": wanted} if self.picks else {}),
        ).logits[0]
        return found if self.picks else found[wanted]

    @torch.no_grad()
    def _alone(self, sequences: list[Ints], row: Row) -> tuple[Ints, torch.Tensor]:
        """A padded batch; its places count through the batch."""
        width = max(len(sequences[member]) for member in row.members)
        ids = np.zeros((len(row.members), width), np.int64)
        for number, member in enumerate(row.members):
            ids[number, : len(sequences[member])] = sequences[member]
        # Padding on the right changes nothing before it: these models are causal
        logits = self.model(torch.from_numpy(ids).to(self.model.device), use_cache=False).logits
        places = np.unique(np.concatenate(row.scored))
        return places, logits.flatten(0, 1)[torch.from_numpy(places).to(logits.device)]

    def _heeds_trees(self) -> bool:
        """Whether a tree, with and without a cached stem, gives the logits of each sequence alone."""
        ids = np.arange(1, 25) % self.vocabulary
        branches = [np.concatenate([ids[:9], ids[9 + 5 * number : 14 + 5 * number]]) for number in range(3)]
        counts = [4, 5, 2]
        try:
            with torch.no_grad():
                ids_alone = torch.from_numpy(np.stack(branches)).to(self.model.device)
                alone = self.model(ids_alone, use_cache=False).logits
            for budget in (64, 15):  # all in one row, then a branch a row
                rows = plan(branches, counts, budget, 64)
                for row, (places, logits) in zip(rows, self._logits(rows), strict=True):
                    for member, scored in zip(row.members, row.scored, strict=True):
                        wanted = alone[member, -counts[member] :]
                        found = logits[torch.from_numpy(np.searchsorted(places, scored)).to(logits.device)]
                        limit = max(APART, 8 * torch.finfo(found.dtype).eps) * float(wanted.abs().max())
                        if not float((found - wanted).abs().max()) < limit:
                            return False
        except NotANumber:
            raise
        except (TypeError, ValueError, RuntimeError, IndexError) as error:
            log.info("no trees for %s: %s", type(self.model).__name__, error)
            return False
        return True


def _members(rows: list[Row]) -> list[int]:
    return [member for row in rows for member in row.members]


def _padded(sequences: list[Ints], counts: list[int], budget: int, most: int) -> Iterator[Row]:
    """Batches of about one length, the longest first; places count through the padded batch."""
    order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))
    nothing = np.zeros(0, np.int64)
    while order:
        width = len(sequences[order[0]])
        size = max(1, min(budget, most) // width)
        members, order = order[:size], order[size:]
        scored = [
            number * width + np.arange(len(sequences[member]) - counts[member], len(sequences[member]))
            for number, member in enumerate(members)
        ]
        yield Row(0, nothing, nothing, nothing, members, scored)


def turning_length(config: Any) -> int | None:
    """The length of a pass beyond which longrope (arXiv:2402.13753) turns every position otherwise; None without.

    Of other kinds, only dynamic NTK heeds the length, beyond max_position_embeddings, which no prompt outruns.
    """
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = [rope, *(each for each in rope.values() if isinstance(each, dict))]  # one for each type of layer
    turns = [
        kind["original_max_position_embeddings"] for kind in kinds if kind.get("rope_type") == "longrope"
    ]
    return int(min(turns)) if turns else None


def sliding_window(config: Any) -> int | None:
    """How many tokens back the nearest-sighted layer sees; None where every layer sees all."""
    text = config.get_text_config()
    window, layers = getattr(text, "sliding_window", None), getattr(text, "layer_types", None)
    if layers is not None and "sliding_attention" not in layers and "chunked_attention" not in layers:
        return None
    if layers is not None and "chunked_attention" in layers:
        window = getattr(text, "attention_chunk_size", None)
    return int(window) if window else None
