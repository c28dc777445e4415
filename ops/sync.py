"""Send to the tracking servers what they have not yet got: `python -m ops.sync`. Idempotent; `make` does it.

Every run leaves a journal under .lathe/tracking/. One whose server was down or slow, or whose process was killed, is
sent from there: to the server that MLFLOW_TRACKING_URI names now, or the sqlite file in the repository's root.

Whether a process of another machine still lives cannot be seen from here: `--dead KEY` says that it does not, when a
container is gone for good, say.
"""

from __future__ import annotations

import argparse
import platform
import re
import sys
import time
from collections.abc import Collection
from pathlib import Path

from stages.common import journal as journals
from stages.common import mark as marks
from stages.common.copier import Copier
from stages.common.store import one_line
from stages.common.target import GoneError, make_target

LOCK_SECONDS = 5.0  # a mirror that was killed a moment ago lets go in less


class DownError(ValueError):
    """The server does not answer: what else there is for it waits too."""


def main(root: Path, dead: Collection[str] = ()) -> list[str]:
    """Send every journal that a server has not in full; returns the keys of those that were sent to the end.

    Of the keys in `dead` the process is taken to be gone.

    Raises ValueError where a server does not answer, which is asked no further, or a run cannot be sent, which holds
    up no other; what a server took until then is not sent again.
    """
    sent, problems, down = [], list[str](), set[str]()
    for journal in sorted(journals.folder(root).glob("[0-9]*")):
        head = journals.header(journal)
        if head is None or marks.complete(journal):
            continue
        if not journals.ended(journal) and journal.name not in dead and journals.living(head):
            print(f"{head['name']}: {_alive(head, journal)}, left alone")
            continue
        for name in set(head["mirrors"]) - down:
            try:
                _send(root, journal, name, head)
            except ValueError as problem:  # the other servers get theirs
                problems.append(str(problem))
                down |= {name} if isinstance(problem, DownError) else set()
        sent += [journal.name] if marks.complete(journal) and not marks.deleted(journal) else []
    marks.prune(root)
    if problems:
        raise ValueError("; ".join(dict.fromkeys(problems)))
    return sent


def _alive(head: journals.Event, journal: Path) -> str:
    host = head["tags"]["lathe.host"]
    if host == platform.node():
        return "still running"
    return f"may be running on {host} (if not: `python -m ops.sync --dead {journal.name}`)"


def _send(root: Path, journal: Path, name: str, head: journals.Event) -> None:
    """Send the rest of a journal to one server, unless another process is at it."""
    for _ in range(int(LOCK_SECONDS / 0.1)):
        try:
            with marks.lock(journal, name):
                mark = marks.load(journal, name)
                if not (mark and mark.complete):
                    _copy(Copier(journal, name, make_target(name, root), dead=True), head)
                return
        except BlockingIOError:
            time.sleep(0.1)
    print(f"{head['name']}: another process is sending it to {name}, left alone")


def _copy(copier: Copier, head: journals.Event) -> None:
    anew = False
    try:
        while not copier.mark.complete:
            try:
                copier.advance()
            except GoneError:  # the store is another one than before: all of it, once, from the beginning
                if anew:
                    raise
                anew = True
    except Exception as error:
        if _is_outage(error):
            raise DownError(
                f"{copier.mark.target}: {one_line(error)}; nothing is lost, try again when it answers"
            ) from error
        raise ValueError(
            f"{copier.mark.target}: {head['name']}: {one_line(error)}; nothing is lost, try again"
        ) from error
    if copier.left:
        print(copier.left)
        return
    refused = f", {copier.mark.refused} refused" if copier.mark.refused else ""
    print(f"{head['name']}: {copier.delivered} events sent to {copier.mark.target}{refused}")


def _is_outage(error: BaseException | None) -> bool:
    """Whether no answer came: MLflow's client hides the reason behind an error of its own, W&B's in words."""
    from requests import ConnectionError as NoConnectionError
    from requests import Timeout
    from requests.exceptions import RetryError

    while error is not None:
        if isinstance(error, (ConnectionError, TimeoutError, NoConnectionError, Timeout, RetryError)):
            return True
        # W&B's: also for what a server refuses, with the status in its words
        if type(error).__name__ == "CommError" and not re.search(r"error 4\d\d|denied", str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ops.sync", description="Send to the tracking servers what they have not yet got."
    )
    parser.add_argument(
        "--dead",
        nargs="+",
        default=[],
        metavar="KEY",
        help="runs of other machines that are known to be over",
    )
    return parser


if __name__ == "__main__":
    try:
        main(Path.cwd(), _parser().parse_args().dead)
    except ValueError as problem:
        sys.exit(f"sync: {problem}")
