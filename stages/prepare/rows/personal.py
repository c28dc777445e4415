"""Personal data in text: found by its shape, believed only if its checksum, parser or numbering plan agrees.

Not found, by choice: an e-mail address without a dotted domain, digits outside ASCII, whatever is spelled in words.
Of IP addresses, those that name nobody (loopback, masks, 0.x.x.x) and what is more often a version: four single
digits (1.2.3.4; this also leaves out resolvers such as 8.8.8.8), and a quad after "version" or after "Chrome/".
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

from stdnum import iban, luhn, numdb

from stages.prepare.config import Kind, Personal, PersonalAction
from stages.prepare.rows.phones import phones

Span = tuple[int, int]

NOT_A_DIGIT = bytes(set(range(256)) - set(b"0123456789"))
NEAR_DIGITS = re.compile(r"\d(?:[^\w\n]{0,3}\d){3}", re.ASCII)  # what every number below has in it
NEAR_COLONS = re.compile(r":[0-9A-Fa-f]{0,4}:")  # and every IPv6 address

# The character just read begins a word; raw JSON text spells its line ends \n. Looking back after a digit was found
# is five times as fast as looking back at every character.
BEGINS = r"(?:(?<!\w.)|(?<=\\[nrt].))"

# An address ends at letters of scripts that are written without spaces (Thai to Khmer, kana, Han, Hangul).
_SPACELESS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3000-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_WORD, _ALNUM, _LETTER = rf"[^\W{_SPACELESS}]", rf"[^\W_{_SPACELESS}]", rf"[^\W\d_{_SPACELESS}]"
EMAIL = re.compile(
    rf"(?<!{_WORD}){_WORD}(?:{_WORD}|[.%+'-]){{0,63}}"
    rf"@(?!\dx\.)(?:{_ALNUM}{{1,63}}(?:-{{1,9}}{_ALNUM}{{1,63}}){{0,9}}\.){{1,9}}"  # icon@2x.png is a picture
    rf"(?:xn--[A-Za-z0-9-]{{2,59}}|{_LETTER}{{2,63}})(?!{_WORD})"
)

IBAN = re.compile(
    r"\d\d(?<=[A-Za-z]{2}..)(?:(?<!\w....)|(?<=\\[nrt]....))", re.ASCII
)  # from its check digits

CARD = re.compile(rf"\d{BEGINS}(?<![.+].)\d{{3}}", re.ASCII)
CARD_SHAPES = [
    re.compile(shape + r"(?!\w|\.\d)", re.ASCII)
    for shape in (
        r"\d{13,19}",
        r"\d{4}([ \xa0-])\d{4}\1\d{4}\1\d{4}\1\d{1,3}",
        r"\d{4}([ \xa0-])\d{4}\1\d{4}\1\d{1,4}",
        r"\d{4}([ \xa0-])\d{6}\1\d{4,5}",
    )
]
ISSUERS = re.compile(
    r"4\d{12}(?:\d{3}){0,2}"  # Visa
    r"|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}"  # Mastercard
    r"|3[47]\d{13}"  # American Express
    r"|(?:30[0-59]|3[689]\d)\d{11}"  # Diners Club
    r"|(?:6011|64[4-9]\d|65\d\d)\d{12,15}"  # Discover
    r"|35\d{14,17}|(?:2131|1800)\d{11}"  # JCB
    r"|62\d{14,17}"  # UnionPay
    r"|(?:50[123]\d|5[678]\d\d|6304|6390|6759|676[1-3])\d{9,15}"  # Maestro
    r"|220[0-4]\d{12,15}|(?:60|8[12])\d{14}|508\d{13}|9792\d{12}"  # Mir, RuPay, Troy
)

IPV4 = re.compile(
    rf"\d{BEGINS}(?<!\..)(?<![A-Za-z]/.)\d{{0,2}}(?:\.\d{{1,3}}){{3}}(?!\w|\.\d|-[A-Za-z])", re.ASCII
)
VERSION = re.compile(
    r"(?:\b(?:version|ver|v|release|firmware|build|driver|section)\b\.?|§)[\s:=]*\Z", re.IGNORECASE
)
IPV6 = re.compile(
    r"(?:(?<![\w:.])|(?<=[A-Za-z]:)|(?<=\\[nrt]))[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,8}"
    r"(?:(?:\.\d{1,3}){3})?(?:%\w{1,15})?(?![\w:])",
    re.ASCII,
)


SHORTEST_NUMBER = 10**11  # a card has 12 digits and more


def scrub(value: Any, cfg: Personal) -> tuple[Any, Counter[str]]:
    """Any JSON value with its personal data replaced (or only counted), and the counts by Kind.name.

    Strings are looked at, and so are keys of objects and integers. A scrubbed value scrubs to itself, with no counts.
    """
    counts = Counter[str]()
    if cfg.action is PersonalAction.ignore:
        return value, counts
    clean = _scrub(value, cfg, counts)
    return (clean if cfg.action is PersonalAction.redact else value), counts


def _scrub(value: Any, cfg: Personal, counts: Counter[str]) -> Any:
    if isinstance(value, str):
        return _scrub_text(value, cfg, counts)
    if isinstance(value, dict):
        return _scrub_object(value, cfg, counts)
    if isinstance(value, list):
        return [_scrub(item, cfg, counts) for item in value]
    if isinstance(value, int) and abs(value) >= SHORTEST_NUMBER:
        written = str(value)
        clean = _scrub_text(written, cfg, counts)
        return value if clean == written else clean
    return value


def _scrub_object(value: dict[Any, Any], cfg: Personal, counts: Counter[str]) -> dict[Any, Any]:
    clean: dict[Any, Any] = {}
    for key, item in value.items():
        name = _scrub(key, cfg, counts)
        while name in clean:  # two addresses as keys must not become one
            name = f"{name}_"
        clean[name] = _scrub(item, cfg, counts)
    return clean


def _scrub_text(text: str, cfg: Personal, counts: Counter[str]) -> str:
    # Again until nothing is found, for a replacement can end what kept its neighbour from being seen. It ends, for
    # each time there are fewer digits and @ than before.
    while hints := _hints(text):
        found = _find(text, cfg, hints)
        if not found:
            break
        counts.update(kind.name for _, kind in found)
        text = _replace(text, found)
    return text


def _hints(text: str) -> set[str]:
    """What a text has that is worth a longer look; for most texts nothing, at a few microseconds per 1,000 letters."""
    hints = set()
    if "@" in text:
        hints.add("at")
    if NEAR_COLONS.search(text):
        hints.add("colons")
    if len(text.encode("utf-8", "replace").translate(None, NOT_A_DIGIT)) > 3 and NEAR_DIGITS.search(text):
        hints.add("digits")
    return hints


def _find(text: str, cfg: Personal, hints: set[str]) -> list[tuple[Span, Kind]]:
    """Spans that do not overlap, in their order in the text; where two would, the kind that is named first wins."""
    found: list[tuple[Span, Kind]] = []
    taken = bytearray(len(text))
    for kind, hint, finder in FINDERS:
        if hint in hints and kind in cfg.kinds:
            for begin, end in finder(text, cfg.regions):
                if taken.find(1, begin, end) < 0:
                    taken[begin:end] = b"\1" * (end - begin)
                    found.append(((begin, end), kind))
    return sorted(found, key=lambda item: item[0])


def _replace(text: str, found: Iterable[tuple[Span, Kind]]) -> str:
    parts, last = [], 0
    for (begin, end), kind in found:
        parts += [text[last:begin], kind.value]
        last = end
    return "".join([*parts, text[last:]])


def _emails(text: str, _: list[str]) -> Iterator[Span]:
    """RFC 5322 addresses as people write them: no quotes, comments or bare hosts; any letters (RFC 6531)."""
    return (found.span() for found in EMAIL.finditer(text))


def _ibans(text: str, _: list[str]) -> Iterator[Span]:
    """ISO 13616: the country's length and structure, and the checksum; with or without spaces."""
    for start in IBAN.finditer(text):
        begin = start.start() - 2
        shape = _iban_shape(text[begin : begin + 2].upper())
        found = shape.match(text, begin) if shape else None
        if found and iban.is_valid(re.sub(r"\W", "", found.group()), check_country=False):
            yield found.span()


