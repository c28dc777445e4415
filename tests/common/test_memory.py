"""Memory that runs out is known by real failures of the allocators, and by nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from stages.common.memory import out_of_memory

FAR = 1 << 50  # bytes: more than a process can have


def allocate_tensor() -> Any:
    return torch.empty(FAR, dtype=torch.uint8)


@pytest.mark.parametrize("allocate", [allocate_tensor, lambda: np.empty(FAR, np.uint8), lambda: bytes(FAR)])
def test_a_failed_allocation_is_want_of_memory(allocate: Callable[[], Any]) -> None:
    with pytest.raises((MemoryError, RuntimeError)) as raised:
        allocate()
    assert out_of_memory(raised.value)


def test_what_a_gpu_says_is_want_of_memory() -> None:
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    assert out_of_memory(
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    )


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("Error while creating shared memory segment /dev/shm/x"),
        ValueError("a prompt on computers that run out of memory"),
    ],
)
def test_another_trouble_is_not(error: Exception) -> None:
    assert not out_of_memory(error)
