"""The data report and the dataset card: true to their facts, closed to what the data says, the same every time."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stages.common.prompt import Prompt
from stages.common.statistics import exact
from stages.prepare.config import (
    Action,
    Columns,
    Data,
    Duplicates,
    Format,
    Kind,
    LeakAction,
    Leakage,
    Overlong,
    Personal,
    PersonalAction,
    Prepare,
    Source,
    Use,
)
from stages.prepare.decide import KEPT, Fate
from stages.prepare.page.attention import findings
from stages.prepare.page.card import card
from stages.prepare.page.facts import Cluster, Example, Facts, Leak, Piece, RejectCount, pieces
from stages.prepare.page.languages import languages
from stages.prepare.page.likeness import _side_by_side
from stages.prepare.page.markup import excerpt, histogram, share
from stages.prepare.page.reasons import OVERLAP, SAME, WHY
from stages.prepare.page.report import page
from stages.prepare.page.summary import summary
from stages.prepare.reading.read import RawFile

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = [
    "</script><script>alert(1)</script>",
    "</pre></textarea></title></style></head><body><img src=x onerror=alert(1)>",
    "\"'><svg/onload=alert(1)>",
    "<!-- <iframe src=//evil.example> --!>",
    "\u202eevil \u2066 \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 \u2028 \U0001f468\u200d\U0001f467",
    "\x00\x1b[31m\x7f\x85 \ud800 \uffff",
    "<marquee>" * 12_000,
]


def section(**changes: Any) -> Prepare:
    """A section with every key named, as in conf/."""
    columns = Columns(*[""] * 13)
    source = Source(
        "messages", Format.messages, columns, {}, Use.split, 1.0, ["rows/*.jsonl"], "", "", "", ""
    )
    hub = replace(
        source, files=[], hub="org/rows", subset="main", revision="0f" * 20, part="test", use=Use.test
    )
    base = Prepare(
        seed=17,
        data=Data("rows", "Generated for a test.", "MIT", "data/raw/rows", {"train": source, "test": hub}),
        prompt=Prompt("plain", "", [], 8),
        examples_share=0.25,
        max_row_bytes=1_000_000,
        max_length=100,
        overlong=Overlong.truncate,
        row_length=128,
        valid_share=0.05,
        test_share=0.1,
        max_reject_share=0.05,
        duplicates=Duplicates(Action.remove, 0.8, 5, 128),
        leakage=Leakage(LeakAction.remove, 13, 8, ["gsm8k", "mmlu"]),
        personal=Personal(PersonalAction.redact, [Kind.email, Kind.iban], []),
    )
    return replace(base, **changes)


def facts(said: str = "How many apples are left?", **changes: Any) -> Facts:
    """Facts in which every text that comes from data is `said`."""
    counts = {
        "rows/read": 110, "rows/rejected": 10, "rows/train": 80, "rows/valid": 10, "rows/test": 10,
        "tokens/train": 4000, "tokens/valid": 500, "tokens/learned_share": 0.25, "rows/truncated": 0,
        "packed/train_rows": 32, "packed/train_efficiency": 0.98, "duplicates/near": 3,
    }  # fmt: skip
    base = Facts(
        metrics={key: exact(value) for key, value in counts.items()},
        files=[RawFile(said, said, 12, "ab" * 32), RawFile("test", "org/rows@0f:test", 34, "cd" * 32)],
        columns={
            "split": ["train"] * 8 + ["valid", "test"],
            "source": [said] * 10,
            "turns": [2] * 10,
            "characters": list(range(40, 50)),
            "tokens": [*range(10, 19), None],
            "learned_tokens": [*range(1, 10), None],
            "language": ["en"] * 7 + ["de", "und", said],
        },
        lengths={"train": {12: 50, 40: 29, 100: 1}, "valid": {50: 10}},
        rejects=[
            RejectCount("near_duplicate", 3, said, 7, said),
            RejectCount("leak", 2, said, 8, said),
            RejectCount("invalid_utf8", 5, said, 9, said),
        ],
        clusters=[Cluster(said, [said, said], 3, said, said + " indeed")],
        leaks=[Leak("gsm8k", said, said, said, said.upper(), 0.9)],
        leaking_rows=2,
        checked={"test": 10, "gsm8k": 1319, "mmlu": None},
        personal={"email": 4},
        examples=[Example(said, said, "train", [Piece(said, False), Piece(said, True)])],
    )
    return replace(base, **changes)


EMPTY = Facts({}, [], {}, {}, [], [], [], 0, {}, {}, [])


VOID = {"meta", "br", "link", "img", "input"}


class Page(HTMLParser):
    """The tags of our part, with their attributes; the whole text; and whether tags nest and close."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text += data + " "


