"""The outs of the stage, streamed from what the two passes left: packed rows, pairs, test rows, rejects, items."""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from stages.prepare.columns import column, ragged
from stages.prepare.decide import Decision, Fate
from stages.prepare.encode import DOCUMENTS, Part
from stages.prepare.overlap.text import Ragged
from stages.prepare.reading.read import Shard
from stages.prepare.stored import batches
from stages.prepare.tokens.pack import pack

IGNORED = -100
GROUP_TOKENS = 4_000_000  # tokens of a row group: what is in memory while packed rows are written


@dataclass
class Documents:
    """Every document of every shard: its row over all shards, its part, its length; tokens stay on disk."""

    row: NDArray[np.int64]
    part: NDArray[np.uint8]
    cut: NDArray[np.uint8]
    length: NDArray[np.int64]
    learned: NDArray[np.int64]
    starts: list[int]
    tokens: list[Ragged]
    masks: list[Ragged]

    def of(self, chosen: Sequence[int]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """input_ids and labels of `chosen` documents, one after the other.

        A document's first token has nothing before it to learn from, so it carries no loss.
        """
        places = [self._place(document) for document in chosen]
        ids = np.concatenate([_row(self.tokens[shard], at) for shard, at in places])
        learned = np.concatenate([_row(self.masks[shard], at) for shard, at in places])
        labels = np.where(learned != 0, ids, np.int32(IGNORED))
        labels[np.cumsum([0, *self.length[list(chosen)][:-1]])] = IGNORED
        return ids, labels

    def _place(self, document: int) -> tuple[int, int]:
        shard = bisect_right(self.starts, document) - 1
        return shard, document - self.starts[shard]


def documents(folders: Sequence[Path], decision: Decision) -> Documents:
    """The documents of encoded shards, in the order of the shards."""

    def every(name: str) -> list[NDArray[Any]]:
        return [np.asarray(column(folder, name, DOCUMENTS)) for folder in folders]

    tokens = [ragged(folder, "tokens", DOCUMENTS) for folder in folders]
    masks = [ragged(folder, "learned", DOCUMENTS) for folder in folders]
    rows = [rows + start for rows, start in zip(every("row"), decision.starts, strict=False)]
    return Documents(
        row=np.concatenate(rows).astype(np.int64),
        part=np.concatenate(every("part")),
        cut=np.concatenate(every("cut")),
        length=np.concatenate([np.diff(lists.offsets) for lists in tokens]),
        learned=np.concatenate([_sums(lists) for lists in masks]),
        starts=np.cumsum([0, *(len(part) for part in rows)]).tolist(),
        tokens=tokens,
        masks=masks,
    )


def write_packed(path: Path, chosen: NDArray[np.int64], found: Documents, ids: Any, capacity: int) -> int:
    """Pack the `chosen` documents into rows of at most `capacity` tokens and write one line a row.

    Columns: ids and lengths of the documents of a row, their input_ids and labels one after the other. `ids` holds
    the id of every row as an Arrow array. Returns the number of rows written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    packed = pack(found.length[chosen], capacity)
    order = chosen[packed.order]
    whole = pa.list_(pa.int32())
    schema = pa.schema(
        [("ids", pa.list_(pa.string())), ("lengths", whole), ("input_ids", whole), ("labels", whole)]
    )
    rows = max(1, GROUP_TOKENS // capacity)
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=["ids"]) as writer:
        for start in range(0, len(packed.offsets) - 1, rows):
            ends = packed.offsets[start : start + rows + 1]
            writer.write_table(_packed_rows(order, ends, found, ids, schema))
    return len(packed.offsets) - 1


def write_pairs(path: Path, chosen: NDArray[np.int64], found: Documents, ids: Any, decision: Decision) -> int:
    """Write preference pairs, a line each with its split, from `chosen` documents; returns how many."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    whole = pa.list_(pa.int32())
    sides = [f"{part.name}_{what}" for part in (Part.chosen, Part.rejected) for what in ("ids", "labels")]
    schema = pa.schema([("id", pa.string()), ("split", pa.string()), *((side, whole) for side in sides)])
    pairs = chosen[found.part[chosen] == Part.chosen]
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, len(pairs), 1000):
            lines = []
            for document in pairs[start : start + 1000].tolist():
                row = int(found.row[document])
                # a pair's two documents stand side by side
                values = [*found.of([document]), *found.of([document + 1])]
                line = dict(zip(sides, (value.tolist() for value in values), strict=True))
                lines.append({"id": ids[row].as_py(), "split": Fate(int(decision.fate[row])).name} | line)
            writer.write_table(pa.Table.from_pylist(lines, schema=schema))
    return len(pairs)