@cache
def _iban_shape(country: str) -> re.Pattern[str] | None:
    structure = numdb.get("iban").info(country)[0][1].get("bban")
    if not structure:
        return None
    length = 4 + sum(int(number) for number in re.findall(r"(\d+)!", structure))
    return re.compile(rf"[A-Za-z0-9](?:[ \xa0-]?[A-Za-z0-9]){{{length - 1}}}(?!\w)", re.ASCII)


def _cards(text: str, _: list[str]) -> Iterator[Span]:
    """ISO 7812: 13 to 19 digits in one piece or grouped as on a card, a known issuer's prefix, Luhn's check digit."""
    last = 0
    for start in CARD.finditer(text):
        for shape in CARD_SHAPES:
            found = shape.match(text, start.start()) if start.start() >= last else None
            digits = re.sub(r"\D", "", found.group()) if found else ""
            if found and ISSUERS.fullmatch(digits) and luhn.is_valid(digits):
                yield found.span()
                last = found.end()


def _ipv4(text: str, _: list[str]) -> Iterator[Span]:
    for found in IPV4.finditer(text):
        try:
            address = ipaddress.IPv4Address(found.group())
        except ValueError:
            continue
        nobody = address.is_loopback or address.is_reserved or address.packed[0] == 0
        before = text[max(0, found.start() - 16) : found.start()]
        if not nobody and max(address.packed) > 9 and not VERSION.search(before):
            yield found.span()


def _ipv6(text: str, _: list[str]) -> Iterator[Span]:
    """Shortened addresses (::) need a first group of four or an IPv4 tail: x[1::2] and a::b are code."""
    for found in IPV6.finditer(text):
        run, begin = found.group(), found.start()
        if run.endswith(":") and not run.endswith("::"):
            run = run[:-1]
        try:
            address = ipaddress.IPv6Address(run)
        except ValueError:
            continue
        whole = "::" not in run and any(character.isdigit() for character in run)
        if whole or address.ipv4_mapped or run.index(":") == 4:
            yield begin, begin + len(run)


FINDERS: tuple[tuple[Kind, str, Callable[[str, list[str]], Iterator[Span]]], ...] = (
    (Kind.email, "at", _emails),
    (Kind.iban, "digits", _ibans),
    (Kind.card, "digits", _cards),
    (Kind.ip, "colons", _ipv6),
    (Kind.ip, "digits", _ipv4),
    (Kind.phone, "digits", phones),
)
