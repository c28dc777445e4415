"""A W&B server of a test's own, on loopback: it answers what wandb asks to begin, resume and finish a run.

It keeps the rows of a run's history by their place in it, as the real one does: a repeated upload changes nothing,
and a row that is sent again at another place is there twice.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.loopback import listening

HISTORY = "wandb-history.jsonl"
ENTITY = "ada"


@dataclass
class Wandb:
    """What the server has; `refuses` is what it answers to uploads of rows while it takes none."""

    url: str = ""
    refuses: HTTPStatus | None = None
    asked: int = 0  # uploads that it refused
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    rows: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)
    over: dict[str, int] = field(default_factory=dict)  # the exit code of each run that was finished

    def env(self) -> dict[str, str]:
        """What makes wandb go there."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": "0" * 40, "WANDB_MODE": "online"}

    def history(self, run: str) -> list[dict[str, Any]]:
        """The rows of a run, in their places."""
        return [row for _, row in sorted(self.rows.get(run, {}).items())]

    def answer(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        """The data of a GraphQL answer, with more than was asked for."""
        name = str(given.get("name") or given.get("run"))
        bucket = self._bucket(name) if name in self.runs else None
        if "UpsertBucket" in query:
            return self._upsert(name, given)
        if "CreateRunFiles" in query:
            files = [{"name": file, "uploadUrl": f"{self.url}/put/{name}/{file}"} for file in given["files"]]
            return {"createRunFiles": {"runID": name, "uploadHeaders": [], "files": files}}
        viewer = {"id": "v", "entity": ENTITY, "username": ENTITY, "flags": "{}", "teams": {"edges": []}}
        return {
            "viewer": viewer,
            "serverInfo": {"features": []},
            "model": {"id": "p", "name": "p", "entity": {"id": "e", "name": ENTITY}, "bucket": bucket},
            "project": {"run": bucket},
        }

    def upload(self, run: str, body: dict[str, Any]) -> None:
        """Take what a file stream brings."""
        part = body.get("files", {}).get(HISTORY, {"offset": 0, "content": []})
        for place, line in enumerate(part["content"], part["offset"]):
            self.rows.setdefault(run, {})[place] = json.loads(line)
        if body.get("complete"):
            self.over[run] = body["exitcode"]

    def _upsert(self, name: str, given: dict[str, Any]) -> dict[str, Any]:
        inserted = name not in self.runs
        kept = self.runs.setdefault(name, {"config": "{}", "summaryMetrics": "{}"})
        kept |= {key: value for key, value in given.items() if value is not None}
        return {"upsertBucket": {"bucket": self._bucket(name), "inserted": inserted}}

    def _bucket(self, name: str) -> dict[str, Any]:
        rows = self.history(name)
        project = {
            "id": "p",
            "name": self.runs[name].get("project", "p"),
            "entity": {"id": "e", "name": ENTITY},
        }
        return {
            "id": base64.b64encode(f"Run:v1:{name}".encode()).decode(),
            "name": name,
            "project": project,
            "projectId": "1",
            "state": "running",
            "displayName": self.runs[name].get("displayName", name),
            "description": None,
            "notes": None,
            "sweepName": None,
            "tags": [],
            "config": self.runs[name]["config"],
            "summaryMetrics": self.runs[name]["summaryMetrics"],
            "wandbConfig": json.dumps({"t": {}}),
            "logLineCount": 0,
            "historyLineCount": len(rows),
            "eventsLineCount": 0,
            "historyTail": json.dumps([json.dumps(row) for row in rows[-1:]]),
            "eventsTail": "[]",
        }


@contextmanager
def wandb_server() -> Iterator[Wandb]:
    """A server for the time of the block."""
    state = Wandb()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not self.path.endswith("/file_stream"):
                self._say(HTTPStatus.OK, {"data": state.answer(body["query"], body.get("variables") or {})})
            elif state.refuses is not None:
                state.asked += 1
                self._say(state.refuses, {"error": "no"})
            else:
                state.upload(self.path.split("/")[-2], body)
                self._say(HTTPStatus.OK, {"exitcode": None, "limits": {}})

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self._say(HTTPStatus.OK, {})

        def _say(self, status: HTTPStatus, answer: dict[str, Any]) -> None:
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """Say nothing of a client that was killed."""

    server = Server(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    with listening(server):
        yield state
