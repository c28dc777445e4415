"""Sends one journal to one server, batch by batch, each event once: the part that the mirror and ops.sync share."""

from __future__ import annotations

import logging
import shutil
from collections import deque
from pathlib import Path

from stages.common import journal as journals
from stages.common import mark as marks
from stages.common.store import DEAD
from stages.common.target import DeletedError, GoneError, RefusedError, Target

BATCH_EVENTS = 500
BATCH_BYTES = 256 * 1024  # of our lines; MLflow takes 1 MB of its own


class Copier:
    """One journal on its way to one server."""

    def __init__(self, journal: Path, name: str, target: Target, *, dead: bool = False) -> None:
        """Go on where the mark says; with `dead`, a journal without an end ends as KILLED at its last event."""
        self.journal, self.name = journal, name
        self._target, self._dead = target, dead
        self._opened = False
        self._end: tuple[journals.Event, int] | None = None
        self.delivered = 0  # events, in this process
        self.left = ""  # why nothing more is sent, and what would change that
        mark = marks.load(journal, name)
        self.mark = mark if mark and mark.target == target.address else marks.Mark(target.address)
        self._again = deque(marks.batches(journal, name, self.mark.offsets))  # known, and not yet taken
        self._save()

    def advance(self) -> bool:
        """Send one batch, or the end after all else; whether there is more at once.

        Raises what the target raises where the server does not answer; nothing is lost by that.
        """
        try:
            self._open()
            events, ends = self._batch()
            if ends == self.mark.offsets:
                return self._finish()
            self._send(events, ends)
        except GoneError:
            self._begin_anew()
            self._opened = False
            raise
        except DeletedError as error:
            self._leave(error)
            return False
        return self._end is not None or bool(self._again) or len(events) >= BATCH_EVENTS

    def _open(self) -> None:
        head = journals.header(self.journal)
        if self._opened or head is None:
            return
        run, kept = self._target.open(self.journal.name, head, self.mark.run)
        if not kept:
            self._begin_anew()
        self.mark.run, self._opened = run, True
        self._save()

    def _begin_anew(self) -> None:
        self.mark = marks.Mark(self.mark.target)
        self._again = deque(marks.batches(self.journal, self.name, self.mark.offsets))
        self._save()

    def _batch(self) -> tuple[list[journals.Event], dict[str, int]]:
        """The next events and where they end: those of a batch that was once on its way, or new ones."""
        events: list[journals.Event] = []
        ends, size = dict(self.mark.offsets), 0
        for path in journals.sources(self.journal):
            for event, end in journals.read(path, ends.get(path.name, 0)):
                if event and event["kind"] == "end":
                    self._end = event, end
                    break
                if self._beyond(path.name, end, len(events), size):
                    break
                size += end - ends.get(path.name, 0)
                ends[path.name] = end
                events += self._unpacked(event, f"{path}, before byte {end}")
        return events, ends

    def _beyond(self, file: str, end: int, events: int, size: int) -> bool:
        if self._again:
            return end > self._again[0].get(file, 0)
        return events >= BATCH_EVENTS or size >= BATCH_BYTES

    def _unpacked(self, event: journals.Event | None, where: str) -> list[journals.Event]:
        if event is None:
            self._note(f"{where}: this line is no event, and is left out")
            return []
        if event["kind"] != "run":
            return [event]
        return [{"kind": "param", "name": name, "value": value} for name, value in event["params"].items()]

    def _send(self, events: list[journals.Event], ends: dict[str, int]) -> None:
        if not self._again:
            marks.add_batch(self.journal, self.name, ends)
            self._again.append(ends)
        self._deliver(events, self.mark.sent)
        self._again.popleft()
        self.mark.offsets = ends
        self.mark.sent += len(events)
        self.delivered += len(events)
        self._save()

    def _deliver(self, events: list[journals.Event], first: int) -> None:
        """Send a batch; of one that the server refuses each half, until the event to blame is alone."""
        try:
            self._target.send(events, self.journal, first)
        except RefusedError as error:
            if len(events) > 1:
                half = len(events) // 2
                self._deliver(events[:half], first)
                self._deliver(events[half:], first + half)
                return
            self.mark.refused += 1
            if self.mark.refused == 1:
                self._note(f"{self.mark.target} refuses {events[0]['kind']} {_name(events[0])!r}: {error}")

    def _finish(self) -> bool:
        """Nothing is left but the end, if it is there."""
        if self._end is not None:
            event, self.mark.offsets[journals.RUN] = self._end
            self._target.end(event["status"], event["at"])
        elif self._dead:
            tags = [{"kind": "tag", "name": name, "value": value} for name, value in DEAD.items()]
            self._deliver(tags, self.mark.sent)
            self._target.end("KILLED", int((self.journal / journals.RUN).stat().st_mtime * 1000))
        else:
            return False
        self.mark.complete = True
        self._save()
        # The copies take room, the lines little.
        if marks.complete(self.journal) and not marks.deleted(self.journal):
            shutil.rmtree(self.journal / journals.FILES, ignore_errors=True)
        return False

    def _leave(self, error: DeletedError) -> None:
        """What somebody deleted is neither written nor made again; all of it stays in the journal."""
        self.mark.complete = self.mark.deleted = True
        self._save()
        head = journals.header(self.journal)
        path = marks.path_of(self.journal, self.name).relative_to(journals.root_of(self.journal))
        self.left = (
            f"{head['name'] if head else self.journal.name}: {error} in {self.mark.target}, nothing more is sent; "
            f"to have it back: `{error.restore}`, `rm {path}`, `python -m ops.sync`"
        )
        self._note(self.left)

    def _note(self, text: str) -> None:
        marks.note(self.journal, self.name, logging.WARNING, text)

    def _save(self) -> None:
        marks.save(self.journal, self.name, self.mark)


def _name(event: journals.Event) -> str:
    return str(event.get("name", event.get("file")))
