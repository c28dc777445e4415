"""Rows as ingest stored them, read back: in batches, or one column of all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from stages.prepare.decide import Fate
from stages.prepare.rows.row import Row


@dataclass
class Kept:
    """A kept row: its place among the shard's rows, and its digest."""

    at: int
    id: str
    key: str
    fate: int
    row: Row


def batches(ingested: Path, fate: NDArray[np.int8]) -> Iterator[list[Kept]]:
    """The rows that are kept in a split, parsed, a record batch at a time."""
    import pyarrow as pa

    start = 0
    with pa.memory_map(str(ingested / "rows.arrow")) as source, pa.ipc.open_file(source) as reader:
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            end = start + batch.num_rows
            wanted = np.flatnonzero(fate[start:end] <= Fate.test)
            part = batch.take(pa.array(wanted)).to_pydict()
            yield [
                Kept(start + at, identity, key, int(fate[start + at]), unpack(row, identity))
                for at, identity, key, row in zip(
                    wanted.tolist(), part["id"], part["key"], part["row"], strict=True
                )
            ]
            start = end


def unpack(payload: bytes, identity: str) -> Row:
    """A row as ingest packed it."""
    value = orjson.loads(payload)
    return Row(
        id=identity,
        group=value.get("group", ""),
        messages=value["messages"],
        tools=value.get("tools", []),
        meta=value.get("meta", {}),
        chosen=value.get("chosen", []),
        rejected=value.get("rejected", []),
    )


def row_ids(folders: Sequence[Path]) -> Any:
    """The id of every row of ingested shards, as one chunked Arrow array."""
    import pyarrow as pa

    return pa.chunked_array([chunk for folder in folders for chunk in _column(folder, "id")], pa.string())


def row_lines(folder: Path) -> NDArray[np.int64]:
    """The line of every row that ingest kept in a shard."""
    chunks = [chunk.to_numpy() for chunk in _column(folder, "line")]
    return np.concatenate([np.empty(0, np.int64), *chunks])


def payloads(folder: Path, rows: Sequence[int]) -> dict[int, bytes]:
    """A few rows of a shard, as ingest packed them."""
    found: dict[int, bytes] = {}
    start = 0
    for chunk in _column(folder, "row"):
        found |= {row: chunk[row - start].as_py() for row in rows if start <= row < start + len(chunk)}
        start += len(chunk)
    return found


def _column(folder: Path, name: str) -> Iterator[Any]:
    """One column batch by batch: a compressed file is one shard, whatever its size, and must not fill the memory."""
    import pyarrow as pa

    with pa.memory_map(str(folder / "rows.arrow")) as source:
        at = pa.ipc.open_file(source).schema.get_field_index(name)
        options = pa.ipc.IpcReadOptions(included_fields=[at])
        reader = pa.ipc.open_file(source, options=options)
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number).column(0)
