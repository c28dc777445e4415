"""prepare as a whole: rows in = rows out + rejected, nothing leaks, no row moves, any worker count, any kill."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ops import sync
from ops.helpdesk.broken import BROKEN, DUPLICATES
from stages.common.files import read_jsonl, tree_digest
from stages.common.tracking import RunName, track
from stages.prepare import ingest
from stages.prepare.__main__ import main
from stages.prepare.config import Overlong
from stages.prepare.reading import read
from stages.prepare.split import Split, split_of
from tests.life import wait_for
from tests.stages.prepare_config import ROOT, row, section, source, write

OUT = Path("data/prepared")
WORDS = [f"w{number}" for number in range(4000)]


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> Path:
    """A working folder with a model's tokenizer, 5 test rows and 60 training rows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LATHE_WORKERS", "1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    (tmp_path / "models").mkdir()
    (tmp_path / "models/base").symlink_to(tiny_model)
    write(tmp_path / "test.jsonl", [row(f"test {i}", id=f"t{i}") for i in range(5)])
    write(tmp_path / "train.jsonl", [row(f"train {i}", id=f"r{i}") for i in range(60)])
    return tmp_path


def rejects() -> list[dict[str, Any]]:
    return list(read_jsonl(OUT / "rejects.jsonl"))


def documents(split: str) -> dict[str, tuple[list[int], list[int]]]:
    """id -> (input_ids, labels) of a packed file."""
    found = {}
    for line in pq.read_table(OUT / f"{split}.parquet").to_pylist():
        ends = np.cumsum([0, *line["lengths"]])
        for identity, begin, end in zip(line["ids"], ends[:-1], ends[1:], strict=True):
            found[identity] = (line["input_ids"][begin:end], line["labels"][begin:end])
    return found


def ids(split: str) -> set[str]:
    if split == "test":
        return {line["id"] for line in read_jsonl(OUT / "test.jsonl")}
    return set(documents(split))


def sentence(rng: random.Random, length: int = 60) -> str:
    return " ".join(rng.choices(WORDS, k=length))


BAD = {
    b"{": "invalid_json",
    b"[1]": "not_an_object",
    b'{"messages": NaN}': "invalid_json",
    b'{"messages": "\xff"}': "invalid_utf8",
    b"{}": "missing_messages",
    b'{"messages": 3}': "messages_wrong_type",
    b'{"messages": []}': "no_turns",
    b'{"messages": [{"role": "robot", "content": "x"}]}': "unknown_role",
    b'{"messages": [{"role": "user", "content": 3}]}': "content_wrong_type",
    row("asked", " \n"): "empty_content",
    row("nul \0 here"): "nul_character",
    b'{"messages": [{"role": "user", "content": "\\ud800"}, {"role": "assistant", "content": "x"}]}': "invalid_unicode",
    b'{"messages": [{"role": "user", "content": "x"}]}': "wrong_turn_order",
    row("meta", meta=[1]): "meta_not_an_object",
    row("identity", id=[1]): "id_wrong_type",
    row("again", id="r1"): "duplicate_id",
    row("train 3", "FINE "): "duplicate",
    row("Test  2", "another answer"): "in_test",
    row("x" * 1100): "too_long",
    row("y" * 3000): "row_too_large",
    b"[" * 2000: "invalid_json",
    b"nothing here is JSON": "invalid_json",
    b'"a text"': "not_an_object",
    b"null": "not_an_object",
    row("no loss anywhere").replace(
        b'"content": "fine"', b'"content": "fine", "weight": 0'
    ): "nothing_to_learn",
}


def test_each_kind_of_bad_row_is_rejected_with_its_line_and_reason(raw: Path) -> None:
    lines = (raw / "train.jsonl").read_bytes().splitlines()
    write(raw / "train.jsonl", lines + list(BAD))
    metrics = main(section(raw, max_row_bytes=2500))
    assert {entry["line"]: entry["reason"] for entry in rejects()} == {
        61 + index: reason for index, reason in enumerate(BAD.values())
    }
    kept = sum(metrics[f"rows/{split.value}"]["value"] for split in Split)
    assert metrics["rows/read"]["value"] == kept + metrics["rows/rejected"]["value"]
    assert all(entry["row"] for entry in rejects())


