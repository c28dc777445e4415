"""prepare tokenises: the template's own text, loss on the assistant's words and their end, ids as of the whole text."""

from __future__ import annotations

from bisect import bisect_left
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from stages.prepare.tokens.pieces import Pieces
from stages.prepare.tokens.tokenise import Conversation, Encoder
from tests.stages.chat import (
    CHATML,
    MARKED,
    MARKS,
    MULTI,
    PAIR,
    WEATHER,
    byte_level,
    encode,
    encoder,
    learned,
    turn,
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_level(MARKS)


@pytest.mark.parametrize("template", [CHATML, MARKED], ids=["plain", "marked"])
def test_examples_and_turns_of_weight_zero_carry_no_loss(tokenizer: Any, template: str) -> None:
    found = encoder(tokenizer, template)
    messages = [*MULTI, turn("user", "Three?"), turn("assistant", "Wrong.", weight=0), *PAIR]
    (tokens,) = encode(found, messages, first_answer=2)
    ends = learned(tokenizer, tokens).replace("\n", "")
    assert ends == f"Reply 2.<|im_end|>{PAIR[1]['content']}<|im_end|>"
    assert "weight" not in tokenizer.decode(tokens.input_ids)
    (tokens,) = encode(found, [turn("user", "a"), turn("assistant", "b", weight=0)])
    assert not tokens.learned.any()


def test_an_end_of_turn_outside_the_markers_is_one_clear_line(tokenizer: Any) -> None:
    outside = MARKED.replace(
        " + '<|im_end|>' }}{% endgeneration %}", " }}{% endgeneration %}{{ '<|im_end|>' }}"
    )
    with pytest.raises(
        ValueError, match=r"end-of-turn token .*not inside \{% generation %\}.* never learn to stop"
    ):
        encoder(tokenizer, outside)


def test_a_turn_outside_the_markers_is_one_clear_line(tokenizer: Any) -> None:
    first = MARKED.replace("m['role'] == 'assistant'", "m['role'] == 'assistant' and loop.index0 < 2")
    with pytest.raises(ValueError, match=r"puts assistant turn 2 of 2 outside \{% generation %\}"):
        encoder(tokenizer, first).encode([Conversation(MULTI, [], 0)])


def test_tokenizers_that_cannot_be_used_are_one_clear_line(tokenizer: Any) -> None:
    from transformers import ByT5Tokenizer

    with pytest.raises(ValueError, match=r"is a slow one \(ByT5Tokenizer\).* tokenizer.json"):
        Encoder(ByT5Tokenizer())
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match=r"has no chat template .* take the model's instruct version"):
        Encoder(tokenizer)
    with pytest.raises(ValueError, match="not valid Jinja"):
        encoder(tokenizer, "{% for %}")


def test_a_template_of_its_own_for_tools_is_used_with_tools(tokenizer: Any) -> None:
    tokenizer.chat_template = {"default": CHATML, "tool_use": "{{ tools[0].function.name }}" + CHATML}
    found = Encoder(tokenizer)
    # The probe has no tools, so a template that needs them cannot say it.
    with pytest.raises(ValueError, match="cannot say a plain question"):
        encode(found, PAIR, [WEATHER])
    tokenizer.chat_template = {"default": CHATML, "tool_use": "{% if tools %}TOOLS{% endif %}" + CHATML}
    found = Encoder(tokenizer)
    assert "TOOLS" in tokenizer.decode(encode(found, PAIR, [WEATHER])[0].input_ids)
    assert "TOOLS" not in tokenizer.decode(encode(found, PAIR)[0].input_ids)


def test_what_the_tokenizers_file_says_of_truncation_padding_and_bos_does_not_count(tokenizer: Any) -> None:
    own = byte_level(MARKS)
    own.backend_tokenizer.enable_truncation(5)
    own.backend_tokenizer.enable_padding(length=500)
    own.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "<s> $A", None, [("<s>", own.bos_token_id)]
    )
    (tokens,) = encode(encoder(own, MARKED), PAIR)
    assert tokens.input_ids.tolist().count(own.bos_token_id) == 1 and own.pad_token_id not in tokens.input_ids
    assert learned(own, tokens) == PAIR[1]["content"] + "<|im_end|>"


