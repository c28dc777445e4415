"""A small server that speaks OpenAI's chat format, and the section that judge tests start from.

A test module makes its fixture of it: `yield from serving()`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from stages.judge.config import Backend, Judge, JudgePrompt
from tests.loopback import listening

PROMPT = JudgePrompt("pairwise", "Which is better?", "{question}\n\nA: {answer_a}\n\nB: {answer_b}")


def config(**changes: Any) -> Judge:
    plain = Judge(
        seed=3,
        threads=2,
        name="test",
        backend=Backend.local,
        model="models/base",
        endpoint="",
        prompt=PROMPT,
        labels="labels",
        task="triage",
        limit=0,
        canaries=2,
        batch_size=4,
        max_tokens=8,
        max_malformed_share=0.02,
    )
    return replace(plain, **changes)


class Server(ThreadingHTTPServer):
    """Speaks the OpenAI format: each request takes the next of `script`, the last one for ever."""

    script: list[tuple[int, Any]]
    seen: list[dict[str, Any]]
    keys: list[str | None]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append(asked | {"path": self.path})
        self.server.keys.append(self.headers["Authorization"])
        script = self.server.script
        status, answer = script.pop(0) if len(script) > 1 else script[0]
        body = answer(asked) if callable(answer) else answer
        raw = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        if status in (302, 307):
            self.send_header("Location", "http://127.0.0.1:1/elsewhere")
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: Any) -> None:
        return None


def serving() -> Iterator[Server]:
    """A server on loopback until the generator is closed."""
    server = Server(("127.0.0.1", 0), Handler)
    server.script, server.seen, server.keys = [], [], []
    with listening(server):
        yield server


def completion(text: Any, logprobs: Any = None, finish: str = "stop") -> dict[str, Any]:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return {"choices": [choice | ({"logprobs": {"content": logprobs}} if logprobs is not None else {})]}
