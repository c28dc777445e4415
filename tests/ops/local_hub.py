"""A Hugging Face hub on this machine: the HTTP that huggingface_hub and datasets speak for datasets and models.

`with serve() as hub: hub.commit("allenai/ai2_arc", {"README.md": ...})`, then HF_ENDPOINT=hub.url. Answers follow
https://huggingface.co/docs/hub/api: repository at a revision, its tree, its files with ranges, and the hub's errors.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

from tests.loopback import listening

API = re.compile(r"/api/(?:datasets|models)/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)(?:/(.+))?)?")
FILE = re.compile(r"(?:/datasets)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class Hub:
    """The server's contents; `asked` lists each request that came, as "METHOD path"."""

    url: str = ""
    commits: dict[str, dict[str, dict[str, bytes]]] = field(
        default_factory=dict
    )  # repository, sha, name: bytes
    gated: set[str] = field(default_factory=set)
    down: bool = False  # answers nothing
    asked: list[str] = field(default_factory=list)
    stalled: threading.Event = field(default_factory=threading.Event)  # set once a download hangs
    go_on: threading.Event = field(default_factory=threading.Event)
    _hang_on: str = ""

    def commit(self, repository: str, files: dict[str, bytes]) -> str:
        """A new commit of a repository's main branch, with these files only; its sha."""
        known = self.commits.setdefault(repository, {})
        sha = _oid(repr((repository, list(known), sorted(files.items()))).encode())
        known[sha] = files
        return sha

    def hang(self, name: str) -> None:
        """From now on, a download of a file whose name begins so stops halfway, until `release`."""
        self.stalled.clear()
        self.go_on.clear()
        self._hang_on = name

    def release(self) -> None:
        """Downloads run again."""
        self._hang_on = ""
        self.go_on.set()

    def hangs(self, name: str) -> bool:
        """Whether this file's download is to stop halfway."""
        return bool(self._hang_on) and name.startswith(self._hang_on)

    def resolve(self, repository: str, revision: str) -> str | None:
        """The sha that a revision names: main's is the latest, a sha's own is itself."""
        known = self.commits[repository]
        return list(known)[-1] if revision == "main" else revision if revision in known else None


@contextmanager
def serve() -> Iterator[Hub]:
    """An empty hub in a thread of this process, at `hub.url`."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    with listening(server):
        try:
            yield hub
        finally:
            hub.release()


class Handler(BaseHTTPRequestHandler):
    """One connection to the hub."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        """Quiet: `hub.asked` is the log."""

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path.replace("%2F", "\0")).replace("\0", "%2F")
        self.hub.asked.append(f"{self.command} {path}")
        if self.hub.down:
            self.close_connection = True
        elif found := API.fullmatch(path):
            self._api(found[1], found[2] or "revision", unquote(found[3] or "main"), found[4] or "")
        elif found := FILE.fullmatch(path):
            self._file(found[1], unquote(found[2]), found[3])
        else:
            self._fail(HTTPStatus.NOT_FOUND, "")

    def _api(self, repository: str, what: str, revision: str, folder: str) -> None:
        if (sha := self._commit(repository, revision)) is None:
            return
        files = self.hub.commits[repository][sha]
        if what == "revision":
            self._json(_info(repository, sha, files))
        else:
            deep = "recursive=true" in self.path.lower()
            found = [entry for entry in _entries(files) if _below(entry["path"], folder, deep)]
            self._json(found) if found else self._fail(HTTPStatus.NOT_FOUND, "EntryNotFound", sha)

    def _file(self, repository: str, revision: str, name: str) -> None:
        if (sha := self._commit(repository, revision)) is None:
            return
        data = self.hub.commits[repository][sha].get(name)
        if data is None:
            self._fail(HTTPStatus.NOT_FOUND, "EntryNotFound", sha)
            return
        start = int(found[1]) if (found := re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")) else 0
        self.send_response(HTTPStatus.PARTIAL_CONTENT if found else HTTPStatus.OK)
        if found:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self._head(
            len(data) - start, {"X-Repo-Commit": sha, "ETag": f'"{_oid(data)}"', "Accept-Ranges": "bytes"}
        )
        if self.command != "HEAD":
            self._send(name, data[start:])

    def _send(self, name: str, data: bytes) -> None:
        if self.hub.hangs(name):
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.hub.stalled.set()
            self.hub.go_on.wait()
            self.close_connection = True
            return
        self.wfile.write(data)

    def _commit(self, repository: str, revision: str) -> str | None:
        """The commit asked for; None after an error has been answered."""
        sha = self.hub.resolve(repository, revision) if repository in self.hub.commits else None
        if repository not in self.hub.commits:
            self._fail(HTTPStatus.UNAUTHORIZED, "RepoNotFound")
        elif repository in self.hub.gated:
            self._fail(HTTPStatus.FORBIDDEN, "GatedRepo")
        elif sha is None:
            self._fail(HTTPStatus.NOT_FOUND, "RevisionNotFound")
        else:
            return sha
        return None

    def _json(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(HTTPStatus.OK)
        self._head(len(data), {"Content-Type": "application/json"})
        if self.command != "HEAD":
            self.wfile.write(data)

    def _fail(self, status: HTTPStatus, code: str, sha: str = "") -> None:
        self.send_response(status)
        self._head(0, {"X-Error-Code": code, "X-Error-Message": code, "X-Repo-Commit": sha})

    def _head(self, length: int, headers: dict[str, str]) -> None:
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()


def _info(repository: str, sha: str, files: dict[str, bytes]) -> dict[str, Any]:
    readme = files.get("README.md", b"").decode()
    card = yaml.safe_load(readme.split("---")[1]) if readme.startswith("---") else {}
    names = [{"rfilename": name} for name in sorted(files)]
    told = {"id": repository, "sha": sha, "private": False, "gated": False, "downloads": 0, "likes": 0}
    return told | {"tags": [], "siblings": names, "cardData": card}


def _entries(files: dict[str, bytes]) -> list[dict[str, Any]]:
    """Every file, and every folder that one lies in."""
    folders = {parent for name in files for parent in _parents(name)}
    found = [
        {"type": "directory", "path": path, "oid": _oid(path.encode()), "size": 0} for path in sorted(folders)
    ]
    return found + [
        {"type": "file", "path": name, "oid": _oid(data), "size": len(data)}
        for name, data in sorted(files.items())
    ]


def _parents(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]


def _below(path: str, folder: str, deep: bool) -> bool:
    inner = path.removeprefix(f"{folder}/") if folder else path
    return (not folder or inner != path) and (deep or "/" not in inner)


def _oid(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()
