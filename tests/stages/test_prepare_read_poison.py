"""prepare's reading against poison: every row in is a row out or a counted reject, or the file is one clear error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stages.prepare.reading.record import MAX_DEPTH, RAW_SHOWN
from tests.stages.prepare_inputs import GOOD, read

ROW = json.loads(GOOD)
LIMIT = 4096
BOM = b"\xef\xbb\xbf"

# What an object alone can be: as a line of JSON Lines, and as an element of a list, with the same verdict.
OBJECTS: dict[str, tuple[bytes, str]] = {
    "bad UTF-8 at the start": (b'\xff{"a": 1}', "invalid_utf8"),
    "bad UTF-8 in a text": (b'{"a": "x\xffy"}', "invalid_utf8"),
    "bad UTF-8 at the end": (b'{"a": 1}\xfe', "invalid_utf8"),
    "bad UTF-8 in a key": (b'{"a\xc3": 1}', "invalid_utf8"),
    "overlong encoding": (b'{"a": "\xc0\xaf"}', "invalid_utf8"),
    "a surrogate's bytes": (b'{"a": "\xed\xa0\x80"}', "invalid_utf8"),
    "beyond Unicode": (b'{"a": "\xf5\x80\x80\x80"}', "invalid_utf8"),
    "continuation alone": (b'{"a": "\x80"}', "invalid_utf8"),
    "cut character": (b'{"a": "\xe2\x82"}', "invalid_utf8"),
    "Latin-1": ('{"a": "Stra\xdfe"}'.encode("latin-1"), "invalid_utf8"),
    "NUL byte in a text": (b'{"a": "\0"}', "invalid_json"),
    "NUL byte outside": (b'{"a": 1\0}', "invalid_json"),
    "NaN": (b'{"a": NaN}', "invalid_json"),
    "Infinity": (b'{"a": Infinity}', "invalid_json"),
    "-Infinity": (b'{"a": [-Infinity]}', "invalid_json"),
    "overflow": (b'{"a": 1e999}', "invalid_json"),
    "overflow beside a long number": (b'{"b": 12345678901234567890, "a": 1e999}', "invalid_json"),
    "too deep": (b'{"a": ' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}", "invalid_json"),
    "far too deep": (b'{"a": ' + b"[" * 1500 + b"]" * 1500 + b"}", "invalid_json"),
    "single quotes": (b"{'a': 1}", "invalid_json"),
    "no value": (b'{"a": }', "invalid_json"),
    "comment": (b'{"a": 1 /* one */}', "invalid_json"),
    "unquoted": (b"{a: 1}", "invalid_json"),
    "control character": (b'{"a": "\x01"}', "invalid_json"),
    "bad escape": (b'{"a": "\\x"}', "invalid_json"),
    "mark inside": (BOM + b'{"a": 1}', "invalid_json"),
    "number": (b"42", "not_an_object"),
    "text": (b'"{"', "not_an_object"),
    "null": (b"null", "not_an_object"),
    "list": (b'[{"a": 1}]', "not_an_object"),
    "too large": (b'{"a": "' + b"x" * LIMIT + b'"}', "row_too_large"),
    "too large, and broken": (b'{"a": "\xff' + b"," * LIMIT + b'"}', "row_too_large"),
    "NUL escape": (b'{"a": "\\u0000"}', ""),
    "lone surrogate": (b'{"a": "\\ud800"}', ""),
    "integer over 64 bits": (b'{"a": 123456789012345678901234567890}', ""),
    "twice the same key": (b'{"a": 1, "a": 2}', ""),
    "deep": (b'{"a": ' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}", ""),
}


@pytest.mark.parametrize("case", OBJECTS)
def test_a_broken_object_is_lost_alone(tmp_path: Path, case: str) -> None:
    row, problem = OBJECTS[case]
    lines = read(tmp_path, "a.jsonl", b"\n".join([GOOD, row, GOOD]), LIMIT)
    assert [(r.line, r.problem) for r in lines] == [(1, ""), (2, problem), (3, "")]
    listed = read(tmp_path, "a.json", b"[" + b",\n".join([GOOD, row, GOOD]) + b"]", LIMIT)
    wrapped = read(
        tmp_path, "a.json", b'{"v": "[",\n"data":[\n' + b",\n".join([GOOD, row, GOOD]) + b"]}", LIMIT
    )
    assert [(r.line, r.problem, r.row) for r in listed] == [(r.line, r.problem, r.row) for r in lines]
    assert [(r.line - 2, r.problem, r.row) for r in wrapped] == [(r.line, r.problem, r.row) for r in lines]
    assert lines[0].row == lines[2].row == ROW
    assert lines[1].raw.startswith(row[:9].decode("utf-8", "backslashreplace"))


def test_what_the_fast_parser_would_change_is_kept_exactly(tmp_path: Path) -> None:
    values = [2**64, -(2**63) - 1, 10**40, 2**64 - 1, 0.1234567890123456789, "\ud800", "12345678901234567890"]
    content = "\n".join(json.dumps({"a": value}) for value in values).encode()
    assert [record.row for record in read(tmp_path, "a.jsonl", content)] == [{"a": value} for value in values]


G, BAD = "", "invalid_json"
UTF16 = '{"a": 1}\n'.encode("utf-16")
WIDE = b'q,n\ngood,1\n"a'
# File name, content, the problems of its records in order; or the message of the error that it is.
FILES: dict[str, tuple[str, bytes, list[str] | str]] = {
    "empty": ("a.jsonl", b"", []),
    "empty JSON": ("a.json", b"", []),
    "empty CSV": ("a.csv", b"", []),
    "blank lines": ("a.jsonl", b"\n \r\n\t\n\n", []),
    "blank JSON": ("a.json", b"\n \r\n", []),
    "blank CSV": ("a.csv", b"\n\r\n\n", []),
    "only a mark": ("a.jsonl", BOM, []),
    "only a mark, JSON": ("a.json", BOM, []),
    "only a mark, CSV": ("a.csv", BOM, []),
    "a mark": ("a.jsonl", BOM + GOOD, [G]),
    "a mark, JSON": ("a.json", BOM + b"[" + GOOD + b"]", [G]),
    "a mark, CSV": ("a.csv", BOM + b"q,n\ngood,1\n", [G]),
    "no last line end": ("a.jsonl", GOOD + b"\n" + GOOD, [G, G]),
    "\\r\\n": ("a.jsonl", GOOD + b"\r\n\r\n" + GOOD + b"\r\n", [G, G]),
    "\\r alone": ("a.jsonl", GOOD + b"\r" + GOOD + b"\r", [BAD]),
    "\\r alone, CSV": ("a.csv", b"q,n\rgood,1\r", "a.csv:1 is no header row of a CSV file"),
    "cut line": ("a.jsonl", GOOD + b"\n" + GOOD[:-3], [G, BAD]),
    "cut character at the end": ("a.jsonl", GOOD + b'\n{"a": "\xe2\x82', [G, "invalid_utf8"]),
    "UTF-16": ("a.jsonl", UTF16, "a.jsonl is UTF-16: save it as UTF-8"),
    "UTF-16, the other order": ("a.json", b"\xfe\xff\0[\0]", "a.json is UTF-16: save it as UTF-8"),
    "UTF-16 without a mark": ("a.jsonl", UTF16[2:], [BAD, BAD]),
    "blank and over the limit": ("a.jsonl", b" " * 9000 + b"\n" + GOOD, [G]),
    "binary": ("a.jsonl", bytes(range(256)), ["invalid_json", "invalid_utf8"]),
    "only line ends": ("a.jsonl", b"\n" * 9000, []),
    "comma at the end": ("a.json", b"[" + GOOD + b",]", [G, BAD]),
    "two commas": ("a.json", b"[" + GOOD + b",," + GOOD + b"]", [G, BAD, G]),
    "no comma": ("a.json", b"[" + GOOD + b" " + GOOD + b"," + GOOD + b"]", [BAD, G]),
    "cut list": ("a.json", b"[" + GOOD + b"," + GOOD[:9], [G, BAD]),
    "list cut between": ("a.json", b"[" + GOOD + b"," + GOOD, [G, BAD]),
    "list cut after a comma": ("a.json", b"[" + GOOD + b",\n", [G, BAD]),
    "cut object": ("a.json", b'{"data": [' + GOOD + b"]", [G, BAD]),
    "missing quote": ("a.json", b"[" + GOOD + b',{"a: 1},' + GOOD + b"," + GOOD + b"]", [G, BAD]),
    "missing bracket": ("a.json", b"[" + GOOD + b',{"a": [1},' + GOOD + b"]", [G, BAD]),
    "text after the list": ("a.json", b"[" + GOOD + b"] x", [G, BAD]),
    "two lists": ("a.json", b"[" + GOOD + b"]\n[" + GOOD + b"]", [G, BAD]),
    "scalar": ("a.json", b"42", [BAD]),
    "only a bracket": ("a.json", b"[", [BAD]),
    "a bracket closed": ("a.json", b"]", [BAD]),
    "empty list": ("a.json", b"[ ]", []),
    "an object without a list": ("a.json", b'{"a": {"b": []}}', ["no_list_of_rows"]),
    "two lists in an object": (
        "a.json",
        b'{"a": [], "b": []}',
        "a.json:1 begins a second list of its object",
    ),
    "lines": (
        "a.json",
        b'{"a": 1}\n{"a": 2}\n',
        "a.json:2 begins a second object: one object per line is .jsonl",
    ),
    "NUL in CSV": ("a.csv", b"q,n\nx\0y,1\n", [G]),
    "bad UTF-8 in CSV": ("a.csv", b"q,n\ngood,1\nb\xffd,1\ngood,1\n", [G, "invalid_utf8", G]),
    "bad UTF-8 in the header": ("a.csv", b"q,\xff\ngood,1\n", "a.csv:1 is no header row"),
    "a column more": ("a.csv", b"q,n\ngood,1,2\ngood,1\n", ["wrong_column_count", G]),
    "a column less": ("a.tsv", b"q\tn\ngood\ngood\t1\n", ["wrong_column_count", G]),
    "a nameless column": ("a.csv", b"q,\ngood,1\n", "a.csv:1 leaves a column without a name"),
    "a column twice": ("a.csv", b"\nq,q\ngood,1\n", "a.csv:2 names two columns 'q': rename one"),
    "only a header": ("a.csv", b"q,n\n", []),
    "open quote": ("a.csv", b'q,n\n"good,1\ngood,1\ngood,1\n', ["invalid_csv", G, G]),
    "open quotes": ("a.csv", b'q,n\n"good,1\n"good,1\n"good",1\n', ["invalid_csv", "invalid_csv", G]),
    "open quote in the header": ("a.csv", b'q,"n\ngood,1\n', "a.csv:1 is no header row"),
    "text after a quote": ("a.csv", b'q,n\n"good"x,1\n"good",1\n', ["invalid_csv", G]),
    "\\r in CSV": ("a.csv", b"q,n\ngo\rod,1\ngood,1\n", ["invalid_csv", G]),
    "large field": ("a.csv", b"q,n\ngood,1\n" + b"x" * 9000 + b",1\ngood,1", [G, "row_too_large", G]),
    "large row of lines": ("a.csv", WIDE + b'"",\n' * 3000 + b'",1\ngood,1\n', [G, "row_too_large", G]),
    "large open quote": ("a.csv", WIDE + b"x,1\n" * 3000, "a.csv:3 opens a quote that no later line closes"),
    "large header": (
        "a.csv",
        b"q," * 9000,
        "a.csv:1 is no header row of a CSV file: it is longer than 4,096 bytes",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_a_broken_file_is_counted_rows_or_one_error(tmp_path: Path, case: str) -> None:
    name, content, expected = FILES[case]
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected) as raised:
            read(tmp_path, name, content, LIMIT)
        assert "\n" not in str(raised.value)
        return
    found = read(tmp_path, name, content, LIMIT)
    assert [record.problem for record in found] == expected
    assert [record.row is None for record in found] == [bool(problem) for problem in expected]
    assert all(len(record.raw) <= LIMIT for record in found)


def test_the_line_of_a_csv_row_is_where_it_begins(tmp_path: Path) -> None:
    content = b'\nq,n\n"a\nb",1\n\n"open,1\n"' + b"x\n" * 3000 + b'",1\nlast,1\n'
    found = read(tmp_path, "a.csv", content, LIMIT)
    assert [(r.line, r.problem) for r in found] == [
        (3, ""), (6, "invalid_csv"), (7, "row_too_large"), (3008, ""),
    ]  # fmt: skip


def test_a_row_over_the_limit_shows_its_start_and_size(tmp_path: Path) -> None:
    line = b'{"a": "' + "é".encode() * 5000 + b'"}'
    for name, content in (("a.jsonl", line), ("a.json", b"[" + line + b"]"), ("a.csv", b"q\n" + line)):
        (record,) = read(tmp_path, name, content, LIMIT)
        assert record.raw == f"{line.decode()[:RAW_SHOWN]}... ({len(line):,} bytes)"
    exact = b'{"a": "' + b"x" * (LIMIT - 9) + b'"}'
    for end in (b"", b"\n", b"\r\n"):
        assert [record.problem for record in read(tmp_path, "a.jsonl", exact + end, LIMIT)] == [""]
        assert [record.problem for record in read(tmp_path, "a.jsonl", exact + b" " + end, LIMIT)] == [
            "row_too_large"
        ]
