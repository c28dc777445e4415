"""What counts as the same text: normalised strings and their digests, words, and hashes of words and n-grams.

Hashes are the same in every process, on every machine and in every batch: none is Python's hash().
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

ASCII_WORDS = bytes(ord(chr(code).lower()) if chr(code).isalnum() else 32 for code in range(128)) + b" " * 128
# a comma between digits is part of the number only before thousands: 1,000 but not [1,2,3]
THOUSANDS = re.compile(r",(?=\d{3}(?!\d))(?<=\d,)")
# apostrophes (the last is what NFKC makes of an acute accent alone), and what has no width and sits inside words:
# soft hyphen, joiners, marks of direction
VANISHING = (*"'’‘ʼ", " \u0301", *"\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff")
# letters of scripts that put no spaces between words: Thai and Lao, Myanmar, Khmer, kana and bopomofo, Han
UNSPACED = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x312F), (0x31A0, 0x31BF), (0x31F0, 0x31FF),
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xAA60, 0xAA7F), (0xF900, 0xFAFF),
)  # fmt: skip
UNSPACED_RARE = "\U0001b000-\U0001b16f\U00020000-\U0003ffff"
CACHED_WORDS, CACHED_LENGTH = 1 << 18, 64
# odd, so that it has an inverse modulo 2^64; the others are those of splitmix64 (Steele et al., OOPSLA 2014)
BASE = 0x9E3779B97F4A7C15
MIX_1, MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@dataclass
class Ragged:
    """Lists of different lengths: row i is values[offsets[i]:offsets[i + 1]]; `offsets` is one longer than the rows."""

    values: NDArray[Any]
    offsets: NDArray[np.int64]


def normalise(text: str) -> str:
    """Unicode NFKC, case folded, white space collapsed: what counts as the same text."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def digest(parts: Iterable[str]) -> str:
    """SHA-256 of strings, unambiguous about where one ends."""
    return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()


def words(text: str) -> list[str]:
    """Runs of letters and digits of the NFKC, case-folded text; all else separates, also _ - and the decimal point.

    Apostrophes and the commas of thousands vanish: don't = dont, 1,000 = 1000, but 3.14 is 3 and 14. Marks (accents,
    vowel signs) stay with their letter. In scripts without spaces each letter is a word.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
        for part in VANISHING:
            text = text.replace(part, "")
        text = text.casefold()
    if "," in text:
        text = THOUSANDS.sub("", text)
    if text.isascii():
        return text.encode().translate(ASCII_WORDS, b"'").decode().split()
    unspaced, word = _patterns()
    return word.findall(" ".join(unspaced.split(text.replace("_", " "))))


@cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Letters of unspaced scripts, and words, each with the marks that follow (of Unicode's basic plane).

    Of `re`'s own classes none has the marks; one of the basic plane alone is a table, thirty times faster.
    """
    marks = "".join(chr(code) for code in range(0x300, 0x10000) if unicodedata.category(chr(code))[0] == "M")
    letters = "".join(
        chr(code) for first, last in UNSPACED for code in range(first, last + 1) if chr(code).isalnum()
    )
    return re.compile(rf"([{letters}{UNSPACED_RARE}][{marks}]*)"), re.compile(rf"\w[\w{marks}]*")


class _Vocabulary(dict[str, int]):
    """Word to 32 bits of its BLAKE2b; only saves time, so that forgetting it changes nothing."""

    def __missing__(self, word: str) -> int:
        value = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4).digest(), "little")
        if len(word) <= CACHED_LENGTH:
            if len(self) >= CACHED_WORDS:
                self.clear()
            self[word] = value
        return value


_VOCABULARY = _Vocabulary()


def word_hashes(texts: Sequence[str]) -> Ragged:
    """The words of each text as uint32 hashes."""
    values, ends = array("I"), [0]
    for text in texts:
        values.extend(map(_VOCABULARY.__getitem__, words(text)))
        ends.append(len(values))
    return Ragged(np.array(values, np.uint32), np.array(ends, np.int64))


def grams(hashes: Ragged, n: int) -> Ragged:
    """The n-grams of each row's words, in order, as uint64 hashes; a row of 1 to n-1 words gives one of them all.

    Equal hashes are equal word hashes in the same order and number, up to chance (2^-58 a pair).
    """
    if n < 1:
        raise ValueError(f"n-grams of {n} words: n must be at least 1")
    first, last = int(hashes.offsets[0]), int(hashes.offsets[-1])
    sums, inverse = prefix_sums(hashes.values[first:last])
    sizes = np.diff(hashes.offsets)
    counts = np.maximum(sizes - n + 1, np.minimum(sizes, 1))
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    starts = np.arange(offsets[-1]) + np.repeat(hashes.offsets[:-1] - first - offsets[:-1], counts)
    lengths = np.repeat(np.minimum(sizes, n), counts)
    raw = (sums[starts + lengths] - sums[starts]) * inverse[starts]
    return Ragged(finish(raw, lengths.astype(np.uint64)), offsets)


def turn_hashes(texts: Sequence[Sequence[str]]) -> Ragged:
    """One uint64 for each text of each row, the hash of its words in order; 0 for no words."""
    flat = word_hashes([text for row in texts for text in row])
    sizes = np.diff(flat.offsets)
    found = np.zeros(len(sizes), np.uint64)
    longest = int(sizes.max(initial=1))
    found[sizes > 0] = grams(flat, max(longest, 1)).values
    ends = np.cumsum([0, *map(len, texts)]).astype(np.int64)
    return Ragged(found, ends)


def prefix_sums(hashes: NDArray[Any]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Sums s and inverses v, so that (s[j] - s[i]) * v[i] is a hash of words i to j, modulo 2^64, wherever they stand.

    Rabin and Karp's polynomial hash of mixed words, but over any length at the same cost.
    """
    powers = np.full(len(hashes) + 1, BASE, np.uint64)
    inverse = np.full(len(hashes) + 1, pow(BASE, -1, 1 << 64), np.uint64)
    powers[0] = inverse[0] = 1
    np.cumprod(powers, out=powers)
    np.cumprod(inverse, out=inverse)
    sums = np.zeros(len(hashes) + 1, np.uint64)
    np.cumsum(mix(hashes.astype(np.uint64) + np.uint64(BASE)) * powers[:-1], out=sums[1:])
    return sums, inverse


def finish(raw: NDArray[np.uint64], lengths: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix the numbers of words (of one, or as many as `raw`) into hashes from prefix sums."""
    return mix(raw ^ (lengths * np.uint64(BASE)))


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64: one to one, and every bit of the input changes half of the output's."""
    values = (values ^ (values >> np.uint64(30))) * MIX_1
    values ^= values >> np.uint64(27)
    values *= MIX_2
    values ^= values >> np.uint64(31)
    return values
