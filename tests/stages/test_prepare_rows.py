"""Every row shape: what is read as a row, and the reason for each row that is not one."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from stages.common.prompt import Message
from stages.prepare.config import Columns, Format, Source, Use
from stages.prepare.rows.formats import Reject, Row, parse
from stages.prepare.rows.validate import MAX_DEPTH, MAX_LABEL, check

ROOT = Path(__file__).resolve().parents[2]


def source(name: str, **columns: str) -> Source:
    """conf/source/<name>.yaml, as a person would use it, with other column names."""
    with initialize_config_dir(str(ROOT / "conf/source"), version_base=None):
        raw: Any = OmegaConf.to_container(compose(name))
    raw |= {
        "format": Format[raw["format"]],
        "use": Use[raw["use"]],
        "columns": Columns(**raw["columns"] | columns),
    }
    return Source(**raw)


def system(text: str) -> Message:
    return {"role": "system", "content": text}


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def says(text: str, **more: Any) -> Message:
    return {"role": "assistant", "content": text, **more}  # type: ignore[typeddict-item]


def tool(text: str, **more: Any) -> Message:
    return {"role": "tool", "content": text, **more}  # type: ignore[typeddict-item]


def function(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def human(text: Any) -> dict[str, Any]:
    return {"from": "human", "value": text}


def gpt(text: Any) -> dict[str, Any]:
    return {"from": "gpt", "value": text}


def row(messages: list[Message], **more: Any) -> Row:
    empty: dict[str, Any] = {"id": "", "group": "", "tools": [], "meta": {}, "chosen": [], "rejected": []}
    return Row(messages=messages, **empty | more)


def read(raw: dict[str, Any], given: Source) -> Row:
    found = parse(raw, given)
    check(found)
    return found


TURNS = [user("hi"), says("hello")]
CALLS = [function("add", a=1, b=2) | {"id": "c1"}, function("now") | {"id": "c2"}]
RAW_CALLS = [
    {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}},
    {"id": "c2", "type": "function", "function": {"name": "now", "arguments": ""}},
]
ANSWERS = [tool("3", tool_call_id="c1"), tool("noon", tool_call_id="c2")]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}

GOOD: dict[str, list[tuple[dict[str, Any], Row]]] = {
    "messages": [
        ({"messages": TURNS}, row(TURNS)),
        (
            {"messages": TURNS, "id": 7, "meta": {"a": [1.5, None]}},
            row(TURNS, id="7", meta={"a": [1.5, None]}),
        ),
        ({"messages": TURNS, "id": None, "meta": None, "tools": None}, row(TURNS)),
        (
            {"messages": [{"role": "developer", "content": "Be brief."}, *TURNS]},
            row([system("Be brief."), *TURNS]),
        ),
        ({"messages": [*TURNS, user("and?"), says("that")]}, row([*TURNS, user("and?"), says("that")])),
        (
            {
                "messages": [user("x"), says(None, tool_calls=RAW_CALLS), *ANSWERS, says("3 at noon")],
                "tools": [TOOL],
            },  # type: ignore[arg-type]
            row([user("x"), says("", tool_calls=CALLS), *ANSWERS, says("3 at noon")], tools=[TOOL]),
        ),
        (
            {"messages": [user("x"), says("", tool_calls=RAW_CALLS)], "tools": json.dumps([TOOL])},
            row([user("x"), says("", tool_calls=CALLS)], tools=[TOOL]),
        ),
        (
            {
                "messages": [
                    user("x"),
                    {"role": "assistant", "function_call": {"name": "now", "arguments": "{}"}},
                ]
            },
            row([user("x"), says("", tool_calls=[function("now")])]),
        ),
        (
            {
                "messages": [
                    user("x"),
                    {"role": "assistant", "content": [{"type": "text", "text": t} for t in "ab"]},
                ]
            },
            row([user("x"), says("ab")]),
        ),
        (
            {"messages": [user("x"), says("not this", weight=0), user("y"), says("this", weight=1.0)]},
            row([user("x"), says("not this", weight=0), user("y"), says("this")]),
        ),
        (
            {
                "messages": [
                    {**user("x"), "name": "Ann", "weight": 0, "tool_calls": [], "tool_call_id": None},
                    says("y"),
                ]
            },
            row([{**user("x"), "name": "Ann"}, says("y")]),
        ),
    ],
    "sharegpt": [
        ({"conversations": [human("hi"), gpt("hello")]}, row(TURNS)),
        (
            {"conversations": [human("hi"), gpt("hello")], "system": "S", "id": "q"},
            row([system("S"), *TURNS], id="q"),
        ),
        (
            {"conversations": [{"from": "system", "value": "S"}, human("hi"), gpt("hello")]},
            row([system("S"), *TURNS]),
        ),
        ({"conversations": [human("hi"), gpt("hello")], "system": "", "tools": ""}, row(TURNS)),
        (
            {
                "conversations": [
                    human("x"),
                    {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
                    {"from": "observation", "value": "1"},
                    gpt("one"),
                ],
                "tools": json.dumps([TOOL["function"]]),
            },
            row(
                [user("x"), says("", tool_calls=[function("add", a=1)]), tool("1"), says("one")], tools=[TOOL]
            ),
        ),
        (
            {
                "conversations": [
                    human("x"),
                    {"from": "function_call", "value": '[{"name": "f", "arguments": "{}"}, {"name": "g"}]'},
                ]
            },
            row([user("x"), says("", tool_calls=[function("f"), function("g")])]),
        ),
    ],
    "alpaca": [
        ({"instruction": "add", "input": "1 2", "output": "3"}, row([user("add\n\n1 2"), says("3")])),
        ({"instruction": "hi", "input": "", "output": "hello"}, row(TURNS)),
        ({"instruction": "hi", "input": None, "output": "hello"}, row(TURNS)),
        ({"instruction": "hi", "output": "hello", "id": "a"}, row(TURNS, id="a")),
        ({"instruction": "hi", "output": "hello", "system": "S"}, row([system("S"), *TURNS])),
    ],
    "completion": [
        ({"prompt": "hi", "completion": "hello"}, row(TURNS)),
        ({"prompt": [user("hi")], "completion": [says("hello")]}, row(TURNS)),
        ({"prompt": [user("hi")], "completion": "hello", "system": "S"}, row([system("S"), *TURNS])),
        (
            {"prompt": [*TURNS, user("again")], "completion": "no"},
            row([user("hi"), says("hello", weight=0), user("again"), says("no")]),
        ),
    ],
    "preference": [
        (
            {"prompt": "hi", "chosen": "hello", "rejected": "what"},
            row([user("hi")], chosen=[says("hello")], rejected=[says("what")]),
        ),
        (
            {"prompt": [system("S"), user("hi")], "chosen": [says("hello")], "rejected": "what"},
            row([system("S"), user("hi")], chosen=[says("hello")], rejected=[says("what")]),
        ),
        (
            {"chosen": TURNS, "rejected": [user("hi"), says("what")]},
            row([user("hi")], chosen=[says("hello")], rejected=[says("what")]),
        ),
        (
            {
                "prompt": "hi",
                "chosen": TURNS,
                "rejected": [user("hi"), says("what")],
                "system": "",
                "meta": {"s": 1},
            },
            row([user("hi")], chosen=[says("hello")], rejected=[says("what")], meta={"s": 1}),
        ),
        (
            {
                "prompt": "",
                "chosen": [*TURNS, user("b"), says("c")],
                "rejected": [*TURNS, user("b"), says("d")],
            },
            row([*TURNS, user("b")], chosen=[says("c")], rejected=[says("d")]),
        ),
        (
            {"prompt": [user("x"), says("", tool_calls=CALLS), *ANSWERS], "chosen": "a", "rejected": "b"},
            row([user("x"), says("", tool_calls=CALLS), *ANSWERS], chosen=[says("a")], rejected=[says("b")]),
        ),
    ],
}


def chat(*turns: Any, **more: Any) -> dict[str, Any]:
    return {"messages": list(turns), **more}


def shared(*turns: Any, **more: Any) -> dict[str, Any]:
    return {"conversations": list(turns), **more}


def deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


ASKED = user("x")
BAD: dict[str, list[tuple[dict[str, Any], str]]] = {
    "messages": [
        ({}, "missing_messages"),
        ({"messages": None}, "missing_messages"),
        ({"messages": 3}, "messages_wrong_type"),
        ({"messages": "hi"}, "messages_wrong_type"),
        (chat("hi"), "messages_wrong_type"),
        (chat(), "no_turns"),
        (chat({"content": "x"}), "unknown_role"),
        (chat({"role": "robot", "content": "x"}), "unknown_role"),
        (chat({"role": ["user"], "content": "x"}), "unknown_role"),
        (chat({"role": "user", "content": 3}), "content_wrong_type"),
        (chat({"role": "user", "content": None}), "content_wrong_type"),
        (chat({"role": "user"}), "content_wrong_type"),
        (chat({"role": "user", "content": ["x"]}), "content_wrong_type"),
        (chat({"role": "user", "content": [{"type": "text", "text": 3}]}), "content_wrong_type"),
        (chat({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}), "non_text_content"),
        (chat({"role": "user", "content": []}, says("y")), "empty_content"),
        (chat(ASKED, says(" \n\u2003")), "empty_content"),
        (chat(ASKED, says("\u200b\ufeff")), "empty_content"),
        (chat(user(""), says("y")), "empty_content"),
        (chat(user("nul \0"), says("y")), "nul_character"),
        (chat(user("\ud800"), says("y")), "invalid_unicode"),
        (chat(ASKED), "wrong_turn_order"),
        (chat(says("y"), ASKED), "wrong_turn_order"),
        (chat(ASKED, ASKED, says("y")), "wrong_turn_order"),
        (chat(ASKED, says("y"), says("y")), "wrong_turn_order"),
        (chat(ASKED, system("S"), says("y")), "wrong_turn_order"),
        (chat(system("S"), system("S"), *TURNS), "wrong_turn_order"),
        (chat(system("S")), "wrong_turn_order"),
        (chat(ASKED, tool("1"), says("y")), "wrong_turn_order"),
        (chat(ASKED, says("y"), tool("1"), says("y")), "wrong_turn_order"),
        (chat(ASKED, says("", tool_calls=CALLS), *ANSWERS), "wrong_turn_order"),
        (chat(ASKED, says("", tool_calls=CALLS), says("y")), "wrong_turn_order"),
        (chat(ASKED, says("", tool_calls=CALLS), ANSWERS[0], says("y")), "tool_answer_mismatch"),
        (chat(ASKED, says("", tool_calls=CALLS), *ANSWERS, tool("3"), says("y")), "tool_answer_mismatch"),
        (chat(ASKED, says("", tool_calls=CALLS), ANSWERS[0], ANSWERS[0], says("y")), "tool_answer_mismatch"),
        (chat(ASKED, says("", tool_calls=[{"id": "c"}])), "tool_calls_wrong_type"),
        (chat(ASKED, says("", tool_calls=["add"])), "tool_calls_wrong_type"),
        (chat(ASKED, says("", tool_calls=[{"name": "f", "arguments": "{"}])), "tool_calls_wrong_type"),
        (chat(ASKED, says("", tool_calls=[{"name": "f", "arguments": [1]}])), "tool_calls_wrong_type"),
        (chat({**ASKED, "tool_calls": CALLS}, says("y")), "tool_calls_wrong_type"),
        (chat(ASKED, says("", tool_calls=[{"id": 1, "name": "f"}])), "id_wrong_type"),
        (chat(ASKED, says("", tool_calls=[function("f", a="\ud800")])), "invalid_unicode"),
        (chat(ASKED, says("", tool_calls=[function("f", a="\0")])), "nul_character"),
        (chat(ASKED, says("y", name=3)), "name_wrong_type"),
        (chat(ASKED, says("y", name="\udfff")), "invalid_unicode"),
        (chat(ASKED, says("y", weight=0.5)), "weight_not_0_or_1"),
        (chat(ASKED, says("y", weight=True)), "weight_not_0_or_1"),
        (chat(ASKED, says("y", weight="0")), "weight_not_0_or_1"),
        (chat(ASKED, says("y", weight=0)), "nothing_to_learn"),
        (chat(*TURNS, meta=[1]), "meta_not_an_object"),
        (chat(*TURNS, meta="{}"), "meta_not_an_object"),
        (chat(*TURNS, meta={"a": float("nan")}), "number_not_finite"),
        (chat(*TURNS, meta={"a": [float("-inf")]}), "number_not_finite"),
        (chat(*TURNS, meta={"a": 2**64}), "number_too_large"),
        (chat(*TURNS, meta={"a": b"x"}), "not_json"),
        (chat(*TURNS, meta={"a": {"\ud800": 1}}), "invalid_unicode"),
        (chat(*TURNS, meta={"a\0": 1}), "nul_character"),
        (chat(*TURNS, meta={"a": deep(MAX_DEPTH)}), "nested_too_deeply"),
        (chat(*TURNS, meta={"a": deep(5_000)}), "nested_too_deeply"),
        (chat(*TURNS, id=[1]), "id_wrong_type"),
        (chat(*TURNS, id=True), "id_wrong_type"),
        (chat(*TURNS, id=1.5), "id_wrong_type"),
        (chat(*TURNS, id="\ud800"), "invalid_unicode"),
        (chat(*TURNS, id="x" * (MAX_LABEL + 1)), "id_too_long"),
        (chat(*TURNS, tools="[{"), "tools_wrong_type"),
        (chat(*TURNS, tools={"name": "f"}), "tools_wrong_type"),
        (chat(*TURNS, tools=["f"]), "tools_wrong_type"),
        (chat(*TURNS, tools=[{"type": "function", "function": {}}]), "tools_wrong_type"),
        (chat(*TURNS, tools='[{"name": "f", "x": NaN}]'), "number_not_finite"),
        (chat(*TURNS, tools="[" * 100_000), "tools_wrong_type"),
    ],
    "sharegpt": [
        ({"messages": TURNS}, "missing_messages"),
        (shared(), "no_turns"),
        (shared(gpt("How can I help?"), human("x"), gpt("y")), "wrong_turn_order"),
        (shared(human("x"), human("x"), gpt("y")), "wrong_turn_order"),
        (shared(human("x"), gpt("y"), human("z")), "wrong_turn_order"),
        (shared({"from": "observation", "value": "1"}, gpt("y")), "wrong_turn_order"),
        (shared({"role": "user", "content": "x"}), "unknown_role"),
        (shared({"from": "narrator", "value": "x"}), "unknown_role"),
        (shared(human("x"), {"from": "function_call", "value": "add(1)"}), "tool_calls_wrong_type"),
        (shared(human("x"), {"from": "function_call", "value": None}), "tool_calls_wrong_type"),
        (shared(human("x"), {"from": "function_call", "value": "[1]"}), "tool_calls_wrong_type"),
        (shared(human("x"), gpt(None)), "content_wrong_type"),
        (shared(human("x"), gpt("")), "empty_content"),
        (shared({"from": "system", "value": "S"}, human("x"), gpt("y"), system="S"), "wrong_turn_order"),
        (shared(human("x"), gpt("y"), system=3), "content_wrong_type"),
        (shared(human("x"), gpt("y"), tools="no tools"), "tools_wrong_type"),
    ],
    "alpaca": [
        ({}, "missing_column"),
        ({"instruction": "x"}, "missing_column"),
        ({"instruction": None, "output": "y"}, "missing_column"),
        ({"instruction": 3, "output": "y"}, "content_wrong_type"),
        ({"instruction": "x", "output": ["y"]}, "content_wrong_type"),
        ({"instruction": "x", "input": 3, "output": "y"}, "content_wrong_type"),
        ({"instruction": "x", "output": "  "}, "empty_content"),
        ({"instruction": "", "output": "y"}, "empty_content"),
        ({"instruction": "x\0", "output": "y"}, "nul_character"),
    ],
    "completion": [
        ({"prompt": "x"}, "missing_column"),
        ({"completion": "y"}, "missing_column"),
        ({"prompt": {"role": "user"}, "completion": "y"}, "content_wrong_type"),
        ({"prompt": [1], "completion": "y"}, "messages_wrong_type"),
        ({"prompt": TURNS, "completion": "y"}, "wrong_turn_order"),
        ({"prompt": "x", "completion": []}, "wrong_turn_order"),
        ({"prompt": "x", "completion": [ASKED]}, "wrong_turn_order"),
        ({"prompt": "x", "completion": " "}, "empty_content"),
    ],
    "preference": [
        ({"prompt": "x", "chosen": "a"}, "missing_column"),
        ({"chosen": "a", "rejected": "b"}, "missing_column"),
        ({"chosen": [says("a")], "rejected": [says("b")]}, "missing_column"),
        ({"prompt": "x", "chosen": "a", "rejected": "a"}, "identical_pair"),
        ({"chosen": TURNS, "rejected": TURNS}, "identical_pair"),
        ({"prompt": "x", "chosen": [], "rejected": "b"}, "no_turns"),
        ({"prompt": "x", "chosen": 1, "rejected": "b"}, "content_wrong_type"),
        ({"prompt": "x", "chosen": "a", "rejected": ""}, "empty_content"),
        ({"prompt": "y", "chosen": TURNS, "rejected": [user("hi"), says("b")]}, "prompt_mismatch"),
        ({"prompt": "hi", "chosen": TURNS, "rejected": "b"}, "prompt_mismatch"),
        ({"prompt": TURNS, "chosen": "a", "rejected": "b"}, "wrong_turn_order"),
        ({"prompt": "x", "chosen": [says("a"), ASKED], "rejected": "b"}, "wrong_turn_order"),
        ({"prompt": "x", "chosen": [says("a"), says("a")], "rejected": "b"}, "wrong_turn_order"),
        ({"chosen": TURNS, "rejected": [*TURNS, ASKED, says("b")]}, "wrong_turn_order"),
        ({"chosen": TURNS, "rejected": [ASKED, says("b")]}, "prompt_mismatch"),
        ({"prompt": "x", "chosen": "a\0", "rejected": "b"}, "nul_character"),
    ],
}


@pytest.mark.parametrize("name", GOOD)
def test_good_rows_become_our_own_shape(name: str) -> None:
    given_source = source(name)
    for raw, expected in GOOD[name]:
        before = copy.deepcopy(raw)
        assert read(raw, given_source) == expected, raw
        assert raw == before


@pytest.mark.parametrize("name", BAD)
def test_each_bad_row_has_its_reason(name: str) -> None:
    given_source = source(name)
    for raw, reason in BAD[name]:
        try:
            found = read(raw, given_source)
        except Reject as reject:
            assert str(reject) == reason, str(raw)[:200]
        else:
            pytest.fail(f"not rejected: {found}")


def test_every_format_has_its_good_and_bad_rows() -> None:
    assert {source(name).format for name in GOOD} == set(Format) and GOOD.keys() == BAD.keys()
    assert all(len(rows) >= 4 for rows in GOOD.values()) and all(len(rows) >= 6 for rows in BAD.values())


def test_other_column_and_role_names_are_configuration_only() -> None:
    given_source = source("messages", messages="dialog", role="who", content="what", id="key", group="thread")
    given_source.roles = {"Q": "user", "A": "assistant"}
    raw = {
        "dialog": [{"who": "Q", "what": "hi"}, {"who": "A", "what": "hello"}],
        "key": 0,
        "thread": 4,
        "id": "no",
    }
    assert read(raw, given_source) == row(TURNS, id="0", group="4")
    with pytest.raises(Reject, match="group_wrong_type"):
        read(raw | {"thread": 1.5}, given_source)
    with pytest.raises(Reject, match="group_too_long"):
        read(raw | {"thread": "x" * 1001}, given_source)
    with pytest.raises(Reject, match="unknown_role"):
        read({"dialog": TURNS}, given_source)


def test_a_column_that_is_not_named_is_not_read() -> None:
    raw = {"instruction": "hi", "output": "hello", "input": "more", "": "empty", "id": "x", "meta": 3}
    assert read(raw, source("alpaca", input="", id="", meta="", system="")) == row(TURNS)


def test_nesting_is_allowed_as_deep_as_stated() -> None:
    raw = {"messages": TURNS, "meta": {"a": deep(MAX_DEPTH - 2), "b": ["[" * 200, "\\u0000"]}}
    assert read(raw, source("messages")).meta == raw["meta"]


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.sampled_from("\ud800\0"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
keys = ["role", "content", "from", "value", "tool_calls", "function_call", "tool_call_id", "name", "weight"]
words = st.sampled_from(
    ["user", "assistant", "tool", "human", "gpt", "function_call", "x", "{}", '{"name": "f"}']
)
turn_values = st.fixed_dictionaries({}, optional=dict.fromkeys(keys, words | json_values))
cells = json_values | words | st.lists(turn_values, max_size=4)
SOURCES = {name: source(name) for name in GOOD}


@given(st.sampled_from(sorted(GOOD)), st.data())
def test_any_row_is_a_row_that_can_be_written_or_a_reject(name: str, data: st.DataObject) -> None:
    columns = sorted({column for column in vars(SOURCES[name].columns).values() if column})
    raw = data.draw(st.fixed_dictionaries({}, optional=dict.fromkeys(columns, cells)))
    try:
        found = read(raw, SOURCES[name])
    except Reject as reason:
        assert str(reason).replace("_", "").replace("0or1", "").isalpha()
    else:
        json.dumps(vars(found), allow_nan=False, ensure_ascii=False).encode()
