r"""A byte-level tokenizer's own cut of a text into words, by Python's `re`: several times faster than the library's.

The library cuts by a regular expression over Unicode properties (\p{L}, \p{N}), which `re` does not know. Here each
character beyond ASCII is first replaced by one letter that stands for its kind, as the library itself tells it; such
a pattern says nothing else about it, so the cut is the same.
"""

from __future__ import annotations

import json
import re
from itertools import accumulate, pairwise
from typing import Any

# tokenizers, pre_tokenizers/byte_level.rs
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Kinds of characters that exclude each other, as Unicode defines them, and their part of ASCII. \s is spelled out:
# Python's holds \x1c to \x1f too.
KINDS = {
    r"\p{Lu}": "A-Z",
    r"\p{Ll}": "a-z",
    r"\p{Lt}": "",
    r"\p{Lm}": "",
    r"\p{Lo}": "",
    r"\p{M}": "",
    r"\p{N}": "0-9",
    r"\s": r" \t\n\v\f\r",
}
LETTERS = [kind for kind in KINDS if kind.startswith(r"\p{L")]
# What stands for a character beyond ASCII: one letter per kind, then the one for all the others.
STANDS = {kind: chr(0x80 + number) for number, kind in enumerate(KINDS)}
OTHER = chr(0x80 + len(KINDS))
INSIDE = {kind: part + STANDS[kind] for kind, part in KINDS.items()}
INSIDE[r"\p{L}"] = "".join(INSIDE[kind] for kind in LETTERS)

# The whole grammar: what is not in it (anchors, captures, possessive quantifiers, other escapes) is not converted.
_PLAIN = r"[A-Za-z0-9' /]"
_ESCAPE = r"\\[rnt]"
_KIND = r"\\p\{[A-Z][a-z]?\}|\\s"
_MEMBER = rf"{_KIND}|[A-Za-z0-9]-[A-Za-z0-9]|{_PLAIN}|{_ESCAPE}"
_SYNTAX = re.compile(
    rf"(?P<kind>{_KIND})|(?P<dark>\\S)|\[(?P<negated>\^?)(?P<members>(?:{_MEMBER})+)\]"
    rf"|{_PLAIN}|{_ESCAPE}|\||\(\?:|\(\?!|\)|\(\?i:[a-z'|]+\)"
    r"|(?:[?*+]|\{[0-9]+(?:,[0-9]*)?\})(?![?*+{])"
)


class Split:
    """Cuts texts as one pre-tokenizer does. Make one with `of`."""

    def __init__(self, pattern: str, converted: re.Pattern[str]) -> None:
        """`converted`: for texts in which each character beyond ASCII is replaced by the letter for its kind."""
        self._find = converted.findall
        self._stands = _Stands(pattern)

    @classmethod
    def of(cls, pre_tokenizer: Any) -> Split | None:
        """The cut of a `tokenizers` pre-tokenizer, None unless it is a byte-level one whose pattern is understood."""
        pattern = _pattern(pre_tokenizer)
        converted = None if pattern is None else _converted(pattern)
        return None if pattern is None or converted is None else cls(pattern, converted)

    def __call__(self, text: str) -> list[str] | None:
        """The words of `text`, which joined are the text; None where that cannot be said for sure."""
        if text.isascii():
            words: list[str] = self._find(text)
            return words if "".join(words) == text else None
        lengths = map(len, self._find(text.translate(self._stands)))
        ends = [*accumulate(lengths, initial=0)]
        return [text[begin:end] for begin, end in pairwise(ends)] if ends[-1] == len(text) else None


class _Stands(dict[int, str]):
    """By character what stands for it; nothing for one that may match a literal where case does not count.

    Without such a character (U+017F, a long s) the words are shorter than the text, which is then not cut here.
    """

    def __init__(self, pattern: str) -> None:
        from tokenizers import Regex, pre_tokenizers

        super().__init__((code, chr(code)) for code in range(0x80))
        self._pattern = pattern.casefold()
        self._tests = {
            stand: pre_tokenizers.Split(Regex(kind), "removed").pre_tokenize_str
            for kind, stand in STANDS.items()
        }

    def __missing__(self, code: int) -> str:
        if 0xD800 <= code < 0xE000:  # half a surrogate pair: the library says what it thinks of that
            return ""
        character = chr(code)
        cases = (character.casefold(), character.lower(), character.upper())
        kinds = [stand for stand, test in self._tests.items() if not test(character)]
        safe = len(kinds) < 2 and not any(case.casefold() in self._pattern for case in cases)
        self[code] = (*kinds, OTHER)[0] if safe else ""
        return self[code]


def _pattern(pre_tokenizer: Any) -> str | None:
    try:
        state = json.loads(pre_tokenizer.__getstate__())
    except Exception:  # noqa: BLE001 - the library's own type for one that is written in Python
        return None
    match state:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}:
            return GPT2
        case {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": str(pattern)},
                    "behavior": "Isolated",
                    "invert": False,
                },
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        }:
            return pattern
    return None


def _converted(pattern: str) -> re.Pattern[str] | None:
    parts, at = [], 0
    while at < len(pattern):
        match = _SYNTAX.match(pattern, at)
        part = match and _part(match)
        if not match or not part:
            return None
        parts.append(part)
        at = match.end()
    try:
        return re.compile("".join(parts))
    except re.error:
        return None


def _part(match: re.Match[str]) -> str | None:
    """One element of a pattern in the syntax of `re`; None for a property that is not known here."""
    if match["kind"]:
        return f"[{INSIDE[match['kind']]}]" if match["kind"] in INSIDE else None
    if match["dark"]:
        return "[^" + INSIDE[r"\s"] + "]"
    if not match["members"]:
        return match[0]
    kinds = {kind: INSIDE.get(kind) for kind in re.findall(_KIND, match["members"])}
    if None in kinds.values():
        return None
    members = re.sub(_KIND, lambda found: str(kinds[found[0]]), match["members"])
    return f"[{match['negated']}{members}]"
