"""The table of words: ids and positions are the library's own, whatever the text; what is not certain goes to it."""

from __future__ import annotations

from bisect import bisect_left
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, processors, trainers
from tokenizers import pre_tokenizers as pre

from stages.prepare.tokens import words
from stages.prepare.tokens.pattern import GPT2, Split
from stages.prepare.tokens.pieces import Pieces
from stages.prepare.tokens.words import Words
from tests.stages.chat import WORDS

LLAMA = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN = LLAMA.replace("{1,3}", "")
UPPER, LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
HEAD, TAIL = r"[^\r\n\p{L}\p{N}]?", "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K = (
    rf"{HEAD}[{UPPER}]*[{LOWER}]+{TAIL}|{HEAD}[{UPPER}]+[{LOWER}]*{TAIL}|\p{{N}}{{1,3}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ["<|bos|>", "<|user|>", "<|end|>"]


def sequence(pattern: str, **changes: Any) -> Any:
    split = pre.Split(Regex(pattern), **({"behavior": "isolated"} | changes))
    return pre.Sequence([split, pre.ByteLevel(add_prefix_space=False, use_regex=False)])


CUTS = {
    "gpt2": lambda: pre.ByteLevel(add_prefix_space=False),
    "llama": lambda: sequence(LLAMA),
    "qwen": lambda: sequence(QWEN),
    "o200k": lambda: sequence(O200K),
}


def trained(cut: Any, normalizer: Any = None, ignore_merges: bool = False) -> Any:
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    core.pre_tokenizer = cut
    corpus = [
        *WORDS,
        "It's THE cat's 2024, they'll say:\n\n  «Größe» 123 456 ... don't! ",
        "\t\tif x == 10:\n\t\t\treturn 'x'\r\n" + "-" * 40 + "    end   \n",
    ]
    alphabet = sorted(pre.ByteLevel.alphabet())
    core.train_from_iterator(
        corpus * 3, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    )
    core.normalizer = normalizer
    core.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<|bos|>", eos_token="<|end|>")


def check(own: Any, pieces: Pieces, batch: list[str], marks: list[list[int]]) -> None:
    for text, places, (ids, found) in zip(batch, marks, pieces.encode(batch, marks), strict=True):
        whole = own(text, add_special_tokens=False, return_offsets_mapping=True)
        assert ids.tolist() == whole["input_ids"]
        starts = [start for start, _ in whole["offset_mapping"]]
        assert all(a <= b for a, b in pairwise(starts))
        assert found == [bisect_left(starts, place) if place < len(text) else len(ids) for place in places]


WHITE = [" ", "  ", "\n", "\n\n", "\r\n", "\t", "\x1c", "\x1f", "\x0b", "\x0c", "\x85", "\xa0", "\u3000"]
LETTERS = [
    "the",
    " cat",
    "The",
    "HELLO",
    "Größe",
    "é",
    "e\u0301",
    "ǅ",
    "ʰ",
    "一二",
    "가",
    "12",
    "3456",
    "²",
    "٣",
]
SIGNS = ["'", "'s", "'LL", "'ſ", "’s", "😀", "...", "--", "/", "_", "!\n", "<|"]
scraps = st.sampled_from([*WHITE, *LETTERS, *SIGNS, *SPECIAL])
texts = st.lists(scraps | st.text(st.characters(codec="ascii"), max_size=6), max_size=14).map("".join)
anything = st.lists(scraps | st.text(max_size=6), max_size=14).map("".join)


@pytest.mark.parametrize("ignore_merges", [False, True])
@pytest.mark.parametrize("normalizer", [None, normalizers.NFC()], ids=["as it is", "NFC"])
@pytest.mark.parametrize("name", CUTS)
def test_ids_and_positions_are_the_librarys(name: str, normalizer: Any, ignore_merges: bool) -> None:
    own = trained(CUTS[name](), normalizer, ignore_merges)
    pieces = Pieces(own)
    assert pieces._words is not None

    @settings(max_examples=150, deadline=None)
    @given(st.lists(texts | anything, min_size=1, max_size=4), st.data())
    def run(batch: list[str], data: st.DataObject) -> None:
        marks = [sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4))) for text in batch]
        check(own, pieces, batch, marks)

    run()
    # Not by the library alone: after it has been met once, such a text is looked up.
    text = "<|user|>It's the cat's 12 345   words,\n\nGröße « 2 »."
    check(own, pieces, [text], [[8, 10, 12]])
    assert pieces._words.encode([text], {0: [8]})


@pytest.mark.parametrize("pattern", [GPT2, LLAMA, O200K], ids=["gpt2", "llama", "o200k"])
def test_every_kind_of_character_is_cut_as_the_library_cuts(pattern: str) -> None:
    cut = sequence(pattern)
    split = Split.of(cut)
    assert split is not None
    seen = 0
    for code in [*range(0x3100), *range(0x3100, 0x110000, 997)]:
        if 0xD800 <= code < 0xE000:
            continue
        text = "a{0} {0}b {0}{0} 1{0}'{0}  {0}".format(chr(code))
        found = split(text)
        if found is not None:
            seen += 1
            assert found == [text[begin:end] for _, (begin, end) in cut.pre_tokenize_str(text)], hex(code)
    assert seen > 13_000 and split("a long \u017f") is None and split("half \ud83d") is None


