"""The same work as a script on `datasets`, as a careful user would write it.

`python -m benchmarks.prepare.peer FOLDER OUT WORKERS`

Reads rows/{train,test}.jsonl, drops broken rows, exact and near-duplicates (rensa's MinHash and LSH, verified exactly)
and rows that share 13 words with a test question, splits by hash, tokenises with the chat template and its assistant
mask, packs best-fit decreasing and writes Parquet. Batched maps in as many processes as it is given, vectorised where
the libraries are, no report. A file with a broken line cannot be read by `datasets`, so the lines are checked first.
"""

from __future__ import annotations

import hashlib
import json
import sys
from bisect import bisect_left, insort
from pathlib import Path
from typing import Any

import numpy as np
import rensa
from datasets import Dataset, load_dataset
from transformers import AutoTokenizer

from stages.prepare.overlap.text import digest, normalise, words

NGRAM, MIN_WORDS, THRESHOLD, SHINGLE, PERMUTATIONS, BANDS = 13, 8, 0.8, 5, 126, 21
VALID_SHARE, SEED, MAX_LENGTH, ROW_LENGTH = 0.05, 17, 2048, 2048
Batch = dict[str, list[Any]]


def main(folder: Path, out: Path, workers: int) -> None:
    """Write OUT/train.parquet and OUT/valid.parquet."""
    out.mkdir(parents=True, exist_ok=True)
    test = load_dataset(
        "json", data_files=str(folder / "rows/test.jsonl"), split="train", cache_dir=str(out / "cache")
    )
    leaks = _leaks(test)
    tested = {_question(row["messages"]) for row in test}
    rows = load_dataset(
        "json", data_files=str(_readable(folder, out)), split="train", cache_dir=str(out / "cache")
    )
    rows = rows.map(_measure, batched=True, num_proc=workers)
    rows = rows.select(_distinct(rows, tested))
    rows = rows.select(_not_near(rows))
    rows = rows.filter(
        lambda batch: [_clean(messages, leaks) for messages in batch["messages"]],
        batched=True,
        num_proc=workers,
    )
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    rows = rows.map(
        _tokenise,
        batched=True,
        num_proc=workers,
        fn_kwargs={"tokenizer": tokenizer},
        remove_columns=["messages", "signature", "key", "question"],
    )
    rows = rows.filter(lambda batch: [len(ids) <= MAX_LENGTH for ids in batch["input_ids"]], batched=True)
    for split in ("train", "valid"):
        _pack(rows.select(np.flatnonzero(np.array(rows["split"]) == split))).to_parquet(
            out / f"{split}.parquet"
        )


def _readable(folder: Path, out: Path) -> Path:
    path = out / "readable.jsonl"
    with (
        (folder / "rows/train.jsonl").open(encoding="utf-8") as source,
        path.open("w", encoding="utf-8") as target,
    ):
        for line in source:
            try:
                json.loads(line)
            except ValueError:
                continue
            target.write(line)
    return path


def _asked(messages: list[dict[str, str]]) -> str:
    return "\n".join(turn["content"] for turn in messages if turn["role"] == "user")


def _question(messages: list[dict[str, str]]) -> str:
    return digest(normalise(turn["content"]) for turn in messages if turn["role"] == "user")


def _measure(batch: Batch) -> Batch:
    texts = ["\n".join(turn["content"] for turn in messages) for messages in batch["messages"]]
    shingles = [_grams(text, SHINGLE) for text in texts]
    matrix = rensa.RMinHash.digest_matrix_from_token_sets(shingles, PERMUTATIONS, SEED)
    questions = [_question(messages) for messages in batch["messages"]]
    return {
        "signature": matrix.to_rows(),
        "key": [
            digest(turn["role"] + "\0" + normalise(turn["content"]) for turn in messages)
            for messages in batch["messages"]
        ],
        "question": questions,
        "split": ["valid" if _share(question) < VALID_SHARE else "train" for question in questions],
    }


def _share(key: str) -> float:
    return int(hashlib.sha256(f"split\0{SEED}\0{key}".encode()).hexdigest()[:13], 16) / 16**13


def _grams(text: str, n: int) -> list[str]:
    found = words(text)
    return [" ".join(found[at : at + n]) for at in range(max(1, len(found) - n + 1))]


def _distinct(rows: Dataset, tested: set[str]) -> list[int]:
    seen: set[str] = set()
    kept = []
    for number, (key, question) in enumerate(zip(rows["key"], rows["question"], strict=True)):
        if key not in seen and question not in tested:
            kept.append(number)
        seen.add(key)
    return kept


def _not_near(rows: Dataset) -> list[int]:
    signatures = np.array(rows.with_format("numpy")["signature"], np.uint32)
    buckets: dict[bytes, list[int]] = {}
    width = PERMUTATIONS // BANDS
    kept = []
    for number in range(len(rows)):
        keys = [
            bytes([band]) + signatures[number, band * width : (band + 1) * width].tobytes()
            for band in range(BANDS)
        ]
        candidates = {other for key in keys for other in buckets.get(key, ())}
        if candidates and any(_jaccard(rows, number, other) >= THRESHOLD for other in sorted(candidates)):
            continue
        kept.append(number)
        for key in keys:
            buckets.setdefault(key, []).append(number)
    return kept


def _jaccard(rows: Dataset, one: int, other: int) -> float:
    a, b = (
        set(_grams("\n".join(turn["content"] for turn in rows[at]["messages"]), SHINGLE))
        for at in (one, other)
    )
    return len(a & b) / len(a | b)


def _leaks(test: Dataset) -> dict[int, set[str]]:
    """The test questions' n-grams by length: a question of 8 to 12 words is one n-gram, a shorter one is left out."""
    found: dict[int, set[str]] = {}
    for row in test:
        question = _asked(row["messages"])
        size = min(NGRAM, len(words(question)))
        if size >= MIN_WORDS:
            found.setdefault(size, set()).update(_grams(question, size))
    return found


def _clean(messages: list[dict[str, str]], leaks: dict[int, set[str]]) -> bool:
    found = words("\n".join(turn["content"] for turn in messages))
    return not any(
        " ".join(found[at : at + size]) in known
        for size, known in leaks.items()
        for at in range(len(found) - size + 1)
    )


def _tokenise(batch: Batch, tokenizer: Any) -> Batch:
    found = tokenizer.apply_chat_template(
        batch["messages"], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    labels = [
        [-100] + [token if learned else -100 for token, learned in zip(ids[1:], mask[1:], strict=True)]
        for ids, mask in zip(found["input_ids"], found["assistant_masks"], strict=True)
    ]
    return {"input_ids": found["input_ids"], "labels": labels}


def _pack(rows: Dataset) -> Dataset:
    lengths = [len(ids) for ids in rows["input_ids"]]
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        at = bisect_left(room, (lengths[index], -1))
        free, target = room.pop(at) if at < len(room) else (ROW_LENGTH, len(bins))
        if target == len(bins):
            bins.append([])
        bins[target].append(index)
        insort(room, (free - lengths[index], target))

    def generate(bins: list[list[int]]) -> Any:
        for members in bins:
            part = rows[members]
            yield {
                "ids": part["id"],
                "lengths": [len(ids) for ids in part["input_ids"]],
                "input_ids": [token for ids in part["input_ids"] for token in ids],
                "labels": [label for labels in part["labels"] for label in labels],
            }

    return Dataset.from_generator(generate, gen_kwargs={"bins": bins})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
