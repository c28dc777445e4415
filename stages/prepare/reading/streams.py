"""Files as streams of bytes, decompressed on the way: memory is a buffer's, however large the content is."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

CHUNK = 1 << 20
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
COMPRESSIONS = (".gz", ".zst")
UTF8_MARK = b"\xef\xbb\xbf"
_SKIPPABLE = b"\x2a\x4d\x18"  # a zstd frame without content: 0x50 to 0x5f, then these
_MEMBER = GZIP + b"\x08"


class Damaged(Exception):
    """A file that cannot be read to its end, so that nobody knows how many rows are missing; says how."""


def begins(head: bytes, compression: str) -> bool:
    """Whether these bytes begin a file that is compressed so."""
    return head.startswith(GZIP) if compression == ".gz" else head.startswith(ZSTD) or head[1:4] == _SKIPPABLE


def open_rows(path: Path, compression: str, name: str, begin: int) -> io.BufferedReader:
    """A buffered stream of the file's decompressed bytes, from `begin` or after a UTF-8 byte order mark.

    `compression` is "", ".gz" or ".zst". Raises ValueError for UTF-16; reading raises Damaged.
    """
    file: io.BufferedReader = io.BufferedReader(io.FileIO(path), CHUNK)
    if begin:
        file.seek(begin)
        return file
    stream = file
    if compression:
        stream = io.BufferedReader(Unpacked(file, compression), CHUNK)
    head = stream.peek(4)[:4]
    if (head[:2] == b"\xff\xfe" and head[3:] == b"\0") or head[:3] == b"\xfe\xff\0":
        stream.close()
        raise ValueError(f"{name} is UTF-16: save it as UTF-8")
    if head.startswith(UTF8_MARK):
        stream.read(len(UTF8_MARK))
    return stream


def garbage(stream: io.BufferedReader) -> tuple[bytes, int]:
    """Start and size in bytes of what followed the end of a gzip file that has been read; size 0 if nothing did."""
    return (stream.raw.garbage, stream.raw.garbage_size) if isinstance(stream.raw, Unpacked) else (b"", 0)


class Unpacked(io.RawIOBase):
    """The decompressed bytes of a file; `garbage` is what followed the last gzip member."""

    def __init__(self, file: BinaryIO, compression: str) -> None:
        """Nothing is read before the first `readinto`."""
        self.garbage, self.garbage_size = b"", 0
        self._file = file
        self._chunks = _headed(self._gunzip() if compression == ".gz" else self._unzstd())
        self._held = memoryview(b"")

    def readable(self) -> bool:
        """True: io.BufferedReader asks."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # BufferedReader passes a memoryview
        """Fill `buffer` with the next bytes; 0 at the end. Raises Damaged."""
        while not self._held:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._held = memoryview(chunk)
        count = min(len(buffer), len(self._held))
        buffer[:count] = self._held[:count]
        self._held = self._held[count:]
        return count

    def close(self) -> None:
        """Close the file too."""
        self._file.close()
        super().close()

    def _gunzip(self) -> Iterator[bytes]:
        """One member after the other; zlib checks each one's CRC and length."""
        held = self._file.read(CHUNK)
        if not held.startswith(GZIP):
            raise Damaged("is no gzip file")
        while held.startswith(GZIP):
            member = zlib.decompressobj(wbits=31)
            while not member.eof:
                packed = held or self._file.read(CHUNK)
                unpacked = _inflate(member, packed)
                if not (packed or unpacked or member.eof):
                    raise Damaged("ends in the middle")
                if unpacked:
                    yield unpacked
                held = member.unconsumed_tail
            held = self._after_padding(member.unused_data)
        self._refuse_members(held)

    def _after_padding(self, held: bytes) -> bytes:
        """What comes after a member and the zero bytes that tapes and blocks are filled up with."""
        held = held.lstrip(b"\0")
        while len(held) < len(GZIP) and (more := self._file.read(CHUNK)):
            held = (held + more).lstrip(b"\0")
        return held

    def _refuse_members(self, held: bytes) -> None:
        """Bytes after the end are no rows, as gzip sees it, unless there are more members: one's start is damaged."""
        self.garbage = held[:CHUNK]
        while held:
            if _MEMBER in held:
                raise Damaged("is damaged between two of its gzip members")
            self.garbage_size += len(held)
            held = self._file.read(CHUNK)

    def _unzstd(self) -> Iterator[bytes]:
        """pyarrow's reader takes frame after frame and notices a cut one."""
        import pyarrow as pa

        try:
            stream = pa.CompressedInputStream(pa.PythonFile(self._file), "zstd")
            while chunk := stream.read(CHUNK):
                yield chunk
        except OSError as error:
            cut = "runcated" in str(error)
            raise Damaged("ends in the middle" if cut else f"is damaged ({error})") from error


def _inflate(member: zlib._Decompress, packed: bytes) -> bytes:
    try:
        return member.decompress(packed, CHUNK)
    except zlib.error as error:
        raise Damaged(f"is damaged ({error})") from error


def _headed(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes with at least four in the first chunk, for who looks at the start."""
    head = b""
    while len(head) < 4 and (chunk := next(chunks, b"")):
        head += chunk
    yield head
    yield from chunks
