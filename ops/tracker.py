"""Check of `ops.doctor` that asks the tracking store, without MLflow's slow import and endless retries."""

from __future__ import annotations

import base64
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import SplitResult, urlsplit, urlunsplit

from ops.finding import FAIL, OK, WARN, Finding

SECONDS = 5


def tracking(uri: str) -> Finding:
    """Whether the tracking store answers, and how many experiments it has; never makes a store."""
    if uri.startswith("sqlite:///"):
        return _sqlite_tracking(Path(uri.removeprefix("sqlite:///")))
    if uri.startswith(("http://", "https://")):
        return _http_tracking(uri)
    return Finding(
        "tracking", WARN, f"{urlsplit(uri).scheme} store, not looked at", "only sqlite and http(s) are"
    )


def _sqlite_tracking(path: Path) -> Finding:
    if not path.is_file():
        return Finding("tracking", OK, f"{path} is not there yet: the first run makes it")
    try:
        with closing(
            sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=SECONDS)
        ) as store:
            query = "select count(*) from experiments where lifecycle_stage = 'active'"
            experiments = store.execute(query).fetchone()[0]
            runs = store.execute("select count(*) from runs where lifecycle_stage = 'active'").fetchone()[0]
    except sqlite3.Error as error:
        return Finding("tracking", FAIL, f"{path}: {error}", "move the file away, or `mlflow db upgrade` it")
    return Finding("tracking", OK, f"{path}: {experiments} experiments, {runs} runs")


def _http_tracking(uri: str) -> Finding:
    parts = urlsplit(uri)
    shown = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])).rstrip("/")
    try:
        found = _experiments(shown, _authorization(parts))
    except (OSError, ValueError) as error:
        refused = getattr(getattr(error, "response", None), "status_code", None) in (401, 403)
        todo = "set MLFLOW_TRACKING_USERNAME and _PASSWORD, or _TOKEN" if refused else "start the server"
        return Finding("tracking", FAIL, f"{shown}: {error}", f"{todo}, or unset MLFLOW_TRACKING_URI")
    return Finding("tracking", OK, f"{shown}: {found} experiments")


def _authorization(parts: SplitResult) -> dict[str, str]:
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return {"Authorization": f"Bearer {token}"}
    user = parts.username or os.environ.get("MLFLOW_TRACKING_USERNAME", "")
    password = parts.password or os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
    encoded = base64.b64encode(f"{user}:{password}".encode()).decode()
    return {"Authorization": f"Basic {encoded}"} if user else {}


def _experiments(uri: str, headers: dict[str, str]) -> str:
    import requests

    url = f"{uri}/api/2.0/mlflow/experiments/search?max_results=1000"
    answer = requests.get(url, headers=headers, timeout=SECONDS)
    answer.raise_for_status()
    content = answer.json()
    return f"{len(content.get('experiments', []))}{'+' if content.get('next_page_token') else ''}"