def test_the_helpdesk_corpus_loses_exactly_what_its_generator_broke(raw: Path) -> None:
    cfg = section(
        ROOT / "data/raw/helpdesk",
        sources={
            "train": source(files=["rows/train.jsonl"]),
            "test": source(files=["rows/test.jsonl"], use="test"),
        },
        max_length=2000,
        row_length=2000,
    )
    main(cfg)
    reasons = Counter(entry["reason"] for entry in rejects())
    assert reasons.pop("duplicate") == DUPLICATES
    assert reasons.total() == sum(BROKEN.values())


def test_too_many_rejects_stop_the_stage_and_name_the_reason(raw: Path) -> None:
    write(raw / "train.jsonl", [row("good")] + [b'{"messages": []}'] * 3 + [b"{"])
    with pytest.raises(
        ValueError, match=r"4 of 10 .*max_reject_share=0.1; most often no_turns \(3, first at train.jsonl:2\)"
    ):
        main(section(raw, max_reject_share=0.1))
    assert not OUT.exists()


def test_rows_that_only_the_tokenizer_refuses_count_too(raw: Path) -> None:
    write(raw / "train.jsonl", [row("good")] + [row(f"{i} " + "x" * 1100) for i in range(5)])
    with pytest.raises(ValueError, match=r"most often too_long \(5, first at train.jsonl:2\)"):
        main(section(raw, max_reject_share=0.1))


def test_nothing_left_to_train_on_is_said(raw: Path) -> None:
    write(raw / "train.jsonl", [b"{}"])
    with pytest.raises(ValueError, match="no train row is left of 6 read"):
        main(section(raw))


def test_a_failed_run_leaves_the_earlier_outs(raw: Path) -> None:
    main(section(raw))
    before = tree_digest(OUT)
    write(raw / "train.jsonl", [b"{}"])
    with pytest.raises(ValueError, match="no train row"):
        main(section(raw))
    assert tree_digest(OUT) == before


def test_a_row_must_fit_into_a_packed_row(raw: Path) -> None:
    with pytest.raises(ValueError, match=r"prepare.row_length=100 is less than prepare.max_length=1000"):
        main(section(raw, row_length=100))


def test_nothing_but_empty_files_is_said(raw: Path) -> None:
    for name in ("train", "test"):
        write(raw / f"{name}.jsonl", [])
    with pytest.raises(ValueError, match=r"every file of .* is empty"):
        main(section(raw))


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf"), 3e9])
def test_a_weight_that_is_none_is_one_clear_line(raw: Path, weight: float) -> None:
    sources = {"a": source(files=["train.jsonl"], weight=weight)}
    with pytest.raises(ValueError, match=r"data.sources.a.weight=.* from 0 to 1000"):
        main(section(raw, sources=sources))


def test_two_runs_write_the_same_bytes(raw: Path) -> None:
    main(section(raw))
    before = tree_digest(OUT), tree_digest(Path("reports"))
    main(section(raw))
    assert before == (tree_digest(OUT), tree_digest(Path("reports")))


