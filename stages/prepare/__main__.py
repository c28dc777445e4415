"""Any dataset to validated, deduplicated, split, tokenised rows: `python -m stages.prepare`.

Rows in = rows out + rejected: every row that is not used stands in rejects.jsonl with file, line and reason.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from stages.common.files import fresh_dir, write_jsonl, write_text
from stages.common.prompt import with_prompt
from stages.common.run import run
from stages.common.statistics import Metrics, exact
from stages.common.tracking import track
from stages.prepare.config import Prepare
from stages.prepare.report import card, page
from stages.prepare.split import Split, share
from stages.prepare.take import Taken, check, take
from stages.prepare.tokenise import tokenise

BASE, OUT, REPORT = Path("models/base"), Path("data/prepared"), Path("reports/data.html")
TokenRows = dict[Split, list[dict[str, Any]]]


def main(cfg: Prepare) -> Metrics:
    """Write data/prepared and the data report; returns counts (unit: rows, tokens)."""
    taken = take(cfg)
    tokens = tokenise_rows(cfg, taken)
    check(cfg, taken)
    metrics = count(taken, tokens)
    write(cfg, taken, tokens, metrics)
    return metrics


def tokenise_rows(cfg: Prepare, taken: Taken) -> TokenRows:
    """Token rows of the training and validation split; a row over max_length is rejected, never cut."""
    from tqdm import tqdm
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(BASE)
    found: TokenRows = {Split.train: [], Split.valid: []}
    for split, rows in found.items():
        kept = []
        for item in tqdm(taken.rows[split], desc=f"tokenise {split.value}", unit="row", mininterval=1):
            examples = share(item.key, "examples") < cfg.examples_share
            messages = with_prompt(cfg.prompt, item.messages, examples=examples)
            tokens = tokenise(tokenizer, messages, first_answer=len(messages) - len(item.messages))
            if len(tokens.input_ids) > cfg.max_length:
                taken.reject(item.record, "too_long")
                continue
            kept.append(item)
            rows.append({"id": item.id, "input_ids": tokens.input_ids, "labels": tokens.labels})
        taken.rows[split] = kept
    return found


def count(taken: Taken, tokens: TokenRows) -> Metrics:
    """Rows by fate and tokens by split."""
    metrics = {"rows/read": exact(taken.read), "rows/rejected": exact(len(taken.rejects))}
    metrics |= {f"rows/{split.value}": exact(len(rows)) for split, rows in taken.rows.items()}
    reasons = Counter(row["reason"] for row in taken.rejects)
    metrics |= {f"rejected/{reason}": exact(number) for reason, number in sorted(reasons.items())}
    for split, rows in tokens.items():
        metrics[f"tokens/{split.value}"] = exact(sum(len(row["input_ids"]) for row in rows))
    learned = sum(label >= 0 for row in tokens[Split.train] for label in row["labels"])
    metrics["tokens/learned_share"] = exact(learned / metrics["tokens/train"]["value"])
    return metrics


def write(cfg: Prepare, taken: Taken, tokens: TokenRows, metrics: Metrics) -> None:
    """Write every out of the stage."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    out, ids = fresh_dir(OUT), pa.list_(pa.int32())
    schema = pa.schema([("id", pa.string()), ("input_ids", ids), ("labels", ids)])
    for split, rows in tokens.items():
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), out / f"{split.value}.parquet")
    test = [{"id": item.id, "messages": item.messages, "meta": item.meta} for item in taken.rows[Split.test]]
    write_jsonl(out / "test.jsonl", test)
    write_jsonl(out / "rejects.jsonl", taken.rejects)
    write_text(out / "card.md", card(cfg, metrics))
    lengths = [len(row["input_ids"]) for row in tokens[Split.train]]
    write_text(REPORT, page(cfg, metrics, lengths, taken.rows[Split.train][:5], taken.rejects))
    track.artifact(REPORT)


if __name__ == "__main__":
    run(Prepare, main)
