"""How far a mirror of a journal has come, and what it has to say: the files that it shares with the stage.

The mark is written after the server has taken a batch, so a kill in between sends that batch again, and every
batch can be sent twice. Where it ends is written before it, in <mirror>.batches: the second time it is the same
batch, and a server that is sent all of a run again gets it in the same order, each event under its number of before.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from stages.common import journal as journals
from stages.common.files import read_json, write_json

KEEP = 20  # finished journals that stay, some pipelines' worth: what was sent, and under which id


@dataclass
class Mark:
    """Of one mirror of one journal; `target` says of which server all the rest is true."""

    target: str
    run: str = ""
    offsets: dict[str, int] = field(default_factory=dict)
    sent: int = 0
    refused: int = 0
    complete: bool = False
    deleted: bool = False  # by somebody, on the server: complete, since nothing more is sent


def path_of(journal: Path, mirror: str) -> Path:
    """The mark's file."""
    return journal / f"{mirror}.json"


def load(journal: Path, mirror: str) -> Mark | None:
    """The mark, None where the mirror has not begun."""
    path = path_of(journal, mirror)
    if not path.is_file():
        return None
    known = {each.name for each in fields(Mark)}  # one of an earlier version may say more
    return Mark(**{name: value for name, value in read_json(path).items() if name in known})


def save(journal: Path, mirror: str, mark: Mark) -> None:
    """Replace the mark at once: a kill leaves the old one or the new one."""
    write_json(path_of(journal, mirror), asdict(mark))


def add_batch(journal: Path, mirror: str, ends: dict[str, int]) -> None:
    """Write down where the next batch ends."""
    with (journal / f"{mirror}.batches").open("a", encoding="utf-8") as file:
        file.write(f"\n{json.dumps(ends)}\n")  # on a line of its own, also after one that a kill cut off


def batches(journal: Path, mirror: str, offsets: dict[str, int]) -> list[dict[str, int]]:
    """The batches beyond `offsets`, in the order in which they were first sent."""
    found = [ends for ends, _ in journals.read(journal / f"{mirror}.batches") if ends]
    return [ends for ends in found if any(end > offsets.get(file, 0) for file, end in ends.items())]


def note(journal: Path, mirror: str, level: int, text: str) -> None:
    """Say something in the log of the stage, which reads the notes now and then."""
    with (journal / f"{mirror}.notes").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"level": level, "text": text}) + "\n")


def notes(journal: Path, mirror: str, offset: int) -> tuple[list[dict[str, Any]], int]:
    """What was noted from byte `offset` on, and where the next note will begin."""
    found = list(journals.read(journal / f"{mirror}.notes", offset))
    return [event for event, _ in found if event], found[-1][1] if found else offset


def unsent(journal: Path, mirror: str) -> int:
    """How many events the mirror has not yet taken; the end of the run is one."""
    mark = load(journal, mirror)
    if mark and mark.complete:
        return 0
    offsets = mark.offsets if mark else {}
    return sum(journals.count(path, offsets.get(path.name, 0)) for path in journals.sources(journal))


def complete(journal: Path) -> bool:
    """Whether each of the run's mirrors has all of it."""
    head = journals.header(journal)
    marks = [load(journal, mirror) for mirror in head["mirrors"]] if head else [None]
    return all(mark is not None and mark.complete for mark in marks)


def deleted(journal: Path) -> bool:
    """Whether somebody deleted the run in one of its mirrors: its journal may be all that there is of it."""
    head = journals.header(journal)
    marks = [load(journal, mirror) for mirror in head["mirrors"]] if head else []
    return any(mark is not None and mark.deleted for mark in marks)


@contextmanager
def lock(journal: Path, mirror: str) -> Iterator[None]:
    """One sender per journal and mirror at a time. Raises BlockingIOError where there is another."""
    with (journal / f"{mirror}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def prune(root: Path) -> None:
    """Remove all but the newest finished journals; the copied files of a finished one are gone already.

    One whose run was deleted on a server stays: it may be wanted back.
    """
    folder = journals.folder(root)
    found = [path for path in sorted(folder.glob("[0-9]*")) if complete(path) and not deleted(path)]
    for path in found[:-KEEP]:
        with suppress(OSError):  # another process has just removed it
            path.rename(folder / f".removed-{path.name}")  # the name first: none is ever seen half gone
    for path in folder.glob(".removed-*"):
        shutil.rmtree(path, ignore_errors=True)
