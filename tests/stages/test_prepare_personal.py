"""Personal data: what is planted is found, what only looks like it is left alone."""

from __future__ import annotations

import ipaddress
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import phonenumbers
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stdnum import iban, luhn, numdb

from stages.prepare.config import Kind, Personal, PersonalAction
from stages.prepare.rows.personal import scrub

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared/data"
REGIONS = ["US", "DE", "GB"]
REDACT = Personal(PersonalAction.redact, list(Kind), REGIONS)
SENTENCES = [
    "Write to {} today, please.", "{}", "It is {}.", "(see {})", 'he said "{}" twice', "first line\n{}\nlast line",
    "Number: {}; thanks!", "联系{}。", "ids 12, 34 and {} or 5 more",
]  # fmt: skip


def only(*kinds: Kind) -> Personal:
    return Personal(PersonalAction.redact, list(kinds), REGIONS)


def some(rng: Random, letters: str, number: int) -> str:
    return "".join(rng.choice(letters) for _ in range(number))


def email(rng: Random) -> str:
    local = rng.choice(["bob", "ann.lee", "jörg_m", "o'neil", "x+news", "7", "a-b"]) + str(rng.randint(0, 99))
    return f"{local}@{rng.choice(['example', 'mail.x-y', 'exämple', '3com'])}.{rng.choice(['com', 'co.uk', 'museum'])}"


CARDS = {
    "4": (13, 16, 19), "51": (16,), "2221": (16,), "2720": (16,), "34": (15,), "37": (15,), "300": (14,), "36": (14,),
    "6011": (16,), "65": (16,), "3528": (16,), "62": (16, 19), "5018": (16,), "6759": (16,), "2200": (16,),
}  # fmt: skip


def card(rng: Random) -> str:
    prefix = rng.choice(list(CARDS))
    length = rng.choice(CARDS[prefix])
    body = prefix + some(rng, "0123456789", length - len(prefix) - 1)
    return grouped(rng, body + luhn.calc_check_digit(body))


def grouped(rng: Random, digits: str) -> str:
    separator = rng.choice(["", " ", "-"])
    if len(digits) in (14, 15):
        return separator.join([digits[:4], digits[4:10], digits[10:]])
    return separator.join(re.findall("....|.+", digits)) if len(digits) == 16 else digits


COUNTRIES = ["DE", "GB", "FR", "NL", "MT", "NO", "CH", "PL", "SA", "BE"]


def account(rng: Random) -> str:
    country = rng.choice(COUNTRIES)
    structure = numdb.get("iban").info(country)[0][1]["bban"]
    letters = {"n": "0123456789", "a": "ABCXYZ", "c": "0123456789ABCXYZ"}
    bban = "".join(some(rng, letters[kind], int(n)) for n, kind in re.findall(r"(\d+)!([nac])", structure))
    made = country + iban.calc_check_digits(f"{country}00{bban}") + bban
    return rng.choice([made, iban.format(made), made.lower()])


def address(rng: Random) -> str:
    if rng.random() < 0.5:
        return f"{rng.randint(11, 126)}." + ".".join(str(rng.randint(0, 255)) for _ in range(3))
    groups = [rng.choice(["2001", "2a02", "fd12"]), *(f"{rng.randrange(1 << 16):x}" for _ in range(7))]
    zeros = rng.randint(1, 6)
    groups[2 : 2 + zeros] = ["0"] * zeros
    whole = ipaddress.IPv6Address(":".join(groups))
    return rng.choice([str(whole), whole.exploded, str(whole).upper()])


def phone(rng: Random) -> str:
    region = rng.choice([*REGIONS, "FR", "IN", "BR"])
    while True:
        digits = some(rng, "123456789", 1) + some(rng, "0123456789", rng.choice([8, 9, 9, 10]))
        number = phonenumbers.parse(digits, region)
        if phonenumbers.is_valid_number(number):
            break
    style = phonenumbers.PhoneNumberFormat
    styles = [style.E164, style.INTERNATIONAL] + [style.NATIONAL] * (region in REGIONS)
    return phonenumbers.format_number(number, rng.choice(styles))


MAKERS: dict[Kind, Callable[[Random], str]] = {
    Kind.email: email, Kind.phone: phone, Kind.ip: address, Kind.card: card, Kind.iban: account,
}  # fmt: skip


@pytest.mark.parametrize("kind", Kind)
def test_all_of_200_planted_are_found_and_the_text_around_them_stays(kind: Kind) -> None:
    rng = Random(kind.name)
    for _ in range(200):
        sentence, secret = rng.choice(SENTENCES), MAKERS[kind](rng)
        clean, counts = scrub(sentence.format(secret), REDACT)
        assert (clean, counts) == (sentence.format(kind.value), Counter({kind.name: 1})), secret


