"""Memory that runs out: how torch, NumPy and Python say so, and how what nobody refers to is given back."""

from __future__ import annotations

import gc

# CUDA's allocator, CPU's on Windows and elsewhere, the system's own words, CUDA's libraries
WORDS = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "Cannot allocate memory",
    "_STATUS_ALLOC_FAILED",
)


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` was raised for want of memory, on a GPU or a CPU: torch has one class for it on a GPU alone.

    safetensors has its own, and a file's mapping is refused as an OSError. A ValueError is a line of ours, which may
    speak of memory.
    """
    if isinstance(error, MemoryError):
        return True
    return not isinstance(error, ValueError) and any(words in str(error) for words in WORDS)


def give_back_memory() -> None:
    """Free what nobody refers to any more, on the GPU too: what comes next, and other processes, need it.

    Within an `except`, the error still refers to all that was at hand where it was raised.
    """
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
