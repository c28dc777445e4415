"""Many texts to token ids, each distinct piece once: system turns, tools and examples recur in row after row.

A text is cut before its added tokens (<|im_start|>). The tokenizers library splits a text at those before anything
else, so the pieces' ids, joined, are the text's ids.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.prepare.tokens.words import Coded, Words

Ids = NDArray[np.int32]


@dataclass
class Cut:
    """A text's pieces by number, and its marks as (piece, tokens, characters) from that piece's start."""

    pieces: list[int]
    marks: list[tuple[int, int, int]]


class Pieces:
    """A fast tokenizer's ids for texts in which special tokens are written out; none are added."""

    def __init__(self, tokenizer: Any) -> None:
        """Find out before which of the tokenizer's added tokens a text may be cut."""
        self._tokenizer = tokenizer
        added = tokenizer.backend_tokenizer.get_added_tokens_decoder().values()
        # All that are found before the text is normalised, the longest first, as the library looks for them.
        raw = sorted((t for t in added if not t.normalized), key=lambda t: (-len(t.content), t.content))
        self._added = re.compile("|".join(re.escape(token.content) for token in raw) or "(?!)")
        # Cutting before a token that takes the white space to its left, or looks at it, would change the ids.
        self._heads = {
            t.content for t in raw if not (t.lstrip or t.single_word) and t.content == t.content.strip()
        }
        if tokenizer.split_special_tokens:
            self._heads = set()
        alone = {t.content for t in raw if not t.rstrip} & self._heads  # these are one token and nothing else
        self._words = None if tokenizer.split_special_tokens else Words.of(tokenizer.backend_tokenizer, alone)

    def encode(self, texts: Sequence[str], marks: Sequence[Sequence[int]]) -> list[tuple[Ids, list[int]]]:
        """Per text its token ids, and for each of its `marks` (characters) the first token from there on."""
        numbers: dict[str, int] = {}
        cuts = [self._cut(text, places, numbers) for text, places in zip(texts, marks, strict=True)]
        searched: dict[int, set[int]] = {}
        for cut in cuts:
            for piece, _, characters in cut.marks:
                if characters:
                    searched.setdefault(cut.pieces[piece], set()).add(characters)
        found = self._coded(list(numbers), searched)
        return [_join(cut, found) for cut in cuts]

    def _cut(self, text: str, marks: Sequence[int], numbers: dict[str, int]) -> Cut:
        heads = [match for match in self._added.finditer(text) if match.group() in self._heads]
        starts, ends = [match.start() for match in heads], [match.end() for match in heads]
        if text and (not starts or starts[0]):
            starts.insert(0, 0)
            ends.insert(0, -1)
        places = []
        for mark in marks:
            piece = bisect_right(starts, mark) - 1
            if mark >= len(text):
                places.append((len(starts), 0, 0))
            elif mark == ends[piece]:  # after its head, which is one token: no need to search
                places.append((piece, 1, 0))
            else:
                places.append((piece, 0, mark - starts[piece]))
        pieces = [text[begin:end] for begin, end in pairwise([*starts, len(text)])]
        return Cut([numbers.setdefault(piece, len(numbers)) for piece in pieces], places)

    def _coded(self, pieces: list[str], searched: Mapping[int, set[int]]) -> dict[int, Coded]:
        backend = self._tokenizer.backend_tokenizer
        backend.no_truncation()  # a tokenizer.json may bring either; transformers' own calls switch them off too
        backend.no_padding()
        backend.encode_special_tokens = self._tokenizer.split_special_tokens
        found = self._words.encode(pieces, searched) if self._words else {}
        groups: tuple[list[int], list[int]] = ([], [])
        for number in range(len(pieces)):
            if number not in found:
                groups[number in searched].append(number)
        # The fast call keeps no offsets, and only the pieces in which a mark lies need them.
        for call, group in zip((backend.encode_batch_fast, backend.encode_batch), groups, strict=True):
            batch = call([pieces[number] for number in group], add_special_tokens=False)
            for number, encoding in zip(group, batch, strict=True):
                found[number] = _of_library(encoding, searched.get(number, ()))
        return found


def _of_library(encoding: Any, marks: Iterable[int]) -> Coded:
    return Coded(np.array(encoding.ids, np.int32), {mark: _first_token(encoding, mark) for mark in marks})


def _join(cut: Cut, found: Mapping[int, Coded]) -> tuple[Ids, list[int]]:
    parts = [found[number].ids for number in cut.pieces]
    starts = list(accumulate(map(len, parts), initial=0))
    marks = [
        starts[piece] + tokens + (found[cut.pieces[piece]].places[characters] if characters else 0)
        for piece, tokens, characters in cut.marks
    ]
    return np.concatenate(parts) if parts else np.empty(0, np.int32), marks


def _first_token(encoding: Any, character: int) -> int:
    """The first token that starts at `character` or later. One that only covers it began with other words."""
    token = encoding.char_to_token(character)
    if token is None:  # the normaliser dropped it, or white space that belongs to no token
        return bisect_left([start for start, _ in encoding.offsets], character)
    while token < len(encoding) and encoding.token_to_chars(token)[0] < character:
        token += 1
    return int(token)
