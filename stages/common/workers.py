"""How many things a stage does at once: the environment's matter, since no result depends on it."""

from __future__ import annotations

import os


def workers() -> int:
    """LATHE_WORKERS, or the number of cores. Raises ValueError unless it is a whole number from 1 up."""
    text = os.environ.get("LATHE_WORKERS") or str(os.cpu_count() or 1)
    if not (text.isascii() and text.isdigit() and int(text)):
        raise ValueError(f"LATHE_WORKERS={text!r} in the environment: set it to a whole number from 1 up")
    return int(text)
