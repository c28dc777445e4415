"""What the model answered, kept task by task while a stage runs: a killed stage asks no finished task again."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stages.common.files import write_text

log = logging.getLogger("lathe")


class Responses:
    """Answers to a task's requests of one kind under a folder of this variant, section and code."""

    def __init__(self, folder: Path | None, *, writes: bool = True) -> None:
        """Without a folder, nothing is kept; without `writes`, another process keeps what all answer together."""
        self.folder, self.writes = folder, writes

    def of(self, kind: str, task: str, requests: list[Any], ask: Callable[[], list[Any]]) -> list[Any]:
        """The kept answers to these very requests, or what `ask` answers, kept before it is returned.

        A task is asked as a whole: in other company its requests would be computed in other rows, with other rounding.
        """
        if self.folder is None:
            return ask()
        asked = hashlib.sha256(json.dumps(requests).encode()).hexdigest()[:32]
        path = self.folder / f"{hashlib.sha256(task.encode()).hexdigest()[:16]}-{kind}-{asked}.json"
        if path.is_file():
            log.info("%s: %d answers of an earlier run are taken as they are", task, len(requests))
            found = json.loads(path.read_text(encoding="utf-8"))
            assert isinstance(found, list)
            return found
        answers = ask()
        if self.writes:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(answers))
        return answers
