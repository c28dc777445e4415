"""What one check of `ops.doctor` says."""

from __future__ import annotations

from dataclasses import dataclass

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's table: status is ok, warn (works, but) or fail; `todo` is empty when ok."""

    name: str
    status: str
    found: str
    todo: str = ""