@pytest.mark.parametrize("kind", [Kind.card, Kind.iban])
def test_none_of_200_with_one_digit_changed_is_found(kind: Kind) -> None:
    rng = Random(kind.name)
    for _ in range(200):
        secret = MAKERS[kind](rng)
        at = rng.choice([i for i, character in enumerate(secret) if character.isdigit()])
        digit = rng.choice([other for other in "0123456789" if other != secret[at]])
        text = rng.choice(SENTENCES).format(secret[:at] + digit + secret[at + 1 :])
        assert kind.name not in scrub(text, REDACT)[1], text
        assert scrub(text, only(kind)) == (text, Counter())


def rows(*files: Path) -> list[str]:
    return [line for file in files for line in file.read_text(errors="replace").splitlines()]


def test_nothing_is_found_among_the_order_numbers_of_the_helpdesk() -> None:
    lines = rows(*sorted((ROOT / "data/raw/helpdesk/rows").glob("*.jsonl")))
    assert sum(bool(re.search(r"\d\d-\d{4}", line)) for line in lines) > 100
    assert scrub(lines, REDACT) == (lines, Counter())


def test_nothing_is_found_in_gsm8k() -> None:
    if not (SHARED / "gsm8k").is_dir():
        pytest.skip("no shared/data/gsm8k")
    lines = rows(*sorted((SHARED / "gsm8k").glob("*.jsonl")))
    assert scrub(lines, REDACT)[1] == Counter()


NOTHING = [
    "@mention, a@b, foo@bar, icon@2x.png, pkg@1.2.3, @scope/pkg, a@, @b.com, 5 @ 3.20",
    "12:30:45, 2024-01-02T03:04:05, 00:11:22:33:44:55, std::vector, x[1::2], a[::2], ::1, a::b, Foo::Bar::baz",
    "version 10.1.2.3, Version: 10.20.30.40, 1.2.3.4, 2.10.1, 1.3.6.1.4.1.311, Chrome/120.0.0.0, 10.1.2.3-beta",
    "127.0.0.1 255.255.255.0 0.0.0.0 256.1.1.1 10.0.0 1.2.3.4.5 010.020.030.040",
    "order 64-6514, order 0151 2345678, #0301234567, invoice no. 030 1234567, 1234567890, 2025550172, $020 7946 0958",
    "01.02.2024, 02.03.2024, 02/03/2024, 2024-03-02, 1999-2000, 2019 2020 2021 2022, 09:30 0151",
    "0-306-40615-2, ISBN 0306406152, ISBN-10: 0306406152, 978-3-16-148410-0, ISSN 0317-8471",
    "1,234,567.89, 0.4111111111111111, 3.14159265358979, 1700000000, 1700000000000, 20240131123045, 1e10",
    "100+200+3000=3300, <<48/2=24>>, 1234567*89, 200-300-4000, 5 +1234567, 2 + 2 = 4, 123-45-6789",
    "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17, 1000 2000 3000 4000 5000",
    "4111111111111112, 1234 5678 9012 3456, x4111111111111111, 4111111111111111x, 41111111111111110000",
    "GB82 WEST 1234 5698 7654 33, XX82WEST12345698765432, DE8937040044053201300, xDE89370400440532013000",
    "550e8400-e29b-41d4-a716-446655440000, da39a3ee5e6b4b0d3255bfef95601890afd80709",
]


@pytest.mark.parametrize("text", NOTHING)
def test_what_only_looks_like_it_is_left_alone(text: str) -> None:
    assert scrub(text, REDACT) == (text, Counter())


