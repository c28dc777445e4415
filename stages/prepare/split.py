"""Splits by hash of the question: adding rows never moves an old one."""

from __future__ import annotations

import hashlib
from enum import Enum

from stages.prepare.config import Prepare


class Split(Enum):
    """Where a row goes."""

    train = "train"
    valid = "valid"
    test = "test"


def share(key: str, salt: str) -> float:
    """A number in [0, 1) that depends on `key` and `salt` alone."""
    return int(hashlib.sha256(f"{salt}\0{key}".encode()).hexdigest()[:13], 16) / 16**13


def split_of(question: str, cfg: Prepare) -> Split:
    """The split of a training-file row; test only where the data brings no test file of its own."""
    position = share(question, f"split\0{cfg.seed}")
    test = 0.0 if cfg.data.test else cfg.test_share
    if position < test:
        return Split.test
    return Split.valid if position < test + cfg.valid_share else Split.train
