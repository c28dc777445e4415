"""Prepared data for tests of finetune, and a training in this process."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.common.run import seed_everything
from stages.finetune.config import Finetune
from stages.finetune.pack import IGNORED, Documents
from stages.finetune.progress import PROGRESS, Progress
from stages.finetune.train import RESULT, train
from stages.prepare.tokens.pack import pack

NUMBERS = pa.list_(pa.int32())
KINDS = {"ids": pa.list_(pa.string()), "lengths": NUMBERS, "input_ids": NUMBERS, "labels": NUMBERS}

PAIRS = pa.schema(
    {"id": pa.string(), "split": pa.string()}
    | {f"{side}_{kind}": NUMBERS for side in ("chosen", "rejected") for kind in ("ids", "labels")}
)


def write(path: Path, documents: Documents, capacity: int) -> None:
    """Documents as prepare writes them: packed, with their ids and lengths, no padding, no loss on a first token."""
    found = pack(np.array([len(ids) for ids, _ in documents], np.int64), capacity)
    rows = []
    for begin, end in pairwise(found.offsets.tolist()):
        members = found.order[begin:end].tolist()
        rows.append(
            {
                "ids": [f"{member:03}" for member in members],
                "lengths": [len(documents[member][0]) for member in members],
                "input_ids": [token for member in members for token in documents[member][0]],
                "labels": [label for member in members for label in [IGNORED, *documents[member][1][1:]]],
            }
        )
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(KINDS)), path)


def made(count: int, seed: int, longest: int = 30, vocabulary: int = 250) -> Documents:
    """Documents of tokens that follow from the one before more often than not, loss on their second halves."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        ids = [draw.randrange(6, vocabulary)]
        while len(ids) < draw.randrange(3, longest):
            ids.append(
                (ids[-1] * 7 + 3) % (vocabulary - 6) + 6
                if draw.random() < 0.8
                else draw.randrange(6, vocabulary)
            )
        half = max(1, len(ids) // 2)
        found.append((ids, [IGNORED] * half + ids[half:]))
    return found


def workspace(folder: Path, base: Path, splits: dict[str, Documents], capacity: int) -> Path:
    """A folder to train in, once it is the current one: `base` and the packed rows of `splits`, no pairs."""
    (folder / "models").mkdir()
    (folder / "models/base").symlink_to(base)
    (folder / "data/prepared").mkdir(parents=True)
    for split, documents in splits.items():
        write(folder / f"data/prepared/{split}.parquet", documents, capacity)
    pq.write_table(PAIRS.empty_table(), folder / "data/prepared/pairs.parquet")
    return folder


def trained(cfg: Finetune, work: Path) -> Progress:
    """Train in `work` as the stage does; what the run knows of itself at the end."""
    seed_everything(cfg)
    train(cfg, work)
    return Progress.read(work / RESULT / PROGRESS)


def weights(folder: Path) -> dict[str, Any]:
    """Every tensor that save_pretrained left in a folder."""
    from safetensors.torch import load_file

    return {
        name: tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }
