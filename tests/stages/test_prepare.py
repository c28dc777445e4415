"""prepare: rows in = rows out + rejected, for any bytes; the loss only where the assistant speaks."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ops.helpdesk.broken import BROKEN, DUPLICATES
from stages.common.files import read_jsonl, tree_digest
from stages.common.prompt import Example, Message, Prompt
from stages.prepare.__main__ import main
from stages.prepare.config import Columns, Data, Format, Prepare, Source
from stages.prepare.read import Record
from stages.prepare.split import Split, split_of
from stages.prepare.take import take
from stages.prepare.tokenise import IGNORED, tokenise
from stages.prepare.validate import Reject, conversation, normalise, question_digest

ROOT = Path(__file__).resolve().parents[2]
GOOD = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}


def config(path: Path, **changes: Any) -> Prepare:
    data = Data(
        name="rows", note="Made for a test.", path=str(path), source=Source.jsonl, format=Format.messages,
        columns=Columns("q", "", "a"), id="", subset="", revision="", train="train.jsonl", test="test.jsonl",
    )  # fmt: skip
    values: dict[str, Any] = {
        "seed": 1, "data": data, "prompt": Prompt("p", "Be brief.", [Example("1+1", "2")], 8), "examples_share": 0.5,
        "max_length": 200, "valid_share": 0.2, "test_share": 0.1, "max_reject_share": 1.0,
    }  # fmt: skip
    return Prepare(**(values | changes))


def row(question: str, answer: str = "fine", **more: Any) -> bytes:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages, **more}).encode()


def write(path: Path, lines: list[bytes]) -> None:
    path.write_bytes(b"".join(line + b"\n" for line in lines))


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models/base").symlink_to(tiny_model)
    write(tmp_path / "test.jsonl", [row(f"test {i}", id=f"t{i}") for i in range(5)])
    write(tmp_path / "train.jsonl", [row(f"train {i}", id=f"r{i}") for i in range(60)])
    return tmp_path


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
    row("x" * 900): "too_long",
    b"[" * 100_000: "invalid_json",
}


def test_each_kind_of_bad_row_is_rejected_with_its_line_and_reason(raw: Path) -> None:
    lines = (raw / "train.jsonl").read_bytes().splitlines()
    write(raw / "train.jsonl", lines + list(BAD))
    metrics = main(config(raw))
    rejects = list(read_jsonl(Path("data/prepared/rejects.jsonl")))
    assert {entry["line"]: entry["reason"] for entry in rejects} == {
        61 + index: reason for index, reason in enumerate(BAD.values())
    }
    kept = sum(metrics[f"rows/{split.value}"]["value"] for split in Split)
    assert metrics["rows/read"]["value"] == kept + metrics["rows/rejected"]["value"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400))
def test_rows_in_is_rows_out_plus_rejected_for_any_bytes(raw: Path, junk: bytes) -> None:
    write(raw / "train.jsonl", [row("a good row"), junk, row("another good row")])
    taken = take(config(raw))
    lines = [line for line in junk.split(b"\n") if line.strip()]
    assert taken.read == 5 + 2 + len(lines)
    assert taken.read == sum(map(len, taken.rows.values())) + len(taken.rejects)


def test_the_helpdesk_corpus_loses_exactly_what_its_generator_broke() -> None:
    data = ROOT / "data/raw/helpdesk"
    cfg = config(data)
    cfg.data.train, cfg.data.test = "rows/train.jsonl", "rows/test.jsonl"
    reasons = Counter(entry["reason"] for entry in take(cfg).rejects)
    assert reasons.pop("duplicate") == DUPLICATES
    assert reasons.total() == sum(BROKEN.values())


def test_too_many_rejects_stop_the_stage_and_name_the_reason(raw: Path) -> None:
    write(raw / "train.jsonl", [row("good")] + [b'{"messages": []}'] * 3 + [b"{"])
    with pytest.raises(
        ValueError, match=r"4 of 10 .*max_reject_share=0.1; most often no_turns \(3, first at train.jsonl:2\)"
    ):
        main(config(raw, max_reject_share=0.1))
    assert not Path("data/prepared").exists()


@pytest.mark.parametrize("missing", ["train.jsonl", "test.jsonl"])
def test_a_missing_file_is_one_clear_line(raw: Path, missing: str) -> None:
    (raw / missing).unlink()
    with pytest.raises(ValueError, match=f"{missing} does not exist: put the rows there"):
        main(config(raw))


def test_two_runs_write_the_same_bytes(raw: Path) -> None:
    main(config(raw))
    before = tree_digest(Path("data/prepared")), tree_digest(Path("reports"))
    main(config(raw))
    assert before == (tree_digest(Path("data/prepared")), tree_digest(Path("reports")))


def test_only_the_last_answer_is_learned_and_it_is_whole(raw: Path, tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    main(config(raw, examples_share=1.0))
    for entry in pq.read_table("data/prepared/train.parquet").to_pylist():
        learned = [label for label in entry["labels"] if label != IGNORED]
        assert tokenizer.decode(learned, skip_special_tokens=True).strip() == "fine"
        assert tokenizer.eos_token_id in learned
        assert "1+1" in tokenizer.decode(entry["input_ids"])


def test_every_assistant_turn_of_a_conversation_is_learned(tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    turns: list[Message] = [
        {"role": role, "content": text}
        for role, text in (("user", "a"), ("assistant", "first"), ("user", "b"), ("assistant", "second"))
    ]
    tokens = tokenise(tokenizer, turns, first_answer=0)
    text = tokenizer.decode([label for label in tokens.labels if label != IGNORED], skip_special_tokens=True)
    assert "first" in text and "second" in text and "a" not in text.replace("first", "").replace("second", "")


def test_a_template_that_rewrites_earlier_turns_is_refused(tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(ValueError, match="rewrites earlier turns"):
        tokenise(tokenizer, GOOD["messages"], first_answer=0)  # type: ignore[arg-type]


@given(st.lists(st.text(min_size=1), min_size=1, max_size=30, unique=True))
def test_adding_rows_never_moves_an_old_one(questions: list[str]) -> None:
    cfg = config(Path())
    before = {question: split_of(question, cfg) for question in questions[: len(questions) // 2]}
    after = {question: split_of(question, cfg) for question in questions}
    assert all(after[question] is split for question, split in before.items())


def test_shares_of_the_splits_are_as_asked() -> None:
    cfg = config(Path())
    cfg.data.test = ""
    counts = Counter(split_of(str(i), cfg) for i in range(20_000))
    assert abs(counts[Split.test] / 20_000 - 0.1) < 0.01
    assert abs(counts[Split.valid] / 20_000 - 0.2) < 0.012


def test_instruction_rows_take_their_columns() -> None:
    data = config(Path()).data
    data.format, data.columns = Format.instruction, Columns("question", "context", "answer")
    raw_row = {"question": "how many?", "context": "3 cats", "answer": "3"}
    item = conversation(Record("f", 1, "", raw_row, ""), data)
    assert [turn["content"] for turn in item.messages] == ["how many?\n\n3 cats", "3"]
    with pytest.raises(Reject, match="missing_column"):
        conversation(Record("f", 1, "", {"question": "x"}, ""), data)


def test_a_hub_dataset_is_read_and_a_floating_revision_refused(raw: Path) -> None:
    folder = raw / "hub"
    folder.mkdir()
    write(folder / "train.jsonl", [row(f"hub {i}") for i in range(40)])
    cfg = config(raw)
    cfg.data.source, cfg.data.id, cfg.data.train, cfg.data.test = Source.hub, str(folder), "train", ""
    assert take(cfg).read == 40
    cfg.data.id, cfg.data.revision = "someone/something", "main"
    with pytest.raises(
        ValueError, match="'main' of hub dataset 'someone/something' is not a full commit hash"
    ):
        take(cfg)


def test_the_report_is_self_contained_and_escapes_what_it_shows(raw: Path) -> None:
    write(raw / "train.jsonl", [row("<script>alert(1)</script>", id="x"), row("ok"), row("fine too")])
    main(config(raw, valid_share=0.0))
    page = Path("reports/data.html").read_text(encoding="utf-8")
    assert "<script" not in page and "http" not in page and "&lt;script&gt;" in page


def test_what_is_asked_ignores_case_spacing_and_the_answer() -> None:
    def ask(text: str, answer: str) -> str:
        return question_digest([{"role": "user", "content": text}, {"role": "assistant", "content": answer}])

    assert ask("Hello  World", "a") == ask("hello world ", "b") != ask("hello, world", "a")
    assert normalise("Ｆｕｌｌ\u00a0width") == "full width"
