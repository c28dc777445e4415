"""A small server that speaks OpenAI's formats over a real model: completions (scores by echo, greedy text) and chat.

Answers are what vLLM's and llama.cpp's servers give (platform.openai.com/docs/api-reference/completions).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.loopback import listening


class Server(ThreadingHTTPServer):
    """Has one model; `seen` lists what was asked, `failure` is a status to answer instead."""

    model: Any
    tokenizer: Any
    seen: list[dict[str, Any]]
    keys: list[str | None]
    failure: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1/completions"

    @property
    def chat(self) -> str:
        return self.url.replace("/v1/", "/v1/chat/")


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append(asked)
        self.server.keys.append(self.headers["Authorization"])
        body = {"error": "no"} if self.server.failure else {"choices": self._choices(asked)}
        raw = json.dumps(body).encode()
        self.send_response(self.server.failure or 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, format: str, *args: Any) -> None:
        return None

    def _choices(self, asked: dict[str, Any]) -> list[dict[str, Any]]:
        if "messages" in asked:
            assert self.path == "/v1/chat/completions"
            text = self.server.tokenizer.apply_chat_template(
                asked["messages"], tokenize=False, add_generation_prompt=True
            )
            ids = self.server.tokenizer(text, add_special_tokens=False)["input_ids"]
            written = self._written(ids, asked)["text"]
            return [{"index": 0, "message": {"role": "assistant", "content": written}}]
        prompts = asked["prompt"]
        prompts = [self.server.tokenizer(prompts)["input_ids"]] if isinstance(prompts, str) else prompts
        answer = self._scored if asked.get("echo") else self._written
        return [{"index": number, **answer(ids, asked)} for number, ids in enumerate(prompts)]

    def _scored(self, ids: list[int], asked: dict[str, Any]) -> dict[str, Any]:
        import torch

        with torch.no_grad():
            likely = torch.log_softmax(self.server.model(torch.tensor([ids])).logits[0], -1)
        tokens = [*ids, int(likely[-1].argmax())]
        own = [None, *(float(likely[at, token]) for at, token in enumerate(tokens[1:]))]
        best = [None, *({str(int(row.argmax())): float(row.max())} for row in likely)]
        return {"text": "", "logprobs": {"token_logprobs": own, "top_logprobs": best}}

    def _written(self, ids: list[int], asked: dict[str, Any]) -> dict[str, Any]:
        import torch

        model, tokenizer = self.server.model, self.server.tokenizer
        found = model.generate(torch.tensor([ids]), max_new_tokens=asked["max_tokens"], do_sample=False)
        text = tokenizer.decode(found[0, len(ids) :], skip_special_tokens=True)
        stops = [text.index(stop) for stop in asked["stop"] if stop in text]
        return {"text": text[: min(stops, default=len(text))], "logprobs": None}


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """A server of the model in `folder` on loopback."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    server = Server(("127.0.0.1", 0), Handler)
    server.model, server.tokenizer = (
        kind.from_pretrained(folder) for kind in (AutoModelForCausalLM, AutoTokenizer)
    )
    server.seen, server.keys, server.failure = [], [], 0
    with listening(server):
        yield server
