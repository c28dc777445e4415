"""The data report: what came in, what of it is used, and what to look at first. One page that needs no network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from stages.common.evidently_page import framed
from stages.prepare.config import PersonalAction, Prepare
from stages.prepare.page.attention import findings
from stages.prepare.page.facts import SPLITS, TEXT_SHOWN, Example, Facts
from stages.prepare.page.languages import UNKNOWN
from stages.prepare.page.likeness import duplicates, leaks
from stages.prepare.page.markup import Html, esc, excerpt, histogram, place, share, stacked, table, text
from stages.prepare.page.reasons import OVERLAP, SAME, WHY
from stages.prepare.page.style import CSS
from stages.prepare.page.summary import summary

EXAMPLE_SHOWN = 3_000  # characters of an example row
NAMES = {  # section -> its title, in the order of the page
    "splits": "Splits",
    "lengths": "Lengths and packing",
    "rejects": "Rows set aside",
    "duplicates": "Near-duplicates",
    "leaks": "Overlap with tests",
    "personal": "Personal data",
    "languages": "Languages",
    "files": "Files",
    "examples": "Example rows",
}
BARE = '<!DOCTYPE html>\n<html lang="en"><head><meta charset="UTF-8">'
BARE += '<meta name="viewport" content="width=device-width, initial-scale=1.0"></head><body></body></html>'


def page(cfg: Prepare, facts: Facts) -> str:
    """The report as one HTML page, a pure function of its arguments: no link, font or script from elsewhere."""
    sections = {
        "splits": _splits(facts),
        "lengths": _lengths(cfg, facts),
        "rejects": _rejects(facts),
        "duplicates": duplicates(cfg, facts),
        "leaks": leaks(cfg, facts),
        "personal": _personal(cfg, facts),
        "languages": _languages(facts),
        "files": _files(facts),
        "examples": _examples(facts),
    }
    body = "".join(f'<h2 id="{key}">{NAMES[key]}</h2>{part}' for key, part in sections.items())
    picture = summary(facts.columns)
    body = f'<main class="lathe">{_top(cfg, facts)}{body}{_metrics(facts)}{_sample(facts, picture)}</main>'
    head = f"<title>Data: {esc(excerpt(cfg.data.name, 100))}</title><style>{CSS}</style>"
    return framed(picture or BARE, head, body)


def _top(cfg: Prepare, facts: Facts) -> str:
    data, read, used = cfg.data, facts.count("rows/read"), facts.used
    aside = facts.count("rows/rejected")
    note = f'<p class="said">{esc(data.note)}</p>' if data.note else ""
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title in NAMES.items())
    return (
        f"<h1>Data report: {esc(data.name)}</h1>{note}"
        f'<p class="dim">Licence: {esc(data.licence or "not stated")}. {len(facts.files)} files from {esc(data.path)}, '
        f"sources {esc(', '.join(sorted(data.sources)))}.</p>"
        f'<p class="verdict"><b>{read:,}</b> rows read: <b>{used:,}</b> used ({share(used, read)}), '
        f"<b>{aside:,}</b> set aside ({share(aside, read)}).</p>{stacked(_fates(facts))}"
        f'<h2 id="first">What to look at first</h2>{_findings(cfg, facts)}<nav>{links}</nav>'
    )


def _fates(facts: Facts) -> Iterator[tuple[str, str, int]]:
    for split in SPLITS:
        yield split, split, facts.count(f"rows/{split}")
    for reject in facts.rejects:
        kind = "same" if reject.reason in SAME else "leak" if reject.reason in OVERLAP else "broken"
        yield reject.reason, kind, reject.count


def _findings(cfg: Prepare, facts: Facts) -> str:
    found = findings(cfg, facts)
    if not found:
        return "<p>Nothing: no row is broken, repeated, cut or shared with a test.</p>"
    lines = (
        f'<li class="{finding.level}"><b>{esc(finding.what)}:</b> {esc(finding.rest)} '
        f'<a href="#{finding.section}">{NAMES[finding.section]}</a></li>'
        for finding in found
    )
    return f'<ul class="first">{"".join(lines)}</ul>'


def _splits(facts: Facts) -> str:
    rows = []
    for split in SPLITS:
        count, lengths = facts.count(f"rows/{split}"), facts.lengths.get(split, {})
        tokens = [f"{number:,}" for number in (facts.count(f"tokens/{split}"), *_quantiles(lengths))]
        pairs = f"{facts.count(f'pairs/{split}'):,}"
        shown = tokens if lengths else ["–"] * 4
        rows.append([split, f"{count:,}", share(count, facts.used), pairs, *shown])
    head = ["Split", "Rows", "Share", "Of them pairs", "Tokens", "Median", "95 %", "Longest"]
    note = "Pairs: chosen and rejected answers. Median, 95 % and longest: tokens of a document, which is a row, or one "
    note += "side of a pair. Test rows are not tokenised. "
    learned = f"{facts.value('tokens/learned_share'):.1%} of the training tokens are learned."
    return f'{table(head, "lrrrrrrr", rows)}<p class="dim">{note}{learned}</p>'


def _quantiles(lengths: Mapping[int, int]) -> list[int]:
    """Median, 95th percentile and maximum of value -> count: the least value with that share at or below it."""
    total, found = sum(lengths.values()), []
    for part in (0.5, 0.95, 1.0):
        seen = 0
        for value, count in sorted(lengths.items()):
            seen += count
            if seen >= part * total:
                found.append(value)
                break
    return found


def _lengths(cfg: Prepare, facts: Facts) -> str:
    marks = {"max_length": cfg.max_length, "row_length": cfg.row_length}
    if cfg.max_length == cfg.row_length:
        marks = {"max_length = row_length": cfg.max_length}
    charts = "".join(
        f"<div><h3>{esc(split)}: {sum(lengths.values()):,} documents, by tokens</h3>{histogram(lengths, marks)}</div>"
        for split, lengths in facts.lengths.items()
        if lengths
    )
    limits = f"A document has at most max_length = {cfg.max_length:,} tokens; a packed row has row_length = "
    limits += f"{cfg.row_length:,}. {facts.count('rows/truncated'):,} rows were truncated."
    packed = "".join(
        f"<p>{facts.count(f'packed/{split}_rows'):,} packed {split} rows, "
        f"<b>{facts.value(f'packed/{split}_efficiency'):.2%}</b> of their room filled.</p>"
        for split in ("train", "valid")
        if facts.count(f"packed/{split}_rows")
    )
    return f'<div class="charts">{charts}</div>{packed}<p class="dim">{limits}</p>'


def _rejects(facts: Facts) -> str:
    if not facts.rejects:
        return "<p>None: every row read is used.</p>"
    read = facts.count("rows/read")
    rows = (
        [
            _reason(reject.reason),
            f"{reject.count:,}",
            share(reject.count, read),
            place(f"{reject.first_file}:{reject.first_line}"),
            text(reject.first_row, TEXT_SHOWN // 2),
        ]
        for reject in sorted(facts.rejects, key=lambda reject: (-reject.count, reject.reason))
    )
    note = (
        "<p>Every one stands in data/prepared/rejects.jsonl, with file, line, reason and the row itself.</p>"
    )
    return note + table(["Reason", "Rows", "Of all read", "First at", "It begins"], "lrrll", rows, wide=True)


def _reason(name: str) -> Html:
    why = f'<br><span class="dim">{esc(WHY[name])}</span>' if name in WHY else ""
    return Html(f"{esc(name)}{why}")


def _personal(cfg: Prepare, facts: Facts) -> str:
    if cfg.personal.action is PersonalAction.ignore:
        return "<p>Not looked for (prepare.personal.action: ignore).</p>"
    said = (
        "counted, and kept"
        if cfg.personal.action is PersonalAction.report
        else "replaced by its kind everywhere"
    )
    kinds = [kind.name for kind in cfg.personal.kinds]
    rows = ([name, f"{facts.personal.get(name, 0):,}"] for name in kinds)
    return f"<p>What was found is {said}.</p>{table(['Kind', 'Found'], 'lr', rows)}"


def _languages(facts: Facts) -> str:
    found, total = facts.languages, sum(facts.languages.values())
    rows = ([name, f"{count:,}", share(count, total)] for name, count in found.items())
    note = f'<p class="dim">Of {total:,} sampled rows, by py3langid; {UNKNOWN}: code, formulas, or too short.</p>'
    return table(["Language", "Rows", "Share"], "lrr", rows) + note


def _files(facts: Facts) -> str:
    rows = (
        [file.source, place(file.name), f"{file.size:,}", Html(f"<code>{esc(file.sha256)}</code>")]
        for file in facts.files
    )
    return table(["Source", "File", "Bytes", "SHA-256"], "llrl", rows, wide=True)


def _examples(facts: Facts) -> str:
    if not facts.examples:
        return "<p>None.</p>"
    legend = '<p class="dim">As the model gets them; <mark>marked</mark> is what it learns to write.</p>'
    return legend + "".join(_example(example) for example in facts.examples)


def _example(example: Example) -> str:
    title = f"{esc(example.split)} {place(example.row)}, id {place(example.id)}"
    left, shown = EXAMPLE_SHOWN, ""
    for piece in example.pieces:
        if left <= 0:
            shown += "…"
            break
        said = esc(excerpt(piece.text, left))
        shown += f"<mark>{said}</mark>" if piece.learned else said
        left -= len(piece.text)
    return f'<h3>{title}</h3><pre class="row">{shown}</pre>'


def _metrics(facts: Facts) -> str:
    rows = ([name, f"{metric['value']:,.6g}"] for name, metric in sorted(facts.metrics.items()))
    return f"<details><summary>All metrics of the stage</summary>{table(['Metric', 'Value'], 'lr', rows)}</details>"


def _sample(facts: Facts, picture: str) -> str:
    rows = max(map(len, facts.columns.values()), default=0)
    said = f"Of {rows:,} rows chosen by hash; drawn by Evidently." if picture else "No row was sampled."
    return f'<h2 id="sample">Distributions</h2><p class="dim">{said}</p>'
