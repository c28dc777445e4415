"""A judge behind an OpenAI-compatible chat endpoint: OpenAI, vLLM, llama.cpp, Ollama and others."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from stages.judge.config import Judge
from stages.judge.verdicts import Chances, Rendered

TRIES = 5  # of one request, while the server is busy or away
RETRIES = 2  # of an answer that names no verdict
TIMEOUT = 120.0  # seconds
LONGEST_WAIT = 30.0  # seconds between two tries
VERDICT = re.compile(r"(?:(?i:(?:final |my )?verdict)\s*(?:is)?\s*[:=]?\s*)?\[{0,2}([AB])\]{0,2}\.?")


def api_key() -> str:
    """OPENAI_API_KEY, or "" for a server that asks for none: a secret is environment, never a parameter."""
    return os.environ.get("OPENAI_API_KEY", "").strip()


class _NoRedirect(HTTPRedirectHandler):
    """urllib would send the key along to wherever a redirect points."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """No request: urllib then raises the redirect as an HTTPError."""


class OpenAIJudge:
    """cfg.model at cfg.endpoint, asked at temperature 0 with cfg.seed, cfg.batch_size requests at a time.

    Its chances are the log-probabilities of the verdict's token where the server offers them, else 1 and 0.
    An answer without a verdict is asked again RETRIES times, with another seed.
    """

    def __init__(self, cfg: Judge, key: str, wait: Callable[[float], None] = time.sleep) -> None:
        """Check endpoint and key. Raises ValueError on what is no HTTP address or fits in no HTTP header."""
        if not cfg.endpoint.startswith(("http://", "https://")):
            raise ValueError(
                f"judge.endpoint={cfg.endpoint!r} is no address; give one such as http://HOST/v1"
            )
        if not (key.isascii() and key.isprintable()):  # http.client would print it in its own complaint
            raise ValueError("OPENAI_API_KEY holds characters that no HTTP header carries; set it again")
        self.cfg, self.key, self.wait = cfg, key, wait
        self.url = cfg.endpoint.rstrip("/") + "/chat/completions"
        self.opener = build_opener(_NoRedirect)
        self.logprobs = True

    def __call__(self, comparisons: Sequence[Rendered]) -> list[Chances | None]:
        """Chances per comparison, in order. Raises what `post` raises."""
        with ThreadPoolExecutor(max_workers=self.cfg.batch_size) as pool:
            return list(pool.map(self.judge, comparisons))

    def judge(self, item: Rendered) -> Chances | None:
        """Chances of one comparison, or None where no answer named a verdict."""
        for attempt in range(1 + RETRIES):
            chances = parse_response(self.post(item, self.cfg.seed + attempt))
            if chances:
                return chances
        return None

    def post(self, item: Rendered, seed: int) -> bytes:
        """The body of the server's answer.

        Waits and tries again on 429, 5xx and a broken connection. Raises ValueError after TRIES of them, and
        at once on any other refusal; it never holds the key.
        """
        why = ""
        for attempt in range(TRIES):
            pause = min(LONGEST_WAIT, 2.0**attempt)
            try:
                with self.opener.open(self.request(item, seed), timeout=TIMEOUT) as response:
                    return bytes(response.read())
            except HTTPError as error:
                why = f"{error.code} {self.excerpt(_body(error))}"
                if error.code == 400 and self.logprobs and "logprob" in why:
                    self.logprobs = False  # not offered here: go on without
                    continue
                if error.code != 429 and error.code < 500:
                    raise ValueError(f"{self.url} refuses: {why}; see judge.model, OPENAI_API_KEY") from None
                pause = min(LONGEST_WAIT, _seconds(error.headers.get("Retry-After")) or pause)
            except (URLError, HTTPException, OSError) as error:
                why = self.excerpt(str(error).encode())
            if attempt + 1 < TRIES:
                self.wait(pause)
        raise ValueError(f"{self.url} failed {TRIES} times, last: {why}; is judge.endpoint up?")

    def request(self, item: Rendered, seed: int) -> Request:
        """The HTTP request of one comparison."""
        body: dict[str, Any] = {
            "model": self.cfg.model,
            "messages": item.messages(),
            "temperature": 0,
            "seed": seed,
            "max_tokens": self.cfg.max_tokens,
        }
        if self.logprobs:
            body |= {"logprobs": True, "top_logprobs": 5}
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        return Request(self.url, json.dumps(body).encode(), headers)  # noqa: S310 - http(s), see __init__

    def excerpt(self, body: bytes) -> str:
        """The start of a server's words on one line, without the key: some servers repeat it."""
        text = " ".join(body.decode("utf-8", "replace").split())
        return (text.replace(self.key, "***") if self.key else text)[:200]


def _body(error: HTTPError) -> bytes:
    try:
        return error.read()
    except (HTTPException, OSError):
        return b"(its words broke off)"


def _seconds(header: str | None) -> float:
    return float(header) if header and header.isdecimal() else 0.0


def parse_response(body: bytes) -> Chances | None:
    """Chances in a chat completion, or None where it has no verdict, was cut short or is no completion."""
    try:
        choice = json.loads(body)["choices"][0]
        text, cut = choice["message"]["content"], choice.get("finish_reason") == "length"
        letter = parse_verdict(text) if isinstance(text, str) and not cut else None
        content = (choice.get("logprobs") or {}).get("content") or []
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    if letter is None:
        return None
    chances = token_chances(content, letter)
    return chances or (Chances(1.0, 0.0) if letter == "A" else Chances(0.0, 1.0))


def parse_verdict(text: str) -> str | None:
    """ "A" or "B" where the last line is nothing but a verdict ("B", "Verdict: B", "[[B]]"), else None.

    Only the end counts: whatever stands above may quote an answer, and the answer may give orders.
    """
    lines = text.strip().splitlines()
    match = VERDICT.fullmatch(lines[-1].replace("*", "").strip()) if lines else None
    return match[1] if match else None


def token_chances(content: Any, letter: str) -> Chances | None:
    """Chances at the last token that spells the verdict, or None where the log-probabilities are not usable.

    `content` is the response's list of {"token", "logprob", "top_logprobs": [{"token", "logprob"}]}.
    """
    try:
        token = next(t for t in reversed(content) if any(map(str.isalnum, t["token"])))
        found = {"A": 0.0, "B": 0.0}
        for other in token.get("top_logprobs") or [token]:
            name = other["token"].strip(" \n*[].:")
            if name in found:
                found[name] += math.exp(other["logprob"])
    except (StopIteration, LookupError, TypeError, AttributeError, OverflowError):
        return None
    chances = Chances(found["A"], found["B"])
    return chances if chances.verdict == letter else None
