"""Telephone numbers in text: digit groups that the numbering plan of their country calls a valid number.

With + (or 00 and groups) a number of any country is found. Without, only numbers of the given regions, and only as
people there write them: with the trunk 0 (030 1234567), or in exactly the country's own groups ((202) 555-0172).
Bare digits without either are far more often an order number, a price or a time stamp.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache

Span = tuple[int, int]

_SPACE, _DASH = "[ \u00a0\u202f]", "[-.\u2010\u2011\u2013]"
SEPARATOR = rf"(?:{_SPACE}?\(|\)-|\){_SPACE}?|{_SPACE}?/{_SPACE}?|{_DASH}|{_SPACE})"
RUN = re.compile(rf"\d+(?:{SEPARATOR}\d+)*", re.ASCII)
OPENING = re.compile(r"(?:\(?\+\(?|\()\Z")
# what makes the first digits part of something else; raw JSON text spells its line ends \n
JOINED = re.compile(r"(?:\w(?<!\\[nrt])|[#$€£¥]|\d[.,:]|\w[-/])\Z", re.ASCII)
GROUP = re.compile(r"\d+", re.ASCII)
CUT = re.compile(rf"{_SPACE}|/|\(")  # a separator at which a number may begin or end
SPOILED = re.compile(
    rf"(?!x\d)\w|[.,:]\d|{_SPACE}?[%€$£¥]", re.ASCII
)  # after digits that are of something else
DATE = re.compile(
    r"\d{1,2}([-./])\d{1,2}\1(?:19|20)?\d\d(?!\d)|(?:19|20)\d\d([-./])\d{1,2}\2\d{1,2}(?!\d)", re.ASCII
)
OTHER_NUMBER = re.compile(
    r"\b(?:order|invoice|ticket|serial|tracking|article|isbn(?:-1[03])?|issn|sku|bestell\w*|rechnungs?\w*|auftrags?\w*)"
    r"[\s#:.-]*(?:number|no|nr|id|code)?[\s#:.]*\(?\Z",
    re.IGNORECASE,
)
MOST_GROUPS, MIN_DIGITS, MAX_DIGITS = 8, 7, 17  # 15 by E.164, after 00
MAX_NATIONAL = 14  # trunk 0 for a country code of two digits


def phones(text: str, regions: list[str]) -> Iterator[Span]:
    """Where numbers stand in `text`; regions are ISO 3166 codes, such as DE."""
    for run in RUN.finditer(text):
        if run.end() - run.start() >= MIN_DIGITS:
            yield from _in_run(text, run.span(), regions)


def check_regions(regions: list[str]) -> None:
    """Raise ValueError for a region whose phone numbers nobody knows."""
    for region in regions:
        _plan(region)


def _in_run(text: str, run: Span, regions: list[str]) -> Iterator[Span]:
    """The longest number at each place, from left to right."""
    groups = [group.span() for group in GROUP.finditer(text, *run)]
    if SPOILED.match(text, run[1]):
        groups.pop()
    at = done = 0
    while at < len(groups):
        begin = _opening(text, groups[at][0])
        fits = at == done or _may_begin(text, groups, at)
        end = _longest(text, begin, groups, at, regions) if fits and not _joined(text, begin) else at
        if end > at:
            done = end
            closed = ")" in text[begin : groups[end - 1][1]]
            yield begin if closed or text[begin] != "(" else begin + 1, groups[end - 1][1]
        at = max(end, at + 1)


def _may_begin(text: str, groups: list[Span], at: int) -> bool:
    """After other digits, but not after four: within an account or card number that has a wrong check digit."""
    first, last = groups[at - 1]
    return _may_cut(text, groups, at) and last - first != 4 and not _joined(text, first)


def _joined(text: str, begin: int) -> bool:
    return bool(JOINED.search(text, max(0, begin - 3), begin))


def _opening(text: str, begin: int) -> int:
    """Where a number begins whose first digit stands at `begin`: before its + and bracket."""
    found = OPENING.search(text, max(0, begin - 3), begin)
    return found.start() if found else begin


def _may_cut(text: str, groups: list[Span], at: int) -> bool:
    return at == len(groups) or bool(CUT.search(text, groups[at - 1][1], groups[at][0]))


def _longest(text: str, begin: int, groups: list[Span], at: int, regions: list[str]) -> int:
    """The end, in groups, of the longest number that begins with group `at`; `at` if there is none."""
    before = text[max(0, begin - 24) : begin]
    for end in range(min(len(groups), at + MOST_GROUPS), at, -1):
        if _may_cut(text, groups, end):
            digits = tuple(text[first:last] for first, last in groups[at:end])
            if MIN_DIGITS <= sum(map(len, digits)) <= MAX_DIGITS and _is_number(
                text[begin : groups[end - 1][1]], digits, regions, before
            ):
                return end
    return at


def _is_number(written: str, digits: Sequence[str], regions: list[str], before: str) -> bool:
    if "+" in written:
        return _is_international("".join(digits))
    if len(digits[0]) > 2 and digits[0].startswith("00"):
        return len(digits) > 1 and _is_international("".join(digits)[2:])
    if not regions or sum(map(len, digits)) > MAX_NATIONAL or digits[0] == "0":
        return False
    if DATE.match(written) or OTHER_NUMBER.search(before):
        return False
    return any(_is_national(digits, region, written.startswith("(")) for region in regions)


def _is_international(digits: str) -> bool:
    import phonenumbers

    try:
        return phonenumbers.is_valid_number(phonenumbers.parse("+" + digits))
    except phonenumbers.NumberParseException:
        return False


def _is_national(digits: Sequence[str], region: str, in_brackets: bool) -> bool:
    """Countries with a trunk 0 write it, but for some in Latin America: (11) 98765-4321."""
    import phonenumbers

    trunk, lengths = _plan(region)
    written = "".join(digits)
    with_trunk = trunk.startswith("0") and written.startswith(trunk)
    writes_trunk = trunk.startswith("0") and not in_brackets
    if not with_trunk and (writes_trunk or not _may_be_grouped(_without(trunk, digits), lengths)):
        return False
    try:
        number = phonenumbers.parse(written, region)
    except phonenumbers.NumberParseException:
        return False
    if number.country_code != phonenumbers.country_code_for_region(region):
        return False
    if not phonenumbers.is_valid_number(number):
        return False
    usual = GROUP.findall(phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.NATIONAL))
    return with_trunk or _without(trunk, digits) == _without(trunk, usual)


def _may_be_grouped(digits: Sequence[str], lengths: Sequence[int]) -> bool:
    """A cheap look before the parser: a table of numbers has many places where a number might begin."""
    sizes = [len(group) for group in digits]
    return len(sizes) > 1 and min(sizes) > 1 and sum(sizes) in lengths


def _without(trunk: str, digits: Sequence[str]) -> Sequence[str]:
    return tuple(digits[1:] if digits[0] == trunk else digits)


@cache
def _plan(region: str) -> tuple[str, Sequence[int]]:
    """The digits before a number when it is called from inside the country ("" for none), and its lengths."""
    import phonenumbers

    metadata = phonenumbers.PhoneMetadata.metadata_for_region(region)
    if metadata is None:
        raise ValueError(
            f"personal.regions: {region!r} is no country whose phone numbers are known; "
            "write its two letters, such as DE or US"
        )
    described = metadata.general_desc
    return metadata.national_prefix or "", described.possible_length if described else ()
