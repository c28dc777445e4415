"""What a section says that cannot be meant, found before any work."""

from __future__ import annotations

from stages.bench.config import Bench
from stages.bench.programs import limits_of

LEAST = {"threads": 1, "limit": 0, "batch_size": 1, "batch_tokens": 1, "fewshot": 0}


def check_values(cfg: Bench) -> None:
    """Raise ValueError, in one line, on numbers out of range."""
    numbers = {name: (getattr(cfg, name), least) for name, least in LEAST.items()}
    for name, (value, least) in (numbers | {"prompt.max_new_tokens": (cfg.prompt.max_new_tokens, 1)}).items():
        if value is not None and value < least:
            raise ValueError(f"bench.{name}={value} (params.yaml): give {least} or more")
    limits_of(cfg.code)
