"""The dataset card, as Hugging Face shows one: where the rows come from, how they were made, what is missing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from stages.prepare.config import (
    Action,
    Data,
    Duplicates,
    LeakAction,
    Leakage,
    Overlong,
    Personal,
    PersonalAction,
    Prepare,
    Source,
    Use,
)
from stages.prepare.page.facts import SPLITS, Facts
from stages.prepare.page.languages import UNKNOWN
from stages.prepare.page.markup import clean

# Licence ids that the hub knows; any other is `other`, with its name beside it.
LICENCES = (
    " apache-2.0 mit odc-by odbl pddl cc0-1.0 cc-by-2.0 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 "
    "cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-nc-nd-4.0 bsd-2-clause bsd-3-clause "
    "gpl-2.0 gpl-3.0 lgpl-3.0 agpl-3.0 mpl-2.0 isc unlicense openrail cdla-permissive-1.0 cdla-permissive-2.0 "
    "cdla-sharing-1.0 c-uda "
)
SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B")
SPOKEN = 0.01  # of the sampled rows: a language with less is noise of the detector


def card(cfg: Prepare, facts: Facts) -> str:
    """Markdown with a YAML head, a pure function of its arguments."""
    data = cfg.data
    parts = [
        f"---\n{_head(data, facts)}---\n",
        f"# Dataset {_said(data.name)}\n",
        f"{_said(data.note) or 'No note.'}\n\nLicence: {_said(data.licence) or 'not stated'}.\n",
        f"## Source\n\n{_sources(data)}\n\n{_files(facts)}\n",
        f"## How it was made\n\n{_made(cfg)}\n",
        f"## Counts\n\n{_counts(facts)}\n",
        f"## Splits\n\n{_splits(facts)}\n",
        f"## Known gaps\n\n{_gaps(cfg, facts)}\n",
        f"## Personal data\n\n{_personal(cfg.personal, facts)}\n",
    ]
    return "\n".join(parts)


def _head(data: Data, facts: Facts) -> str:
    import yaml

    licence = re.sub(r"[^a-z0-9.]+", "-", data.licence.lower()).strip("-")
    known = bool(licence) and f" {licence} " in LICENCES
    head: dict[str, Any] = {"pretty_name": data.name, "license": licence if known else "other"}
    if not known and licence:
        head["license_name"] = licence
    if spoken := _spoken(facts):
        head["language"] = spoken
    head["size_categories"] = [SIZES[min(max(len(str(facts.used)) - 3, 0), len(SIZES) - 1)]]
    head["task_categories"] = ["text-generation"]
    return str(yaml.safe_dump(head, allow_unicode=True, sort_keys=False))


def _spoken(facts: Facts) -> list[str]:
    total = sum(facts.languages.values())
    return [name for name, count in facts.languages.items() if name != UNKNOWN and count >= SPOKEN * total]


def _sources(data: Data) -> str:
    lines = []
    for name, source in sorted(data.sources.items()):
        lines.append(
            f"- {_said(name)}: {_origin(data, source)}; {source.format.name} rows, {_use(source)}, "
            f"weight {source.weight:g}"
        )
    return "\n".join(lines)


def _origin(data: Data, source: Source) -> str:
    if source.hub:
        subset = f", subset {_code(source.subset)}" if source.subset else ""
        return f"{_code(source.hub)}{subset}, {_code(source.part)}, at revision {_code(source.revision)}"
    return f"{', '.join(map(_code, source.files))} under {_code(data.path)}"


def _use(source: Source) -> str:
    return "split by hash" if source.use is Use.split else f"all to {source.use.name}"


def _files(facts: Facts) -> str:
    rows = ([_said(f.source), _code(f.name), f"{f.size:,}", _code(f.sha256)] for f in facts.files)
    return _table(["source", "file", "bytes", "SHA-256"], "llrl", rows)


def _made(cfg: Prepare) -> str:
    cut = "set aside" if cfg.overlong is Overlong.reject else "cut at its end"
    lines = [
        "Rows are equal if their turns are after Unicode NFKC, case folding and collapsing of white space; of equal "
        "rows the first stays, and of two rows with one id.",
        _near(cfg.duplicates),
        _leakage(cfg.leakage),
        f"Splits go by a hash of the question, or of the group where the data names one (seed {cfg.seed}): a row's "
        "split depends on the row alone, so adding rows never moves one.",
        f"Rows are rendered with the model's own chat template and prompt {_code(cfg.prompt.name)}, worked examples in "
        f"{cfg.examples_share:.0%} of them; the loss is on the assistant's words. A document of more than "
        f"{cfg.max_length:,} tokens is {cut}; documents are packed whole into rows of {cfg.row_length:,} (best-fit "
        "decreasing; Ding et al. 2024, arXiv:2404.10830).",
        f"The stage stops if more than {cfg.max_reject_share:.1%} of the rows are not usable.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _near(near: Duplicates) -> str:
    if near.action is Action.ignore:
        return "Near-duplicates are not looked for."
    fate = "set aside" if near.action is Action.remove else "kept and counted"
    return (
        f"Near-duplicates have a Jaccard similarity of at least {near.threshold:g} with an earlier row that passed "
        "these checks, in "
        f"sets of {near.ngram} words in a row: candidates by MinHash with {near.permutations} permutations (Broder "
        "1997, On the resemblance and containment of documents) in locality-sensitive bands, each compared exactly; "
        f"they are {fate}."
    )


def _leakage(leakage: Leakage) -> str:
    if leakage.action is LeakAction.ignore:
        return "Overlap with what a model is tested on is not looked for."
    fate = {LeakAction.remove: "set aside", LeakAction.report: "kept, and the item listed as not clean"}
    return (
        "A training or validation row overlaps a tested item (this project's test split, the judge's items, the "
        f"benchmarks) if they share {leakage.ngram} words in a row (Brown et al. 2020, GPT-3, arXiv:2005.14165, "
        "appendix C), whatever the case, punctuation and spacing; a shorter item counts as one such run, one of fewer "
        f"than {leakage.min_words} words only if a whole turn equals it. Such rows "
        f"{'are ' + fate[leakage.action] if leakage.action in fate else 'stop the stage'}."
    )


def _counts(facts: Facts) -> str:
    rows = [
        ["read", f"{facts.count('rows/read'):,}"],
        ["used", f"{facts.used:,}"],
        ["set aside", f"{facts.count('rows/rejected'):,}"],
        *([f"set aside: {_code(reject.reason)}", f"{reject.count:,}"] for reject in facts.rejects),
        ["truncated", f"{facts.count('rows/truncated'):,}"],
    ]
    return _table(["rows", "count"], "lr", rows)


def _splits(facts: Facts) -> str:
    names = ("rows", "pairs", "tokens")
    rows = [[split, *(f"{facts.count(f'{name}/{split}'):,}" for name in names)] for split in SPLITS]
    rows[-1][-1] = "–"  # test rows are not tokenised
    learned = f"{facts.value('tokens/learned_share'):.1%} of the training tokens are learned."
    return f"{_table(['split', *names], 'lrrr', rows)}\n\n{learned}"


def _gaps(cfg: Prepare, facts: Facts) -> str:
    if cfg.leakage.action is LeakAction.ignore:
        return "- Overlap with tests is unknown: it was not looked for."
    missing = [_code(name) for name, items in facts.checked.items() if items is None]
    compared = [
        f"{_code(name)} ({items:,} items)" for name, items in facts.checked.items() if items is not None
    ]
    gap = (
        f"no copy of {', '.join(missing)} lay here to compare with"
        if missing
        else "every one named was compared"
        if cfg.leakage.benchmarks
        else "none with items of its own is named"
    )
    lines = [
        f"Benchmarks: {gap}.",
        f"Compared with {', '.join(compared) or 'nothing'}: {facts.leaking_rows:,} rows overlap.",
        "Overlap of words does not find an item that is paraphrased or translated.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _personal(personal: Personal, facts: Facts) -> str:
    if personal.action is PersonalAction.ignore:
        return "Not looked for."
    kinds = ", ".join(f"{kind.name} {facts.personal.get(kind.name, 0):,}" for kind in personal.kinds)
    fate = "and kept" if personal.action is PersonalAction.report else "each replaced by its kind"
    return f"Found, {fate}: {kinds}. Names and postal addresses are not looked for."


def _table(head: Sequence[str], sides: str, rows: Iterable[Sequence[str]]) -> str:
    rule = "|".join("--:" if side == "r" else ":--" for side in sides)
    lines = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([f"| {' | '.join(head)} |", f"|{rule}|", *lines])


def _said(text: str) -> str:
    """Text in which nothing acts as Markdown or HTML."""
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", " ".join(clean(text).split()))


def _code(text: str) -> str:
    """Text as code: inside a longer fence than any it holds; a bar would end a table's cell."""
    shown = " ".join(clean(text).split()).replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    pad = " " if "`" in shown else ""
    return f"{fence}{pad}{shown}{pad}{fence}"
