"""A tracking server that is down, lost, lost for good or slow, against real `mlflow server` processes.

Training goes on as if nothing were, and after `ops.sync` the store has each point exactly once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy

from ops import sync
from stages.common import journal as journals
from stages.common import mark as marks
from stages.common.tracking import RunName, Track
from tests.common.tracking_servers import Proxy, Server, postgres
from tests.life import wait_for

pytestmark = pytest.mark.slow
POINTS = 3000
BOUND = 10.0  # seconds that tracking may take of a run in all, whatever the server does


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "sqlite":
        made = Server(folder, f"sqlite:///{folder / 'server.db'}")
        yield made
        made.kill()
        return
    if not list(Path("/usr/lib/postgresql").glob("*/bin")):
        pytest.skip("no PostgreSQL: apt-get install postgresql")
    with postgres() as uri:
        made = Server(folder, uri)
        yield made
        made.kill()


class Training:
    """Work with a few thousand points logged on the way, and the time that logging took of it."""

    def __init__(self, root: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        self.root, self.track, self.taken, self.step = root, Track(), 0.0, 0
        self._call(self.track.start, root, RunName("Test-Tiny", "tiny-finetune"), {"a": "b"}, {"lr": "0.1"})
        self.journal = self.track.journal
        assert self.journal is not None

    def work(self, points: int) -> None:
        matrix = np.full((64, 64), 0.01)
        for _ in range(points):
            matrix = np.tanh(matrix @ matrix + 0.01)
            self._call(self.track.metric, "loss", float(matrix.sum()), self.step)
            self.step += 1

    def close(self) -> None:
        self._call(self.track.text, "stage.log", "all is well")
        self._call(self.track.close, "FINISHED")
        assert self.step == POINTS

    def heard(self, word: str) -> bool:
        """Whether the mirror has said so."""
        return any(word in note["text"] for note in marks.notes(self.journal, "mlflow", 0)[0])

    def begun(self) -> bool:
        """Whether the server has the run and some of its points."""
        mark = marks.load(self.journal, "mlflow")
        return mark is not None and mark.sent > 1

    def _call(self, call, *arguments) -> None:  # type: ignore[no-untyped-def]
        began = time.perf_counter()
        call(*arguments)
        self.taken += time.perf_counter() - began


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.message.startswith("tracking:")]


def is_right(training: Training, server: Server) -> None:
    """After a sync, and after a second one, every point of the journal is there once, and nothing else is."""
    assert training.taken <= BOUND
    sync.main(training.root)
    assert sync.main(training.root) == []
    events = [event for event, _ in journals.read(training.journal / journals.RUN) if event]
    points = [event for event in events if event["kind"] == "point"]
    assert [event["step"] for event in points] == list(range(POINTS))
    engine = sqlalchemy.create_engine(server.store)
    with engine.connect() as store:

        def select(query: str) -> list[tuple[object, ...]]:
            return [
                tuple(row) for row in store.execute(sqlalchemy.text(query), {"key": training.journal.name})
            ]

        tagged = "(select run_uuid from tags where key = 'lathe.journal' and value = :key)"
        runs = select(f"select run_uuid, status from runs where run_uuid in {tagged}")  # noqa: S608
        found = select(f"select key, step, value, timestamp from metrics where run_uuid in {tagged}")  # noqa: S608
        tags = dict(select(f"select key, value from tags where run_uuid in {tagged}"))  # noqa: S608
    engine.dispose()
    assert runs == [(training.track.run_id, "FINISHED")] and "failed" not in tags
    assert sorted(found) == sorted((each["name"], each["step"], each["value"], each["at"]) for each in points)


def test_down_from_the_start(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server.kill()
    training = Training(tmp_path, server.uri, monkeypatch)
    training.work(POINTS)
    training.close()
    assert len([text for text in told(caplog) if "the run goes on" in text]) <= 1
    left = f"tracking: {POINTS + 3} events not sent to {server.uri}: `python -m ops.sync` sends them"
    assert told(caplog)[-1] == left
    with pytest.raises(ValueError, match=f"{server.uri}: .*nothing is lost, try again") as refusal:
        sync.main(tmp_path)
    assert "\n" not in str(refusal.value)
    server.up()
    is_right(training, server)


def test_lost_and_back(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    server.up()
    training = Training(tmp_path, server.uri, monkeypatch)
    training.work(1000)
    wait_for("the first points", training.begun)
    server.kill()
    training.work(500)
    wait_for("a warning", lambda: training.heard("the run goes on"))
    training.work(500)
    server.up()
    wait_for("the server's return", lambda: training.heard("is back after"))
    training.work(1000)
    training.close()
    for words in ("the run goes on", "is back after"):
        assert len([text for text in told(caplog) if words in text]) == 1
    is_right(training, server)


def test_lost_for_good(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server.up()
    training = Training(tmp_path, server.uri, monkeypatch)
    training.work(1000)
    wait_for("the first points", training.begun)
    server.kill()
    training.work(500)
    wait_for("a warning", lambda: training.heard("the run goes on"))
    training.work(1500)
    training.close()
    assert len([text for text in told(caplog) if "the run goes on" in text]) == 1
    assert f"events not sent to {server.uri}: `python -m ops.sync` sends them" in told(caplog)[-1]
    server.up()
    is_right(training, server)


def test_slow(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.up()
    proxy = Proxy(server.port)
    proxy.delay = 2.0
    training = Training(tmp_path, proxy.uri, monkeypatch)
    training.work(POINTS)
    training.close()
    proxy.delay = 0.0
    is_right(training, server)


def test_answers_are_lost(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server has done what was asked, and nobody hears of it: a run is made once, and a point is."""
    server.up()
    proxy = Proxy(server.port)
    lost = [b"runs/create", b"runs/log-batch", b"runs/log-batch"]

    def swallow(request: bytes) -> bool:
        hit = bool(lost) and lost[0] in request.split(b"\r\n")[0]
        return hit and bool(lost.pop(0))

    proxy.swallow = swallow
    training = Training(tmp_path, proxy.uri, monkeypatch)
    training.work(POINTS)
    wait_for("three lost answers", lambda: proxy.swallowed == 3)
    training.close()
    is_right(training, server)
