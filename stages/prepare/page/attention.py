"""What a person should look at first in a prepared dataset, the worst on top."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from stages.prepare.config import Action, LeakAction, PersonalAction, Prepare
from stages.prepare.decide import HARMLESS
from stages.prepare.page.facts import Facts
from stages.prepare.page.markup import excerpt
from stages.prepare.page.reasons import SAME

MANY_DUPLICATES = 0.2  # of the rows read: more, and the data is smaller than it looks
LITTLE_PACKED = 0.9  # of the packed rows' room
LEVELS = ("bad", "warn", "info")


@dataclass(frozen=True)
class Finding:
    """One sentence: how bad it is, what it is (a few words), the rest, and the page's section with the details."""

    level: str
    what: str
    rest: str
    section: str


def findings(cfg: Prepare, facts: Facts) -> list[Finding]:
    """Everything worth a look, bad before warn before info."""
    parts = (_rows, _overlap, _same, _personal, _lengths)
    found = [finding for part in parts for finding in part(cfg, facts)]
    return sorted(found, key=lambda finding: LEVELS.index(finding.level))


def _rows(cfg: Prepare, facts: Facts) -> Iterator[Finding]:
    read, used = facts.count("rows/read"), facts.used
    if read != used + facts.count("rows/rejected"):
        what = "Rows are missing"
        yield Finding(
            "bad", what, f"{read:,} were read, but used and set aside do not add up to it.", "splits"
        )
    fine = {fate.name for fate in HARMLESS}
    broken = [reject for reject in facts.rejects if reject.reason not in fine]
    count = sum(reject.count for reject in broken)
    if count:
        worst = max(broken, key=lambda reject: (reject.count, reject.reason))
        over = count > read * cfg.max_reject_share / 2
        where = f"{excerpt(worst.first_file, 200)}:{worst.first_line}"
        rest = f"most often {worst.reason} ({worst.count:,}, first at {where})."
        yield Finding("warn" if over else "info", f"{_rows_of(count)} not usable", rest, "rejects")
    for split in ("valid", "test"):
        if read and not facts.count(f"rows/{split}"):
            yield Finding("warn", f"No {split} row", "nothing can be measured on this split.", "splits")
    if not cfg.data.licence:
        yield Finding(
            "warn", "No licence", "data.licence is empty: say under which terms the rows are used.", "files"
        )


def _overlap(cfg: Prepare, facts: Facts) -> Iterator[Finding]:
    action, rows = cfg.leakage.action, facts.leaking_rows
    if action is LeakAction.ignore:
        rest = "training rows were not compared with what the model is tested on (leakage.action: ignore)."
        yield Finding("warn", "Leakage not looked for", rest, "leaks")
    elif rows and action is LeakAction.report:
        rest = "the model learns them, and its scores on these items mean less (leakage.action: report)."
        yield Finding("bad", f"{_rows_of(rows)} overlap test items and stay", rest, "leaks")
    elif rows:
        yield Finding(
            "warn", f"{_rows_of(rows)} overlapped test items", "set aside, each shown with its item.", "leaks"
        )
    if repeated := facts.rejected("in_test"):
        rest = "their question stands in the test split: set aside."
        yield Finding("info", f"{_rows_of(repeated)} repeat a test row", rest, "rejects")
    missing = [name for name, items in facts.checked.items() if items is None]
    if missing:
        rest = f"no copy under data/benchmarks, so whether training rows overlap them is unknown: {', '.join(missing)}."
        yield Finding("warn", f"{len(missing)} benchmark{_s(len(missing))} not compared", rest, "leaks")


def _same(cfg: Prepare, facts: Facts) -> Iterator[Finding]:
    read, near = facts.count("rows/read"), facts.count("duplicates/near")
    same = facts.rejected(*SAME)
    if read and same / read > MANY_DUPLICATES:
        rest = f"{same:,} of {read:,} rows: the data is smaller than it looks."
        yield Finding("warn", f"{same / read:.0%} duplicates", rest, "duplicates")
    if near and cfg.duplicates.action is Action.report:
        yield Finding(
            "warn",
            f"{_rows_of(near)} nearly repeat another",
            "they stay (duplicates.action: report).",
            "duplicates",
        )
    if cfg.duplicates.action is Action.ignore:
        rest = "only equal rows are set aside (duplicates.action: ignore)."
        yield Finding("info", "Near-duplicates not looked for", rest, "duplicates")


def _personal(cfg: Prepare, facts: Facts) -> Iterator[Finding]:
    found, action = sum(facts.personal.values()), cfg.personal.action
    if action is PersonalAction.ignore:
        yield Finding("info", "Personal data not looked for", "prepare.personal.action: ignore.", "personal")
    elif found:
        stays = action is PersonalAction.report
        rest = "they stay in the rows (personal.action: report)." if stays else "each replaced by its kind."
        what = f"{found:,} piece{_s(found)} of personal data"
        yield Finding("bad" if stays else "info", what, rest, "personal")


def _lengths(cfg: Prepare, facts: Facts) -> Iterator[Finding]:
    if cut := facts.count("rows/truncated"):
        rest = f"longer than max_length={cfg.max_length:,} tokens: the model does not see their end."
        yield Finding("warn", f"{_rows_of(cut)} truncated", rest, "lengths")
    full = facts.value("packed/train_efficiency")
    if facts.count("packed/train_rows") and full < LITTLE_PACKED:
        rest = f"of row_length={cfg.row_length:,} tokens hold text; the rest is padding."
        yield Finding("info", f"{full:.0%} of the packed training rows", rest, "lengths")


def _rows_of(count: int) -> str:
    return f"{count:,} row{_s(count)}"


def _s(count: int) -> str:
    return "" if count == 1 else "s"
