"""A byte-level BPE tokenizer's ids from a table of words: a text's words are few, and each has its ids alone.

The library takes about a microsecond for each word of each text. Here every distinct word is encoded by it once, and
a text is a matter of cutting (pattern.py) and looking up. Whatever is not certain to come out the same is left to it.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import filterfalse
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.prepare.tokens.pattern import Split

MOST = 300_000  # words in the table, about 60 MB; then it is emptied
LONGEST = 64  # characters; a longer word hardly comes again
# Learning a word costs as much as finding a dozen. Where words do not come again (scripts without spaces, random
# strings), the table only costs; so words are learned on credit, which each word found renews a little.
CREDIT = 50_000
RENEWAL = 1 / 8


@dataclass(frozen=True)
class Coded:
    """A text's ids, and of some of its characters the first token that starts there or later."""

    ids: NDArray[np.int32]
    places: Mapping[int, int]


class Words:
    """Ids of texts that hold no added tokens, except for a special one that they begin with. Make one with `of`."""

    def __init__(self, backend: Any, split: Split, heads: Iterable[str]) -> None:
        """`heads`: the added tokens that a text may begin with, which take no other character with them."""
        self._backend = backend
        self._split = split
        added = backend.get_added_tokens_decoder().values()
        contents = {token.content for token in added}
        if backend.normalizer is not None:
            contents |= {backend.normalizer.normalize_str(content) for content in contents}
        self._added = re.compile(_any(contents))
        # As in a text: the longest added token that is there, even one that a text may not begin with.
        self._head = re.compile(_any(token.content for token in added if not token.normalized))
        self._heads = {head: _bytes([backend.token_to_id(head)]) for head in heads}
        self._trims = '"trim_offsets":true' in _state(backend.post_processor)
        self._known: dict[str, bytes] = dict(self._heads)
        self._refused: set[str] = set()
        self._credit = float(CREDIT)

    @classmethod
    def of(cls, backend: Any, heads: Iterable[str]) -> Words | None:
        """None unless words have their ids alone: byte-level BPE, unicode left as it is or composed (NFC)."""
        from tokenizers import models, normalizers

        split = Split.of(backend.pre_tokenizer)
        model, normalizer = backend.model, backend.normalizer
        plain = (
            isinstance(model, models.BPE)
            and not model.dropout
            and (normalizer is None or type(normalizer) is normalizers.NFC)
            and _keeps_ids(_state(backend.post_processor))
        )
        return cls(backend, split, heads) if split and plain else None

    def encode(self, texts: Sequence[str], marks: Mapping[int, Iterable[int]]) -> dict[int, Coded]:
        """By its index what each text comes to; those that must be left to the library are missing.

        `marks`: by a text's index the characters whose tokens are wanted. Truncation, padding and
        encode_special_tokens must be off in the backend.
        """
        found: dict[int, Coded] = {}
        later: dict[int, list[str]] = {}
        for index, text in enumerate(texts):
            if words := self._words(text, marked=index in marks):
                self._look_up(index, words, marks, found, later)
        self._learn(later.values())
        for index, words in later.items():
            self._look_up(index, words, marks, found, {})
        return found

    def _words(self, text: str, *, marked: bool) -> list[str] | None:
        if marked and self._trims:  # white space that a token does not count as its own
            return None
        match = self._head.match(text)
        head = match[0] if match else ""
        if head not in self._heads and head:
            return None
        rest = text[len(head) :]
        if self._added.search(rest) or not self._normal(rest):
            return None
        words = self._split(rest)
        return [head, *words] if head and words is not None else words

    def _normal(self, text: str) -> bool:
        if self._backend.normalizer is None or text.isascii():
            return True
        return bool(self._backend.normalizer.normalize_str(text) == text)

    def _look_up(
        self,
        index: int,
        words: list[str],
        marks: Mapping[int, Iterable[int]],
        found: dict[int, Coded],
        later: dict[int, list[str]],
    ) -> None:
        try:
            ids = np.frombuffer(b"".join(map(self._known.__getitem__, words)), np.int32)
        except KeyError:
            later[index] = words
            return
        self._credit = min(CREDIT, self._credit + RENEWAL * len(words))
        places = {mark: self._place(words, mark) for mark in marks.get(index, ())}
        known = {mark: token for mark, token in places.items() if token is not None}
        if len(known) == len(places):  # none inside a word
            found[index] = Coded(ids, known)

    def _place(self, words: list[str], mark: int) -> int | None:
        """The tokens before character `mark`; None if a word goes on there."""
        at = size = 0
        for word in words:
            if at >= mark:
                break
            at += len(word)
            size += len(self._known[word])
        return size // np.dtype(np.int32).itemsize if at == mark else None

    def _learn(self, texts: Iterable[list[str]]) -> None:
        """Add what is missing for `texts`, as far as the credit goes."""
        missing: dict[str, None] = {}
        for words in texts:
            fresh = dict.fromkeys(filterfalse(self._known.__contains__, words))
            if len(missing) + len(fresh) > self._credit:
                continue
            if max(map(len, fresh)) <= LONGEST and self._refused.isdisjoint(fresh):
                missing |= fresh
        self._credit -= len(missing)
        if len(self._known) + len(self._refused) + len(missing) > MOST:
            self._known = dict(self._heads)
            self._refused.clear()
        cut = self._backend.pre_tokenizer.pre_tokenize_str
        whole = [word for word in missing if len(cut(word)) == 1]  # alone it is one word too
        self._refused.update(missing.keys() - set(whole))
        encodings = self._backend.encode_batch_fast(whole, add_special_tokens=False)
        self._known.update((word, _bytes(code.ids)) for word, code in zip(whole, encodings, strict=True))


def _any(contents: Iterable[str]) -> str:
    """A pattern for any of them, the longest first, as the library looks for added tokens."""
    return "|".join(map(re.escape, sorted(contents, key=lambda text: (-len(text), text)))) or "(?!)"


def _bytes(ids: list[int]) -> bytes:
    return array("i", ids).tobytes()


def _state(part: Any) -> str:
    return "null" if part is None else part.__getstate__().decode()


def _keeps_ids(post_processor: str) -> bool:
    """Whether nothing but special tokens is added to the ids, and nothing left out."""
    match json.loads(post_processor):
        case None | {"type": "ByteLevel"}:
            return True
        case {"type": "TemplateProcessing", "single": [*parts]}:
            return sum("Sequence" in part for part in parts) == 1
        case {"type": "Sequence", "processors": [*parts]}:
            return all(_keeps_ids(json.dumps(part)) for part in parts)
    return False
