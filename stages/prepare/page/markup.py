"""Text to HTML: what comes from data is always escaped, and never longer than it needs to be."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence

BINS = 40
WIDTH, HEIGHT, BASE = 400, 140, 112  # of a histogram, and where its axis is
# What a page cannot hold, or what would act on it unseen, is shown as a sign: control characters, lone surrogates.
_SIGNS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
_SIGNS |= {0x7F: 0x2421} | dict.fromkeys([*range(0x80, 0xA0), *range(0xD800, 0xE000)], 0xFFFD)


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def esc(value: object) -> Html:
    """Any value as HTML text; what is Html already stays."""
    return value if isinstance(value, Html) else Html(html.escape(clean(str(value))))


def clean(text: str) -> str:
    """Text that any UTF-8 file can hold: control characters and lone surrogates as visible signs."""
    return text.translate(_SIGNS)


def excerpt(text: str, limit: int) -> str:
    """The first `limit` characters; whatever fills them may have been cut before, and ends in … too."""
    if len(text) < limit:
        return text
    return f"{text[:limit]}…" + (f" [{len(text):,} characters]" if len(text) > limit else "")


def place(ref: str) -> Html:
    """Where a row stands, as a name whose writing direction stays its own."""
    return Html(f"<bdi>{esc(excerpt(ref, 200))}</bdi>")


def text(value: str, limit: int) -> Html:
    """The start of a row, white space kept."""
    return Html(f'<pre dir="auto">{esc(excerpt(value, limit))}</pre>')


def share(part: float, whole: float) -> str:
    """A percentage, – of nothing; what is not nothing never shows as 0."""
    if not whole:
        return "–"
    return f"{part / whole:.1%}" if part == 0 or part / whole >= 0.001 else "< 0.1%"


def table(head: Sequence[str], sides: str, rows: Iterable[Sequence[object]], *, wide: bool = False) -> Html:
    """A table; `sides` has an r for each column that is right-aligned, an l for the others.

    In a `wide` one the last column goes under the others where the screen is narrow.
    """
    kinds = ["n" if side == "r" else "t" for side in sides]
    titles = "".join(f'<th class="{kind}">{esc(title)}</th>' for kind, title in zip(kinds, head, strict=True))
    lines = "".join(f"<tr>{_cells(kinds, row)}</tr>" for row in rows)
    start = '<table class="wide">' if wide else "<table>"
    return Html(
        f'<div class="scroll">{start}<thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table></div>'
    )


def _cells(kinds: Sequence[str], row: Sequence[object]) -> str:
    return "".join(f'<td class="{kind}">{esc(cell)}</td>' for kind, cell in zip(kinds, row, strict=True))


def stacked(parts: Iterable[tuple[str, str, int]]) -> Html:
    """A bar of (label, class, count), each as wide as its count, with its legend."""
    shown = [part for part in parts if part[2]]
    bar = "".join(
        f'<i class="{kind}" style="flex-grow:{count}" title="{esc(label)}: {count:,}"></i>'
        for label, kind, count in shown
    )
    legend = "".join(
        f'<li><i class="{kind}"></i>{esc(label)} <b>{count:,}</b></li>' for label, kind, count in shown
    )
    return Html(f'<div class="bar" aria-hidden="true">{bar}</div><ul class="legend">{legend}</ul>')


def histogram(counts: Mapping[int, int], marks: Mapping[str, int]) -> Html:
    """Bars of value -> count as inline SVG, with a line at each mark (label -> value) that the scale reaches."""
    end = max(counts) + 1
    end = max([end, *(mark + 1 for mark in marks.values() if mark <= 1.5 * end)])
    width = -(-end // BINS)
    bins: dict[int, int] = {}
    for value, count in counts.items():
        bins[value // width] = bins.get(value // width, 0) + count
    scale, highest = WIDTH / (width * BINS), max(bins.values())
    bars = "".join(
        f'<rect x="{index * width * scale:.1f}" y="{BASE - 96 * count / highest:.1f}" width="{width * scale - 1:.1f}" '
        f'height="{96 * count / highest:.1f}"><title>{index * width:,} to {(index + 1) * width - 1:,}: {count:,}'
        "</title></rect>"
        for index, count in sorted(bins.items())
    )
    lines = "".join(_mark(label, value, scale) for label, value in marks.items() if value < width * BINS)
    axis = f'<path d="M0 {BASE}H{WIDTH}"/><text x="0" y="{BASE + 14}">0</text>'
    axis += f'<text x="{WIDTH}" y="{BASE + 14}" text-anchor="end">{width * BINS:,}</text>'
    return Html(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="histogram">{bars}{axis}{lines}</svg>'
    )


def _mark(label: str, value: int, scale: float) -> str:
    x = value * scale
    side, at = ("end", x - 3) if x > WIDTH / 2 else ("start", x + 3)
    line = f'<path class="mark" d="M{x:.1f} 2V{BASE}"/>'
    return f'{line}<text class="mark" x="{at:.1f}" y="11" text-anchor="{side}">{esc(label)} {value:,}</text>'