SOMETHING = {
    "邮箱alice@example.com联系 <Bob@X.ORG>, mailto:c@d.io.": "邮箱[EMAIL]联系 <[EMAIL]>, mailto:[EMAIL].",
    "alice@example.com으로 이메일, 用户@例子.中国": "[EMAIL]으로 이메일, 用户@例子.中国",
    "Jörg@exämple.de or почта@пример.рф": "[EMAIL] or [EMAIL]",
    "+49 (0)30 1234567 or (030) 1234567 or 030/1234567": "[PHONE] or [PHONE] or [PHONE]",
    "(202) 555-0172, 1-202-555-0172, 202.555.0172x12": "[PHONE], [PHONE], [PHONE]x12",
    "0049 151 12345678, tel:02079460958 Tel.:030 1234567": "[PHONE], tel:[PHONE] Tel.:[PHONE]",
    "+1 202 555 0172 4 items, 0151 12345678 5kg": "[PHONE] 4 items, [PHONE] 5kg",
    "http://10.1.2.3:8080/x 192.168.0.1/24 IP:2001:db8::1: [2001:db8::1]:80": (
        "http://[IP]:8080/x [IP]/24 IP:[IP]: [[IP]]:80"
    ),
    "fe80::1%eth0 ::ffff:10.2.3.44 1:2:3:4:5:6:7:8 2001:db8::1.": "[IP] [IP] [IP] [IP].",
    "2024 4111 1111 1111 1111 123, 4111111111111111,12/25": "2024 [CARD] 123, [CARD],12/25",
    "GB82 WEST 1234 5698 7654 32 and de89 3704 0044 0532 0130 00": "[IBAN] and [IBAN]",
    r"raw JSON\n4111111111111111\nDE89370400440532013000\n+4930 1234567\t10.1.2.3": (
        r"raw JSON\n[CARD]\n[IBAN]\n[PHONE]\t[IP]"
    ),
}


@pytest.mark.parametrize("text", SOMETHING)
def test_what_is_found_in_running_text(text: str) -> None:
    assert scrub(text, REDACT)[0] == SOMETHING[text]


def test_the_most_specific_kind_wins_where_two_would_match() -> None:
    assert scrub("DE89370400440532013000", REDACT)[1] == Counter(iban=1)
    assert scrub("+4930123456@example.com", REDACT)[0] == "+[EMAIL]"
    inside = "SA03 8000 0000 6080 1016 7519 / 4000 0000 0000 0002"
    assert scrub(inside, REDACT)[0] == "[IBAN] / [CARD]"


def test_only_the_kinds_and_regions_that_are_asked_for() -> None:
    text = "bob@example.com 4111111111111111 020 7946 0958 +442079460958"
    assert scrub(text, only(Kind.card))[1] == Counter(card=1)
    for regions, phones in ([], 1), (["US"], 1), (["GB"], 2):
        assert scrub(text, Personal(PersonalAction.report, [Kind.phone], regions))[1] == Counter(phone=phones)
    with pytest.raises(ValueError, match=r"personal\.regions: 'XX' is no country"):
        scrub("020 7946 0958", Personal(PersonalAction.report, [Kind.phone], ["XX"]))


def test_any_json_value_keeps_its_shape_and_loses_keys_and_numbers_that_are_personal() -> None:
    inner = ["a@b.com", 4111111111111111, 1234567890123, None, {"x": "call +442079460958"}]
    value = {"a@b.com": inner, "c@d.com": 1, "n": 1.5, "t": True}
    clean, counts = scrub(value, REDACT)
    assert clean == {
        "[EMAIL]": ["[EMAIL]", "[CARD]", 1234567890123, None, {"x": "call [PHONE]"}],
        "[EMAIL]_": 1,
        "n": 1.5,
        "t": True,
    }
    assert counts == Counter(email=3, phone=1, card=1)


def test_report_counts_without_a_change_and_ignore_does_nothing() -> None:
    value = ["bob@example.com", {"x": "10.1.2.3"}]
    report = Personal(PersonalAction.report, list(Kind), REGIONS)
    found, counts = scrub(value, report)
    assert found is value and counts == scrub(value, REDACT)[1] == Counter(email=1, ip=1)
    found, counts = scrub(value, Personal(PersonalAction.ignore, list(Kind), REGIONS))
    assert found is value and counts == Counter()


fragments = st.sampled_from(
    ["bob@x.com", "@", "+49", "030 1234567", "4111 1111 1111 1111", "DE89370400440532013000", "10.1.2.3", "2001:db8::1",
     ":", " ", "-", ".", "(", ")", "+", "0", "123", "x", "\n", "\ud800", "é", "٣٤٥", "[EMAIL]"]
)  # fmt: skip
texts = st.lists(fragments, max_size=12).map("".join) | st.text(st.characters())
values = st.recursive(
    texts | st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)


def shape(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    return (
        [shape(item) for item in value]
        if isinstance(value, list)
        else ""
        if isinstance(value, str)
        else value
    )


@given(values)
def test_any_value_is_scrubbed_once_and_for_all(value: Any) -> None:
    before = json.dumps(value)
    clean, counts = scrub(value, REDACT)
    assert json.dumps(value) == before and shape(clean) == shape(value)
    assert scrub(clean, REDACT) == (clean, Counter())
    assert scrub(value, Personal(PersonalAction.report, list(Kind), REGIONS)) == (value, counts)
