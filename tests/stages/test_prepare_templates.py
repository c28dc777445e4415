"""prepare and every template that TRL ships: rendered as transformers does, learned where the assistant speaks."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from stages.common.prompt import DATE, Message
from stages.prepare.tokens.template import MARKER, Refused, Template
from stages.prepare.tokens.tokenise import Conversation
from tests.stages.chat import CALLING, MARKS, MULTI, PAIR, WEATHER, byte_level, encode, encoder, learned, turn

TALKS: dict[str, tuple[list[Message], list[dict[str, Any]]]] = {
    "pair": (PAIR, []),
    "multi": (MULTI, []),
    "system": ([turn("system", "System 1."), *MULTI], []),
    "tools": (CALLING, [WEATHER]),
}


SHIPPED = Path(find_spec("trl").origin).parent / "chat_templates"  # type: ignore[union-attr, arg-type]
TRL = {path.stem: path.read_text(encoding="utf-8") for path in sorted(SHIPPED.glob("*.jinja"))}
# They want a turn as a list of parts, and show nothing of a plain text, or raise.
PICTURES = [
    "idefics3",
    "idefics3_training",
    "llava_next",
    "llava_next_training",
    "smolvlm",
    "smolvlm_training",
]
REFUSED = dict.fromkeys(PICTURES, "cannot say a plain question and answer") | {
    "glm4moe": "has no end-of-turn token"
}
# They ask with "<think>", and show an answer that brings no reasoning without it.
UNMASKABLE = [
    name for name in TRL if re.fullmatch(r"deepseek(v3|_r1_distill)|nemotron_3_(?!.*training).*", name)
]
USED = [name for name in TRL if name not in REFUSED]
# What TRL's templates (with and without markers) do not say, by conversation and family.
NOT_SAID = {
    "system": {"template_refused": ["gemma"]},
    "tools": {
        "template_refused": ["cohere", "cohere2", "gemma", "gemma3"],
        "answer_not_rendered": ["deepseek_r1_distill", "lfm2", "llama3", "phi3", "phi3_5", "qwen2_5_vl"],
    },
}
BY_TURN = ["gptoss", "phi3", "phi3_5", "qwen3", "qwen3_5_nothink", "qwen3_5_think", "qwen3_6"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_level(MARKS)


def apply(tokenizer: Any, template: str, monkeypatch: pytest.MonkeyPatch, messages: Any, **more: Any) -> Any:
    """transformers' own call, on the day that the stage pins."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    clock = _compile_jinja_template(template).environment.globals
    monkeypatch.setitem(clock, "strftime_now", DATE.strftime)
    return tokenizer.apply_chat_template(messages, chat_template=template, **more)


