"""What real exports contain: duplicated rows and broken lines of several kinds, in known numbers."""

from __future__ import annotations

import json
from random import Random

from ops.helpdesk.rows import Row

DUPLICATES = 40  # rows of train.jsonl whose messages repeat an earlier row's exactly (under another id)
BROKEN = {  # lines of train.jsonl that are no training row, by kind
    "bad_json": 6,  # cut off in the middle
    "bad_utf8": 5,  # a byte that is not UTF-8
    "missing_messages": 5,  # no such key
    "empty_content": 6,  # the assistant says nothing
    "wrong_role_order": 5,  # the assistant speaks before the user
    "wrong_types": 5,  # messages is a text
}


def encode(row: Row) -> bytes:
    """One line of JSON, keys sorted."""
    return json.dumps(row, sort_keys=True, ensure_ascii=False).encode()


def with_duplicates(rows: list[Row], rng: Random) -> list[Row]:
    """`rows` and `DUPLICATES` repetitions, each somewhere after its original."""
    out = list(rows)
    for number, row in enumerate(rng.sample(rows, DUPLICATES)):
        at = rng.randint(next(i for i, other in enumerate(out) if other is row) + 1, len(out))
        out.insert(at, row | {"id": f"repeat-{number:04}"})
    return out


def with_broken_lines(lines: list[bytes], samples: list[Row], rng: Random) -> list[bytes]:
    """`lines` with the BROKEN ones, made of `samples` that occur nowhere else, strewn in.

    Raises StopIteration if there are fewer samples than broken lines.
    """
    out, source = list(lines), iter(samples)
    for kind, count in BROKEN.items():
        for _ in range(count):
            out.insert(rng.randint(0, len(out)), spoil(next(source), kind))
    return out


def spoil(row: Row, kind: str) -> bytes:
    """The line that a fault of `kind` (a key of BROKEN) makes of a good row."""
    user, assistant = row["messages"]
    if kind == "bad_json":
        return encode(row)[:-20]
    if kind == "bad_utf8":
        return encode(row).replace(b" ", b" \xff", 1)
    faulty: dict[str, Row] = {
        "missing_messages": {"id": row["id"], "meta": row["meta"]},
        "empty_content": row | {"messages": [user, assistant | {"content": ""}]},
        "wrong_role_order": row | {"messages": [assistant, user]},
        "wrong_types": row | {"messages": user["content"]},
    }
    return encode(faulty[kind])
