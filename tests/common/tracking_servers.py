"""A real `mlflow server` to stop and start, a real PostgreSQL for it, and a proxy of ours that makes it slow."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.life import wait_for


class Server:
    """`mlflow server` on one port and one store, up or down."""

    def __init__(self, folder: Path, store: str) -> None:
        """Down."""
        self.folder, self.store, self.port = folder, store, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def up(self) -> None:
        """Start it, and wait until it answers."""
        if self._process is not None:
            return
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", self.store]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        env = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
        with (self.folder / "server.log").open("ab") as log:
            process = subprocess.Popen(
                command, cwd=self.folder, env=env, stdout=log, stderr=log, start_new_session=True
            )
        wait_for("the server", lambda: process.poll() is not None or answers(self.port))
        assert process.poll() is None, (self.folder / "server.log").read_text()[-3000:]
        self._process = process

    def kill(self) -> None:
        """SIGKILL to it and its workers."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
            wait_for("the end of the server", lambda: not accepts(self.port))


@contextmanager
def postgres() -> Iterator[str]:
    """The SQLAlchemy URI of a database in a folder of its own, run by an ordinary user, as PostgreSQL demands."""
    binaries = max(Path("/usr/lib/postgresql").glob("*/bin"))
    folder, port = Path(tempfile.mkdtemp(prefix="lathe-postgres-", dir="/tmp")), free_port()
    user = "nobody" if os.getuid() == 0 else None
    if user:
        shutil.chown(folder, user)
    log = (folder / "log").open("ab")

    def start(program: str, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [binaries / program, "-D", folder / "data", *arguments],
            user=user, extra_groups=[] if user else None, cwd=folder, stdout=log, stderr=log
        )  # fmt: skip

    assert start("initdb", "--username=lathe", "--auth=trust").wait() == 0, (folder / "log").read_text()
    process = start("postgres", "-k", str(folder), "-h", "127.0.0.1", "-p", str(port), "-F")
    try:
        place = f"lathe@127.0.0.1:{port}/postgres"
        wait_for("PostgreSQL", lambda: process.poll() is not None or connects(f"postgresql://{place}"))
        assert process.poll() is None, (folder / "log").read_text()
        yield f"postgresql+psycopg2://{place}"  # SQLAlchemy 2.1 takes psycopg 3 for `postgresql://`
    finally:
        process.send_signal(signal.SIGQUIT)
        process.wait()
        log.close()
        shutil.rmtree(folder)


class Proxy:
    """Hands on every byte between a client and a server, the server's after `delay` seconds."""

    def __init__(self, port: int) -> None:
        """Listen, in front of the server at `port`."""
        self.delay = 0.0
        self.swallow: Callable[[bytes], bool] = lambda request: False  # whether a request's answer is lost
        self.swallowed = 0
        self._upstream = port
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client = self._socket.accept()[0]
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError), client, socket.create_connection(("127.0.0.1", self._upstream)) as server:
            last = [b""]
            threading.Thread(target=self._forward, args=(client, server, last), daemon=True).start()
            while answer := server.recv(65536):
                if self.swallow(last[0]):
                    self.swallowed += 1
                    return
                time.sleep(self.delay)
                client.sendall(answer)

    def _forward(self, client: socket.socket, server: socket.socket, last: list[bytes]) -> None:
        with suppress(OSError):
            while request := client.recv(65536):
                if request.startswith((b"GET", b"POST", b"PUT", b"PATCH", b"DELETE")):
                    last[0] = request
                server.sendall(request)
            server.shutdown(socket.SHUT_WR)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def accepts(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2):
        return True
    return False


def answers(port: int) -> bool:
    import requests

    with suppress(requests.RequestException):
        return requests.get(f"http://127.0.0.1:{port}/health", timeout=5).ok
    return False


def connects(uri: str) -> bool:
    import psycopg2

    with suppress(psycopg2.OperationalError):
        psycopg2.connect(uri).close()
        return True
    return False
