"""What types cannot say about the section: values that contradict each other, or mean nothing."""

from __future__ import annotations

from pathlib import Path

from stages.prepare.config import Action, Kind, LeakAction, PersonalAction, Prepare, Source
from stages.prepare.overlap.duplicates import bands
from stages.prepare.overlap.items import JUDGE, OWN
from stages.prepare.rows.phones import check_regions
from stages.prepare.rows.turns import CALL, ROLES

MOST_COPIES = 1000


def sane(cfg: Prepare) -> None:
    """Raise ValueError, before anything is read, that names the value and what to do."""
    if cfg.row_length < cfg.max_length:
        raise ValueError(
            f"prepare.row_length={cfg.row_length} is less than prepare.max_length={cfg.max_length}: "
            "a row of the greatest length would not fit; raise the one or lower the other"
        )
    for name in ("examples_share", "valid_share", "test_share", "max_reject_share"):
        if not 0 <= (value := getattr(cfg, name)) <= 1:
            raise ValueError(f"prepare.{name}={value} is a share: give a number from 0 to 1")
    if cfg.valid_share + cfg.test_share >= 1:
        raise ValueError(
            f"prepare.valid_share={cfg.valid_share} and prepare.test_share={cfg.test_share} leave nothing to train on"
        )
    for name, source in cfg.data.sources.items():
        _check_source(f"data.sources.{name}", source)
    near, leakage = cfg.duplicates, cfg.leakage
    if near.action is not Action.ignore:
        bands(near.threshold, near.permutations)
    if leakage.action is not LeakAction.ignore and not 1 <= leakage.min_words <= leakage.ngram:
        raise ValueError(
            f"prepare.leakage.min_words={leakage.min_words} must be from 1 to prepare.leakage.ngram={leakage.ngram}"
        )
    for name in leakage.benchmarks:
        if Path(name).name != name or name in (OWN, JUDGE):
            raise ValueError(f"prepare.leakage.benchmarks: {name!r} is no task's name")
    if cfg.personal.action is not PersonalAction.ignore and Kind.phone in cfg.personal.kinds:
        check_regions(cfg.personal.regions)


def _check_source(where: str, source: Source) -> None:
    if not 0 <= source.weight <= MOST_COPIES:
        raise ValueError(
            f"{where}.weight={source.weight} is how often a row is seen: from 0 to {MOST_COPIES}"
        )
    known = ROLES | {CALL}
    for name, role in source.roles.items():
        if role not in known:
            raise ValueError(f"{where}.roles.{name}: {role!r} is none of {', '.join(sorted(known))}")