def test_only_the_answer_is_learned_and_it_is_whole(raw: Path, tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    main(section(raw, examples_share=1.0))
    for input_ids, labels in documents("train").values():
        learned = [label for label in labels if label >= 0]
        assert tokenizer.decode(learned, skip_special_tokens=True).strip() == "fine"
        assert tokenizer.eos_token_id in learned
        assert "1+1" in tokenizer.decode(input_ids)


def test_packed_rows_hold_every_document_once(raw: Path) -> None:
    metrics = main(section(raw))
    lines = pq.read_table(OUT / "train.parquet").to_pylist()
    assert Counter(identity for line in lines for identity in line["ids"]).most_common(1)[0][1] == 1
    assert sum(len(line["ids"]) for line in lines) == metrics["rows/train"]["value"]
    assert all(
        sum(line["lengths"]) == len(line["input_ids"]) == len(line["labels"]) <= 2000 for line in lines
    )


def test_a_row_that_is_too_long_can_be_cut_and_is_counted(raw: Path) -> None:
    write(raw / "train.jsonl", [row(f"{i}", "long " * 300) for i in range(20)])
    metrics = main(section(raw, overlong=Overlong.truncate, examples_share=0.0))
    assert (
        metrics["rows/truncated"]["value"] == metrics["rows/train"]["value"] + metrics["rows/valid"]["value"]
    )
    assert {len(input_ids) for input_ids, _ in documents("train").values()} == {1000}


def test_adding_rows_anywhere_never_moves_an_old_one(raw: Path) -> None:
    rng = random.Random(2)
    base = [sentence(rng) for _ in range(200)]
    near = [text.replace(text.split()[14], "other", 1) for text in rng.sample(base, 40)]
    old = [row(text, id=f"old-{i}") for i, text in enumerate(base)]
    cfg = section(raw, near="remove", sources={"train": source(files=["train.jsonl"])})
    write(raw / "train.jsonl", old)
    main(cfg)
    before = {name: split.value for split in Split for name in ids(split.value)}
    new = [row(text, id=f"new-{i}") for i, text in enumerate([*near, *(sentence(rng) for _ in range(10))])]
    for mixed in ([*old, *new], [*new, *old], rng.sample([*old, *new], len(old) + len(new))):
        write(raw / "train.jsonl", mixed)
        main(cfg)
        after = {name: split.value for split in Split for name in ids(split.value)}
        moved = {name for name, split in before.items() if after.get(name, split) != split}
        assert not moved
        assert Counter(entry["reason"] for entry in rejects()).total() == len(near)
    assert {entry["reason"] for entry in rejects()} <= {"near_duplicate", "links_splits"}


def test_appending_rows_never_takes_an_old_one_out(raw: Path) -> None:
    rng = random.Random(3)
    base = [sentence(rng) for _ in range(200)]
    cfg = section(raw, near="remove", sources={"train": source(files=["train.jsonl"])})
    write(raw / "train.jsonl", [row(text, id=f"old-{i}") for i, text in enumerate(base)])
    main(cfg)
    before = {split: ids(split.value) for split in Split}
    near = [text.replace(text.split()[14], "other", 1) for text in base[:20]]
    with (raw / "train.jsonl").open("ab") as file:
        file.writelines(row(text, id=f"new-{i}") + b"\n" for i, text in enumerate(near))
    main(cfg)
    assert all(before[split] <= ids(split.value) for split in Split)


def test_no_group_and_no_near_duplicate_straddles_the_splits(raw: Path) -> None:
    rng = random.Random(4)
    lines = []
    for number in range(120):
        text = sentence(rng)
        lines.append(row(text, id=f"{number}-a", group=f"g{number % 30}"))
        lines.append(row(text.replace(text.split()[10], "other", 1), id=f"{number}-b", group=f"h{number}"))
    grouped = source(files=["train.jsonl"], columns={"group": "group"})
    write(raw / "train.jsonl", lines)
    metrics = main(section(raw, near="report", sources={"train": grouped}))
    split_by_id = {name: split for split in Split for name in ids(split.value)}
    groups: dict[str, set[Split]] = {}
    for line in map(json.loads, lines):
        if line["id"] in split_by_id:
            groups.setdefault(line["group"], set()).add(split_by_id[line["id"]])
    assert all(len(splits) == 1 for splits in groups.values())
    pairs = [(f"{number}-a", f"{number}-b") for number in range(120)]
    kept = [(a, b) for a, b in pairs if a in split_by_id and b in split_by_id]
    assert all(split_by_id[a] is split_by_id[b] for a, b in kept)
    assert metrics["rejected/links_splits"]["value"] == 120 - len(kept) > 0


def test_a_group_does_not_straddle_sources_either(raw: Path) -> None:
    tested = source(files=["test.jsonl"], use="test", columns={"group": "group"})
    grouped = source(files=["train.jsonl"], use="train", columns={"group": "group"})
    write(raw / "test.jsonl", [row("first turn", group="conv")])
    write(raw / "train.jsonl", [*(row(f"turn {i}", group="conv") for i in range(5)), row("another")])
    metrics = main(section(raw, sources={"a": grouped, "b": tested}))
    assert metrics["rejected/in_test"]["value"] == 5
    assert metrics["rows/train"]["value"] == 1


def test_reported_near_duplicates_of_reported_ones_do_not_straddle(raw: Path) -> None:
    rng = random.Random(9)
    lines = []
    for number in range(40):
        words = sentence(rng, 80).split()
        for name, changed in (("a", (10, 30)), ("b", (30,)), ("c", (30, 60))):
            text = [f"{word}x" if at in changed else word for at, word in enumerate(words)]
            lines.append(row(" ".join(text), id=f"{number}-{name}"))
    write(raw / "train.jsonl", lines)
    main(section(raw, near="report", sources={"train": source(files=["train.jsonl"])}))
    where = {name: split for split in Split for name in ids(split.value)}
    for number in range(40):
        for one, other in (("a", "b"), ("b", "c")):
            pair = {where.get(f"{number}-{one}"), where.get(f"{number}-{other}")} - {None}
            assert len(pair) <= 1


def test_sources_may_count_their_rows_alike(raw: Path) -> None:
    for name in "ab":
        write(raw / f"{name}.jsonl", [row(f"{name} asks {i}", id=i) for i in range(30)])
    sources = {name: source(files=[f"{name}.jsonl"], use="train") for name in "ab"}
    main(section(raw, sources=sources | {"c": source(files=["test.jsonl"], use="test")}))
    assert ids("train") == {f"{name}/{i}" for name in "ab" for i in range(30)}


def test_shares_of_the_splits_are_as_asked() -> None:
    cfg = section(Path(), sources={"all": source()})
    counts = Counter(split_of(str(i), cfg.data.sources["all"], cfg) for i in range(20_000))
    assert abs(counts[Split.test] / 20_000 - 0.1) < 0.01
    assert abs(counts[Split.valid] / 20_000 - 0.2) < 0.012


def test_a_source_may_name_its_split(raw: Path) -> None:
    sources = {
        "a": source(files=["train.jsonl"], use="train"),
        "b": source(files=["valid.jsonl"], use="valid"),
        "c": source(files=["test.jsonl"], use="test"),
    }
    write(raw / "valid.jsonl", [row(f"valid {i}", id=f"v{i}") for i in range(7)])
    main(section(raw, sources=sources))
    assert ids("valid") == {f"v{i}" for i in range(7)}
    assert ids("train") == {f"r{i}" for i in range(60)}


def test_weights_say_how_often_a_row_is_seen(raw: Path) -> None:
    write(raw / "extra.jsonl", [row(f"extra {i}", id=f"e{i}") for i in range(200)])
    sources = {
        "train": source(files=["train.jsonl"], use="train", weight=2.0),
        "extra": source(files=["extra.jsonl"], use="train", weight=0.25),
        "test": source(files=["test.jsonl"], use="test"),
    }
    metrics = main(section(raw, sources=sources))
    lines = pq.read_table(OUT / "train.parquet").to_pylist()
    seen = Counter(identity for line in lines for identity in line["ids"])
    assert {seen[f"train/r{i}"] for i in range(60)} == {2}
    light = sum(seen[f"extra/e{i}"] for i in range(200))
    assert 30 <= light <= 70
    assert metrics["rejected/down_weighted"]["value"] == 200 - light


def test_preference_pairs_go_to_their_own_file(raw: Path, tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    lines = [
        json.dumps(
            {"prompt": f"question {i}", "chosen": f"good {i}", "rejected": f"bad {i}", "id": i}
        ).encode()
        for i in range(50)
    ]
    write(raw / "pairs.jsonl", lines)
    sources = {
        "a": source("preference", files=["pairs.jsonl"]),
        "b": source(files=["test.jsonl"], use="test"),
    }
    metrics = main(section(raw, sources=sources, examples_share=0.0))
    pairs = pq.read_table(OUT / "pairs.parquet").to_pylist()
    assert Counter(pair["split"] for pair in pairs) == {
        split: metrics[f"pairs/{split}"]["value"] for split in ("train", "valid")
    }
    assert len(pairs) == 50
    decode = AutoTokenizer.from_pretrained(tiny_model).decode
    for pair in pairs:
        for side, word in (("chosen", "good"), ("rejected", "bad")):
            learned = [label for label in pair[f"{side}_labels"] if label >= 0]
            assert decode(learned, skip_special_tokens=True).strip() == f"{word} {pair['id']}"
            assert f"question {pair['id']}" in decode(pair[f"{side}_ids"])
    assert pq.read_table(OUT / "train.parquet").num_rows == 0


def leaky(raw: Path) -> tuple[Path, str]:
    rng = random.Random(5)
    tested = [sentence(rng) for _ in range(5)]
    rows = [row(sentence(rng), id=f"r{i}") for i in range(30)]
    write(raw / "test.jsonl", [row(text, id=f"t{i}") for i, text in enumerate(tested)])
    write(raw / "train.jsonl", [*rows, row(f"Please: {tested[3].upper()}!", id="leak")])
    return raw, tested[3]


@pytest.mark.parametrize("action", ["remove", "report", "stop"])
def test_a_leak_is_removed_reported_or_stops_the_stage(raw: Path, action: str) -> None:
    raw, _ = leaky(raw)
    cfg = section(
        raw,
        leaks=action,
        sources={
            "a": source(files=["train.jsonl"], use="train"),
            "b": source(files=["test.jsonl"], use="test"),
        },
    )
    if action == "stop":
        with pytest.raises(ValueError, match=r"1 training rows share 13 words .* item t3 of test"):
            main(cfg)
        return
    metrics = main(cfg)
    [leak] = read_jsonl(OUT / "leaks.jsonl")
    assert leak == {
        "benchmark": "test", "item": "t3", "row": "train.jsonl:31", "share": 1.0, "removed": action == "remove"
    }  # fmt: skip
    assert ("leak" in ids("train")) == (action == "report")
    clean = {line["item"]: line["clean"] for line in read_jsonl(OUT / "items.jsonl")}
    assert clean["t3"] == (action == "remove")
    assert metrics["leakage/items_not_clean"]["value"] == (action == "report")
    assert "train.jsonl:31" in Path("reports/data.html").read_text(encoding="utf-8")


def test_benchmarks_and_the_judges_items_are_compared(raw: Path) -> None:
    rng = random.Random(6)
    asked, judged = sentence(rng), sentence(rng)
    write(Path("data/benchmarks/quiz/items.jsonl"), [json.dumps({"id": "q1", "question": asked}).encode()])
    write(raw / "labels/judge.jsonl", [json.dumps({"id": "j1", "question": judged}).encode()])
    write(raw / "train.jsonl", [row("fine"), row("quiz: " + asked, id="a"), row("judge: " + judged, id="b")])
    cfg = section(raw, leaks="remove", valid_share=0.0)
    cfg.leakage.benchmarks = ["quiz", "elsewhere"]
    metrics = main(cfg)
    assert {(leak["benchmark"], leak["item"]) for leak in read_jsonl(OUT / "leaks.jsonl")} == {
        ("quiz", "q1"),
        ("judge", "j1"),
    }
    assert metrics["rejected/leak"]["value"] == 2
    assert "elsewhere" in (OUT / "card.md").read_text(encoding="utf-8")


def test_a_leak_in_a_system_turn_or_a_tool_call_is_seen(raw: Path) -> None:
    raw, asked = leaky(raw)
    held = [
        {"role": "system", "content": asked},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]
    call = {"type": "function", "function": {"name": "note", "arguments": {"text": asked.replace(" ", "\n")}}}
    called = [
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "done"},
        {"role": "assistant", "content": "noted"},
    ]
    write(
        raw / "train.jsonl",
        [row("fine"), *(json.dumps({"messages": turns}).encode() for turns in (held, called))],
    )
    main(section(raw, leaks="report", valid_share=0.0))
    assert {leak["row"] for leak in read_jsonl(OUT / "leaks.jsonl")} == {"train.jsonl:2", "train.jsonl:3"}


def test_worked_examples_follow_a_rows_own_system_turn(raw: Path, tiny_model: Path) -> None:
    own = [{"role": "system", "content": "Own."}, *json.loads(row("asked"))["messages"]]
    write(raw / "train.jsonl", [json.dumps({"messages": own, "id": "own"}).encode()])
    main(section(raw, examples_share=1.0, valid_share=0.0))
    text, labels = _text(documents("train")["own"][0]), documents("train")["own"][1]
    assert text.index("Own.") < text.index("1+1") < text.index("asked")
    assert "2" not in _text([label for label in labels if label >= 0])


PERSONAL = {
    "email": "mail ada.lovelace@example.org now",
    "card": "card 4111 1111 1111 1111 please",
    "iban": "pay to DE89 3704 0044 0532 0130 00 today",
}


def test_personal_data_is_redacted_everywhere(raw: Path) -> None:
    rows = [
        row(f"{i} {text}", f"again {text}", id=f"{kind}{i}", meta={"note": text})
        for kind, text in PERSONAL.items()
        for i in range(9)
    ]
    broken = [b'{"broken": "' + text.encode() for text in PERSONAL.values()]
    escaped = row("x", " ", note=PERSONAL["email"]).replace(b"@", b"\\u0040")
    write(raw / "train.jsonl", [*rows, *broken, escaped, rows[0].replace(b'"email0"', b'"other"')])
    track.start(raw, RunName("Tests-Tiny", "prepare"), {}, {})
    metrics = main(section(raw, personal="redact"))
    track.close("FINISHED")
    sync.main(raw)
    assert [metrics[f"personal/{kind}"]["value"] for kind in ("card", "email", "iban")] == [28, 32, 28]
    places = [*OUT.iterdir(), Path("reports/data.html"), raw / "mlflow.db", *raw.glob("mlartifacts/**/*.*")]
    assert any("data.html" in path.name and "mlartifacts" in path.parts for path in places)
    written = b"".join(path.read_bytes() for path in places if path.is_file())
    tokens = b" ".join(
        _text(input_ids).encode()
        for split in ("train", "valid")
        for input_ids, _ in documents(split).values()
    )
    for secret in (b"lovelace", b"4111 1111", b"3704 0044"):
        assert secret not in written
        assert secret not in tokens
    assert b"[EMAIL]" in tokens


def test_redacted_ids_and_groups_still_tell_rows_apart(raw: Path) -> None:
    lines = [
        row(f"asked {i}", id=f"user{i}@example.com", group=f"team{i % 9}@example.org") for i in range(60)
    ]
    write(raw / "train.jsonl", lines)
    grouped = source(files=["train.jsonl"], columns={"group": "group"})
    metrics = main(section(raw, personal="redact", sources={"train": grouped}))
    assert metrics["rows/rejected"]["value"] == 0
    assert all(metrics[f"rows/{split}"]["value"] for split in ("train", "valid", "test"))
    assert b"@example" not in b"".join(path.read_bytes() for path in OUT.iterdir())


def test_personal_data_in_tested_items_is_redacted_and_hides_no_leak(raw: Path) -> None:
    asked = "please write to ada.lovelace@example.org that the parcel with the blue lamp has come back to us"
    write(raw / "labels/judge.jsonl", [json.dumps({"id": "ada@example.org", "question": asked}).encode()])
    write(raw / "train.jsonl", [row("fine"), row("now " + asked, id="leak")])
    metrics = main(section(raw, personal="redact", leaks="remove"))
    assert metrics["rejected/leak"]["value"] == 1
    written = b"".join(path.read_bytes() for path in [*OUT.iterdir(), Path("reports/data.html")])
    assert b"lovelace" not in written and b"ada@" not in written


def _text(input_ids: list[int]) -> str:
    from transformers import AutoTokenizer

    return str(AutoTokenizer.from_pretrained("models/base").decode(input_ids))


def test_any_number_of_workers_writes_the_same_bytes(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(7)
    write(raw / "train.jsonl", [row(sentence(rng), id=f"r{i}") for i in range(300)] + list(BAD))
    monkeypatch.setattr(read, "SHARD_BYTES", 8000)
    found = set()
    for workers in ("1", "2", "4"):
        monkeypatch.setenv("LATHE_WORKERS", workers)
        main(section(raw, near="remove", leaks="remove"))
        found.add((tree_digest(OUT), tree_digest(Path("reports"))))
    assert len(found) == 1


def test_batches_do_not_show(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main(section(raw, near="remove", leaks="remove"))
    before = tree_digest(OUT)
    monkeypatch.setattr(ingest, "BATCH", 7)
    main(section(raw, near="remove", leaks="remove", seed=1))
    assert tree_digest(OUT) == before


def start(raw: Path, shard_bytes: int, **environment: str) -> subprocess.Popen[bytes]:
    """The stage in a process group of its own, on small shards and two workers."""
    code = f"""
import sys
from pathlib import Path
from stages.prepare.reading import read
from stages.prepare.__main__ import main
from tests.life import wait_for
from tests.stages.prepare_config import section
if __name__ == "__main__":
    read.SHARD_BYTES = {shard_bytes}
    main(section(Path({str(raw)!r}), near="remove", leaks="remove"))
"""
    (raw / "start.py").write_text(code)
    return subprocess.Popen(
        [sys.executable, str(raw / "start.py")],
        cwd=raw,
        env=os.environ | {"PYTHONPATH": str(ROOT), "LATHE_WORKERS": "2"} | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


@pytest.fixture
def undisturbed(raw: Path) -> tuple[str, str]:
    """The outs of a run that nobody disturbs, on small shards."""
    rng = random.Random(8)
    write(raw / "train.jsonl", [row(sentence(rng), id=f"r{i}") for i in range(400)] + list(BAD))
    done = start(raw, 8000)
    assert done.wait() == 0, done.stderr and done.stderr.read()
    return outs()


def outs() -> tuple[str, str]:
    return tree_digest(OUT), tree_digest(Path("reports"))


def forget() -> None:
    for path in (OUT, Path("reports")):
        shutil.rmtree(path, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.parametrize("shards", [1, 30])
def test_a_killed_run_is_taken_up_where_it_was(raw: Path, undisturbed: tuple[str, str], shards: int) -> None:
    """SIGKILL to the whole group when some shards are done, then again: the same outs, nothing left over."""
    forget()
    running = start(raw, 8000)
    wait_for("shards", lambda: running.poll() is not None or len(done_shards(raw)) >= shards)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert len(done_shards(raw)) >= shards
    again = start(raw, 8000)
    assert again.wait() == 0, again.stderr and again.stderr.read()
    assert outs() == undisturbed
    assert not list(raw.glob(".ckpt/prepare-*"))


@pytest.mark.soak
@pytest.mark.skipif("LATHE_SOAK" not in os.environ, reason="`make soak` runs it")
def test_ten_kills_at_random_moments(raw: Path, undisturbed: tuple[str, str]) -> None:
    began = time.monotonic()
    forget()
    assert start(raw, 8000).wait() == 0
    length = time.monotonic() - began
    rng = random.Random()
    for number in range(10):
        forget()
        running, moment = start(raw, 8000), rng.uniform(0, length)
        time.sleep(moment)
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        print(
            f"kill {number + 1}: at {moment:.2f} of {length:.2f} s, {len(done_shards(raw))} shards were done"
        )
        again = start(raw, 8000)
        assert again.wait() == 0, again.stderr and again.stderr.read()
        assert outs() == undisturbed


@pytest.mark.soak
@pytest.mark.skipif("LATHE_SOAK" not in os.environ, reason="`make soak` runs it")
def test_two_ray_workers_one_of_them_killed_half_way(raw: Path, undisturbed: tuple[str, str]) -> None:
    forget()
    (raw / "home").mkdir()  # Ray makes ~/.ray
    running = start(raw, 8000, LATHE_BACKEND="ray", HOME=str(raw / "home"))
    wait_for("half of the shards", lambda: running.poll() is not None or len(done_shards(raw)) >= 15)
    victim = ray_workers(running.pid)[0]
    os.kill(victim, signal.SIGKILL)
    assert running.wait() == 0, running.stderr and running.stderr.read()
    assert outs() == undisturbed


def ray_workers(driver: int) -> list[int]:
    """Processes that run a shard: Ray calls them by the function."""
    found = subprocess.run(["pgrep", "-f", "ray::.*_run"], capture_output=True, text=True, check=True)
    return [int(line) for line in found.stdout.split() if int(line) != driver]


def done_shards(raw: Path) -> list[Path]:
    return list(raw.glob(".ckpt/*/*/0*"))


def test_the_dataset_is_the_runs_input_in_mlflow(raw: Path) -> None:
    from mlflow.tracking import MlflowClient

    track.start(raw, RunName("Tests-Tiny", "prepare"), {}, {})
    main(section(raw))
    track.close("FINISHED")
    sync.main(raw)
    run = MlflowClient(f"sqlite:///{raw / 'mlflow.db'}").get_run(track.run_id)
    [used] = run.inputs.dataset_inputs
    assert used.dataset.name == "rows"
    assert used.dataset.digest
