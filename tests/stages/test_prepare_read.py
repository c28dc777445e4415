"""prepare's reading: every kind of file gives the same rows, whole or in shards; a plan says what it cannot read."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from stages.prepare.config import Use
from stages.prepare.reading import read as reading
from stages.prepare.reading.read import plan, records
from tests.stages.prepare_inputs import content_of, data, packed, parquet, read, read_all, source

ROWS = [
    {"id": str(number), "q": f'a "quoted", é\t{number}\nand a second line {{["', "a": "ü" * (number % 7)}
    for number in range(50)
]
KINDS = [f"{kind}{c}" for kind in (".jsonl", ".ndjson", ".json", ".csv", ".tsv") for c in ("", ".gz", ".zst")]


@pytest.mark.parametrize("kind", [*KINDS, ".JSONL.GZ", ".parquet"])
def test_every_kind_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    suffix, _, compression = kind.lower().removeprefix(".").partition(".")
    content = packed(content_of(f".{suffix}", ROWS), f".{compression}" if compression else "")
    found = read(tmp_path, f"rows{kind}", content)
    assert [record.row for record in found] == ROWS
    assert {record.problem for record in found} == {""}
    assert {record.file for record in found} == {f"rows{kind}"}


LINES = st.lists(
    st.sampled_from(
        [b"", b"  ", b'{"a": 1}', b"{", b"\xff", b"[]", b'{"b": "' + b"x" * 60 + b'"}', b'{"c": 2}\r']
    )
    | st.binary(max_size=20),
    max_size=30,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=LINES, part=st.integers(1, 200), ended=st.booleans())
@example(lines=[b"\xef\xbb\xbf"], part=1, ended=False)
def test_lines_are_the_same_in_any_number_of_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[bytes], part: int, ended: bool
) -> None:
    content = b"\n".join(lines) + b"\n" * ended
    whole = read(tmp_path, "rows.jsonl", content, limit=50)
    with monkeypatch.context() as patch:
        patch.setattr(reading, "SHARD_BYTES", part)
        shards = plan(data(tmp_path, rows=source("rows.jsonl")))[1]
        assert read(tmp_path, "rows.jsonl", content, limit=50) == whole
    assert [0, *(shard.end for shard in shards)][: len(shards)] == [shard.begin for shard in shards]
    assert all(shard.end - shard.begin >= part for shard in shards[:-1])
    text = content.removeprefix(b"\xef\xbb\xbf")  # a byte order mark is no part of the first line
    assert [record.line for record in whole] == [
        n for n, line in enumerate(text.split(b"\n"), 1) if line.strip()
    ]


def test_parquet_is_the_same_in_any_number_of_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = parquet(ROWS, row_group_size=7)
    whole = read(tmp_path, "rows.parquet", content)
    monkeypatch.setattr(reading, "SHARD_BYTES", 700)
    assert len(plan(data(tmp_path, rows=source("*.parquet")))[1]) > 2
    assert read(tmp_path, "rows.parquet", content) == whole
    assert [record.line for record in whole] == list(range(1, 51))


def test_test_sources_come_first_then_names_then_sorted_files(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "test.jsonl", "valid.jsonl"):
        (tmp_path / name).write_bytes(b'{"a": 1}\n')
    found = data(
        tmp_path,
        a=source("*.jsonl", "a.jsonl"),
        v=source("valid.jsonl", use=Use.valid),
        z=source("test.jsonl", use=Use.test),
    )
    files, shards = plan(found)
    names = ["test.jsonl", "valid.jsonl", "a.jsonl", "b.jsonl", "test.jsonl", "valid.jsonl"]
    assert [file.name for file in files] == [shard.name for shard in shards] == names
    assert {(file.size, file.sha256) for file in files} == {(9, hashlib.sha256(b'{"a": 1}\n').hexdigest())}


def link(root: Path) -> None:
    (root / "link.jsonl").symlink_to(root / "nothing")


PLANS: dict[str, tuple[list[str], Any, str]] = {
    "nothing matches": (["x/*.jsonl"], None, r"data.sources.rows.files: 'x/\*.jsonl' matches nothing in"),
    "above": (["../a.jsonl"], None, r"data.sources.rows.files: '../a.jsonl' leaves data.path"),
    "absolute": (["/etc/passwd"], None, "leaves data.path"),
    "unknown kind": (["a.txt"], lambda root: (root / "a.txt").touch(), "a.txt is of an unknown kind: .jsonl"),
    "no kind": (["rows"], lambda root: (root / "rows").touch(), "rows is of an unknown kind"),
    "packed Parquet": (
        ["a.parquet.gz"],
        lambda r: (r / "a.parquet.gz").touch(),
        "compresses its columns itself",
    ),
    "folder": (["a.jsonl"], lambda root: (root / "a.jsonl").mkdir(), "is a folder: name its files"),
    "pipe": (["a.jsonl"], lambda root: os.mkfifo(root / "a.jsonl"), "no regular file but a pipe"),
    "link to nothing": (["*.jsonl"], link, "link.jsonl cannot be read .No such file.*dvc pull"),
    "no gzip": (
        ["a.json.gz"],
        lambda r: (r / "a.json.gz").write_text("[]"),
        "a.json.gz does not begin as a .gz file",
    ),
    "no zstd": (
        ["a.csv.zst"],
        lambda r: (r / "a.csv.zst").write_text("a,b"),
        "does not begin as a .zst file",
    ),
    "empty gzip": (["a.json.gz"], lambda r: (r / "a.json.gz").touch(), "does not begin as a .gz file"),
    "no Parquet": (
        ["a.parquet"],
        lambda r: (r / "a.parquet").write_text("PAR1"),
        "a.parquet is no whole Parquet",
    ),
    "no files": ([], None, "data.sources.rows has neither files nor hub: give it one"),
}


@pytest.mark.parametrize("case", PLANS)
def test_a_plan_names_what_it_cannot_read(tmp_path: Path, case: str) -> None:
    patterns, make, message = PLANS[case]
    if make:
        make(tmp_path)
    with pytest.raises(ValueError, match=message) as raised:
        plan(data(tmp_path, rows=source(*patterns)))
    assert "data.sources.rows" in str(raised.value) and "\n" not in str(raised.value)


def test_a_plan_needs_a_source_of_one_sort(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.sources is empty"):
        plan(data(tmp_path))
    with pytest.raises(ValueError, match=r"data\.sources\.rows has both files and hub"):
        plan(data(tmp_path, rows=source("a.jsonl", hub="someone/something")))


def test_a_link_to_a_file_is_read_because_dvc_links(tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b'{"a": 1}\n')
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows/a.jsonl").symlink_to(tmp_path / "cache")
    assert [record.row for record in read_all(tmp_path, rows=source("rows/*"))] == [{"a": 1}]


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_an_archive_that_ends_in_the_middle_is_an_error(
    tmp_path: Path, compression: str, kept: float
) -> None:
    noise = "".join(
        json.dumps({"a": hashlib.sha256(bytes([n % 256, n // 256])).hexdigest()}) + "\n" for n in range(9000)
    )
    content = packed(noise.encode(), compression)
    with pytest.raises(
        ValueError, match=rf"rows.jsonl{compression} ends in the middle after [\d,]+ rows: fetch it"
    ):
        read(tmp_path, f"rows.jsonl{compression}", content[: max(5, int(len(content) * kept))])


@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_an_archive_with_other_bytes_in_it_is_an_error(tmp_path: Path, compression: str) -> None:
    content = bytearray(packed(content_of(".jsonl", ROWS), compression))
    content[len(content) // 2 : len(content) // 2 + 40] = b"\xa5" * 40
    with pytest.raises(ValueError, match=rf"rows.jsonl{compression} is damaged .*: fetch it again"):
        read(tmp_path, f"rows.jsonl{compression}", bytes(content))


def test_gzip_members_follow_each_other_and_what_is_none_is_counted(tmp_path: Path) -> None:
    one, two = gzip.compress(b'{"a": 1}\n{"a"'), gzip.compress(b": 2}\n")
    assert [r.row for r in read(tmp_path, "a.jsonl.gz", one + two + b"\0" * 600)] == [{"a": 1}, {"a": 2}]
    found = read(tmp_path, "a.jsonl.gz", one + two + b"\0\0garbage")
    assert [(r.problem, r.raw) for r in found[2:]] == [("trailing_garbage", "garbage")]
    with pytest.raises(ValueError, match="damaged between two of its gzip members after 1 rows"):
        read(tmp_path, "a.jsonl.gz", one + b"?" + two)
    frames = packed(b'{"a": 1}\n', ".zst") + packed(b'{"a": 2}\n', ".zst")
    assert [r.row for r in read(tmp_path, "a.jsonl.zst", frames)] == [{"a": 1}, {"a": 2}]


def test_a_cut_or_broken_parquet_file_is_an_error(tmp_path: Path) -> None:
    content = bytearray(parquet(ROWS, write_page_checksum=True, compression="none"))
    with pytest.raises(
        ValueError, match=r"data.sources.rows.files: rows.parquet is no whole Parquet file: fetch it"
    ):
        read(tmp_path, "rows.parquet", bytes(content[: len(content) // 2]))
    content[200:240] = b"\xa5" * 40
    with pytest.raises(ValueError, match=r"rows.parquet is damaged .* after 0 rows: fetch it again"):
        read(tmp_path, "rows.parquet", bytes(content))
    twice = pa.table([pa.array([1]), pa.array([2])], names=["a", "a"])
    with pytest.raises(ValueError, match="has two columns of one name"):
        read(tmp_path, "rows.parquet", parquet(twice))


def test_parquet_values_without_json_cost_their_row_alone(tmp_path: Path) -> None:
    texts = pa.StringArray.from_buffers(
        2, pa.py_buffer(b"\0\0\0\0\2\0\0\0\4\0\0\0"), pa.py_buffer(b"ok\xff\xfe")
    )
    cases: list[tuple[Any, list[str], Any]] = [
        (pa.array([b"text", b"\xff", None]), ["", "not_json", ""], "text"),
        (pa.array([1.5, float("nan"), float("inf")]), ["", "not_json", "not_json"], 1.5),
        (pa.array([datetime(2026, 1, 2, 3)]), [""], "2026-01-02T03:00:00"),
        (pa.array([Decimal("1.20"), None]), ["", ""], "1.20"),
        (texts, ["", "invalid_utf8"], "ok"),
        (pa.array([10**18, 2**62], pa.timestamp("us")), ["not_json"] * 2, None),
        (pa.array([[("k", 1)], [("k", 1), ("k", 2)]], pa.map_(pa.string(), pa.int64())), ["", "not_json"], {"k": 1}),
        (pa.array([["x" * 99], ["y"]]), ["row_too_large", ""], None),
        (pa.array([2**64 - 1], pa.uint64()), [""], 2**64 - 1),
    ]  # fmt: skip
    for column, problems, first in cases:
        found = read(tmp_path, "rows.parquet", parquet(pa.table({"a": column})), limit=90)
        assert [record.problem for record in found] == problems
        assert [record.line for record in found] == list(range(1, len(problems) + 1))
        assert (found[0].row or {"a": None})["a"] == first
        assert all(record.raw for record in found)


def test_a_hub_dataset_is_read_in_shards_at_a_pinned_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "SHARD_ROWS", 20)
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub/train.jsonl").write_bytes(content_of(".jsonl", ROWS))
    found = source(hub=str(tmp_path / "hub"), part="train")
    files, shards = plan(data(tmp_path, rows=found))
    assert [(shard.begin, shard.end, shard.first_line) for shard in shards] == [
        (0, 20, 1),
        (20, 40, 21),
        (40, 50, 41),
    ]
    assert files[0].name == f"{tmp_path / 'hub'}:train" and len(files[0].sha256) == 64
    rows = [record for shard in shards for record in records(shard, found, 1000)]
    assert [record.row for record in rows] == ROWS and [record.line for record in rows] == list(range(1, 51))
    with pytest.raises(
        ValueError, match=r"data\.sources\.rows: revision 'main' of hub dataset 'a/b' is not a full commit"
    ):
        plan(data(tmp_path, rows=source(hub="a/b", revision="main", part="train")))
