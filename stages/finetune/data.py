"""What a step is fed with: packed rows for SFT, preference pairs for DPO, both straight from prepare's Parquet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stages.finetune.config import Finetune, Objective
from stages.finetune.pack import IGNORED, Documents, padded, read_rows

if TYPE_CHECKING:
    import torch

APART = 1e-3
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Data:
    """A split: the Arrow table; of each row its tokens, learned ones, and its documents' lengths squared and summed."""

    table: Any
    tokens: Numbers
    squares: Numbers
    learned: Numbers
    longest: int

    def __len__(self) -> int:
        """Rows or pairs."""
        return int(self.table.num_rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One row as lists."""
        return {
            name: column[index].as_py()
            for name, column in zip(self.table.column_names, self.table, strict=True)
        }


def read_split(cfg: Finetune, prepared: Path, split: str) -> Data:
    """The rows or pairs of `train` or `valid`. Raises ValueError where training has nothing to learn from."""
    data = _pairs(prepared, split) if cfg.objective is Objective.dpo else _rows(cfg, prepared, split)
    if split == "train" and not len(data):
        raise ValueError(_nothing(cfg, prepared))
    return data


def check_heldout(cfg: Finetune, prepared: Path) -> None:
    """Raise ValueError where the held-out loss is to decide and there are no held-out rows."""
    if (cfg.keep_best or cfg.patience) and not len(read_split(cfg, prepared, "valid")):
        raise ValueError(
            f"finetune.keep_best={cfg.keep_best}, patience={cfg.patience} (params.yaml) need a held-out loss, and "
            f"{prepared} has no row of split valid: raise prepare.valid_share, or set keep_best=false and patience=0"
        )


def check_context(cfg: Finetune, prepared: Path, base: Path) -> None:
    """Raise ValueError where a document is longer than what the base can see; of packed rows only documents count."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(base).get_text_config()
    context, fixed = context_of(config), _fixed_positions(config)
    for split in ("train", "valid"):
        longest = read_split(cfg, prepared, split).longest
        if context is not None and longest > context:
            raise ValueError(
                f"{prepared}: split {split} has a document of {longest} tokens, over the {context} that {base} can see "
                "(config.json, max_position_embeddings): lower prepare.max_length"
            )
        if fixed is not None and longest > fixed:
            raise ValueError(
                f"{prepared}: split {split} has a document of {longest} tokens; over {fixed}, {base} turns "
                "all positions in a batch (config.json, rope_parameters), others' too: lower prepare.max_length"
            )


def context_of(config: Any) -> int | None:
    """Positions that a model has; None where nothing in its configuration limits them."""
    found: int | None = getattr(config, "max_position_embeddings", None)
    return found


def _fixed_positions(config: Any) -> int | None:
    """Positions up to which a rotary embedding heeds nothing else in the batch; None where it never does."""
    found = getattr(config, "rope_parameters", None) or {}
    for rope in [found] if "rope_type" in found else found.values():
        if rope["rope_type"] in ("dynamic", "longrope"):
            return int(rope.get("original_max_position_embeddings") or config.max_position_embeddings)
    return None


def check_packing(model: Any, base: Path) -> None:
    """Raise ValueError unless documents in one row see themselves alone: not every architecture heeds position ids.

    Compares logits of three short documents in a row with those of each by itself; in fp32 rounding differs by 1e-6.
    """
    import torch

    from stages.finetune.attention import within_documents

    ids, lengths = torch.arange(1, 19) % model.config.get_text_config().vocab_size, [9, 3, 6]
    row = {"input_ids": ids.tolist(), "labels": [IGNORED] * len(ids), "lengths": lengths}
    packed = {
        name: value.to(model.device) for name, value in collate_rows([row], 24, 0).items() if name != "labels"
    }
    training = model.training
    model.eval()
    with torch.no_grad(), within_documents():
        together = model(**packed, use_cache=False).logits[0, : len(ids)]
        documents = ids.to(model.device).split(lengths)
        alone = torch.cat([model(input_ids=part[None], use_cache=False).logits[0] for part in documents])
    model.train(training)
    difference = float((together - alone).abs().max() / alone.abs().max())
    if not difference < max(APART, 8 * torch.finfo(model.dtype).eps):
        raise ValueError(
            f"{base} (config.json, model_type {model.config.model_type}) lets documents of a packed row see each other "
            f"(logits differ by {difference:.1g} of the largest): name a model of another architecture in conf/model"
        )


def _nothing(cfg: Finetune, prepared: Path) -> str:
    if cfg.objective is Objective.dpo:
        return (
            f"{prepared / 'pairs.parquet'} has no pair of split train: finetune.objective=dpo learns from preference "
            "data (conf/source/preference.yaml says how to name its columns)"
        )
    return (
        f"{prepared / 'train.parquet'} has no row: metrics/prepare.json and rejects.jsonl say where they went"
    )


def _rows(cfg: Finetune, prepared: Path, split: str) -> Data:
    table = read_rows(prepared / f"{split}.parquet", cfg.row_length)
    squares = _sums(table["lengths"], lambda length: length**2)
    longest = int(_flat(table["lengths"]).max(initial=0))
    return Data(table, _sizes(table["input_ids"]), squares, _sums(table["labels"], _learned), longest)


def _pairs(prepared: Path, split: str) -> Data:
    import pyarrow.parquet as pq

    table = pq.read_table(prepared / "pairs.parquet", filters=[("split", "=", split)])
    chosen, rejected = (_sizes(table[f"{side}_ids"]) for side in ("chosen", "rejected"))
    learned = [_sums(table[f"{side}_labels"], _learned) for side in ("chosen", "rejected")]
    names = ["chosen_ids", "chosen_labels", "rejected_ids", "rejected_labels"]
    longest = int(max(chosen.max(initial=0), rejected.max(initial=0)))
    return Data(
        table.select(names), chosen + rejected, chosen**2 + rejected**2, learned[0] + learned[1], longest
    )


def _learned(labels: Numbers) -> Numbers:
    return np.asarray(labels != IGNORED, np.int64)


def _sizes(lists: Any) -> Numbers:
    import pyarrow.compute as pc

    return np.asarray(pc.list_value_length(lists).to_numpy(), np.int64)


def _flat(lists: Any) -> Numbers:
    import pyarrow.compute as pc

    return np.asarray(pc.list_flatten(lists).to_numpy(), np.int64)


def _sums(lists: Any, of: Callable[[Numbers], Numbers]) -> Numbers:
    """Of each row's list the sum of `of` its numbers, without a Python object for each: a large split has billions."""
    running = np.concatenate([np.zeros(1, np.int64), np.cumsum(of(_flat(lists)))])
    sizes = _sizes(lists)
    ends: Numbers = np.cumsum(sizes)
    return np.asarray(running[ends] - running[ends - sizes], np.int64)


def read_pairs(prepared: Path, split: str) -> list[Documents]:
    """(chosen, rejected) of each pair of a split, each as (input_ids, labels), in the file's order."""
    return [
        [(row[f"{side}_ids"], row[f"{side}_labels"]) for side in ("chosen", "rejected")]
        for row in _pairs(prepared, split).table.to_pylist()
    ]


def padding(tokenizer: Any) -> int:
    """The token that fills up; where the tokenizer has none (Llama 3.1) its end token: no loss, no attention on it."""
    found = tokenizer.pad_token_id
    return int(tokenizer.eos_token_id if found is None else found)


def collate_rows(rows: list[dict[str, Any]], length: int, pad: int) -> dict[str, torch.Tensor]:
    """Pad and stack packed rows; there is no attention mask on purpose (see pack.py)."""
    import torch

    full = [vars(padded(row, length, pad)) for row in rows]
    return {
        name: torch.tensor([row[name] for row in full]) for name in ("input_ids", "labels", "position_ids")
    }


def collate_pairs(pairs: list[dict[str, Any]], pad: int) -> dict[str, torch.Tensor]:
    """TRL's layout: chosen answers, then rejected ones, padded to the right; completion_mask is where the loss is."""
    import torch

    sides = [
        (pair[f"{side}_ids"], pair[f"{side}_labels"]) for side in ("chosen", "rejected") for pair in pairs
    ]
    width = max(len(ids) for ids, _ in sides)
    shape = (len(sides), width)
    found = {
        "input_ids": torch.full(shape, pad),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
        "completion_mask": torch.zeros(shape, dtype=torch.long),
    }
    for row, (ids, labels) in enumerate(sides):
        found["input_ids"][row, : len(ids)] = torch.tensor(ids)
        found["attention_mask"][row, : len(ids)] = 1
        found["completion_mask"][row, : len(ids)] = torch.tensor([int(label != IGNORED) for label in labels])
    return found
