"""A real S3 server for tests, on loopback: OpenStack Swift with its S3 API, from PyPI (`swift`, `pyeclib`).

It checks signatures and checksums, as moto does not. The four processes die with the test process, also on
SIGKILL. tests/ops/conftest.py has it as the session fixture `s3`.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

KEY, SECRET = "test:tester", "testing"
BACKENDS = ("object", "container", "account")
FILTERS = (
    "catch_errors gatekeeper healthcheck cache listing_formats bulk s3api tempauth copy slo dlo "
    "versioned_writes symlink"
)
OPTIONS = {
    "cache": "use=egg:swift#memcache",
    "s3api": "use=egg:swift#s3api\nlocation=us-east-1",
    "tempauth": f"use=egg:swift#tempauth\nuser_{KEY.replace(':', '_')}={SECRET} .admin",
    "versioned_writes": "use=egg:swift#versioned_writes\nallow_versioned_writes=true",
}
# Linux's PR_SET_PDEATHSIG is 1; the parent may already have died before it was set.
DIE_WITH_PARENT = """
import ctypes, os, runpy, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass(frozen=True)
class S3:
    """A running server: `endpoint` is its URL, `env` the variables by which clients sign in."""

    endpoint: str
    env: dict[str, str]

    def client(self) -> Any:
        """A botocore client, signed in."""
        from botocore.session import Session

        session = Session()
        session.set_credentials(KEY, SECRET)
        return session.create_client("s3", endpoint_url=self.endpoint, region_name="us-east-1")


@contextmanager
def serve(folder: Path) -> Iterator[S3]:
    """Run a server with its state in `folder`. Raises RuntimeError with its log where it does not come up."""
    ports = _free_ports(4)
    _configure(folder, ports)
    with ExitStack() as stack:
        for kind in (*BACKENDS, "proxy"):
            stack.enter_context(_process(folder, kind))
        endpoint = f"http://127.0.0.1:{ports['proxy']}"
        _wait(endpoint, folder)
        yield S3(
            endpoint, {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"}
        )


def _free_ports(count: int) -> dict[str, int]:
    # All are held open until all are found, so that no two are the same.
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return dict(zip((*BACKENDS, "proxy"), (each.getsockname()[1] for each in sockets), strict=True))


def _configure(folder: Path, ports: dict[str, int]) -> None:
    (folder / "node" / "d1").mkdir(parents=True)
    (folder / "swift.conf").write_text(
        "[swift-hash]\nswift_hash_path_prefix=a\nswift_hash_path_suffix=b\n[storage-policy:0]\nname=one\ndefault=true\n"
    )
    for kind in BACKENDS:
        _ring(folder, kind, ports[kind])
        _write(
            folder,
            kind,
            f"{_head(folder, ports[kind])}devices={folder / 'node'}\nmount_check=false\n"
            f"[pipeline:main]\npipeline={kind}-server\n[app:{kind}-server]\nuse=egg:swift#{kind}\n",
        )
    filters = "".join(
        f"[filter:{name}]\n{OPTIONS.get(name, f'use=egg:swift#{name}')}\n" for name in FILTERS.split()
    )
    _write(
        folder,
        "proxy",
        f"{_head(folder, ports['proxy'])}[pipeline:main]\npipeline={FILTERS} proxy-server\n"
        f"[app:proxy-server]\nuse=egg:swift#proxy\naccount_autocreate=true\n{filters}",
    )


def _ring(folder: Path, kind: str, port: int) -> None:
    from swift.common.ring import RingBuilder

    builder = RingBuilder(4, 1, 1)
    where = {"ip": "127.0.0.1", "port": port, "replication_ip": "127.0.0.1", "replication_port": port}
    builder.add_dev({"id": 0, "region": 1, "zone": 1, "device": "d1", "weight": 1, "meta": "", **where})
    builder.rebalance(seed=0)
    builder.get_ring().save(str(folder / f"{kind}.ring.gz"))


def _head(folder: Path, port: int) -> str:
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    return (
        f"[DEFAULT]\nswift_dir={folder}\nbind_ip=127.0.0.1\nbind_port={port}\nworkers=0\nuser={user}\n"
        "log_address=/dev/null\nlog_level=WARNING\n"
    )


def _write(folder: Path, kind: str, text: str) -> None:
    (folder / f"{kind}-server.conf").write_text(text)


@contextmanager
def _process(folder: Path, kind: str) -> Iterator[None]:
    script = Path(sysconfig.get_path("scripts")) / f"swift-{kind}-server"
    with (folder / f"{kind}.log").open("wb") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                DIE_WITH_PARENT,
                str(os.getpid()),
                str(script),
                str(folder / f"{kind}-server.conf"),
            ],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
        try:
            yield
        finally:
            process.kill()
            process.wait()


def _wait(endpoint: str, folder: Path) -> None:
    for _ in range(150):
        try:
            connection = HTTPConnection(urlsplit(endpoint).netloc, timeout=2)
            connection.request("GET", "/healthcheck")
            if connection.getresponse().status == HTTPStatus.OK:
                return
        except (OSError, HTTPException):
            pass
        time.sleep(0.2)
    logs = "".join(path.read_text(errors="replace")[-2000:] for path in folder.glob("*.log"))
    raise RuntimeError(f"the S3 server at {endpoint} did not come up:\n{logs}")
