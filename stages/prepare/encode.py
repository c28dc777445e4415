"""The second pass over a shard: kept training rows against what the model is tested on, then to tokens.

A shard's folder then holds tokens and learned (flat), and by document: the row, its length and its kind; and by row:
hits.jsonl, the rows refused here, and a sample for the report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from stages.common.prompt import with_prompt
from stages.prepare.columns import Appender, Layout, ragged
from stages.prepare.config import LeakAction, Overlong, Prepare
from stages.prepare.decide import Fate
from stages.prepare.ingest import layout, texts
from stages.prepare.overlap.leakage import Hit, Index
from stages.prepare.overlap.text import Ragged, turn_hashes, word_hashes
from stages.prepare.rows.row import Row
from stages.prepare.split import share
from stages.prepare.stored import Kept, batches
from stages.prepare.tokens.tokenise import Conversation, Encoder, Tokens


class Part(IntEnum):
    """What a document is: a whole conversation, or one side of a preference pair."""

    whole = 0
    chosen = 1
    rejected = 2


# row counts within the shard's ingested rows; cut is 1 for a truncated document
DOCUMENTS: Layout = {
    "tokens": ("<i4", 0),
    "learned": ("|u1", 0),
    "row": ("<i8", 1),
    "part": ("|u1", 1),
    "cut": ("|u1", 1),
}
REFUSED: Layout = {"refused": ("<i8", 2)}  # row, Fate
SAMPLE_SALT = "report"


@dataclass(frozen=True)
class Job:
    """One shard's work: where its rows lie, what was decided, and how large a share the report shows."""

    ingested: Path
    fate: NDArray[np.int8]
    index: Path
    base: Path
    cfg: Prepare
    sample_share: float
    source: str


@dataclass
class Document:
    """What is trained on as one text: a row gives one, a pair two."""

    row: int
    part: Part
    cut: bool
    tokens: Tokens


def encode(job: Job, folder: Path) -> None:
    """Match and tokenise one shard's kept training and validation rows into `folder`."""
    columns, refused = Appender(folder, DOCUMENTS), Appender(folder, REFUSED)
    words = ragged(job.ingested, "words", layout(job.cfg))
    with (folder / "hits.jsonl").open("wb") as hits, (folder / "sample.jsonl").open("wb") as sample:
        for rows in batches(job.ingested, job.fate):
            learn = [kept for kept in rows if kept.fate in (Fate.train, Fate.valid)]
            if job.cfg.leakage.action is not LeakAction.ignore:
                _match(job, words, learn, hits)
            lengths = _tokenise(job, learn, columns, refused)
            _sample(job, rows, lengths, sample)
    columns.close()
    refused.close()


def _match(job: Job, words: Ragged, rows: list[Kept], hits: Any) -> None:
    if not rows:
        return
    turns = turn_hashes([texts(kept.row) for kept in rows])
    found = _index(job.index).match(_take(words, [kept.at for kept in rows]), turns)
    _note(rows, found, hits)
    # the words of ingest leave out system turns, which say nothing of likeness but may hold an item
    systems = [
        (kept, turn["content"]) for kept in rows for turn in kept.row.messages if turn["role"] == "system"
    ]
    if systems:
        texts_ = [text for _, text in systems]
        found = _index(job.index).match(word_hashes(texts_), turn_hashes([[text] for text in texts_]))
        _note([kept for kept, _ in systems], found, hits)


def _note(rows: list[Kept], found: list[Hit], hits: Any) -> None:
    for hit in found:
        line = {"row": rows[hit.row].at, "item": int(hit.item), "share": round(float(hit.share), 4)}
        hits.write(orjson.dumps(line) + b"\n")


def _take(lists: Ragged, rows: Sequence[int]) -> Ragged:
    parts = [lists.values[lists.offsets[row] : lists.offsets[row + 1]] for row in rows]
    sizes = np.array([len(part) for part in parts], np.int64)
    return Ragged(np.concatenate(parts), np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)]))


