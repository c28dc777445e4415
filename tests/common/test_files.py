"""Files are replaced, never written in place, and never half."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stages.common.files import (
    fresh_dir,
    read_json,
    read_jsonl,
    tree_digest,
    write_json,
    write_jsonl,
    write_text,
)


def test_a_hard_link_to_the_old_file_keeps_the_old_content(tmp_path: Path) -> None:
    """DVC's cache is such a link; writing in place would corrupt it, and root is not stopped by a read-only mode."""
    out, cache = tmp_path / "out.json", tmp_path / "cache"
    write_json(out, {"a": 1})
    os.link(out, cache)
    cache.chmod(0o444)
    write_json(out, {"a": 2})
    assert read_json(cache) == {"a": 1} and read_json(out) == {"a": 2}
    (tmp_path / "model").mkdir()
    os.link(cache, tmp_path / "model/weights")
    (fresh_dir(tmp_path / "model") / "weights").write_text("new")
    assert read_json(cache) == {"a": 1}


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    out = tmp_path / "metrics.json"
    write_json(out, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(out, {"a": float("nan")})
    assert read_json(out) == {"a": 1} and [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    """A file size limit raises the same error from the same call as a full disk."""
    out = tmp_path / "out.txt"
    write_text(out, "old")
    code = (
        "import resource, signal; from pathlib import Path; from stages.common.files import write_text\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"write_text(Path({str(out)!r}), 'x' * 5000)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "File too large" in done.stderr
    assert out.read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["out.txt"]


def test_kills_never_leave_half_a_file(tmp_path: Path) -> None:
    out = tmp_path / "out.txt"
    code = (
        "from pathlib import Path; from stages.common.files import write_text; import itertools\n"
        f"[write_text(Path({str(out)!r}), str(i % 10) * 200_000) for i in itertools.count()]"
    )
    for _ in range(5):
        with subprocess.Popen([sys.executable, "-c", code]) as process:
            while not out.exists():
                assert process.poll() is None
            for _ in range(50):
                assert len(set(out.read_text())) == 1 and len(out.read_text()) == 200_000
            process.send_signal(signal.SIGKILL)
        assert len(set(out.read_text())) == 1
        out.unlink()


def test_keys_are_sorted_and_a_newline_ends_it(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"b": 1, "a": "ü"})
    assert (tmp_path / "a").read_text(encoding="utf-8") == '{\n  "a": "ü",\n  "b": 1\n}\n'
    write_jsonl(tmp_path / "b", [{"b": 1, "a": 2}])
    assert (tmp_path / "b").read_text() == '{"a": 2, "b": 1}\n'


def test_broken_json_names_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{}\n{"a"\n')
    with pytest.raises(ValueError, match=r"x\.jsonl:2: not valid JSON"):
        list(read_jsonl(tmp_path / "x.jsonl"))


def test_a_trees_digest_sees_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    first = tree_digest(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    second = tree_digest(tmp_path)
    (tmp_path / "b").write_text("2")
    assert len({first, second, tree_digest(tmp_path)}) == 3