def write_test(path: Path, folders: Sequence[Path], decision: Decision) -> None:
    """test.jsonl: the test split's rows as conversations, for bench and judge."""
    with path.open("wb") as file:
        for number, folder in enumerate(folders):
            fate = decision.fate[decision.starts[number] : decision.starts[number + 1]]
            for rows in batches(folder, np.where(fate == Fate.test, fate, np.int8(Fate.leak))):
                for kept in rows:
                    row = kept.row
                    value = {"id": kept.id, "messages": row.messages + row.chosen, "meta": row.meta}
                    value |= {"rejected": row.rejected} if row.rejected else {}
                    value |= {"tools": row.tools} if row.tools else {}
                    file.write(orjson.dumps(value) + b"\n")


def write_rejects(
    path: Path,
    shards: Sequence[Shard],
    folders: Sequence[Path],
    decision: Decision,
    see: Callable[[dict[str, Any]], None],
) -> None:
    """rejects.jsonl: every row that is not used, in the order of the sources; `see` gets each, too."""
    with path.open("wb") as file:
        for number, (shard, folder) in enumerate(zip(shards, folders, strict=True)):
            fate = decision.fate[decision.starts[number] : decision.starts[number + 1]]
            early = _read(folder / "rejects.jsonl")
            late = _set_aside(folder, shard.name, fate)
            for entry in heapq.merge(early, late, key=lambda entry: int(entry["line"])):
                see(entry)
                file.write(orjson.dumps(entry, option=orjson.OPT_SORT_KEYS) + b"\n")


def _read(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        yield from map(orjson.loads, file)


def _set_aside(folder: Path, name: str, fate: NDArray[np.int8]) -> Iterator[dict[str, Any]]:
    """Rows that were fine in themselves, as ingest packed them."""
    import pyarrow as pa

    start = 0
    with pa.memory_map(str(folder / "rows.arrow")) as source, pa.ipc.open_file(source) as reader:
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            at = np.flatnonzero(fate[start : start + batch.num_rows] > Fate.test)
            part = batch.take(pa.array(at)).to_pydict()
            for index, line, identity, row in zip(
                at.tolist(), part["line"], part["id"], part["row"], strict=True
            ):
                shown = orjson.dumps({"id": identity} | orjson.loads(row)).decode()
                yield {
                    "file": name,
                    "line": line,
                    "reason": Fate(int(fate[start + index])).name,
                    "row": shown,
                }
            start += batch.num_rows


def _packed_rows(
    order: NDArray[np.int64], ends: NDArray[np.int64], found: Documents, ids: Any, schema: Any
) -> Any:
    import pyarrow as pa

    members = order[ends[0] : ends[-1]]
    ids_of_tokens, labels = found.of(members.tolist())
    lengths = found.length[members]
    tokens = np.concatenate([[0], np.cumsum(lengths)])[ends - ends[0]]
    by_document, by_token = (pa.array(value, pa.int32()) for value in (ends - ends[0], tokens))
    return pa.Table.from_arrays(
        [
            pa.ListArray.from_arrays(by_document, ids.take(pa.array(found.row[members])).combine_chunks()),
            pa.ListArray.from_arrays(by_document, pa.array(lengths, pa.int32())),
            pa.ListArray.from_arrays(by_token, ids_of_tokens),
            pa.ListArray.from_arrays(by_token, labels),
        ],
        schema=schema,
    )


def _row(lists: Ragged, at: int) -> NDArray[Any]:
    return lists.values[lists.offsets[at] : lists.offsets[at + 1]]


def _sums(lists: Ragged) -> NDArray[np.int64]:
    if len(lists.offsets) < 2:
        return np.empty(0, np.int64)
    # a document is never empty, which reduceat could not say; no array of the size of all tokens is made
    return np.add.reduceat(lists.values, lists.offsets[:-1], dtype=np.int64)
