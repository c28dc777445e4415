"""Stage `judge`: which answer is better, by a judge whose own agreement with labels is measured first.

    python -m stages.judge
    python -m stages.judge judge.limit=8

A judge without labelled answers to be measured on is not asked at all: the stage then reads "not evaluated".
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from stages.common.files import write_bytes
from stages.common.run import run
from stages.common.statistics import Metrics, exact
from stages.judge.config import Backend, Judge
from stages.judge.local import LocalJudge
from stages.judge.openai import OpenAIJudge, api_key
from stages.judge.pairs import canary_pairs, compared_pairs, labelled_pairs
from stages.judge.scores import metrics
from stages.judge.verdicts import Asks, Judged, check_template, judge_pairs

RESULTS = Path("data/results")
TESTS = Path("data/prepared/test.jsonl")
VERDICTS = RESULTS / "judge.parquet"
COLUMNS = ("kind", "group", "id", "verdict_ab", "verdict_ba", "p_first_ab", "p_first_ba", "label", "verdict")


def main(cfg: Judge) -> Metrics:
    """Measure the judge on cfg.labels, then let it compare the tuned model's answers with the base's.

    Writes data/results/judge.parquet, one row per pair, and in that file's metadata what was evaluated and
    what was not, and why. Raises ValueError on a label that is none, on results of different items, and
    above cfg.max_malformed_share of answers without a verdict.
    """
    check_template(cfg.prompt)
    labelled = labelled_pairs(Path(cfg.labels))
    if not labelled:
        why = f'not evaluated: {cfg.labels} holds no *.jsonl row with "split": "test"'
        write_verdicts([], {"agreement": why, "comparison": "not evaluated: the judge's error is unknown"})
        return {"judge/evaluated": exact(0.0, 0)}
    compared = compared_pairs(RESULTS / "base.parquet", RESULTS / "tuned.parquet", TESTS, cfg.task, cfg.limit)
    canaries = canary_pairs(labelled[: cfg.canaries])
    judged = judge_pairs(labelled + compared + canaries, cfg.prompt, back_end(cfg))
    refuse_malformed(judged, cfg)
    absent = f"not evaluated: base and tuned have no answers to task {cfg.task}"
    write_verdicts(judged, {"agreement": "evaluated", "comparison": "evaluated" if compared else absent})
    return metrics(judged, cfg.seed)


def back_end(cfg: Judge) -> Asks:
    """The judge that cfg.backend names."""
    if cfg.backend is Backend.local:
        return LocalJudge(cfg)
    return OpenAIJudge(cfg, api_key())


def refuse_malformed(judged: Sequence[Judged], cfg: Judge) -> None:
    """Raise ValueError where more answers than cfg.max_malformed_share name no verdict."""
    asked = 2 * sum(item.asked for item in judged)
    malformed = sum(item.malformed for item in judged)
    if malformed > cfg.max_malformed_share * asked:
        raise ValueError(
            f"{malformed} of {asked} answers of judge.model={cfg.model} name no verdict, more than "
            f"judge.max_malformed_share={cfg.max_malformed_share}; see judge.prompt={cfg.prompt.name} and "
            f"judge.max_tokens={cfg.max_tokens}, or take another model"
        )


def write_verdicts(judged: Sequence[Judged], status: dict[str, str]) -> None:
    """data/results/judge.parquet: the columns below, sorted by kind, group and id; `status` as metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, number = pa.string(), pa.float64()
    schema = pa.schema(
        [(name, number if name.startswith("p_") else text) for name in COLUMNS], metadata=status
    )
    rows = [item.row() for item in sorted(judged, key=lambda item: item.key)]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer)
    write_bytes(VERDICTS, buffer.getvalue())


if __name__ == "__main__":
    run(Judge, main)
