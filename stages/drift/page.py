"""The page that a person opens: the verdicts on top, what they rest on below, distributions last."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from stages.common.evidently_page import framed
from stages.common.statistics import Metric
from stages.drift.calibration import Calibration
from stages.drift.config import Drift
from stages.drift.verdict import Verdict
from stages.drift.vocabulary import Word

CSS = """
.lathe{font:15px/1.5 system-ui,sans-serif;color:#1c2430;background:#fff}
.lathe>div{max-width:1180px;margin:0 auto;padding:28px 24px}
.lathe h1{font-size:28px;margin:0 0 4px}.lathe h2{font-size:20px;margin:34px 0 8px}
.lathe h3{font-size:15px;margin:18px 0 6px}.lathe p{margin:6px 0;max-width:80ch}
.lathe table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
.lathe th{text-align:left;color:#5a6675;border-bottom:2px solid #d8dee6;padding:6px 10px 6px 0}
.lathe td{border-bottom:1px solid #e8ecf1;padding:6px 10px 6px 0;vertical-align:top}
.lathe td:first-child{white-space:nowrap}.lathe .note{color:#5a6675}.lathe .pair{white-space:nowrap}
.lathe .badge{border-radius:4px;padding:2px 8px;font-weight:600;color:#fff;white-space:nowrap}
.lathe .alarm{background:#b42318}.lathe .stable{background:#237a4b}.lathe .none{background:#7b8694}
"""


HEAD = f"<title>Drift</title><style>{CSS}</style>"


@dataclass(frozen=True)
class Window:
    """One window as the page tells it; without a verdict, `note` says why."""

    name: str
    rows: int
    note: str
    verdict: Verdict | None
    energy: Metric | None
    words: Sequence[Word]


def with_verdicts(picture: str, summary: str) -> str:
    """Evidently's page with our summary in front, each once, and a title."""
    heading = (
        '<div class="lathe"><div><h2>Distributions</h2><p class="note">Drawn by Evidently; tests and '
        "thresholds are those of the tables above. Open a row for its histogram.</p></div></div>"
    )
    return framed(picture, HEAD, summary + heading)


def not_evaluated(reason: str) -> str:
    """The whole page where there is nothing to compare."""
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="UTF-8">{HEAD}</head><body>'
        f'<div class="lathe"><div><h1>Drift</h1><p>{_badge("not evaluated", "none")} {escape(reason)}</p>'
        "</div></div></body></html>\n"
    )


def summary(windows: Sequence[Window], calibration: Calibration, reference_rows: int, cfg: Drift) -> str:
    """Verdict table, measured error rates and, per window, what moved."""
    head = [
        "Window",
        "Verdict",
        "Rows",
        "Energy effect [95 %]",
        "p data",
        "p descriptors",
        "p performance",
        "What moved",
    ]
    return (
        f'<div class="lathe"><div><h1>Drift</h1><p class="note">{escape(cfg.logs)}, reference '
        f"“{escape(cfg.reference)}” ({reference_rows} rows), embeddings by {escape(cfg.model)}. {escape(cfg.note)}</p>"
        + _table(head, (_line(window, cfg) for window in windows))
        + _reliability(calibration, cfg)
        + "".join(_detail(window, cfg) for window in windows)
        + "</div></div>"
    )


def _line(window: Window, cfg: Drift) -> list[str]:
    name, verdict, energy = escape(window.name), window.verdict, window.energy
    if verdict is None or energy is None:
        return [name, _badge("not evaluated", "none"), str(window.rows), *["–"] * 4, escape(window.note)]
    badge = _badge("drift", "alarm") if verdict.alarm else _badge("stable", "stable")
    parts = [
        _p(verdict.adjusted[part], cfg) if part in verdict.adjusted else "not evaluated" for part in _PARTS
    ]
    return [name, badge, str(window.rows), _interval(energy), *parts, escape(window.note)]


_PARTS = ("data", "descriptors", "performance")


def _reliability(calibration: Calibration, cfg: Drift) -> str:
    """The sentence that says how far to trust the table."""
    sizes = f"{calibration.right} against {calibration.left}"
    quiet, power = calibration.false_alarms, calibration.power
    text = (
        f"A window alarms if one of its p-values (shown adjusted by Holm) is at most {cfg.alpha:g}: "
        "on undrifted traffic that is the chance of a false alarm. Measured: "
        f"<b>{_count(quiet)}</b> random splits of the reference against itself ({sizes} conversations) "
        f"alarmed, {_share(quiet)}. "
    )
    if power is None:
        return f"<p>{text}Power was not measured: the reference has too few long messages to shift.</p>"
    shift = f"{100 * cfg.shift:g} percentage points more messages longer than the median"
    return f"<p>{text}With a known shift ({shift}) <b>{_count(power)}</b> alarmed, {_share(power)}.</p>"


def _detail(window: Window, cfg: Drift) -> str:
    if window.verdict is None:
        return ""
    return (
        f"<h2>{escape(window.name)}</h2>"
        + _descriptors(window.verdict, cfg)
        + _fields(window.verdict, cfg)
        + _words(window.words)
    )


def _descriptors(verdict: Verdict, cfg: Drift) -> str:
    rows = [
        [
            escape(m.name),
            escape(m.reference),
            escape(m.window),
            f"{m.effect:.2f}",
            _p(m.p, None),
            _p(m.adjusted, cfg),
        ]
        for m in verdict.descriptors
    ]
    head = ["Descriptor", "Reference", "Window", "Effect", "p", "p (Benjamini-Hochberg)"]
    note = '<p class="note">Means, or the category that changed most. Effect: largest gap of the cumulative '
    note += "distributions (Kolmogorov-Smirnov's D), or Cramér's V for predicted fields; 0 none, 1 total.</p>"
    return "<h3>Messages and predictions</h3>" + _table(head, rows) + note


def _fields(verdict: Verdict, cfg: Drift) -> str:
    title = "<h3>Accuracy by feedback</h3>"
    if not verdict.fields:
        return title + '<p class="note">Not evaluated: no feedback on both sides.</p>'
    rows = [
        [
            escape(f.name),
            *(f"{_share(side)}, n {side['n']}" for side in (f.reference, f.window)),
            _p(f.adjusted, cfg),
        ]
        for f in verdict.fields
    ]
    return title + _table(["Field", "Reference [95 %]", "Window [95 %]", "p worse (Fisher, Holm)"], rows)


def _words(words: Sequence[Word]) -> str:
    if not words:
        return ""
    rows = [[escape(word.word), f"{word.reference:.1%}", f"{word.window:.1%}"] for word in words]
    head = ["Word", "Reference messages with it", "Window messages with it"]
    return "<h3>Words that tell the window from the reference</h3>" + _table(head, rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    titles = "".join(f"<th>{title}</th>" for title in head)
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table>"


def _badge(text: str, kind: str) -> str:
    return f'<span class="badge {kind}">{text}</span>'


def _p(value: float, cfg: Drift | None) -> str:
    text = "&lt; 0.0001" if value < 0.0001 else f"{value:.4f}" if value < 0.01 else f"{value:.3f}"
    return f"<b>{text}</b>" if cfg is not None and value <= cfg.alpha else text


def _interval(metric: Metric) -> str:
    return f'<span class="pair">{metric["value"]:.3f} [{metric["lo"]:.3f}, {metric["hi"]:.3f}]</span>'


def _share(metric: Metric) -> str:
    return f'<span class="pair">{metric["value"]:.1%} [{metric["lo"]:.1%}, {metric["hi"]:.1%}]</span>'


def _count(metric: Metric) -> str:
    return f"{round(metric['value'] * metric['n'])} of {metric['n']}"
