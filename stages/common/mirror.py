"""A process that shows one journal on one server while the run goes on: `python -m stages.common.mirror JOURNAL NAME`.

stages/common/tracking.py starts it. It waits for nobody and gives up on nothing: where the server is down it tries
again, and whatever is left at the end of the run is for `python -m ops.sync`, by the same `Copier`.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from pathlib import Path

from stages.common import journal as journals
from stages.common import mark as marks
from stages.common.copier import Copier
from stages.common.process import die_with_parent
from stages.common.store import one_line
from stages.common.target import make_target

BATCH_SECONDS = 2.0  # points of this long are sent together
POLL_SECONDS = 0.1
BACKOFF_SECONDS = 0.5, 15.0  # first and longest wait after a failure
LAST_SECONDS = 4.0  # how long after the end of the run a server that was well until then is tried again


def main(journal: Path, name: str) -> int:
    """Follow the journal to its end. Exit status 0 where all of it was sent."""
    die_with_parent()
    head = journals.header(journal)
    if head is None or os.getppid() != int(head["tags"]["lathe.pid"]):
        return 1
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the group, where the stage has more to say
        signal.signal(number, signal.SIG_IGN)
    os.nice(10)
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"  # `follow` tries again, and says so
    with marks.lock(journal, name):
        try:
            copier = Copier(journal, name, make_target(name, journals.root_of(journal)))
        except ValueError as error:
            marks.note(journal, name, logging.WARNING, str(error))
            return 1
        if not Follower(copier).follow():
            return 1
    marks.prune(journals.root_of(journal))
    return 0


class Follower:
    """Sends a journal as it grows, and says once when the server goes and once when it is back."""

    def __init__(self, copier: Copier) -> None:
        """Nothing is sent yet."""
        self._copier = copier
        self._parent = os.getppid()
        self._failures = 0
        self._until = float("inf")

    def follow(self) -> bool:
        """Until all is sent (True), or the run has ended and the server does not answer (False)."""
        while not self._copier.mark.complete:
            try:
                more = self._copier.advance()
            except Exception as error:  # noqa: BLE001 - whatever a client library raises, it is tried again
                self._failed(error)
                if time.monotonic() > self._until:
                    return False
                self._wait(min(BACKOFF_SECONDS[0] * 2 ** (self._failures - 1), BACKOFF_SECONDS[1]))
            else:
                self._succeeded()
                if not more:
                    self._wait(BATCH_SECONDS)
        return True

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        if self._failures == 1:
            text = f"{self._copier.mark.target}: {one_line(error)}"
            self._note(logging.WARNING, f"{text}; the run goes on, its journal is kept")

    def _succeeded(self) -> None:
        if self._failures:
            self._note(logging.INFO, f"{self._copier.mark.target} is back after {self._failures} tries")
        self._failures = 0

    def _note(self, level: int, text: str) -> None:
        marks.note(self._copier.journal, self._copier.name, level, text)

    def _wait(self, seconds: float) -> None:
        """Sleep, no longer than to the end of the run, nor beyond the end of the process that started this one."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if os.getppid() != self._parent:
                sys.exit(1)
            if self._until == float("inf") and journals.ended(self._copier.journal):
                self._until = time.monotonic() + (0 if self._failures else LAST_SECONDS)
                return
            time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
