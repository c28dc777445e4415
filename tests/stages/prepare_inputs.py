"""Sources for the tests of prepare's reading: one file, its bytes made by the test."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

from stages.prepare.config import Columns, Data, Format, Source, Use
from stages.prepare.reading.read import Record, plan, records

LIMIT = 1 << 20
GOOD = b'{"q": "good", "n": 1}'


def source(*files: str, use: Use = Use.split, **hub: str) -> Source:
    columns = Columns(**dict.fromkeys(Columns.__annotations__, ""))
    names = {"hub": "", "subset": "", "revision": "", "part": ""} | hub
    return Source("made", Format.messages, columns, {}, use, 1.0, list(files), **names)


def data(root: Path, **sources: Source) -> Data:
    return Data("made", "Made for a test.", "MIT", str(root), sources)


def read_all(root: Path, limit: int = LIMIT, **sources: Source) -> list[Record]:
    found = data(root, **sources)
    return [row for shard in plan(found)[1] for row in records(shard, sources[shard.source], limit)]


def read(root: Path, name: str, content: bytes, limit: int = LIMIT) -> list[Record]:
    (root / name).write_bytes(content)
    return read_all(root, limit, rows=source(name))


def packed(content: bytes, compression: str) -> bytes:
    import pyarrow as pa

    if compression == ".zst":
        return bytes(pa.compress(content, codec="zstd", asbytes=True))
    return gzip.compress(content, mtime=0) if compression == ".gz" else content


def content_of(kind: str, rows: list[dict[str, Any]]) -> bytes:
    """The rows as a file of that kind; a CSV file's values are texts."""
    if kind == ".parquet":
        return parquet(rows)
    if kind in (".csv", ".tsv"):
        file = io.StringIO()
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if kind == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
        return file.getvalue().encode()
    if kind == ".json":
        return json.dumps({"version": "[1]", "data": rows}, indent=1, ensure_ascii=False).encode()
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def parquet(rows: Any, **options: Any) -> bytes:
    """Rows, or a table, as a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows) if isinstance(rows, list) else rows, sink, **options)
    return sink.getvalue()
