"""ops.summary: the tables say what there is, and what there is not yet."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ops import summary
from stages.common.files import write_json
from stages.common.statistics import exact
from tests.small_project import HOUSE


def test_a_variant_that_bench_has_not_scored_yet_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_json(tmp_path / "params.yaml", {"variants": {"base": {}, "newer": {}}})
    write_json(tmp_path / "metrics/bench/base.json", {"t/acc": exact(0.25)})
    for name in ("metrics/judge.json", "metrics/drift.json"):
        write_json(tmp_path / name, {})
    write_json(tmp_path / "reports/decision/decision.json", {"verdict": "reject", "checks": []})
    summary.main(None)
    out = capsys.readouterr().out
    assert "0.250" in out and "newer: not benched" in out
    (tmp_path / "metrics/bench/base.json").unlink()
    summary.main(None)
    assert "base, newer: not benched" in capsys.readouterr().out


def test_before_anything_ran_it_is_one_line(tmp_path: Path) -> None:
    write_json(tmp_path / "params.yaml", {"variants": {"base": {}}})
    command = [sys.executable, "-m", "ops.summary"]
    env = os.environ | {"PYTHONPATH": str(HOUSE)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "summary: metrics/judge.json is not there: run `make` first\n"
