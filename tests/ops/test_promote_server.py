"""ops.promote against a real `mlflow server` process on loopback, and against none."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import pytest

from ops import promote
from stages.common.files import tree_digest
from tests.ops.decided import NAME, Decided, make_decided


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server with its database and artifacts in a folder of its own."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        wait(port, process, folder / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()  # it ends its workers, which a kill would leave
        process.wait()


@pytest.fixture
def work(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_server_gets_the_version_once_and_serves_it(
    work: Path, tiny_model: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    decided = make_decided(work, tiny_model, server)
    assert promote.main(work, confirmed=False)
    assert not promote.main(work, confirmed=False)
    assert len(decided.versions()) == 1
    assert decided.champion_version() == "1"
    assert not (work / "mlartifacts").exists()
    elsewhere = work / "elsewhere"
    elsewhere.mkdir()
    assert "answered" in decided.ask(elsewhere, f"models:/{NAME}@champion")


def test_a_server_that_is_down_changes_nothing(
    work: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    decided: Decided = make_decided(work, tiny_model, uri)
    before = tree_digest(work / "registry")
    with pytest.raises(ValueError, match=f"the tracking store at {uri} does not answer") as refusal:
        promote.main(work, confirmed=False)
    assert "\n" not in str(refusal.value)
    assert tree_digest(work / "registry") == before
    assert decided.ledger() == []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until the server answers. Raises RuntimeError with its log where it does not come up."""
    for _ in range(600):
        try:
            connection = HTTPConnection("127.0.0.1", port, timeout=2)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except (OSError, HTTPException):
            pass
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise RuntimeError(f"mlflow server on port {port} did not come up:\n{log.read_text()[-3000:]}")