def shape(html: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(tag, tuple(sorted(attributes))) for tag, attributes in Page(html).tags]


def test_the_page_tells_its_facts() -> None:
    seen = Page(page(section(), facts()))
    assert seen.open == []
    said = " ".join(seen.text.split())
    assert "Data report: rows Generated for a test. Licence: MIT." in said
    assert "110 rows read: 100 used (90.9%), 10 set aside (9.1%)." in said
    assert "invalid_utf8 5 4.5%" in said and "3 rows like How many apples are left?" in said
    assert "90% of the item’s words stand in the row" in said and "mmlu not compared" in said
    assert "email 4" in said and "iban 0" in said and "ab" * 32 in said
    assert "train 80 80.0% 0 4,000 12 40 100" in said and "98.00% of their room" in said
    assert ("mark", {}) in seen.tags


@pytest.mark.parametrize("said", HOSTILE, ids=range(len(HOSTILE)))
def test_no_text_breaks_out(said: str) -> None:
    """The tags of a page do not depend on what the data says, beyond the words marked in a comparison."""
    data = replace(section().data, name=said, note=said, licence=said, path=said)
    html = page(section(data=data), facts(said))
    html.encode()
    seen = Page(html)
    assert seen.open == []
    assert all(not name.startswith("on") for _, attributes in seen.tags for name in attributes)
    plain = page(section(data=replace(data, name="x", note="x", licence="x", path="x")), facts("x"))
    without = [tag for tag in shape(html) if tag[0] != "mark"]
    assert without == [tag for tag in shape(plain) if tag[0] != "mark"]
    assert not re.search("[\x00-\x08\x0e-\x1f\x7f-\x9f]", html.split("<main")[1].split("</main>")[0])


def test_a_row_of_100_kb_is_shown_by_its_start() -> None:
    short, long = (
        page(section(), replace(facts("<&" * size), columns={}, files=[])) for size in (4_000, 50_000)
    )
    assert len(long) < len(short) + 1_000 and "[100,000 characters]" in long


def test_nothing_is_loaded_from_elsewhere() -> None:
    html = page(section(), facts(HOSTILE[1]))
    for tag, attributes in Page(html).tags:
        assert "src" not in attributes and tag not in ("link", "iframe", "object", "base"), (tag, attributes)
        assert (attributes.get("href") or "#").startswith("#")
        assert "url(" not in (attributes.get("style") or "")
    for style in re.findall(r"<style>(.*?)</style>", html.split("<script>var global")[0], re.DOTALL):
        assert "@import" not in style and not re.search(r"url\((?!data:)", style)


