"""The first pass over a shard: raw records to checked rows, and the numbers by which rows are compared.

A shard's folder then holds rows.arrow (what the later passes read), rejects.jsonl, the columns below and
counts.json. Nothing of it depends on another shard, so any number of workers writes the same bytes.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from stages.common.files import write_json
from stages.common.prompt import Message
from stages.prepare.columns import Appender, Layout
from stages.prepare.config import Action, PersonalAction, Prepare, Source, Use
from stages.prepare.overlap.duplicates import band_keys, bands
from stages.prepare.overlap.tested import strings
from stages.prepare.overlap.text import digest, normalise, word_hashes
from stages.prepare.reading.read import Record, Shard, records
from stages.prepare.rows.formats import parse
from stages.prepare.rows.personal import scrub
from stages.prepare.rows.row import Reject, Row
from stages.prepare.rows.validate import check
from stages.prepare.split import Split, share, split_of

ESCAPE = re.compile(r"\\u00([2-7][0-9a-fA-F])")
BATCH = 1000
BATCH_CHARACTERS = 16_000_000  # fewer rows where they are huge, so that memory stays bounded
SPLITS = list(Split)


@dataclass(frozen=True)
class Job:
    """One shard's work, as a worker gets it."""

    shard: Shard
    source: Source
    cfg: Prepare


@dataclass
class Checked:
    """A row that is fine in itself: `key` and `question` are SHA-256 digests of normalised text, in hex."""

    line: int
    row: Row
    key: str
    question: str


def layout(cfg: Prepare) -> Layout:
    """The columns of an ingested shard. key, question, id and group are 128-bit digests, split a place in SPLITS."""
    near = cfg.duplicates
    width = bands(near.threshold, near.permutations)[0] if near.action is not Action.ignore else 1
    return {
        "key": ("<u8", 2),
        "question": ("<u8", 2),
        "id": ("<u8", 2),
        "group": ("<u8", 2),
        "split": ("<i1", 1),
        "copies": ("<i4", 1),
        "words": ("<u4", 0),
        "bands": ("<u8", width),
    }


