"""Has the traffic changed, or the answers worsened? Each window of the log against the reference window.

Reads the log folder and the model that embeds; writes reports/drift.html. Without logs, or with too few
rows in the reference, the result is "not evaluated".
"""

from __future__ import annotations

from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from stages.common.files import write_text
from stages.common.run import run
from stages.common.statistics import Metrics, exact
from stages.common.tracking import track
from stages.drift.calibration import Calibration, calibrate
from stages.drift.config import Drift
from stages.drift.descriptors import describe
from stages.drift.embedding import embed
from stages.drift.energy import distances, interval
from stages.drift.logs import Row, limited, read_windows
from stages.drift.page import Window, not_evaluated, summary, with_verdicts
from stages.drift.picture import render
from stages.drift.verdict import conversations, decide, explanation, first_rows
from stages.drift.vocabulary import telling_words

REPORT = Path("reports/drift.html")


def main(cfg: Drift) -> Metrics:
    """Decide on every window; the page says why. Raises ValueError on a malformed log or a missing model."""
    logs = {
        name: limited(rows, cfg.max_rows, cfg.seed) for name, rows in read_windows(Path(cfg.logs)).items()
    }
    reason = missing(logs, cfg)
    if reason:
        write_text(REPORT, not_evaluated(reason))
        track.artifact(REPORT)
        return {"drift/evaluated": exact(0)}
    texts = {name: [row.input for row in rows] for name, rows in logs.items() if len(rows) >= cfg.min_rows}
    vectors = embed(texts, Path(cfg.model), cfg.batch_size)
    windows = [judged(name, logs, vectors, cfg) for name in logs if name != cfg.reference]
    size = median(len(first_rows(logs[name])) for name in texts if name != cfg.reference)
    calibration = calibrate(logs[cfg.reference], distances(vectors[cfg.reference]), int(size), cfg)
    _write_page(windows, logs, calibration, cfg)
    return metrics(windows, calibration)


def missing(logs: dict[str, list[Row]], cfg: Drift) -> str:
    """Why nothing can be evaluated; "" if something can. Raises ValueError on a reserved name."""
    for name in sorted({"drift", "reference"} & logs.keys() - {cfg.reference}):
        raise ValueError(f"{cfg.logs}/{name}.jsonl: `{name}` is a group of the metrics; rename the window")
    sizes = {name: len(rows) for name, rows in logs.items()}
    reference = sizes.pop(cfg.reference, 0)
    if not reference:
        return f"{cfg.logs} has no rows in {cfg.reference}.jsonl, so there is no reference."
    if reference < cfg.min_rows:
        return f"{cfg.reference}.jsonl has {reference} rows, fewer than drift.min_rows = {cfg.min_rows}."
    if max(sizes.values(), default=0) < cfg.min_rows:
        return f"{cfg.logs} has no window with drift.min_rows = {cfg.min_rows} rows besides the reference."
    return ""


def judged(
    name: str, logs: dict[str, list[Row]], vectors: dict[str, NDArray[np.float64]], cfg: Drift
) -> Window:
    """The verdict on one window with its effect's interval and, on an alarm, the words behind it."""
    reference, rows = logs[cfg.reference], logs[name]
    if len(rows) < cfg.min_rows:
        return Window(name, len(rows), f"fewer than {cfg.min_rows} rows", None, None, [])
    matrix = distances(np.vstack([vectors[cfg.reference], vectors[name]]))
    verdict = decide(reference, rows, matrix, cfg, cfg.seed)
    units = conversations([*reference, *rows], len(reference))
    effect = interval(matrix, units, len(reference), cfg.resamples, cfg.seed)
    words = telling_words(reference, rows) if verdict.alarm else []
    return Window(name, len(rows), explanation(verdict, cfg.alpha), verdict, effect, words)


def metrics(windows: list[Window], calibration: Calibration) -> Metrics:
    """Verdicts by window, the reference's accuracies, and the measured error rates of the verdict."""
    found: Metrics = {
        "drift/evaluated": exact(1),
        "drift/alarms": exact(sum(w.verdict.alarm for w in windows if w.verdict), len(windows)),
        "reference/false_alarm_rate": calibration.false_alarms,
    }
    if calibration.power is not None:
        found["reference/power"] = calibration.power
    for window in windows:
        found[f"{window.name}/evaluated"] = exact(window.verdict is not None, window.rows)
        if window.verdict is None or window.energy is None:
            continue
        found[f"{window.name}/alarm"] = exact(window.verdict.alarm, window.rows)
        found[f"{window.name}/energy"] = window.energy
        for part, p in window.verdict.p_values.items():
            found[f"{window.name}/p_{part}"] = exact(p, window.rows)
        for field in window.verdict.fields:
            found[f"{window.name}/accuracy/{field.name}"] = field.window
            found[f"reference/accuracy/{field.name}"] = field.reference
    return found


def _write_page(
    windows: list[Window], logs: dict[str, list[Row]], calibration: Calibration, cfg: Drift
) -> None:
    reference, drawn = logs[cfg.reference], {}
    for window in windows:
        if window.verdict is not None:
            columns = describe(first_rows(reference), first_rows(logs[window.name]))
            drawn[window.name] = (columns, window.verdict.cut(cfg.alpha))
    write_text(REPORT, with_verdicts(render(drawn), summary(windows, calibration, len(reference), cfg)))
    track.artifact(REPORT)


if __name__ == "__main__":
    run(Drift, main)