texts = st.text(
    st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\n 😀🇩🇪é一"), min_size=1, max_size=12
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=4), st.booleans(), st.data())
def test_learned_text_is_the_assistants_words_and_their_ends(
    tokenizer: Any, pairs: list[tuple[str, str]], marked: bool, data: st.DataObject
) -> None:
    messages = [
        turn(role, text) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    first = data.draw(st.integers(0, len(pairs) - 1))
    template = MARKED if marked else CHATML
    (tokens,) = encode(encoder(tokenizer, template), messages, first_answer=2 * first)
    end = "<|im_end|>" if marked else "<|im_end|>\n"
    assert learned(tokenizer, tokens) == "".join(answer + end for _, answer in pairs[first:])
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert tokens.input_ids.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_token_that_began_with_the_prompt_is_not_learned() -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate([*alphabet, "ĊĊ"])}
    own = byte_level(MARKS)
    own.backend_tokenizer.model = models.BPE(vocabulary, [("Ċ", "Ċ")])
    (tokens,) = encode(encoder(own, CHATML), [turn("user", "a"), turn("assistant", "\n\nb")])
    assert learned(own, tokens) == "\nb<|im_end|>\n" and "\n\n\nb" in own.decode(tokens.input_ids)


def unigram() -> Tokenizer:
    letters = [(letter, -3.0) for letter in "▁abcdefghijklmnopqrstuvwxyzABX0123<|>_ \n."]
    core = Tokenizer(models.Unigram([("<unk>", -9.0), ("▁the", -1.0), ("▁a", -1.5), *letters], unk_id=0))
    core.normalizer = normalizers.NFKC()
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return core


def word_piece() -> Tokenizer:
    letters = [prefix + letter for letter in "abcdefghijklmnopqrstuvwxyz<|>_." for prefix in ("", "##")]
    core = Tokenizer(models.WordPiece({word: index for index, word in enumerate(["[UNK]", "the", *letters])}))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return core


KINDS = {"byte level": lambda: byte_level([]).backend_tokenizer, "unigram": unigram, "word piece": word_piece}
ADDED = [
    AddedToken("<|a|>", special=True, normalized=False),
    AddedToken("<|a|><|b|>", special=True, normalized=False),
    AddedToken("<|a|><|F|>", special=True, normalized=False, single_word=True),
    AddedToken("<|b|>", special=True, normalized=False, lstrip=True),
    AddedToken("<|c|>", special=True, normalized=False, rstrip=True),
    AddedToken("<|d|>", special=True, normalized=False, single_word=True),
    AddedToken("<|e|>", special=False, normalized=True),
    AddedToken("<|F|>", special=False, normalized=False),
    AddedToken("  ", special=False, normalized=False),
]
scraps = st.sampled_from(
    [*(token.content for token in ADDED), " ", "\n", "the", " a", "b.", "é", "ﬁ", "一", "X", "<|", "😀"]
)


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_give_the_ids_of_the_whole(kind: str) -> None:
    from transformers import PreTrainedTokenizerFast

    core = KINDS[kind]()
    core.add_tokens(ADDED)
    own = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<|a|>")
    pieces = Pieces(own)

    @settings(max_examples=300, deadline=None)
    @given(st.lists(st.lists(scraps, max_size=14).map("".join), min_size=1, max_size=3), st.data())
    def check(batch: list[str], data: st.DataObject) -> None:
        marks = [sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4))) for text in batch]
        for text, places, (ids, found) in zip(batch, marks, pieces.encode(batch, marks), strict=True):
            whole = own(text, add_special_tokens=False, return_offsets_mapping=True)
            assert ids.tolist() == whole["input_ids"]
            starts = [start for start, _ in whole["offset_mapping"]]
            assert all(a <= b for a, b in pairwise(starts))
            assert found == [
                bisect_left(starts, place) if place < len(text) else len(ids) for place in places
            ]

    check()
