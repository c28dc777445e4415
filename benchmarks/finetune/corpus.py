"""What every side trains on: real conversations, a tokenizer and random weights, `FOLDER/` made once.

rows/train.jsonl        conversations as TRL reads them: {"prompt": [turn], "completion": [turn]}
tokens.parquet          the same as (input_ids, labels), in the same order, for the padded side
project/                the same packed, as prepare writes it, beside models/base: what the stage trains on
base/                   a Llama with random weights from a seed, and a byte-level BPE tokenizer
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from stages.common.prompt import Message
from stages.finetune.pack import IGNORED, Documents

ROOT = Path(__file__).resolve().parents[2]
SEED = 17
VOCABULARY = 49_152  # SmolLM2's
CONTEXT = 2048


@dataclass(frozen=True)
class Lengths:
    """Conversations of one kind, and rows that hold about as many in an update as the peers' default of 8, or fewer."""

    path: Path
    row_length: int
    batch_size: int


LENGTHS = {
    "gsm8k": Lengths(ROOT.parent / "shared/data/gsm8k/train.jsonl", 576, 2),
    "helpdesk": Lengths(ROOT / "data/raw/helpdesk/rows/train.jsonl", 320, 2),
}
# `smollm2` is SmolLM2-135M's own shape. In `small` the vocabulary is more of the model (64 % against 21 %).
SHAPES = {
    "small": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6,
              "num_key_value_heads": 2},
    "smollm2": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
                "num_key_value_heads": 3},
}  # fmt: skip


def main(folder: Path, lengths: str, shape: str, count: int) -> None:
    """Make `folder` with `count` conversations of kind `lengths` and a model of `shape`."""
    for name in ("rows", "project/data/prepared", "project/models"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(folder / "base")
    _model(folder / "base", shape, tokenizer)
    found = _conversations(lengths)
    chosen = [found[index] for index in np.random.default_rng(SEED).permutation(len(found))[:count]]
    assert len(chosen) == count, f"{lengths} has {len(chosen)} conversations"
    _write_rows(folder / "rows/train.jsonl", chosen)
    documents = _documents(tokenizer, chosen)
    _write_tokens(folder / "tokens.parquet", documents)
    prepared = folder / "project/data/prepared"
    rows = packed(documents, LENGTHS[lengths].row_length)
    _write_packed(prepared / "train.parquet", _full_updates(rows, LENGTHS[lengths].batch_size))
    _write_packed(prepared / "valid.parquet", [])  # no side evaluates
    (folder / "project/models/base").symlink_to("../../base")


def read_tokens(folder: Path) -> Documents:
    """(input_ids, labels) of each conversation, in the order of rows/train.jsonl."""
    import pyarrow.parquet as pq

    return [(row["input_ids"], row["labels"]) for row in pq.read_table(folder / "tokens.parquet").to_pylist()]


def packed(documents: Documents, capacity: int) -> list[dict[str, Any]]:
    """Rows as prepare packs them."""
    from stages.prepare.tokens.pack import pack

    found = pack(np.array([len(ids) for ids, _ in documents], np.int64), capacity)
    groups = [found.order[begin:end].tolist() for begin, end in pairwise(found.offsets.tolist())]
    return [
        {
            "ids": [f"{member:05}" for member in members],
            "lengths": [len(documents[member][0]) for member in members],
            "input_ids": [token for member in members for token in documents[member][0]],
            "labels": [label for member in members for label in documents[member][1]],
        }
        for members in groups
    ]


def _conversations(lengths: str) -> list[list[Message]]:
    """A question and its answer each; what is broken on purpose is left out."""
    found = []
    for line in LENGTHS[lengths].path.read_bytes().splitlines():
        with contextlib.suppress(ValueError):
            found.append(_turns(json.loads(line)))
    return [
        turns
        for turns in found
        if [turn.get("role") for turn in turns] == ["user", "assistant"]
        and all(isinstance(turn.get("content"), str) and turn["content"] for turn in turns)
    ]


def _turns(row: dict[str, Any]) -> list[Message]:
    if "question" in row:
        row = {
            "messages": [
                {"role": "user", "content": row["question"]},
                {"role": "assistant", "content": row["answer"]},
            ]
        }
    turns = row.get("messages")
    return turns if isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns) else []


def _tokenizer(folder: Path) -> Any:
    from stages.base.tokenizer import make_tokenizer

    rows = [{"messages": turns} for lengths in LENGTHS for turns in _conversations(lengths)]
    tokenizer = make_tokenizer(rows, VOCABULARY, CONTEXT)
    tokenizer.save_pretrained(folder)
    return tokenizer


def _model(folder: Path, shape: str, tokenizer: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **SHAPES[shape],
    )
    torch.manual_seed(SEED)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def _write_rows(path: Path, conversations: list[list[Message]]) -> None:
    rows = [{"prompt": turns[:1], "completion": turns[1:]} for turns in conversations]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _documents(tokenizer: Any, conversations: list[list[Message]]) -> Documents:
    """By the stage's own encoder; no loss on a first token, as prepare writes it."""
    from stages.prepare.tokens.tokenise import Conversation, Encoder

    made = Encoder(tokenizer).encode([Conversation(turns, [], 0) for turns in conversations])
    documents: Documents = []
    for parts in made:
        assert not isinstance(parts, str) and len(parts) == 1, parts
        ids, learned = parts[0].input_ids.tolist(), parts[0].learned.tolist()
        documents.append(
            (ids, [IGNORED, *(_label(*pair) for pair in zip(ids[1:], learned[1:], strict=True))])
        )
    return documents


def _label(token: int, learned: bool) -> int:
    return token if learned else IGNORED


def _write_tokens(path: Path, documents: Documents) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(
        pa.table({"input_ids": [ids for ids, _ in documents], "labels": [row for _, row in documents]}), path
    )


def _full_updates(rows: list[dict[str, Any]], batch_size: int) -> list[dict[str, Any]]:
    """Cut rows in two until no update has to begin a second pass, so that each conversation is seen once."""
    found = list(rows)
    while len(found) % batch_size:
        row = found.pop(max(range(len(found)), key=lambda index: len(found[index]["ids"])))
        half = len(row["ids"]) // 2
        cut = sum(row["lengths"][:half])
        cuts = {"ids": half, "lengths": half, "input_ids": cut, "labels": cut}
        found += [
            {name: row[name][:at] for name, at in cuts.items()},
            {name: row[name][at:] for name, at in cuts.items()},
        ]
    return found


def _write_packed(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = pa.list_(pa.int32())
    kinds = {"ids": pa.list_(pa.string()), "lengths": numbers, "input_ids": numbers, "labels": numbers}
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(kinds)), path)
