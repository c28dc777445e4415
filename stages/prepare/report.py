"""What people look at: the data report (HTML, works offline) and the dataset card (Markdown)."""

from __future__ import annotations

import html
from collections import Counter
from typing import Any

from stages.common.statistics import Metrics
from stages.prepare.config import Prepare
from stages.prepare.validate import Conversation

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1c2430}
h1{font-size:1.6rem}h2{font-size:1.15rem;margin-top:2rem;border-bottom:1px solid #d8dee6;padding-bottom:.2rem}
table{border-collapse:collapse}td,th{padding:.25rem .9rem .25rem 0;text-align:left;vertical-align:top}
td.n{text-align:right;font-variant-numeric:tabular-nums}code,pre{font:13px/1.45 ui-monospace,monospace}
pre{background:#f4f6f9;padding:.7rem;border-radius:6px;white-space:pre-wrap;overflow-wrap:anywhere}
.bar{fill:#3b6fb6}text{font:11px system-ui;fill:#55606e}
"""


def page(
    cfg: Prepare,
    metrics: Metrics,
    lengths: list[int],
    examples: list[Conversation],
    rejects: list[dict[str, Any]],
) -> str:
    """The report as one HTML page without scripts, fonts or images from elsewhere."""
    name = html.escape(cfg.data.name)
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Data: {name}</title><style>{STYLE}</style>",
        f"<h1>Data report: {name}</h1><p>{html.escape(cfg.data.note)}</p><h2>Counts</h2>{_counts(metrics)}",
        "<h2>Lengths of the training rows, tokens</h2>" + histogram(lengths),
        f"<h2>Rejected rows</h2>{_rejects(rejects)}",
        "<h2>Example rows</h2>" + "".join(_example(item) for item in examples),
    ]
    return "\n".join(parts) + "</html>\n"


def card(cfg: Prepare, metrics: Metrics) -> str:
    """The dataset card: where the rows come from and how many of them are used."""
    data = cfg.data
    source = f"{data.id} at {data.revision}" if data.id else data.path
    rows = "\n".join(f"| {key} | {metric['value']:g} |" for key, metric in sorted(metrics.items()))
    return (
        f"# Dataset {data.name}\n\n{data.note}\n\n"
        f"Source: {source} ({data.source.name}, {data.format.name}); train `{data.train}`, "
        f"test `{data.test or 'split off by hash'}`.\n\n| count | value |\n|---|---|\n{rows}\n"
    )


def histogram(values: list[int], bins: int = 40) -> str:
    """An inline SVG histogram."""
    if not values:
        return "<p>none</p>"
    width = max(1, -(-(max(values) + 1) // bins))
    counts = Counter(value // width for value in values)
    highest = max(counts.values())
    bars = "".join(
        f'<rect class=bar x="{index * 16}" y="{120 - 110 * count / highest:.1f}" width="14" '
        f'height="{110 * count / highest:.1f}"><title>{index * width} to {(index + 1) * width - 1}: {count}'
        "</title></rect>"
        for index, count in sorted(counts.items())
    )
    last = max(counts) * width
    axis = f'<text x="0" y="136">0</text><text x="{max(counts) * 16 - 14}" y="136">{last}</text>'
    return f'<svg width="{bins * 16 + 20}" height="142" role="img">{bars}{axis}</svg>'


def _counts(metrics: Metrics) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(key)}<td class=n>{metric['value']:,.6g}"
        for key, metric in sorted(metrics.items())
    )
    return f"<table>{rows}</table>"


def _rejects(rejects: list[dict[str, Any]]) -> str:
    if not rejects:
        return "<p>none</p>"
    counts = Counter(row["reason"] for row in rejects)
    first = {row["reason"]: row for row in reversed(rejects)}
    rows = "".join(
        f"<tr><td>{html.escape(reason)}<td class=n>{count}<td>{html.escape(str(first[reason]['file']))}:"
        f"{first[reason]['line']}<td><code>{html.escape(str(first[reason]['row'])[:120])}</code>"
        for reason, count in counts.most_common()
    )
    return f"<table><tr><th>reason<th>rows<th>first at<th>its start{rows}</table>"


def _example(item: Conversation) -> str:
    turns = "\n".join(f"{message['role']}: {message['content']}" for message in item.messages)
    return f"<p><code>{html.escape(item.id)}</code></p><pre>{html.escape(turns)}</pre>"
