"""prepare: overlap with tested items, on GSM8K and against n-grams in plain Python."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.common.files import write_jsonl
from stages.prepare.config import LeakAction, Leakage
from stages.prepare.overlap import leakage
from stages.prepare.overlap.leakage import Hit, Index, Item
from stages.prepare.overlap.tested import benchmark_items, label_items
from stages.prepare.overlap.text import Ragged, turn_hashes, word_hashes

GSM8K = Path(__file__).resolve().parents[2].parent / "shared/data/gsm8k"
CFG = Leakage(LeakAction.remove, ngram=13, min_words=8, benchmarks=[])
TOKENS = st.lists(st.sampled_from("abc"), max_size=12)


def match(index: Index, rows: list[list[str]]) -> list[Hit]:
    """Rows are lists of turns."""
    return index.match(word_hashes(["\n".join(turns) for turns in rows]), turn_hashes(rows))


def items_of(texts: list[str]) -> list[Item]:
    return [Item("made", str(number), content) for number, content in enumerate(texts)]


@pytest.fixture(scope="module")
def gsm8k() -> dict[str, list[dict[str, str]]]:
    if not GSM8K.exists():
        pytest.skip("needs shared/data/gsm8k")
    return {
        part: [json.loads(line) for line in (GSM8K / f"{part}.jsonl").read_text().splitlines()]
        for part in ("train", "test")
    }


def test_untouched_training_questions_are_hardly_flagged_and_each_with_its_match(
    gsm8k: dict[str, list[dict[str, str]]],
) -> None:
    tested = [row["question"] for row in gsm8k["test"]]
    rows = [[row["question"]] for row in gsm8k["train"]]
    hits = match(Index.build(items_of(tested), CFG), rows)
    assert len({hit.row for hit in hits}) <= 0.001 * len(rows)
    assert hits  # GSM8K does have such pairs: one text with other names and numbers
    for hit in hits:
        row, item = (plain(sample) for sample in (rows[hit.row][0], tested[hit.item]))
        common = set(tuples(row, 13)) & set(tuples(item, 13))
        assert common and hit.share == pytest.approx(share(item, common), abs=1e-12)


def plain(sample: str) -> list[str]:
    """Words of English text, by another way than text.words."""
    kept = "".join(
        letter if letter.isalnum() else "" if letter in "'’" else " " for letter in drop_thousands(sample)
    )
    return kept.casefold().split()


def drop_thousands(sample: str) -> str:
    """1,000 becomes 1000."""
    parts = sample.split(",")
    joined = parts[0]
    for part in parts[1:]:
        thousands = (
            joined[-1:].isdigit() and part[:3].isdigit() and len(part[:3]) == 3 and not part[3:4].isdigit()
        )
        joined += part if thousands else "," + part
    return joined


def tuples(tokens: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(tokens[at : at + n]) for at in range(len(tokens) - n + 1)]


def share(item: list[str], common: set[tuple[str, ...]]) -> float:
    covered = set()
    for length in {len(gram) for gram in common}:
        for at, gram in enumerate(tuples(item, length)):
            covered |= set(range(at, at + length)) if gram in common else set()
    return len(covered) / len(item)


def cased(rng: random.Random, sample: str) -> str:
    return rng.choice([str.upper, str.lower, str.title, str.swapcase])(sample)


def spaced(rng: random.Random, sample: str) -> str:
    return "".join(
        rng.choice([" ", "  ", "\n", "\t", "\u00a0 "]) if letter == " " else letter for letter in sample
    )


def punctuated(rng: random.Random, sample: str) -> str:
    """Punctuation left out, doubled or replaced, but inside a number."""
    made = []
    for at, letter in enumerate(sample):
        inside = sample[at - 1 : at].isdigit() and sample[at + 1 : at + 2].isdigit()
        change = letter in string.punctuation and not inside
        made.append(rng.choice(["", letter * 2, rng.choice(".;:!-"), " "]) if change else letter)
    return "".join(made)


def everything(rng: random.Random, sample: str) -> str:
    return cased(rng, spaced(rng, punctuated(rng, sample))).replace("'", "’")


def verbatim(_: random.Random, sample: str) -> str:
    return sample


@pytest.mark.parametrize(
    ("change", "least"), [(verbatim, 200), (cased, 200), (spaced, 200), (punctuated, 190), (everything, 190)]
)
def test_planted_test_questions_are_found(
    gsm8k: dict[str, list[dict[str, str]]], change: Callable[[random.Random, str], str], least: int
) -> None:
    rng = random.Random(7)
    index = Index.build(items_of([row["question"] for row in gsm8k["test"]]), CFG)
    rows = [[row["question"], row["answer"]] for row in gsm8k["train"]]
    planted = dict(
        zip(rng.sample(range(len(rows)), 200), rng.sample(range(len(gsm8k["test"])), 200), strict=True)
    )
    for row, item in planted.items():
        rows[row] = [change(rng, gsm8k["test"][item]["question"]), "An answer."]
    best: dict[int, Hit] = {}
    for hit in match(index, rows):
        best.setdefault(hit.row, hit)
    assert sum(row in best and best[row].item == item for row, item in planted.items()) >= least
    if change is verbatim:
        assert all(best[row].share == 1.0 for row in planted)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(TOKENS, max_size=8),
    st.lists(st.lists(TOKENS, min_size=1, max_size=3), max_size=6),
    st.integers(1, 5),
    st.integers(0, 3),
)
def test_matches_are_those_of_plain_n_grams(
    items: list[list[str]], rows: list[list[list[str]]], ngram: int, less: int
) -> None:
    cfg = Leakage(LeakAction.remove, ngram, max(1, ngram - less), [])
    index = Index.build(items_of([" ".join(item) for item in items]), cfg)
    found = {
        (hit.row, hit.item): hit.share
        for hit in match(index, [[" ".join(turn) for turn in row] for row in rows])
    }
    expected = {}
    for row, turns in enumerate(rows):
        tokens = [token for turn in turns for token in turn]
        for number, item in enumerate(items):
            own = set(tuples(item, min(ngram, len(item)))) if item else set()
            common = own & set(tuples(tokens, min(ngram, len(item)) or 1))
            if len(item) < cfg.min_words:
                common = own if item in turns else set()
            elif item in turns:
                common = own
            if common:
                expected[row, number] = share(item, common)
    assert found == pytest.approx(expected, abs=1e-12)


@settings(deadline=None)
@given(st.lists(TOKENS, min_size=1, max_size=12), st.integers(1, 9), st.integers(0, 3))
def test_windows_and_batches_change_nothing(rows: list[list[str]], window: int, skipped: int) -> None:
    index = Index.build(
        items_of(["a b c a", "c c", "b", "a b b c c a b", "a a a a a"]), Leakage(CFG.action, 4, 2, [])
    )
    texts = [[" ".join(row)] for row in rows]
    whole = match(index, texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leakage, "WINDOW", window)
        assert match(index, texts) == whole
    assert [
        Hit(row, hit.item, hit.share) for row in range(len(texts)) for hit in match(index, [texts[row]])
    ] == whole
    skipped = min(skipped, len(rows))
    words, turns = word_hashes([row[0] for row in texts]), turn_hashes(texts)
    late = index.match(Ragged(words.values, words.offsets[skipped:]), turn_hashes(texts[skipped:]))
    assert [Hit(hit.row + skipped, hit.item, hit.share) for hit in late] == [
        hit for hit in whole if hit.row >= skipped
    ]
    assert len(turns.offsets) == len(words.offsets)


def test_an_index_is_the_same_from_disk(tmp_path: Path) -> None:
    index = Index.build(
        items_of([" ".join(f"w{(a * b) % 97}" for b in range(40)) for a in range(1, 60)]), CFG
    )
    rows = [[" ".join(f"w{(5 * b) % 97}" for b in range(3, 30))], ["w1 w2"], []]
    index.save(tmp_path)
    loaded = Index.load(tmp_path)
    assert isinstance(loaded.hashes, np.memmap)
    assert match(loaded, rows) == match(index, rows)
    assert match(loaded, rows)[0] == Hit(0, 4, 27 / 40)


def test_short_items_leak_only_as_a_whole_turn() -> None:
    index = Index.build(
        items_of(["Who wrote it?", "...", "The capital of France is the city of Paris."]), CFG
    )
    assert match(index, [["I know who wrote it", "ok"], ["", "..."], ["WHO wrote  it", "She did."]]) == [
        Hit(2, 0, 1.0)
    ]
    within = "He said: the capital of France is the city of Paris, or so"
    assert match(index, [[within], [within.replace("city", "town")]]) == [Hit(0, 2, 1.0)]


def test_an_empty_index_and_no_rows_match_nothing(tmp_path: Path) -> None:
    Index.build([], CFG).save(tmp_path)
    assert match(Index.load(tmp_path), [["a b c d e f g h i j k l m n"]]) == []
    assert match(Index.build(items_of(["a b"]), CFG), []) == []


def test_the_wording_of_a_whole_benchmark_flags_a_row_but_not_every_item() -> None:
    wording = " ".join(f"please{n}" for n in range(20))
    index = Index.build(items_of([f"{wording} item{n} " + f"x{n} " * 15 for n in range(200)]), CFG)
    hits = match(index, [[wording], [f"{wording} item150 " + "x150 " * 15]])
    assert [hit.item for hit in hits if hit.row == 0] == list(range(leakage.MAX_ITEMS))
    assert next(hit.item for hit in hits if hit.row == 1) == 150


def test_min_words_above_ngram_is_refused() -> None:
    with pytest.raises(ValueError, match="min_words=14 must be from 1 to ngram=13"):
        Index.build([], Leakage(LeakAction.remove, 13, 14, []))


def test_benchmark_items_are_the_texts_of_their_rows(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path / "quiz"
    rows = [{"id": "q7", "question": "Why?", "n": 3, "choices": {"text": ["a", "b"], "label": ["A", "B"]}}]
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
    assert list(benchmark_items(folder)) == [Item("quiz", "q7", "Why?\na\nb\nA\nB")]
    write_jsonl(folder / "more" / "b.jsonl", [{"text": "one", "answer": None}, {"task_id": 4, "text": "two"}])
    assert [(item.id, item.text) for item in benchmark_items(folder)][1:] == [
        ("more/b.jsonl:0000000", "one"), ("more/b.jsonl:4", "two")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"q\n", r"quiz has no \.parquet or \.jsonl file: put its items there, or remove it"),
        ("a.jsonl", b'{"q": "\xff"}\n', r"a\.jsonl: not valid UTF-8"),
        ("a.jsonl", b'{"q": 1}\n{"q\n', r"a\.jsonl:2: not valid JSON"),
        ("a.parquet", b"PAR1", r"a\.parquet: not readable as Parquet"),
    ],
)
def test_a_benchmark_that_cannot_be_read_is_one_clear_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    folder = tmp_path / "quiz"
    folder.mkdir()
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(benchmark_items(folder))


def test_label_items_are_the_questions_of_the_judge(tmp_path: Path) -> None:
    assert list(label_items(tmp_path)) == []
    write_jsonl(
        tmp_path / "judge.jsonl", [{"id": "x", "question": "Why?", "answer_a": "no"}, {"question": "How?"}]
    )
    assert list(label_items(tmp_path)) == [Item("judge", "x", "Why?"), Item("judge", "judge:0000001", "How?")]
    write_jsonl(tmp_path / "judge.jsonl", [{"id": "x"}])
    with pytest.raises(ValueError, match=r'judge\.jsonl:1: no text in "question"'):
        list(label_items(tmp_path))


def test_of_a_snapshot_only_what_it_tests_on_counts_and_a_group_is_its_tasks(tmp_path: Path) -> None:
    """Its train split holds examples for the prompt: rows of the training data that come from there are no leak."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for task in ("one", "two"):
        (tmp_path / task).mkdir()
        for split in ("train", "test"):
            pq.write_table(
                pa.table({"id": ["own"], "text": [f"{task} {split}"]}), tmp_path / task / f"{split}.parquet"
            )
        (tmp_path / task / "card.json").write_text(json.dumps({"task": task, "tested": "test.parquet"}))
    (tmp_path / "both").mkdir()
    (tmp_path / "both/card.json").write_text(json.dumps({"group": "both", "tasks": ["one", "two"]}))
    found = [(item.benchmark, item.id, item.text) for item in benchmark_items(tmp_path / "both")]
    assert found == [("one", "0000000", "own\none test"), ("two", "0000000", "own\ntwo test")]
