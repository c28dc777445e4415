"""W&B online, its real client against a server of the test's own: what was only queued when a process died is sent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest

from stages.common import journal as journals
from stages.common import mark as marks
from tests.common.wandb_runs import closed, sent
from tests.common.wandb_server import Wandb, wandb_server
from tests.life import HOUSE, wait_for

HALF = 600
STAGE = """
import sys, time
from pathlib import Path
from stages.common.tracking import Mirror, RunName, Track, track
root, half = Path(sys.argv[1]), int(sys.argv[2])
worker = Track()
track.start(root, RunName("Test-Tiny", "tiny-finetune"), {}, {"lr": "0.1"}, [Mirror.wandb])
worker.join(track.journal, 1)
for step in range(2 * half):
    while step == half and not (root / "go on").exists():
        time.sleep(0.05)
    track.metric("loss", 1 / (step + 1), step)
    worker.metric("rank1/loss", 2 / (step + 1), step)
time.sleep(600)
"""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Wandb]:
    # Of another test: wandb names the process that serves it to all that start later.
    monkeypatch.delenv("WANDB_SERVICE", raising=False)
    with wandb_server() as state:
        for name, value in state.env().items():
            monkeypatch.setenv(name, value)
        yield state


Point = tuple[str, float, int, float]


def logged(journal: Path) -> list[Point]:
    events = [event for path in journals.sources(journal) for event, _ in journals.read(path) if event]
    return sorted(
        (each["name"], each["value"], each["step"], each["at"] / 1000)
        for each in events
        if each["kind"] == "point"
    )


def shown(server: Wandb, journal: Path) -> list[Point]:
    """Each row of the history as the one point that it is."""
    rows = server.history(journal.name)
    assert [row["_step"] for row in rows] == sorted({row["_step"] for row in rows})
    names = [next(key for key in row if key.endswith("loss")) for row in rows]
    return sorted(
        (name, row[name], row["step"], row["_timestamp"]) for name, row in zip(names, rows, strict=True)
    )


def sync(root: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own, whose wandb knows no other server."""
    command = [sys.executable, "-m", "ops.sync"]
    env = os.environ | {"PYTHONPATH": str(HOUSE)}
    return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("first", [False, True], ids=["none of them", "the first of them"])
def test_points_that_were_only_queued_at_a_kill_are_sent(server: Wandb, tmp_path: Path, first: bool) -> None:
    """The server has none of the points, or those of the first half, and then takes no more."""
    server.refuses = None if first else HTTPStatus.SERVICE_UNAVAILABLE
    with subprocess.Popen([sys.executable, "-c", STAGE, str(tmp_path), str(HALF)]) as process:
        wait_for("the first half", lambda: process.poll() is not None or sent(tmp_path) == 2 * HALF + 1)
        if first:
            wait_for("rows", lambda: process.poll() is not None or bool(server.rows))
        server.refuses = HTTPStatus.SERVICE_UNAVAILABLE
        (tmp_path / "go on").touch()
        wait_for("the rest", lambda: process.poll() is not None or sent(tmp_path) == 4 * HALF + 1)
        process.kill()
    (journal,) = journals.folder(tmp_path).glob("[0-9]*")
    assert len(server.history(journal.name)) < 4 * HALF
    server.refuses = None
    done = sync(tmp_path)
    assert done.returncode == 0 and marks.complete(journal), done.stderr
    assert shown(server, journal) == logged(journal) and len(logged(journal)) == 4 * HALF
    assert server.over[journal.name] == 1
    assert sync(tmp_path).stdout == "" and len(server.history(journal.name)) == 4 * HALF


def test_a_run_that_closes_has_each_point_once(server: Wandb, tmp_path: Path) -> None:
    journal = closed(tmp_path)
    assert sync(tmp_path).returncode == 0 and sync(tmp_path).stdout == ""
    assert shown(server, journal) == logged(journal) and len(logged(journal)) == 2000
    assert server.over == {journal.name: 0}
    config = json.loads(server.runs[journal.name]["config"])
    assert (config["lr"]["value"], config["tags/decision"]["value"]) == ("0.1", "promote")


def test_a_run_is_not_complete_until_the_server_has_its_rows(server: Wandb, tmp_path: Path) -> None:
    """wandb gives up for good on some answers, and its finish() returns as if all were well."""
    server.refuses = HTTPStatus.NOT_FOUND
    journal = closed(tmp_path)
    assert not marks.complete(journal) and server.history(journal.name) == []
    refusal = "W&B (online): tiny-finetune: W&B has 0 of the 2000 new points; nothing is lost, try again"
    assert f"sync: {refusal}\n" in sync(tmp_path).stderr
    server.refuses = None
    assert sync(tmp_path).returncode == 0 and marks.complete(journal)
    assert shown(server, journal) == logged(journal)
