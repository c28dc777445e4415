"""The report's sections on rows that are like something else, shown side by side with it."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from itertools import groupby

from stages.prepare.config import Action, LeakAction, Prepare
from stages.prepare.page.facts import TEXT_SHOWN, Cluster, Facts, Leak
from stages.prepare.page.markup import Html, esc, excerpt, place, table

RUN = 3  # words: fewer in common say nothing
_WORD = re.compile(r"\s*\S+\s*|\s+")
_PUNCTUATION = re.compile(r"[\W_]+")


def duplicates(cfg: Prepare, facts: Facts) -> str:
    """The near-duplicates, the largest clusters first."""
    near = cfg.duplicates
    if near.action is Action.ignore:
        return "<p>Not looked for (prepare.duplicates.action: ignore).</p>"
    said = "set aside" if near.action is Action.remove else "reported, and kept"
    lead = f"<p>{facts.count('duplicates/near'):,} rows have a Jaccard similarity of at least {near.threshold:g} with "
    lead += f"an earlier row, in sets of {near.ngram} words in a row: {said}.</p>"
    legend = '<p class="dim">Marked: the words that differ.</p>' if facts.clusters else ""
    return lead + legend + "".join(_cluster(cluster) for cluster in facts.clusters)


def leaks(cfg: Prepare, facts: Facts) -> str:
    """What was compared, and the rows that overlap an item."""
    leakage = cfg.leakage
    if leakage.action is LeakAction.ignore:
        return "<p>Not looked for (prepare.leakage.action: ignore).</p>"
    kept = leakage.action is LeakAction.report
    lead = f"<p>A row overlaps an item if they share {leakage.ngram} words in a row (GPT-3, arXiv:2005.14165, appendix "
    lead += (
        f"C). {facts.leaking_rows:,} training and validation rows do: {'kept' if kept else 'set aside'}.</p>"
    )
    rows = (
        [name, "not compared" if items is None else f"{items:,}"] for name, items in facts.checked.items()
    )
    shown = f'<p class="dim">The first {len(facts.leaks):,} pairs; marked: {RUN} or more words that both have.</p>'
    checked = table(["Tested on", "Items compared"], "lr", rows)
    return lead + checked + (shown if facts.leaks else "") + "".join(_leak(leak) for leak in facts.leaks)


def _cluster(cluster: Cluster) -> str:
    first, *more = cluster.dropped
    others = f", also {', '.join(place(ref) for ref in more)}" if more else ""
    others += " and more" if cluster.count > len(cluster.dropped) else ""
    title = f"{cluster.count:,} row{'' if cluster.count == 1 else 's'} like {place(cluster.kept)}"
    left, right = _side_by_side(cluster.text, cluster.example, same=False)
    return _pair(title, (f"kept: {place(cluster.kept)}", left), (f"{place(first)}{others}", right))


def _leak(leak: Leak) -> str:
    title = f"{leak.share:.0%} of the item’s words stand in the row"
    item = f"{esc(leak.benchmark)}, item {place(leak.item)}"
    left, right = _side_by_side(leak.item_text, leak.row_text, same=True)
    return _pair(title, (item, left), (f"row {place(leak.row)}", right))


def _pair(title: str, *sides: tuple[str, Html]) -> str:
    shown = "".join(
        f'<div><p class="dim">{label}</p><pre dir="auto">{said}</pre></div>' for label, said in sides
    )
    return f'<div class="pair"><h3>{title}</h3>{shown}</div>'


def _side_by_side(left: str, right: str, *, same: bool) -> tuple[Html, Html]:
    """The starts of two texts, the words marked that they have in common, or those that they have not.

    Case and punctuation do not count. Words in common are marked in runs of at least RUN.
    """
    sides = [_WORD.findall(excerpt(text, TEXT_SHOWN)) for text in (left, right)]
    keys = [[_PUNCTUATION.sub("", word).casefold() for word in words] for words in sides]
    matcher = SequenceMatcher(a=keys[0], b=keys[1], autojunk=False)
    marked: list[list[bool]] = [[not same] * len(words) for words in sides]
    for block in matcher.get_matching_blocks():
        for flags, start in zip(marked, (block.a, block.b), strict=True):
            if not same or block.size >= RUN:
                flags[start : start + block.size] = [same] * block.size
    found = [_marked(words, flags) for words, flags in zip(sides, marked, strict=True)]
    return found[0], found[1]


def _marked(words: list[str], flags: list[bool]) -> Html:
    shown = ""
    for flag, run in groupby(zip(words, flags, strict=True), key=lambda item: item[1]):
        said = "".join(word for word, _ in run)
        body = said.rstrip()
        shown += f"<mark>{esc(body)}</mark>{esc(said[len(body) :])}" if flag and body else esc(said)
    return Html(shown)