@pytest.mark.parametrize("name", USED)
def test_every_template_is_rendered_as_transformers_renders_it(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    ours = Template(tokenizer, TRL[name])
    for messages, tools in TALKS.values():
        for ask in (False, True):
            try:
                theirs = apply(
                    tokenizer, TRL[name], monkeypatch, messages, tools=tools or None, tokenize=False,
                    add_generation_prompt=ask,
                )  # fmt: skip
            except Exception:  # noqa: BLE001 - whatever a template raises
                with pytest.raises(Refused, match="template_refused"):
                    ours.render(messages, tools, ask=ask)
                continue
            assert ours.render(messages, tools, ask=ask) == theirs


@pytest.mark.parametrize("name", [name for name in USED if name not in UNMASKABLE])
def test_every_template_is_learned_where_the_assistant_speaks(tokenizer: Any, name: str) -> None:
    found = encoder(tokenizer, TRL[name])
    for talk, (messages, tools) in TALKS.items():
        (documents,) = found.encode([Conversation(messages, tools, 0)])
        family = name.removesuffix("_training")
        reasons = [reason for reason, names in NOT_SAID.get(talk, {}).items() if family in names]
        if reasons or isinstance(documents, str):
            assert [documents] == reasons
            continue
        answers = [index + 1 for index, message in enumerate(messages) if message["role"] == "assistant"]
        assert len(documents) == (len(answers) if name in BY_TURN else 1)
        text = "".join(learned(tokenizer, document) for document in documents)
        for message in messages:
            assert (
                text.count(message["content"]) == (message["role"] == "assistant") or not message["content"]
            )
        assert "weather" in text or not tools
        assert not text.endswith(str(messages[-1]["content"])), "the end of the turn is learned"
        render = found._template(tools).render
        expected = {render(messages[:end], tools, ask=False) for end in answers}
        for document in documents:
            assert tokenizer.decode(document.input_ids) in expected


@pytest.mark.parametrize("name", [n for n in USED if f"{n}_training" in TRL and n not in UNMASKABLE])
def test_a_template_without_markers_learns_what_trls_with_markers_does(tokenizer: Any, name: str) -> None:
    """But for the header, which TRL's sometimes learn, and reasoning, which those of Qwen show in every turn."""
    texts = []
    for template in (TRL[name], TRL[f"{name}_training"]):
        documents = encode(encoder(tokenizer, template), MULTI)
        texts.append("".join(learned(tokenizer, document) for document in documents))
    thought = re.compile(r"<\|start\|>assistant|<think>|</think>|</s>|\n")
    plain = [thought.sub("", text).replace("<|return|>", "<|end|>") for text in texts]
    assert plain[0] == plain[1]


@pytest.mark.parametrize("name", [name for name in USED if MARKER.search(TRL[name])])
def test_with_markers_ids_and_mask_are_transformers_own(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    found = encoder(tokenizer, TRL[name])
    theirs = apply(
        tokenizer, TRL[name], monkeypatch, MULTI, return_dict=True, return_assistant_tokens_mask=True
    )
    (tokens,) = encode(found, MULTI)
    assert tokens.input_ids.tolist() == theirs["input_ids"]
    assert tokens.learned.tolist() == [bool(value) for value in theirs["assistant_masks"]]


@pytest.mark.parametrize("name", REFUSED)
def test_a_template_that_would_spoil_every_row_is_one_clear_line(tokenizer: Any, name: str) -> None:
    with pytest.raises(ValueError, match=REFUSED[name]):
        encoder(tokenizer, TRL[name])


@pytest.mark.parametrize("name", UNMASKABLE)
def test_a_template_that_cannot_be_masked_is_one_clear_line(tokenizer: Any, name: str) -> None:
    found = encoder(tokenizer, TRL[name])
    with pytest.raises(
        ValueError, match=r"put \{% generation %\} markers .* \(TRL has such templates"
    ) as error:
        found.encode([Conversation(PAIR, [], 0)])
    assert "\n" not in str(error.value)


def test_a_template_that_wants_reasoning_is_used_where_the_rows_bring_it(tokenizer: Any) -> None:
    found = encoder(tokenizer, TRL["nemotron_3_nano"])
    (tokens,) = encode(found, [PAIR[0], turn("assistant", "<think>\nHm.\n</think>\nReply.")])
    assert learned(tokenizer, tokens).startswith("Hm.") and "Reply." in learned(tokenizer, tokens)


def test_reasoning_that_a_template_drops_later_is_learned_turn_by_turn(tokenizer: Any) -> None:
    found = encoder(tokenizer, TRL["qwen3"])
    messages = [
        turn("user", "Question 1?"), turn("assistant", "<think>\nFirst.\n</think>\n\nReply 1."),
        turn("user", "Question 2?"), turn("assistant", "<think>\nSecond.\n</think>\n\nReply 2."),
    ]  # fmt: skip
    one, two = encode(found, messages)
    assert learned(tokenizer, one) == "<think>\nFirst.\n</think>\n\nReply 1.<|im_end|>\n"
    assert learned(tokenizer, two) == "<think>\nSecond.\n</think>\n\nReply 2.<|im_end|>\n"
    assert "First." not in tokenizer.decode(two.input_ids)
    (last,) = encode(found, messages, first_answer=2)
    assert last.input_ids.tolist() == two.input_ids.tolist()


def test_a_turn_of_several_marked_spans_is_kept_or_left_as_one(tokenizer: Any) -> None:
    for name, end in (("diffusion_gemma_training", "<turn|>\n"), ("phi3_training", "<|end|>\n</s>")):
        found = encoder(tokenizer, TRL[name])
        (tokens,) = encode(found, MULTI, first_answer=2)
        assert learned(tokenizer, tokens) == "Reply 2." + end
        messages = [*MULTI[:3], turn("assistant", "Reply 2.", weight=0)]
        (tokens,) = encode(found, messages)
        assert learned(tokenizer, tokens) == PAIR[1]["content"] + end.removesuffix("</s>")


def test_a_row_that_the_template_refuses_stops_no_other(tokenizer: Any) -> None:
    found = encoder(tokenizer, TRL["gemma"])
    result = found.encode([Conversation(TALKS["system"][0], [], 0), Conversation(PAIR, [], 0)])
    assert result[0] == "template_refused" and isinstance(result[1], list)
    assert learned(tokenizer, result[1][0]) == PAIR[1]["content"] + "<end_of_turn>\n"


def test_a_tool_call_that_the_template_leaves_out_is_not_lost_silently(tokenizer: Any) -> None:
    found = encoder(tokenizer, TRL["lfm2"])
    assert found.encode([Conversation(CALLING, [WEATHER], 0)]) == ["answer_not_rendered"]


def test_the_date_in_a_template_is_not_todays(tokenizer: Any) -> None:
    for name, day in (("llama3_2", "26 Jul 2024"), ("gptoss", "2024-07-26")):
        (tokens,) = encode(encoder(tokenizer, TRL[name]), PAIR)
        assert day in tokenizer.decode(tokens.input_ids)
