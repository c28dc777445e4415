"""The prepare stage against a script on `datasets`, and its parts alone.

`python -m benchmarks.prepare {stage,tokens,pack,size} ROWS [ROUNDS]`

stage   both on the same rows, interleaved, in fresh processes; documents, labels and packed rows asserted equal
tokens  tokenisation alone against a batched `datasets.map`, interleaved in this process, ids and masks asserted equal
pack    best-fit decreasing over log-normal lengths: sequences a second, and how full the rows are
size    one run of the stage alone, with the peak memory of all its processes
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.prepare.corpus import main as make_corpus

SCRATCH = Path(os.environ.get("BENCH_DIR", "/tmp/lathe-bench"))  # noqa: S108 - gigabytes that are thrown away
ROOT = Path(__file__).resolve().parents[2]
WORKERS = "2"


def stage(rows: int, rounds: int) -> None:
    """Wall-clock seconds of both, round by round."""
    folder = corpus(rows)
    found = []
    for _ in range(rounds):
        ours = timed("ours", folder)[0]
        peer = timed("peer", folder, WORKERS)[0]
        assert documents(SCRATCH / "ours/data/prepared") == documents(SCRATCH / "peer"), "outputs differ"
        found.append((ours, peer))
        print(f"ours {ours:.1f} s, peer {peer:.1f} s, ratio {peer / ours:.2f}", flush=True)
    tell([peer / ours for ours, peer in found])


def size(rows: int, _: int) -> None:
    """Seconds, and the peak of the proportional set size of the process tree (shared pages counted once)."""
    seconds, peak = timed("ours", corpus(rows))
    print(f"{rows:,} rows, {seconds:.0f} s, {rows / seconds:,.0f} rows/s, peak memory {peak / 2**30:.2f} GiB")


def tokens(rows: int, rounds: int) -> None:
    """Rows a second of both, ids and masks asserted equal."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    from stages.prepare.tokens.tokenise import Conversation, Encoder

    folder = corpus(rows)
    good = _conversations(folder / "rows/train.jsonl")
    data = Dataset.from_dict({"messages": good})
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")

    def peer() -> Any:
        return data.map(
            lambda batch: dict(
                tokenizer.apply_chat_template(
                    batch["messages"], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
                )
            ),
            batched=True,
            keep_in_memory=True,
            load_from_cache_file=False,
            new_fingerprint=str(time.time()),
        )

    def ours() -> Any:
        encoder = Encoder(tokenizer)
        return [
            encoder.encode([Conversation(messages, [], 0) for messages in good[start : start + 1000]])
            for start in range(0, len(good), 1000)
        ]

    ratios = []
    for _ in range(rounds):
        (made, fast), (mapped, slow) = clocked(ours), clocked(peer)
        flat = [found[0] for batch in made for found in batch]
        assert all(
            np.array_equal(one.input_ids, ids) for one, ids in zip(flat, mapped["input_ids"], strict=True)
        )
        assert all(
            np.array_equal(one.learned, mask)
            for one, mask in zip(flat, mapped["assistant_masks"], strict=True)
        )
        ratios.append(slow / fast)
        print(f"ours {len(good) / fast:,.0f} rows/s, datasets.map {len(good) / slow:,.0f} rows/s", flush=True)
    tell(ratios)


def pack(rows: int, rounds: int) -> None:
    """Sequences a second and efficiency of packing alone."""
    from stages.prepare.tokens.pack import pack as packed

    lengths = np.random.default_rng(0).lognormal(np.log(200), 0.7, rows).astype(np.int64).clip(8, 2048)
    for _ in range(rounds):
        found, seconds = clocked(lambda: packed(lengths, 2048))
        full = lengths.sum() / (2048 * (len(found.offsets) - 1))
        print(f"{rows / seconds:,.0f} sequences/s, efficiency {full:.5f}", flush=True)


def corpus(rows: int) -> Path:
    """The folder of `rows` rows, made once."""
    folder = SCRATCH / f"rows-{rows}"
    if not (folder / "base").is_dir():
        make_corpus(folder, rows)
    return folder


def timed(name: str, folder: Path, *arguments: str) -> tuple[float, int]:
    """Seconds and peak bytes of one side in a fresh process, from nothing."""
    out = SCRATCH / name
    shutil.rmtree(out, ignore_errors=True)
    environment = os.environ | {
        "LATHE_WORKERS": WORKERS,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    began, peak = time.monotonic(), 0
    command = [sys.executable, "-m", f"benchmarks.prepare.{name}", str(folder), str(out), *arguments]
    with (SCRATCH / f"{name}.log").open("w") as log:
        running = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        while running.poll() is None:
            peak = max(peak, _memory(running.pid))
            time.sleep(0.25)
    if running.returncode:
        raise RuntimeError((SCRATCH / f"{name}.log").read_text()[-2000:])
    return time.monotonic() - began, peak


def documents(folder: Path) -> tuple[list[int], list[int], list[int]]:
    """A digest of each document of each split with its id, sorted, and the number of packed rows."""
    import pyarrow.parquet as pq

    found, packed = [], []
    for split in ("train", "valid"):
        file = pq.ParquetFile(folder / f"{split}.parquet")
        packed.append(file.metadata.num_rows)
        digests = []
        for batch in file.iter_batches(500):
            for line in batch.to_pylist():
                ends = np.cumsum([0, *line["lengths"]])
                for name, (begin, end) in zip(line["ids"], pairwise(ends), strict=True):
                    digests.append(
                        hash((name, tuple(line["input_ids"][begin:end]), tuple(line["labels"][begin:end])))
                    )
        found.append(sorted(digests))
    return found[0], found[1], packed


def clocked(action: Callable[[], Any]) -> tuple[Any, float]:
    """What an action returns and the seconds it took."""
    began = time.monotonic()
    return action(), time.monotonic() - began


def tell(ratios: list[float]) -> None:
    """Median and range of the rounds."""
    print(
        f"ratio: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}, n={len(ratios)}"
    )


def _memory(pid: int) -> int:
    import psutil

    total = 0
    try:
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            total += process.memory_full_info().pss
    except psutil.Error:
        return total
    return total


def _conversations(path: Path) -> list[Any]:
    found = []
    for line in path.read_bytes().splitlines():
        with contextlib.suppress(ValueError):  # rows that are broken on purpose
            found.append(json.loads(line)["messages"])
    return found


if __name__ == "__main__":
    SCRATCH.mkdir(parents=True, exist_ok=True)
    sides = {"stage": stage, "tokens": tokens, "pack": pack, "size": size}
    sides[sys.argv[1]](int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 5)