def _tokenise(job: Job, rows: list[Kept], columns: Appender, refused: Appender) -> dict[int, tuple[int, int]]:
    """Append the documents of `rows`; returns row -> (tokens, learned tokens) of those that stay."""
    found: dict[int, tuple[int, int]] = {}
    asked = [(kept, part) for kept in rows for part in _parts(kept.row)]
    encoded = _encoder(job.base).encode([_conversation(job.cfg, kept, part) for kept, part in asked])
    by_row: dict[int, list[tuple[Part, list[Tokens] | str]]] = {}
    for (kept, part), result in zip(asked, encoded, strict=True):
        by_row.setdefault(kept.at, []).append((part, result))
    kept_documents: list[Document] = []
    for at, results in by_row.items():
        documents, why = _fit(job.cfg, at, results)
        if why is not None:
            refused.add("refused", [[at, why]])
            continue
        kept_documents += documents
        found[at] = (
            sum(len(document.tokens.input_ids) for document in documents),
            sum(int(document.tokens.learned.sum()) for document in documents),
        )
    _append(columns, kept_documents)
    return found


def _parts(row: Row) -> list[Part]:
    return [Part.chosen, Part.rejected] if row.chosen else [Part.whole]


def _conversation(cfg: Prepare, kept: Kept, part: Part) -> Conversation:
    answer = {Part.whole: [], Part.chosen: kept.row.chosen, Part.rejected: kept.row.rejected}[part]
    examples = share(kept.key, "examples") < cfg.examples_share
    messages = with_prompt(cfg.prompt, kept.row.messages, examples=examples)
    own = sum(turn["role"] != "system" for turn in kept.row.messages)
    first = len(messages) - own
    # of a pair only the answers are learned: the turns before them are the question that both share
    return Conversation(messages + answer, kept.row.tools, first if part is Part.whole else len(messages))


def _fit(
    cfg: Prepare, at: int, results: list[tuple[Part, list[Tokens] | str]]
) -> tuple[list[Document], Fate | None]:
    """A row's documents cut to max_length, or why it is set aside."""
    found: list[Document] = []
    for part, documents in results:
        if isinstance(documents, str):
            return [], Fate[documents]
        if part is not Part.whole and len(documents) != 1:
            return [], Fate.template_refused  # a pair is two documents, side by side
        for tokens in documents:
            cut = len(tokens.input_ids) > cfg.max_length
            if cut and cfg.overlong is Overlong.reject:
                return [], Fate.too_long
            kept = _cut(tokens, cfg.max_length) if cut else tokens
            if not kept.learned[1:].any():  # a document's first token has nothing before it to learn from
                return [], Fate.nothing_to_learn
            found.append(Document(at, part, cut, kept))
    return found, None


def _cut(tokens: Tokens, length: int) -> Tokens:
    return Tokens(tokens.input_ids[:length], tokens.learned[:length])


def _append(columns: Appender, documents: list[Document]) -> None:
    if not documents:
        return
    ends = np.cumsum([0, *(len(document.tokens.input_ids) for document in documents)]).astype(np.int64)
    for name in ("input_ids", "learned"):
        values = np.concatenate([getattr(document.tokens, name) for document in documents])
        columns.add_ragged("tokens" if name == "input_ids" else name, Ragged(values, ends))
    for name in ("row", "part", "cut"):
        columns.add(name, [getattr(document, name) for document in documents])


def _sample(job: Job, rows: list[Kept], lengths: dict[int, tuple[int, int]], sample: Any) -> None:
    for kept in rows:
        if (kept.at not in lengths and kept.fate != Fate.test) or share(
            kept.key, SAMPLE_SALT
        ) >= job.sample_share:
            continue
        tokens, learned = lengths.get(kept.at, (None, None))
        line = {
            "row": kept.at,
            "split": Fate(kept.fate).name,
            "source": job.source,
            "turns": len(kept.row.messages) + len(kept.row.chosen),
            "characters": sum(len(text) for text in texts(kept.row)),
            "tokens": tokens,
            "learned_tokens": learned,
            "text": "\n".join(texts(kept.row))[:2000],
        }
        sample.write(orjson.dumps(line) + b"\n")


@lru_cache(maxsize=1)
def _encoder(base: Path) -> Encoder:
    from transformers import AutoTokenizer

    return Encoder(AutoTokenizer.from_pretrained(base))


@lru_cache(maxsize=1)
def _index(folder: Path) -> Index:
    return Index.load(folder)
