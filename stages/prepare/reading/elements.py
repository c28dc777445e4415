"""Rows that are elements of one list in a JSON file, cut out byte by byte so that each can be broken alone."""

from __future__ import annotations

import io
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass

from stages.prepare.reading.record import Record, decode, excerpt, too_large
from stages.prepare.reading.streams import CHUNK

_SPACE = re.compile(rb"[ \t\r\n]*")
_PLAIN = re.compile(rb'[^"\[\]{},]*')
_STRING = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)
# What changes no depth: anything but brackets and quotes, and strings that end in this chunk.
_FLAT = re.compile(rb'(?:[^"\[\]{}]+|"[^"\\]*(?:\\.[^"\\]*)*")*', re.DOTALL)


def elements(stream: io.BufferedReader, name: str, limit: int) -> Iterator[Record]:
    """Records of the elements of the list that the file is, or of the only list directly in the object that it is.

    The file is cut at that list's commas, strings and brackets minded. Where its structure breaks, or it ends in
    the middle, the remainder is one record, invalid_json; an object without a list is one, no_list_of_rows.
    Raises ValueError for an object with several lists, and for several objects in a row.
    """
    scanner = _Scanner(stream, limit)
    opened = scanner.opening()
    closed = True
    if opened == b"[":
        closed = yield from _list(scanner, name, limit)
    elif opened == b"{":
        closed = yield from _object(scanner, name, limit)
    rest = scanner.upto(b"")
    if opened == b"{" and rest.text.startswith(b"{"):
        raise ValueError(
            f"{name}:{rest.line} begins a second object: one object per line is .jsonl, rename it"
        )
    if rest.size and closed:
        yield _broken(name, rest)


def _list(scanner: _Scanner, name: str, limit: int) -> Generator[Record, None, bool]:
    """Records up to the list's end; False where the file ends before it."""
    piece = scanner.upto(b",]")
    if piece.stop == b"]" and not piece.size:
        return True
    while piece.stop:
        if piece.size > limit:
            yield too_large(name, piece.line, piece.text, piece.size)
        else:
            yield decode(name, piece.line, piece.text)
        if piece.stop == b"]":
            return True
        piece = scanner.upto(b",]")
    yield _broken(name, piece)
    return False


def _object(scanner: _Scanner, name: str, limit: int) -> Generator[Record, None, bool]:
    """Records of the only list in an object, up to the object's end; False where the file ends before it."""
    found = False
    while (piece := scanner.upto(b"[}")).stop == b"[":
        if found:
            raise ValueError(
                f"{name}:{scanner.line} begins a second list of its object: which one has the rows?"
            )
        found = True
        if not (yield from _list(scanner, name, limit)):
            return False
    if not piece.stop:
        yield _broken(name, piece)
    elif not found:
        yield Record(
            name, piece.line, excerpt(b"{" + piece.text + b"}", piece.size + 2), None, "no_list_of_rows"
        )
    return bool(piece.stop)


@dataclass
class _Piece:
    """What stands before `stop`, b"" at the end of the file: its start, its bytes in all, its first line."""

    text: bytes
    size: int
    line: int
    stop: bytes


def _broken(name: str, piece: _Piece) -> Record:
    return Record(name, piece.line, excerpt(piece.text, piece.size), None, "invalid_json")


class _Scanner:
    """Walks over JSON text of any size; only a chunk and the start of a piece are in memory."""

    def __init__(self, stream: io.BufferedReader, limit: int) -> None:
        self.line = 1
        self._stream, self._limit = stream, limit
        self._chunk, self._at = b"", 0
        self._quoted = self._escaped = False

    def opening(self) -> bytes:
        """Step over white space and the bracket that follows; b"" if none does."""
        self._skip_space()
        found = self._chunk[self._at : self._at + 1]
        if found not in (b"[", b"{"):
            return b""
        self._at += 1
        return found

    def upto(self, stops: bytes) -> _Piece:
        """The text up to one of `stops` that stands in no string and in no bracket, which is stepped over."""
        self._skip_space()
        text, size, line, depth = bytearray(), 0, self.line, 0
        while self._filled():
            begin = self._at
            found = self._step(depth)
            stop = found if depth == 0 and found in stops else b""
            token = self._chunk[begin : self._at - len(stop)]
            size += len(token)
            self.line += token.count(b"\n")
            if len(text) <= self._limit:
                text += token
            if stop:
                return _piece(text, size, line, stop)
            if found in (b"[", b"{"):
                depth += 1
            elif found in (b"]", b"}"):
                depth = max(0, depth - 1)
        return _piece(text, size, line, b"")

    def _step(self, depth: int) -> bytes:
        """Go on to after the next bracket, quote or (at depth 0) comma, or the chunk's end; that byte, or a space."""
        if self._quoted:
            return self._through_string()
        self._at = (_FLAT if depth else _PLAIN).match(self._chunk, self._at).end()  # type: ignore[union-attr]
        if self._at == len(self._chunk):
            return b" "
        self._at += 1
        found = self._chunk[self._at - 1 : self._at]
        self._quoted = found == b'"'
        return found

    def _through_string(self) -> bytes:
        begin = self._at + self._escaped  # the byte after a backslash at the last chunk's end
        self._at = end = _STRING.match(self._chunk, begin).end()  # type: ignore[union-attr]
        self._escaped = end < len(self._chunk) and self._chunk[end] == ord("\\")
        self._quoted = self._escaped or end == len(self._chunk)
        self._at += end < len(self._chunk)
        return b" "

    def _skip_space(self) -> None:
        while self._filled():
            end = _SPACE.match(self._chunk, self._at).end()  # type: ignore[union-attr]
            self.line += self._chunk.count(b"\n", self._at, end)
            self._at = end
            if end < len(self._chunk):
                return

    def _filled(self) -> bool:
        """False at the end of the file."""
        if self._at == len(self._chunk):
            self._chunk, self._at = self._stream.read1(CHUNK), 0
        return bool(self._chunk)


def _piece(text: bytearray, size: int, line: int, stop: bytes) -> _Piece:
    whole = bytes(text.rstrip()) if size == len(text) else bytes(text)
    return _Piece(whole, len(whole) if size == len(text) else size, line, stop)