def test_added_tokens_inside_a_text_are_the_librarys() -> None:
    own = trained(CUTS["llama"]())
    added = [
        AddedToken("cat", special=False, normalized=True),
        AddedToken("<|strip|>", special=True, normalized=False, rstrip=True),
        AddedToken("the", special=False, normalized=False, single_word=True),
        AddedToken("  ", special=False, normalized=False, lstrip=True),
    ]
    own.backend_tokenizer.add_tokens(added)
    pieces = Pieces(own)
    assert pieces._words is not None
    batch = ["<|user|>Hello cats", "<|strip|>  Hello", "<|user|>the then the", "one  two", "words hello"]
    check(own, pieces, batch, [[], [], [], [], []])
    assert pieces._words.encode(batch, {}).keys() == {4}


def test_llamas_own_post_processor_changes_nothing() -> None:
    own = trained(CUTS["llama"]())
    begin = processors.TemplateProcessing("<|bos|> $A", None, [("<|bos|>", own.bos_token_id)])
    own.backend_tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), begin]
    )
    pieces = Pieces(own)
    check(own, pieces, ["<|user|>the   cat"], [[8, 11]])
    assert pieces._words is not None and pieces._words.encode(["<|user|>the   cat"], {0: [8, 11]})


def test_white_space_that_tokens_do_not_count_as_theirs_keeps_its_positions() -> None:
    own = trained(CUTS["gpt2"]())
    own.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    text = "the   cat \n said"
    pieces, library = Pieces(own), Pieces(own)
    library._words = None
    places = [range(len(text))]
    ((ids, found),), ((whole, expected),) = pieces.encode([text], places), library.encode([text], places)
    assert ids.tolist() == whole.tolist() and found == expected
    assert pieces._words is not None and pieces._words.encode([text], {0: [3]}) == {}
    assert pieces._words.encode([text], {})
    own.backend_tokenizer.post_processor = None
    check(own, Pieces(own), [text], [list(range(len(text)))])


def test_a_small_table_and_no_credit_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    own = trained(CUTS["qwen"]())
    batches = [
        [f"<|user|>the word{one} of{other} cat" + "x" * size for one in "abcdef" for other in "ghi"]
        for size in range(1, 4)
    ]
    for most, credit in ((20, 1000), (1000, 0), (1000, 3)):
        monkeypatch.setattr(words, "MOST", most)
        monkeypatch.setattr(words, "CREDIT", credit)
        pieces = Pieces(own)
        for batch in batches:
            check(own, pieces, batch, [[8, 9]] * len(batch))
    long = "y" * (words.LONGEST + 1)
    pieces = Pieces(own)
    check(own, pieces, [long, long], [[], []])
    assert pieces._words is not None and long not in pieces._words._known


def test_a_word_that_alone_is_several_is_left_to_the_library() -> None:
    own = trained(sequence("a(?!ab)|aa|[a-z]"))  # "aa" is one word before a b, and two words alone
    pieces = Pieces(own)
    for text in ("aab", "aa", "aaab", "baab", "ab"):
        check(own, pieces, [text] * 2, [list(range(len(text)))] * 2)
        check(own, pieces, [text], [[]])
    assert pieces._words is not None and pieces._words._refused == {"aa"}


UNSUPPORTED = {
    "a prefix space": lambda: trained(pre.ByteLevel(add_prefix_space=True)),
    "metaspace": lambda: trained(pre.Metaspace()),
    "another behaviour": lambda: trained(sequence(LLAMA, behavior="removed")),
    "inverted": lambda: trained(sequence(LLAMA, invert=True)),
    "an unknown property": lambda: trained(sequence(LLAMA.replace("N", "P"))),
    "an unknown escape": lambda: trained(sequence(LLAMA + r"|\h+")),
    "a possessive quantifier": lambda: trained(sequence(r"\p{L}++|\P{L}")),
    "a capture": lambda: trained(sequence(r"(\p{L}+)|.")),
    "digits first": lambda: trained(pre.Sequence([pre.Digits(True), pre.ByteLevel(add_prefix_space=False)])),
    "NFKC": lambda: trained(CUTS["gpt2"](), normalizers.NFKC()),
    "lower case": lambda: trained(CUTS["gpt2"](), normalizers.Sequence([normalizers.Lowercase()])),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_is_not_understood_is_left_to_the_library(name: str) -> None:
    own = UNSUPPORTED[name]()
    pieces = Pieces(own)
    assert pieces._words is None
    batch = ["<|user|>It's the cat's 12 345   words,\n\nGröße « 2 ».<|end|>", "Hello"]
    ids = [found.tolist() for found, _ in pieces.encode(batch, [[], []])]
    assert ids == own(batch, add_special_tokens=False)["input_ids"]


def test_dropout_and_split_special_tokens_are_left_to_the_library() -> None:
    own = trained(CUTS["gpt2"]())
    own.backend_tokenizer.model.dropout = 0.5
    assert Words.of(own.backend_tokenizer, []) is None
    own = trained(CUTS["gpt2"]())
    own.split_special_tokens = True
    assert Pieces(own)._words is None
    check(own, Pieces(own), ["<|user|>Hello<|end|>"], [[8, 9]])


def test_the_pattern_of_byte_level_is_the_librarys() -> None:
    text = "It's  the cat's 12,345\n\n\t'Hello'!? \x1c\xa0é²😀  "
    ours = [span for _, span in sequence(GPT2).pre_tokenize_str(text)]
    assert ours == [span for _, span in pre.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)]
