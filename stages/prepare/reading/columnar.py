"""Rows of Parquet files and hub datasets: as plain JSON values, or a reject where a value has no JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import date, time, timedelta
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import UUID

from stages.prepare.config import Source
from stages.prepare.reading.record import Record, decode, excerpt, too_large
from stages.prepare.reading.streams import Damaged

BATCH = 1_000  # rows in memory at a time
FULL_SHA = re.compile(r"[0-9a-f]{40}")


def row_groups(path: Path, name: str) -> list[tuple[int, int]]:
    """Rows and bytes of each row group of a Parquet file. Raises ValueError for what is none, or has a column twice."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names, groups = (
                file.schema_arrow.names,
                [file.metadata.row_group(i) for i in range(file.num_row_groups)],
            )
            sizes = [(group.num_rows, group.total_byte_size) for group in groups]
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{name} is no whole Parquet file: fetch it again ({_line(error)})") from error
    if len(set(names)) < len(names):
        raise ValueError(f"{name} has two columns of one name among {', '.join(sorted(names))}: rename one")
    return sizes


def parquet_rows(path: Path, name: str, begin: int, end: int, first: int, limit: int) -> Iterator[Record]:
    """Records of the row groups `begin` to `end`, numbered from `first`; `line` is the row's number. Raises Damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(
            path, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True
        ) as file:
            for batch in file.iter_batches(BATCH, row_groups=range(begin, end), use_threads=False):
                yield from table_rows(batch, name, first, limit)
                first += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise Damaged(f"is damaged ({_line(error)})") from error


def hub_rows(source: Source, name: str, begin: int, end: int, limit: int) -> Iterator[Record]:
    """Records of the rows `begin` to `end` of a hub dataset; `line` is the row's number, from 1."""
    dataset = load_hub(source.hub, source.subset, source.revision, source.part)
    rows = dataset.select(range(begin, end)).with_format("arrow")  # as stored: no image is decoded
    for index, table in enumerate(rows.iter(BATCH)):
        yield from table_rows(table, name, begin + index * BATCH + 1, limit)


@lru_cache(maxsize=1)
def load_hub(hub: str, subset: str, revision: str, part: str) -> Any:
    """A `datasets.Dataset`, from the hub or a local folder. Raises ValueError for a floating revision."""
    if not Path(hub).exists() and not FULL_SHA.fullmatch(revision):
        raise ValueError(
            f"revision {revision!r} of hub dataset {hub!r} is not a full commit hash: a floating revision cannot be "
            "reproduced; copy the 40 hex digits from the dataset's history"
        )
    from datasets import load_dataset

    try:
        return load_dataset(hub, subset or None, revision=revision or None, split=part)
    except Exception as error:
        where = f"hub dataset {hub!r}, subset {subset!r}, part {part!r}"
        raise ValueError(f"{where}, could not be loaded: {_line(error)}") from error


def table_rows(table: Any, name: str, first: int, limit: int) -> Iterator[Record]:
    """Records of an Arrow table or batch; a value that Python has not, or bytes that are no text, cost their row."""
    try:
        rows = table.to_pylist(maps_as_pydicts="strict")
    except (ValueError, LookupError, ArithmeticError):
        for index in range(table.num_rows):
            yield _single(table.slice(index, 1), name, first + index, limit)
        return
    for number, row in enumerate(rows, first):
        yield _plain(name, number, row, limit)


def _single(row: Any, name: str, number: int, limit: int) -> Record:
    try:
        return _plain(name, number, row.to_pylist(maps_as_pydicts="strict")[0], limit)
    except UnicodeDecodeError:
        return Record(name, number, _visible(_values(row), limit), None, "invalid_utf8")
    except (ValueError, LookupError, ArithmeticError):
        return Record(name, number, _visible(_values(row), limit), None, "not_json")


def _plain(name: str, number: int, row: dict[str, Any], limit: int) -> Record:
    """The record that the row would be as a JSON line; dates in ISO 8601, decimals as text."""
    try:
        data = json.dumps(row, ensure_ascii=False, allow_nan=False, default=_text).encode()
    except (ValueError, TypeError, RecursionError):
        return Record(name, number, _visible(row, limit), None, "not_json")
    return decode(name, number, data) if len(data) <= limit else too_large(name, number, data, len(data))


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, (Decimal, timedelta, UUID)):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON")


def _values(row: Any) -> dict[str, Any]:
    """A row's columns one by one, those that cannot be read as their bytes or the reason why not."""
    return {column: _value(row.column(index)) for index, column in enumerate(row.schema.names)}


def _value(column: Any) -> Any:
    try:
        return column.to_pylist()[0]
    except UnicodeDecodeError as error:
        return error.object.decode("utf-8", errors="backslashreplace")
    except (ValueError, LookupError, ArithmeticError) as error:
        return f"<{_line(error)}>"


def _visible(row: dict[str, Any], limit: int) -> str:
    """A row without JSON as a person can read it, all of it if it is within the limit."""
    data = json.dumps(row, ensure_ascii=False, default=str, skipkeys=True).encode(errors="backslashreplace")
    return data.decode() if len(data) <= limit else excerpt(data, len(data))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