def ingest(job: Job, folder: Path) -> None:
    """Read, check and measure one shard's rows into `folder`."""
    import pyarrow as pa

    columns, counts = Appender(folder, layout(job.cfg)), Counter[str]()
    schema = pa.schema(
        [("line", pa.int64()), ("id", pa.string()), ("key", pa.string()), ("row", pa.binary())]
    )
    source = records(job.shard, job.source, job.cfg.max_row_bytes)
    with (
        pa.OSFile(str(folder / "rows.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer,
        (folder / "rejects.jsonl").open("wb") as rejects,
    ):
        while batch := _batch(source):
            counts["read"] += len(batch)
            good = list(_checked(job, batch, rejects, counts))
            writer.write_batch(_arrow(good, schema))
            _measure(job, good, columns)
    columns.close()
    write_json(folder / "counts.json", dict(counts))


def _batch(source: Iterator[Record]) -> list[Record]:
    found, size = [], 0
    for record in islice(source, BATCH):
        found.append(record)
        size += len(record.raw)
        if size > BATCH_CHARACTERS:
            break
    return found


def payload(row: Row) -> bytes:
    """A row as JSON: what the later passes, test.jsonl and rejects.jsonl hold of it.

    Keys stay in their order: a chat template writes a tool's schema as it stands.
    """
    value: dict[str, Any] = {"messages": row.messages}
    for name in ("group", "tools", "meta", "chosen", "rejected"):
        if found := getattr(row, name):
            value[name] = found
    return orjson.dumps(value)


def texts(row: Row) -> list[str]:
    """What a row says, turn by turn, without the system turns: rows that share those are not alike by it."""
    turns = [*row.messages, *row.chosen, *row.rejected]
    return [_told(turn) for turn in turns if turn["role"] != "system"]


def _told(turn: Message) -> str:
    """A turn's words: what it says, what was thought before, and the texts in its tool calls."""
    if len(turn) == 2:
        return turn["content"]
    thought = turn.get("reasoning_content", "")
    return "\n".join(filter(None, (thought, turn["content"], *strings(turn.get("tool_calls", [])))))


def _checked(job: Job, batch: list[Record], rejects: Any, counts: Counter[str]) -> Iterator[Checked]:
    for record in batch:
        personal: Counter[str] = Counter()
        try:
            yield _check(job, record, personal)
        except Reject as reason:
            counts[f"rejected/{reason}"] += 1
            entry = {"file": record.file, "line": record.line, "reason": str(reason)}
            shown, personal = _shown(job, record)
            rejects.write(orjson.dumps(entry | {"row": shown}) + b"\n")
        counts.update({f"personal/{kind}": number for kind, number in personal.items()})


def _check(job: Job, record: Record, personal: Counter[str]) -> Checked:
    if record.row is None:
        raise Reject(record.problem)
    row = parse(record.row, job.source)
    check(row)
    if job.cfg.personal.action is not PersonalAction.ignore:
        clean, found = scrub(vars(row), job.cfg.personal)
        personal.update(found)
        for name in ("id", "group"):  # still tells rows apart
            clean[name] = pseudonym(getattr(row, name), clean[name], job.cfg)
        row = Row(**clean)
        check(row)
    question = digest(normalise(turn["content"]) for turn in row.messages if turn["role"] == "user")
    between: list[Message] = [{"role": "", "content": ""}]
    turns = row.messages + row.chosen + between + row.rejected if row.chosen else row.messages
    told = [turn["role"] + "\0" + normalise(_said(turn)) for turn in turns]
    key = digest([*told, orjson.dumps(row.tools).decode()] if row.tools else told)
    row.id = _name(job, row.id) if row.id else key[:16]
    return Checked(record.line, row, key, question)


def _name(job: Job, given: str) -> str:
    """The id by which a row is known: with its source's name where several sources' rows come together."""
    uses = [source.use for source in job.cfg.data.sources.values()]
    apart = (Use.test, Use.valid)  # where one of these is named, no row of another source goes there
    own = [use for use in uses if use is job.source.use or (use not in apart and job.source.use not in apart)]
    return f"{job.shard.source}/{given}" if len(own) > 1 else given


def pseudonym(given: str, clean: str, cfg: Prepare) -> str:
    """`clean`, unless personal data was redacted in it: then a digest of what was given."""
    return clean if clean == given else digest(["pseudonym", str(cfg.seed), given])[:16]


def _said(turn: Message) -> str:
    if len(turn) == 2:
        return turn["content"]
    calls = turn.get("tool_calls")
    called = orjson.dumps(calls, option=orjson.OPT_SORT_KEYS).decode() if calls else ""
    return "\n".join(filter(None, (turn.get("reasoning_content"), turn["content"], called)))


def _shown(job: Job, record: Record) -> tuple[str, Counter[str]]:
    """The raw row for rejects.jsonl, free of what must not be written anywhere, and what that was."""
    raw = record.raw.encode(errors="backslashreplace").decode()
    if job.cfg.personal.action is PersonalAction.ignore:
        return raw, Counter()
    if record.row is None:  # no JSON, but it may hold JSON's escapes: \u0040 would hide an address
        clean, found = scrub(ESCAPE.sub(lambda match: chr(int(match[1], 16)), raw), job.cfg.personal)
        return (str(clean) if found else raw), found
    clean, found = scrub(record.row, job.cfg.personal)
    return (json.dumps(clean, ensure_ascii=True) if found else raw), found


def _arrow(good: list[Checked], schema: Any) -> Any:
    import pyarrow as pa

    arrays = [
        pa.array([item.line for item in good], pa.int64()),
        pa.array([item.row.id for item in good], pa.string()),
        pa.array([item.key for item in good], pa.string()),
        pa.array([payload(item.row) for item in good], pa.binary()),
    ]
    return pa.record_batch(arrays, schema=schema)


def _measure(job: Job, good: list[Checked], columns: Appender) -> None:
    cfg = job.cfg
    words = word_hashes(["\n".join(texts(item.row)) for item in good])
    columns.add_ragged("words", words)
    columns.add("key", _numbers([item.key for item in good]))
    columns.add("question", _numbers([item.question for item in good]))
    columns.add("id", _numbers([digest([job.shard.source, item.row.id]) for item in good]))
    columns.add("group", _numbers([_group(item) for item in good]))
    splits = [split_of(_group(item), job.source, cfg) for item in good]
    columns.add("split", [SPLITS.index(split) for split in splits])
    columns.add(
        "copies",
        [_copies(item, job.source.weight, split) for item, split in zip(good, splits, strict=True)],
    )
    if cfg.duplicates.action is Action.ignore:
        columns.add("bands", np.zeros(len(good), np.uint64))
    elif good:
        columns.add("bands", band_keys(words, cfg.duplicates))


def _group(item: Checked) -> str:
    """Rows that must stay together share this: the group where the data names one, else the question."""
    return digest(["group", item.row.group]) if item.row.group else item.question


def _copies(item: Checked, weight: float, split: Split) -> int:
    """How often a row is seen in an epoch: the weight's whole part, and once more for that share of rows."""
    if split is not Split.train:
        return 1
    return int(weight) + (share(item.key, "weight") < weight - int(weight))


def _numbers(digests: list[str]) -> Any:
    """The first 128 bits of hex digests as two integers each."""
    joined = b"".join(bytes.fromhex(value[:32]) for value in digests)
    return np.frombuffer(joined, ">u8").reshape(-1, 2).astype("<u8")
