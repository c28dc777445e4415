"""What a stage asks for its own process: an end with its parent, memory that stays, imports that take less time."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # <malloc.h>


def die_with_parent(parent: int | None = None) -> None:
    """End with the process that started this one: an orphan would write into the next run's outs.

    `parent` is its pid where it is known; else process 1 as the parent means that the real one is gone, unless DVC
    itself is process 1, as in a container.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        now = os.getppid()
        if now != parent if parent else now == 1 and b"dvc" not in Path("/proc/1/cmdline").read_bytes():
            sys.exit("the process that started this one is gone")


def keep_freed_memory() -> None:
    """Have glibc keep blocks that torch frees: given back and taken again at every step, they cost a fifth of its time.

    Peak memory may rise by what is free but kept. Elsewhere than on glibc nothing happens.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Have no garbage looked for while libraries are imported, nor ever after among what they made: it stays anyway.

    Going through it again and again, and once more when the process ends, takes a quarter of a cold start. What is
    garbage already would stay as well, so this belongs before any work.
    """
    before = len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > before:
            gc.freeze()
        gc.enable()
