"""The second mirror, with the real wandb offline: its run file holds every point once, also after a replay."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ops import sync
from stages.common.tracking import Mirror, Track
from tests.common.wandb_runs import NAME, closed, sent
from tests.life import wait_for

BLOCK, HEADER, FULL, LAST = 32768, 7, 1, 4  # LevelDB's log format


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")  # as stages/common/run.py sets it: this mirror was asked for
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


def run_file(root: Path) -> Path:
    (found,) = root.glob(".lathe/wandb/offline-run-*/run-*.wandb")
    return found


def records(path: Path) -> Iterator[object]:
    """The records of a run file: after wandb's own 7 bytes LevelDB's log, whose pieces are joined."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, record = path.read_bytes(), HEADER, b""
    while at + HEADER <= len(content):
        if (left := BLOCK - at % BLOCK) < HEADER:
            at += left
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + HEADER])
        record += content[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (FULL, LAST):
            yield Record.FromString(record)
            record = b""


def points(root: Path) -> list[tuple[float, int, float]]:
    """(loss, step, seconds) of each row of the history."""
    rows = []
    for record in records(run_file(root)):
        if record.WhichOneof("record_type") == "history":  # type: ignore[attr-defined]
            row = {item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}  # type: ignore[attr-defined]
            rows.append((row["loss"], row["step"], row["_timestamp"]))
    return rows


def expected(journal: Path) -> list[tuple[float, int, float]]:
    lines = [json.loads(line) for line in (journal / "run.jsonl").read_text().splitlines()]
    return [(each["value"], each["step"], each["at"] / 1000) for each in lines if each["kind"] == "point"]


def test_each_point_is_in_the_run_file_once(tmp_path: Path) -> None:
    journal = closed(tmp_path)
    sync.main(tmp_path)
    assert len(points(tmp_path)) == 2000 and points(tmp_path) == expected(journal)
    assert (run_file(tmp_path).parent / "files/logs/stage.log").read_text() == "all is well"
    run = next(each.run for each in records(run_file(tmp_path)) if each.WhichOneof("record_type") == "run")  # type: ignore[attr-defined]
    assert (run.run_id, run.project, run.display_name) == (journal.name, "Test-Tiny", "tiny-finetune")


STAGE = """
import sys, time
from pathlib import Path
from stages.common.tracking import Mirror, RunName, track
track.start(Path(sys.argv[1]), RunName("Test-Tiny", "tiny-finetune"), {}, {}, [Mirror.wandb])
for step in range(1500):
    track.metric("loss", 1 / (step + 1), step)
time.sleep(600)
"""


def test_a_killed_run_is_written_anew_and_each_point_once(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", STAGE, str(tmp_path)]) as process:
        wait_for("some points", lambda: process.poll() is not None or sent(tmp_path) >= 500)
        process.kill()
    (journal,) = tmp_path.glob(".lathe/tracking/[0-9]*")
    assert sync.main(tmp_path) == [journal.name]
    assert sync.main(tmp_path) == []
    assert len(points(tmp_path)) == 1500 and points(tmp_path) == expected(journal)


def test_without_the_package_the_stage_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/sitecustomize.py").write_text("import sys\nsys.modules['wandb'] = None\n")
    track = Track()
    track.start(tmp_path, NAME, {}, {}, [Mirror.wandb])
    track.metric("loss", 1.0)
    track.close("FINISHED")
    told = [record.message for record in caplog.records]
    assert (
        told[0] == "tracking: no wandb here: pip install -r requirements-wandb.txt, then python -m ops.sync"
    )
    assert "events not sent to wandb: `python -m ops.sync` sends them" in told[1] and len(told) == 2
