"""The journal of one run: a folder under .lathe/tracking/ that holds all there is to know about it, in order.

    run.jsonl            one event a line: `run` first, then points, tags, files, datasets, `end` last
    rank<r>.jsonl        the same from another process of the run; no file has two writers
    files/<n>/<name>     what the `file` events name, as it was at that moment
    <mirror>.json        how far a mirror has come, <mirror>.batches in what steps, <mirror>.notes what it has to say
                         (stages/common/mark.py)

The journal is the truth and a server a mirror of it: whatever happens to the server, nothing here is lost.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

RUN = "run.jsonl"
FILES = "files"
END_BYTES = 4096  # an `end` has a hundred

Event = dict[str, Any]


class Writer:
    """Appends to one file of a journal. What it cannot write it counts: nothing here raises for a bad disk."""

    def __init__(self, path: Path) -> None:
        """Open `path` for appending. Raises OSError."""
        self.lost, self.error = 0, ""
        self._torn = False
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def append(self, event: Mapping[str, Any]) -> None:
        """Write one line in one call, so that a kill loses at most this one. Raises TypeError for what JSON has not."""
        line = json.dumps({"at": now(), **event}).encode() + b"\n"
        if self._torn:  # a full disk took the beginning of a line, which must not swallow this one
            line = b"\n" + line
        try:
            written = os.write(self._handle, line)
            error = "the disk took part of a line"
        except OSError as refusal:
            written, error = 0, str(refusal)
        if written != len(line):
            self.lost, self.error, self._torn = self.lost + 1, error, self._torn or written > 0
        else:
            self._torn = False

    def close(self) -> None:
        """No more events."""
        os.close(self._handle)


def folder(root: Path) -> Path:
    """Where the journals of a repository lie."""
    return root.resolve() / ".lathe" / "tracking"


def root_of(journal: Path) -> Path:
    """The repository of a journal."""
    return journal.parents[2]


def create(root: Path) -> Path:
    """A new, empty journal. Its name, which sorts by time, is the run's key in every mirror. Raises OSError."""
    at = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    path = folder(root) / f"{at}-{os.getpid()}-{secrets.token_hex(4)}"
    path.mkdir(parents=True)
    return path


def now() -> int:
    """Milliseconds since 1970, the unit of every `at`."""
    return time.time_ns() // 1_000_000


def sources(journal: Path) -> list[Path]:
    """The files of a journal that have events, the run's own first."""
    return [journal / RUN, *sorted(journal.glob("rank*.jsonl"))]


def read(path: Path, offset: int = 0) -> Iterator[tuple[Event | None, int]]:
    """Each whole line from byte `offset` on as (event, the byte after it); None for a line that is no event.

    A line without its end is still being written, or was when its process was killed: it is not read.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield _parse(line), offset


def count(path: Path, offset: int = 0) -> int:
    """How many lines `read` would give: a stage that ends does not wait until millions are parsed."""
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        file.seek(offset)
        return sum(part.count(b"\n") for part in iter(lambda: file.read(1 << 20), b""))


def header(journal: Path) -> Event | None:
    """The `run` event, None where the process was killed before it stood there."""
    event = next((event for event, _ in read(journal / RUN)), None)
    return event if event and event.get("kind") == "run" else None


def ended(journal: Path) -> bool:
    """Whether the last event is `end`: the run was closed by its own process."""
    path = journal / RUN
    if not path.is_file():
        return False
    with path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - END_BYTES))
        lines = file.read().splitlines()
    event = _parse(lines[-1]) if lines else None
    return bool(event and event.get("kind") == "end")


def living(head: Event) -> bool:
    """Whether the process of a run is still there; on another machine nobody can tell, so it counts as such."""
    tags = head["tags"]
    elsewhere = bool(tags["lathe.host"] != platform.node())
    return elsewhere or started(int(tags["lathe.pid"])) == tags["lathe.started"]


def process_tags() -> dict[str, str]:
    """Tags by which `living` and stages/common/store.py know whether a run's process still lives."""
    pid = os.getpid()
    return {"lathe.host": platform.node(), "lathe.pid": str(pid), "lathe.started": started(pid) or ""}


def started(pid: int) -> str | None:
    """A process's start in clock ticks since boot, None if there is none: a pid alone may have been reused."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return None
    return stat.rsplit(")", 1)[1].split()[19]


def _parse(line: bytes) -> Event | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None
