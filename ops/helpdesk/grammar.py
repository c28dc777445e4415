"""Expansion of phrase templates, and the surface of each writing style. Pure functions of a Random."""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random

from ops.helpdesk.tone import SHORT_FORMS

DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday")
MONTHS = ("january", "march", "april", "june", "july", "october")
_CHOICE = re.compile(r"\[([^\[\]]*)\]")


def expand(template: str, rng: Random, **slots: str) -> str:
    """Choose among `[a|b]` and fill `{slots}`; day, month, order and n are drawn where they are named."""
    while _CHOICE.search(template):
        template = _CHOICE.sub(lambda match: rng.choice(match[1].split("|")), template)
    drawn: dict[str, Callable[[], str]] = {
        "day": lambda: rng.choice(DAYS),
        "month": lambda: rng.choice(MONTHS),
        "order": lambda: f"{rng.randint(10, 99)}-{rng.randint(1000, 9999)}",
        "n": lambda: str(rng.randint(2, 60)),
    }
    filled = {name: draw() for name, draw in drawn.items() if f"{{{name}}}" in template}
    return " ".join(template.format(**slots, **filled).split())


def join(clauses: list[str], rng: Random) -> str:
    """Clauses as one line of sentences; a clause that ends in a comma leads into the next one."""
    text = ""
    for clause in filter(None, clauses):
        glue = (
            "" if not text else " " if text[-1] in ",.!?" else rng.choices((". ", ", ", "! "), (8, 2, 1))[0]
        )
        text += glue + clause
    return text


def capitals(text: str) -> str:
    """Sentence case."""
    return re.sub(r"(^|[.!?] )([a-z])", lambda match: match[1] + match[2].upper(), text)


def short_forms(text: str) -> str:
    """A phone message: lower case, few marks, common abbreviations."""
    words = text.lower().replace(". ", " ").replace("! ", " ").replace(",", "").split()
    return " ".join(SHORT_FORMS.get(word, word) for word in words)


def typos(text: str, rng: Random, rate: float = 0.12) -> str:
    """Swap, drop or double a letter inside about `rate` of the longer words; first and last letter stay."""
    return " ".join(
        _typo(word, rng) if len(word) > 4 and rng.random() < rate else word for word in text.split()
    )


def _typo(word: str, rng: Random) -> str:
    at = rng.randrange(1, len(word) - 2)
    kind = rng.choice(("swap", "drop", "double"))
    if kind == "swap":
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return word[:at] + word[at + 1 :] if kind == "drop" else word[: at + 1] + word[at:]


def surface(text: str, style: str, rng: Random) -> str:
    """The finished spelling of `text` in `style`."""
    if style == "sms":
        return short_forms(text)
    if style == "typos":
        return typos(text if rng.random() < 0.5 else capitals(text), rng)
    if style == "terse" and rng.random() < 0.5:
        return text
    return capitals(text) + rng.choice((".", "", "."))