def opened(html: str, folder: Path) -> tuple[str, list[str], set[str]]:
    """A page in Chromium without any network: its DOM, its console's messages, and what it asked the network for."""
    (folder / "data.html").write_text(html, encoding="utf-8")
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--virtual-time-budget=3000",
        f"--user-data-dir={folder / 'profile'}", f"--log-net-log={folder / 'net.json'}", "--dump-dom",
        (folder / "data.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line and "chrome://" not in line]
    log = (folder / "net.json").read_text(encoding="utf-8", errors="replace").splitlines()
    own = [line for line in log if 'network_isolation_key":"file:' in line]  # the rest is Chromium's own
    return done.stdout, console, {url for line in own for url in re.findall(r'"url":"(https?:[^"]+)"', line)}


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium here")
def test_chromium_opens_it_offline_without_an_error(tmp_path: Path) -> None:
    bad = "<!DOCTYPE html><img src='http://evil.example/x.png'><script>undefined.x</script>"
    _, console, asked = opened(bad, tmp_path)
    assert asked == {"http://evil.example/x.png"} and any("TypeError" in line for line in console)
    dom, console, asked = opened(page(section(), facts(HOSTILE[0])), tmp_path)
    assert (console, asked) == ([], set())
    assert "learned_tokens" in dom and "js-plotly-plot" in dom  # Evidently has drawn


def test_the_same_facts_give_the_same_bytes_in_any_process(tmp_path: Path) -> None:
    ties = {
        "split": ["train", "valid", "test"] * 4,
        "source": ["a", "b", "c", "d", "e", "f"] * 2,
        "language": ["de", "en", "und"] * 4,
        "turns": [2, 4] * 6,
    }
    found = facts(columns=ties)
    (tmp_path / "facts").write_bytes(pickle.dumps((section(), found)))
    code = (
        "import pickle; from pathlib import Path\n"
        "from stages.prepare.page.card import card; from stages.prepare.page.report import page\n"
        "cfg, facts = pickle.loads(Path('facts').read_bytes())\n"
        "Path('out').write_text(page(cfg, facts) + card(cfg, facts), encoding='utf-8')\n"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT), "DO_NOT_TRACK": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    here = page(section(), found) + card(section(), found)
    assert (tmp_path / "out").read_text(encoding="utf-8") == here
    assert here == page(section(), found) + card(section(), found)


def test_nothing_at_all_is_a_page_too() -> None:
    seen = Page(page(section(), EMPTY))
    assert seen.open == [] and "0 rows read: 0 used (–), 0 set aside (–)" in " ".join(seen.text.split())
    assert card(section(), EMPTY).startswith("---\npretty_name: rows\nlicense: mit\n")
    kept = replace(
        facts(), rejects=[], leaks=[], clusters=[], leaking_rows=0, lengths={"train": {5: 1}, "valid": {}}
    )
    assert "None: every row read is used." in Page(page(section(), kept)).text


def first(cfg: Prepare, found: Facts) -> list[tuple[str, str]]:
    return [(finding.level, finding.what) for finding in findings(cfg, found)]


def counted(**values: float) -> Facts:
    changed = {key.replace("__", "/"): exact(value) for key, value in values.items()}
    return facts(metrics=facts().metrics | changed)


def test_what_to_look_at_first() -> None:
    assert first(section(), facts()) == [
        ("warn", "5 rows not usable"),
        ("warn", "2 rows overlapped test items"),
        ("warn", "1 benchmark not compared"),
        ("info", "4 pieces of personal data"),
    ]
    base = section()
    kept = replace(base, leakage=replace(base.leakage, action=LeakAction.report))
    assert first(kept, facts())[0] == ("bad", "2 rows overlap test items and stay")
    blind = replace(base, leakage=replace(base.leakage, action=LeakAction.ignore))
    assert ("warn", "Leakage not looked for") in first(blind, facts())
    stays = replace(base, personal=replace(base.personal, action=PersonalAction.report))
    assert first(stays, facts())[0] == ("bad", "4 pieces of personal data")
    assert ("warn", "1 row truncated") in first(base, counted(rows__truncated=1))
    assert ("info", "50% of the packed training rows") in first(base, counted(packed__train_efficiency=0.5))
    assert first(base, counted(rows__read=111))[0] == ("bad", "Rows are missing")
    many = facts(rejects=[RejectCount("duplicate", 30, "a", 1, "")])
    assert ("warn", "27% duplicates") in first(base, many)
    assert ("warn", "No valid row") in first(base, counted(rows__valid=0))
    bare = replace(base, data=replace(base.data, licence=""))
    assert ("warn", "No licence") in first(bare, facts())


def test_every_late_reason_is_explained() -> None:
    assert set(WHY) == {fate.name for fate in Fate} - {fate.name for fate in KEPT}
    assert {*SAME, *OVERLAP} <= set(WHY)


def test_the_card_is_a_hub_card_that_tells_its_facts() -> None:
    text = card(section(), facts())
    _, head, body = text.split("---\n", 2)
    assert yaml.safe_load(head) == {
        "pretty_name": "rows",
        "license": "mit",
        "language": ["en", "How many apples are left?", "de"],
        "size_categories": ["n<1K"],
        "task_categories": ["text-generation"],
    }
    for said in (
        "Generated for a test.", "`org/rows`, subset `main`, `test`, at revision `" + "0f" * 20, "ab" * 32,
        "| set aside: `leak` | 2 |", "| train | 80 | 0 | 4,000 |", "`mmlu`", "arXiv:2005.14165", "MinHash with 128",
        "email 4, iban 0", "2 rows overlap",
    ):  # fmt: skip
        assert said in body, said


@pytest.mark.parametrize("said", [*HOSTILE[:6], "a | b\n# c `d` ``e`` [f](http://g) *h* \\|"], ids=range(7))
def test_no_text_becomes_markdown_or_html_in_the_card(said: str) -> None:
    base = section().data
    cfg = section(data=replace(base, name=said, note=said, licence=said, path=said))
    text = card(cfg, facts(said))
    text.encode()
    _, head, body = text.split("---\n", 2)
    assert yaml.safe_load(head)["license"] == "other"
    plain = card(section(data=replace(base, name="x", note="x", licence="x", path="x")), facts("x"))
    assert len(body.splitlines()) == len(plain.split("---\n", 2)[2].splitlines())
    bare = re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", re.sub(r"\\.", "", body))
    assert not re.search(r"[<\[]", bare), bare


@pytest.mark.parametrize(
    ("licence", "known"),
    [("Apache-2.0", "apache-2.0"), ("CC BY 4.0", "cc-by-4.0"), ("ours, all rights", "other")],
)
def test_a_licence_is_the_hubs_word_for_it(licence: str, known: str) -> None:
    head = yaml.safe_load(
        card(section(data=replace(section().data, licence=licence)), facts()).split("---")[1]
    )
    assert head["license"] == known and head.get("license_name") in (None, "ours-all-rights")


def test_languages_are_told_where_they_can_be() -> None:
    assert languages(
        [
            "I want to get out of the contract for the camera, please answer today.",
            "Guten Tag, ich möchte meine Bestellung zurückgeben.",
            "これはペンです。今日はいい天気ですね、散歩に行きましょう。",
            "Ça va bien merci, et toi comment vas-tu ?",
            "SHORT",
            "x^2 + y^2 = z^2 \\frac{a}{b} + 3.14 * (2 - 1) / 7",
            "12 + 30 = 42; 42 * 2 = 84; 84 / 4 = 21",
            "",
        ]
    ) == ["en", "de", "ja", "fr", "und", "und", "und", "und"]
    assert languages(["This is a sentence that everybody can read. " * 10_000]) == ["en"]
    assert languages([]) == []


def test_the_summary_leaves_out_what_has_no_value() -> None:
    html = summary({"tokens": [None, None], "turns": [2, 4], "split": ["train", "test"]})
    assert (
        '"header": "turns"' in html
        and '"header": "tokens"' not in html
        and '"#ed0400"' not in html.split("</script>")[0]
    )
    assert summary({"tokens": [None]}) == summary({}) == ""


def test_a_comparison_marks_what_differs_or_what_is_shared() -> None:
    left, right = _side_by_side("How many APPLES are left, Tom?", "how many pears are left Tom", same=False)
    assert (
        left == "How many <mark>APPLES</mark> are left, Tom?"
        and right == "how many <mark>pears</mark> are left Tom"
    )
    left, right = _side_by_side("Tom ate 3 apples.", "Once TOM ate 3 pears", same=True)
    assert left == "<mark>Tom ate 3</mark> apples." and right == "Once <mark>TOM ate 3</mark> pears"
    assert _side_by_side("", "a < b", same=False) == ("", "<mark>a &lt; b</mark>")


@given(st.dictionaries(st.integers(1, 100_000), st.integers(1, 10**6), min_size=1), st.integers(1, 4096))
def test_a_histogram_counts_everything_once(counts: dict[int, int], mark: int) -> None:
    drawn = histogram(counts, {"max_length": mark})
    titles = re.findall(r"<title>([\d,]+) to ([\d,]+): ([\d,]+)</title>", drawn)
    assert sum(int(count.replace(",", "")) for *_, count in titles) == sum(counts.values())
    xs = [
        float(x) + float(width)
        for x, width in re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', drawn)
    ]
    assert len(xs) == len(titles) and max(xs) <= 400


def test_shares_and_excerpts_hide_nothing() -> None:
    assert [share(0, 5), share(1, 100_000), share(1, 3), share(0, 0)] == ["0.0%", "< 0.1%", "33.3%", "–"]
    assert (
        excerpt("abc", 9) == "abc"
        and excerpt("abc", 3) == "abc…"
        and excerpt("abcd", 3) == "abc… [4 characters]"
    )


def test_pieces_change_where_learning_begins_and_ends() -> None:
    found = pieces([1, 2, 3, 4], [False, True, True, False], json.dumps)
    assert found == [Piece("[1]", False), Piece("[2, 3]", True), Piece("[4]", False)]
