"""The items that a model is tested on, read from benchmark snapshots and judge labels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.common.files import read_json, read_jsonl
from stages.prepare.overlap.leakage import Item

CARD = "card.json"
IDS = ("id", "task_id", "question_id")
BATCH = 1024  # items at a time


def benchmark_items(folder: Path) -> Iterator[Item]:
    """Items of data/benchmarks/<task>/: the string fields of each row of every Parquet and JSON-lines file there.

    A snapshot (ops.snapshot) says in its card which file the task tests on, and that one counts: from the others come
    examples for the prompt. A group's are its tasks'. An item's id is its own, or its row's number; with several files,
    after its file's name; in a snapshot always the number, as bench writes it. Raises ValueError naming what cannot be
    read, and where there is no file.
    """
    card = read_json(folder / CARD) if (folder / CARD).is_file() else {}
    if "tasks" in card:
        for task in card["tasks"]:
            yield from benchmark_items(folder.parent / task)
        return
    if "tested" in card:
        for number, row in enumerate(_parquet(folder / card["tested"])):
            yield _item(folder.name, f"{number:07d}", "\n".join(strings(row)))
        return
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".parquet", ".jsonl"))
    if not files:
        raise ValueError(f"{folder} has no .parquet or .jsonl file: put its items there, or remove it")
    for path in files:
        prefix = f"{path.relative_to(folder).as_posix()}:" if len(files) > 1 else ""
        for number, row in enumerate(_parquet(path) if path.suffix == ".parquet" else _lines(path)):
            own = {key: row[key] for key in IDS if key in row} if isinstance(row, dict) else {}
            rest = {key: value for key, value in row.items() if key not in own} if own else row
            name = next((value for value in own.values() if isinstance(value, str | int)), f"{number:07d}")
            yield _item(folder.name, f"{prefix}{name}", "\n".join(strings(rest)))


def label_items(folder: Path) -> Iterator[Item]:
    """Questions that the judge is calibrated on: "question" of each row of data/raw/<name>/labels/*.jsonl."""
    for path in sorted(folder.glob("*.jsonl")):
        for number, row in enumerate(_lines(path)):
            if not isinstance(row, dict) or not isinstance(row.get("question"), str):
                raise ValueError(
                    f'{path}:{number + 1}: no text in "question", which the judge would be asked'
                )
            yield _item("judge", str(row.get("id", f"{path.stem}:{number:07d}")), row["question"])


def _item(benchmark: str, name: str, text: str) -> Item:
    # half a character, which JSON can spell, cannot be written
    name, text = (value.encode(errors="replace").decode() for value in (name, text))
    return Item(benchmark, name, text)


def _lines(path: Path) -> Iterator[Any]:
    try:
        yield from read_jsonl(path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not valid UTF-8 ({error})") from error


def _parquet(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not readable as Parquet ({error})") from error


def strings(value: Any) -> Iterator[str]:
    """Every text in a JSON value, in order; keys are not texts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)
