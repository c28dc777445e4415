"""Rows to prepare, about 1 KB each: `python -m benchmarks.prepare.corpus FOLDER ROWS`.

Conversations of one or two question-answer turns, put together from real sentences (GSM8K's training rows and the
AlpacaEval answers in ../shared/data), with planted exact duplicates (1 %), near-duplicates (2 %, one word in a
hundred changed), leaks (0.1 %, a test question inside a training one) and broken rows (0.1 %). A tokenizer of 32,000
entries is trained on the sentences.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

SHARED = Path(__file__).resolve().parents[3] / "shared/data"
TEST_ROWS = 1000
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)


def main(folder: Path, rows: int) -> None:
    """Write rows/train.jsonl, rows/test.jsonl, labels/ and a model folder that holds a tokenizer."""
    for name in ("rows", "labels", "base"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rng = random.Random(7)
    sentences = list(_sentences())
    rng.shuffle(sentences)
    held = sentences[: len(sentences) // 10]
    test = [_row(rng, held, f"test-{number}") for number in range(TEST_ROWS)]
    _write(folder / "rows/test.jsonl", (json.dumps(row) for row in test))
    _write(folder / "rows/train.jsonl", _train(rng, sentences[len(held) :], test, rows))
    _tokenizer(sentences, folder / "base")


def _sentences() -> Iterator[str]:
    seen = set()
    for text in _texts():
        for sentence in re.split(r"(?<=[.!?])\s+", text):
            if 30 <= len(sentence) <= 300 and sentence not in seen:
                seen.add(sentence)
                yield sentence


def _texts() -> Iterator[str]:
    for line in (SHARED / "gsm8k/train.jsonl").open(encoding="utf-8"):
        yield from json.loads(line).values()
    for path in sorted((SHARED / "alpaca_eval").rglob("*.json*")):
        text = path.read_text(encoding="utf-8")
        for value in re.findall(r'"output(?:_[12])?": "((?:[^"\\]|\\.)*)"', text):
            yield json.loads(f'"{value}"')


def _row(rng: random.Random, sentences: list[str], name: str) -> dict[str, object]:
    turns = []
    for _ in range(rng.choice((1, 1, 2))):
        turns.append({"role": "user", "content": " ".join(rng.choices(sentences, k=rng.randint(1, 4)))})
        turns.append({"role": "assistant", "content": " ".join(rng.choices(sentences, k=rng.randint(2, 7)))})
    return {"id": name, "messages": turns}


def _train(
    rng: random.Random, sentences: list[str], test: list[dict[str, object]], rows: int
) -> Iterator[str]:
    recent: list[dict[str, object]] = []
    for number in range(rows):
        kind = rng.random()
        row = _row(rng, sentences, f"row-{number}")
        if recent and kind < 0.01:
            row["messages"] = rng.choice(recent)["messages"]
        elif recent and kind < 0.03:
            row["messages"] = _edited(rng, rng.choice(recent)["messages"])
        elif kind < 0.031:
            asked = rng.choice(test)["messages"][0]["content"]  # type: ignore[index]
            row["messages"][0]["content"] += " " + asked.upper()  # type: ignore[index]
        recent = [*recent[-199:], row]
        yield json.dumps(row)[:-9] if kind > 0.999 else json.dumps(row)


def _edited(rng: random.Random, turns: object) -> list[dict[str, str]]:
    return [
        turn
        | {
            "content": " ".join(
                word if rng.random() > 0.01 else "edited" for word in turn["content"].split(" ")
            )
        }
        for turn in turns  # type: ignore[attr-defined]
    ]


def _write(path: Path, lines: Iterator[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(line + "\n")


def _tokenizer(sentences: list[str], folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=32_000,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(sentences, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|bos|>", eos_token="<|end|>", pad_token="<|pad|>"
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
