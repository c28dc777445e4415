"""What there is to read, cut into shards; and a shard's rows, one record each whatever its bytes are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stages.common.files import tree_digest
from stages.prepare.config import Data, Source, Use
from stages.prepare.reading.columnar import hub_rows, load_hub, parquet_rows, row_groups
from stages.prepare.reading.csv_rows import csv_rows
from stages.prepare.reading.cuts import Cut, one_pass, runs
from stages.prepare.reading.elements import elements
from stages.prepare.reading.inputs import JSON, LINES, PARQUET, TSV, Kind, expand, kind_of
from stages.prepare.reading.lines import UNTIL_END, leftover, lines
from stages.prepare.reading.record import Record
from stages.prepare.reading.streams import Damaged, begins, open_rows

__all__ = ["RawFile", "Record", "Shard", "file_records", "plan", "records"]

SHARD_BYTES = 16 << 20
SHARD_ROWS = 20_000  # of a hub dataset
FIRST = [Use.test, Use.valid]  # what other sources' rows are held against is read before them


@dataclass(frozen=True)
class RawFile:
    """An input as the dataset's card names it; size in bytes.

    A hub dataset's size is its Arrow table's, its digest that of its identity: the commit, or a local folder's files.
    """

    source: str
    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Shard:
    """A part of one input: bytes `begin` to `end`, of Parquet row groups, of a hub dataset rows."""

    source: str
    name: str
    path: str
    begin: int
    end: int
    first_line: int


def plan(data: Data) -> tuple[list[RawFile], list[Shard]]:
    """Every input and its shards: test sources, then valid, then the others, by name; files in sorted order.

    Raises ValueError that names the source for what cannot be read.
    """
    inputs: list[tuple[RawFile, list[Shard]]] = []
    for name, source in sorted(data.sources.items(), key=_turn):
        if bool(source.files) == bool(source.hub):
            both = "both files and hub" if source.hub else "neither files nor hub"
            raise ValueError(f"data.sources.{name} has {both}: give it one of them")
        inputs += [_hub(name, source)] if source.hub else _files(name, source, Path(data.path))
    if not inputs:
        raise ValueError("data.sources is empty: name a source in conf/data")
    return [file for file, _ in inputs], [shard for _, shards in inputs for shard in shards]


def records(shard: Shard, source: Source, max_row_bytes: int) -> Iterator[Record]:
    """Every row of a shard, good or not, in order.

    Raises ValueError where a file is damaged: nobody knows how many of its rows are missing.
    """
    count = 0
    try:
        for record in _records(shard, source, max_row_bytes):
            count += 1
            yield record
    except Damaged as error:
        raise ValueError(f"{shard.name} {error} after {count:,} rows: fetch it again") from error


def file_records(path: Path, max_row_bytes: int) -> Iterator[Record]:
    """Every row of one file. Raises ValueError for a file that cannot be read."""
    _, _, cuts = _file(path.name, path)
    for cut in cuts:
        yield from _of_file(Shard("", path.name, str(path), *cut), max_row_bytes)


def _turn(item: tuple[str, Source]) -> tuple[int, str]:
    name, source = item
    return FIRST.index(source.use) if source.use in FIRST else len(FIRST), name


def _hub(source_name: str, source: Source) -> tuple[RawFile, list[Shard]]:
    try:
        dataset = load_hub(source.hub, source.subset, source.revision, source.part)
    except ValueError as error:
        raise ValueError(f"data.sources.{source_name}: {error}") from error
    folder = Path(source.hub)
    origin = tree_digest(folder) if folder.exists() else f"{source.hub}@{source.revision}"
    digest = hashlib.sha256("\0".join((origin, source.subset, source.part)).encode()).hexdigest()
    name = (
        f"{source.hub}@{source.revision}:{source.part}" if source.revision else f"{source.hub}:{source.part}"
    )
    begins = range(0, dataset.num_rows, SHARD_ROWS)
    cuts = [Cut(begin, min(begin + SHARD_ROWS, dataset.num_rows), begin + 1) for begin in begins]
    file = RawFile(source_name, name, dataset.data.nbytes, digest)
    return file, [Shard(source_name, name, source.hub, *cut) for cut in cuts]


def _files(source_name: str, source: Source, root: Path) -> Iterator[tuple[RawFile, list[Shard]]]:
    where = f"data.sources.{source_name}.files"
    for name in expand(where, source.files, root):
        try:
            size, digest, cuts = _file(name, root / name)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        shards = [Shard(source_name, name, str(root / name), *cut) for cut in cuts]
        yield RawFile(source_name, name, size, digest), shards


def _file(name: str, path: Path) -> tuple[int, str, list[Cut]]:
    kind = kind_of(name)
    found = one_pass(path, SHARD_BYTES)
    if kind.compression and not begins(found.head, kind.compression):
        raise ValueError(
            f"{name} does not begin as a {kind.compression} file does: rename it, or fetch it again"
        )
    if kind == Kind(LINES, ""):
        cuts = found.lines
    elif kind.container == PARQUET:
        cuts = runs(row_groups(path, name), SHARD_BYTES)
    else:
        cuts = [Cut(0, found.size, 1)] if found.size else []
    return found.size, found.sha256, cuts


def _records(shard: Shard, source: Source, limit: int) -> Iterator[Record]:
    if source.hub:
        return hub_rows(source, shard.name, shard.begin, shard.end, limit)
    return _of_file(shard, limit)


def _of_file(shard: Shard, limit: int) -> Iterator[Record]:
    kind = kind_of(shard.name)
    if kind.container == PARQUET:
        return parquet_rows(Path(shard.path), shard.name, shard.begin, shard.end, shard.first_line, limit)
    return _streamed(shard, kind, limit)


def _streamed(shard: Shard, kind: Kind, limit: int) -> Iterator[Record]:
    name = shard.name
    with open_rows(Path(shard.path), kind.compression, name, shard.begin) as stream:
        if kind == Kind(LINES, ""):
            yield from lines(stream, name, stream.tell(), shard.end, shard.first_line, limit)
        elif kind.container == LINES:
            yield from lines(stream, name, 0, UNTIL_END, 1, limit)
        elif kind.container == JSON:
            yield from elements(stream, name, limit)
        else:
            yield from csv_rows(stream, name, "\t" if kind.container == TSV else ",", limit)
        yield from leftover(stream, name)
