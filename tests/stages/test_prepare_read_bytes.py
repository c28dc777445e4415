"""prepare's reading against random bytes and rows of 100 MB: never a crash, never a lost row, memory bounded."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.stages.prepare_inputs import GOOD, content_of, read

ROW = json.loads(GOOD)
SETTINGS = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@SETTINGS
@given(st.binary(max_size=300))
def test_any_bytes_as_lines(tmp_path: Path, junk: bytes) -> None:
    found = read(tmp_path, "a.jsonl", GOOD + b"\n" + junk + b"\n" + GOOD, limit=100)
    assert len(found) == 2 + sum(bool(line.strip()) for line in junk.split(b"\n"))
    assert found[0].row == found[-1].row == ROW
    assert all((record.row is None) == bool(record.problem) for record in found)


JSONISH = st.binary(max_size=40) | st.text('[]{},:"\\\n ab1é', max_size=60).map(str.encode)


@SETTINGS
@given(JSONISH)
def test_any_bytes_in_a_list(tmp_path: Path, junk: bytes) -> None:
    found = read(tmp_path, "a.json", b"[" + GOOD + b"," + junk + b"," + GOOD + b"]", limit=100)
    assert found[0].row == ROW
    assert found[-1].row == ROW or found[-1].problem == "invalid_json"
    assert all((record.row is None) == bool(record.problem) for record in found)


VALUES: Any = st.recursive(
    st.none() | st.integers() | st.text('[]{},:"\\\n aé\u2028'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('[]{}",\\a'), inner, max_size=3),
    max_leaves=8,
)
OBJECT = st.dictionaries(st.text('[]{}",\\a'), VALUES, max_size=3)


@SETTINGS
@given(rows=st.lists(OBJECT, max_size=5), indent=st.none() | st.integers(0, 2), chunk=st.integers(1, 7))
def test_a_list_is_cut_where_a_parser_cuts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[Any], indent: int | None, chunk: int
) -> None:
    content = json.dumps(
        {"a {": "[", "data": rows, "z": {"b": [1]}}, indent=indent, ensure_ascii=False
    ).encode()
    with monkeypatch.context() as patch:
        patch.setattr("stages.prepare.reading.elements.CHUNK", chunk)
        found = read(tmp_path, "a.json", content)
    assert [(record.row, record.problem) for record in found] == [(row, "") for row in rows]
    assert [json.loads(record.raw) for record in found] == rows


@SETTINGS
@given(st.binary(max_size=300) | st.text('ab,"\n\r', max_size=60).map(str.encode))
def test_any_bytes_as_csv(tmp_path: Path, junk: bytes) -> None:
    try:
        found = read(tmp_path, "a.csv", b"q,n\ngood,1\n" + junk + b"\ngood,1\n", limit=100)
    except ValueError as error:
        assert "opens a quote that no later line closes" in str(error)
        return
    assert found[0].row == {"q": "good", "n": "1"}
    assert all((record.row is None) == bool(record.problem) for record in found)
    if b'"' not in junk:
        assert found[-1].row == {"q": "good", "n": "1"}
        assert len(found) == 2 + sum(bool(line.strip(b"\r")) for line in junk.split(b"\n"))


@SETTINGS
@given(st.binary(max_size=200), st.sampled_from(["a.csv", "a.json", "a.jsonl", "a.tsv"]))
def test_any_bytes_as_a_file_are_rows_or_one_line(tmp_path: Path, junk: bytes, name: str) -> None:
    try:
        found = read(tmp_path, name, junk, limit=50)
    except ValueError as error:
        assert name in str(error)
        return
    assert all((record.row is None) == bool(record.problem) for record in found)


TEXT = st.text(st.characters(codec="utf-8") | st.sampled_from(',"\n\r'), max_size=9)


@SETTINGS
@given(
    st.lists(st.fixed_dictionaries({"q": TEXT, "a, b": TEXT}), min_size=1, max_size=6), st.sampled_from("ct")
)
def test_any_table_comes_back_as_it_was_written(
    tmp_path: Path, rows: list[dict[str, str]], sort: str
) -> None:
    found = read(tmp_path, f"a.{sort}sv", content_of(f".{sort}sv", rows))
    assert [record.row for record in found] == rows


LARGE = """
import resource, sys
from pathlib import Path
from tests.stages.prepare_inputs import read_all, source
read_all(Path(sys.argv[1]), 1 << 20, rows=source("small.jsonl"))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = read_all(Path(sys.argv[1]), 1 << 20, rows=source("large*"))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, *(record.problem for record in found), sep=",")
"""


def write_large(file: io.BufferedIOBase, start: bytes, end: bytes) -> None:
    file.write(start)
    for _ in range(100):
        file.write(b"x" * (1 << 20))
    file.write(end)


def test_memory_is_bounded_whatever_the_length_of_a_row(tmp_path: Path) -> None:
    """100 MB as a line, as an element, as a field and out of 100 kB of gzip, each in under 24 MiB more than 1 row."""
    line = GOOD + b'\n{"a": "', b'"}\n' + GOOD
    with (tmp_path / "large.jsonl").open("wb") as file:
        write_large(file, *line)
    with gzip.open(tmp_path / "large.jsonl.gz", "wb", compresslevel=1) as packed:
        write_large(packed, *line)
    with (tmp_path / "large.json").open("wb") as file:
        write_large(file, b"[" + GOOD + b',{"a": "', b'"},' + GOOD + b"]")
    with (tmp_path / "large.csv").open("wb") as file:
        write_large(file, b'q,n\ngood,1\n"', b'",1\ngood,1\n')
    (tmp_path / "small.jsonl").write_bytes(GOOD)
    command = [sys.executable, "-c", LARGE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    grown, *problems = done.stdout.strip().split(",")
    assert problems == ["", "row_too_large", ""] * 4
    assert int(grown) < 24 * 1024
