"""Texts to tokens, cut as lm-eval's `hf` cuts them, but each different text once and many at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from lm_eval.models.utils import has_bos_prefix
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

Pair = tuple[list[int], list[int]]  # (context, answer)


class Encoder:
    """A model's tokenizer."""

    def __init__(self, tokenizer: Any, prefix: int) -> None:
        """`prefix` is the token that stands before a text without context."""
        self.tokenizer, self.prefix = tokenizer, prefix
        self.begins = tokenizer.decode(prefix)

    def encode(self, texts: Sequence[str], add_special_tokens: bool | None = None) -> dict[str, list[int]]:
        """Token ids of each different text; None adds special ones unless the first is there, as `hf`."""
        groups: dict[bool | None, list[str]] = defaultdict(list)
        for text in dict.fromkeys(texts):
            begun = add_special_tokens is None and has_bos_prefix(text, self.begins)
            groups[False if begun else add_special_tokens].append(text)
        found: dict[str, list[int]] = {}
        for special, group in groups.items():
            named = {} if special is None else {"add_special_tokens": special}
            ids = self.tokenizer(group, return_attention_mask=False, **named)["input_ids"]
            found.update(zip(group, ids, strict=True))
        return found

    def pairs(self, texts: Sequence[tuple[str, str]], add_special_tokens: bool | None = None) -> list[Pair]:
        """Of each (context, answer): spaces that end a context belong to the answer, no context is the prefix token."""
        heads = [context.rstrip() for context, _ in texts]
        wholes = [context + answer for context, answer in texts]
        encoded = self.encode([*heads, *wholes], add_special_tokens)
        alone = self.encode([answer for context, answer in texts if context == ""], False)
        found = []
        for (context, answer), head, whole in zip(texts, heads, wholes, strict=True):
            if context:
                size = len(encoded[head])
                found.append((encoded[whole][:size], encoded[whole][size:]))
            elif alone[answer][:1] == [self.prefix]:
                found.append((alone[answer][:1], alone[answer][1:]))
            else:
                found.append(([self.prefix], alone[answer]))
        return found

    def windows(self, texts: Sequence[str], length: int) -> list[list[Pair]]:
        """Each text cut into windows of `length` tokens, each token scored once, with as much context as there is."""
        encoded = self.encode(texts)
        return [
            [
                make_disjoint_window(window)
                for window in get_rolling_token_windows(encoded[text], self.prefix, length, context_len=1)
            ]
            for text in texts
        ]
