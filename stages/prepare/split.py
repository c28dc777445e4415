"""Splits by hash of what is asked: adding rows never moves an old one."""

from __future__ import annotations

import hashlib
from enum import Enum

from stages.prepare.config import Prepare, Source, Use


class Split(Enum):
    """Where a row goes."""

    train = "train"
    valid = "valid"
    test = "test"


FIXED = {Use.train: Split.train, Use.valid: Split.valid, Use.test: Split.test}


def share(key: str, salt: str) -> float:
    """A number in [0, 1) that depends on `key` and `salt` alone."""
    return int(hashlib.sha256(f"{salt}\0{key}".encode()).hexdigest()[:13], 16) / 16**13


def split_of(key: str, source: Source, cfg: Prepare) -> Split:
    """The split of a row whose question, or group, has the digest `key`.

    A source that names its split keeps it. The others' rows go by hash; test and validation rows are split off
    only where no source brings its own.
    """
    if source.use is not Use.split:
        return FIXED[source.use]
    uses = {other.use for other in cfg.data.sources.values()}
    position = share(key, f"split\0{cfg.seed}")
    test = 0.0 if Use.test in uses else cfg.test_share
    valid = 0.0 if Use.valid in uses else cfg.valid_share
    if position < test:
        return Split.test
    return Split.valid if position < test + valid else Split.train
