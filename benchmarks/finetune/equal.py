"""Asserts that every side has the same work: `python -m benchmarks.finetune.equal FOLDER`.

The conversations as TRL tokenises and masks them are those that ours is packed from; each way of loading the model
gives the same weights; and under those weights the same conversations have the same loss, packed, padded and by TRL.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.finetune.bare import fused_loss
from benchmarks.finetune.corpus import LENGTHS, packed, read_tokens
from benchmarks.finetune.ours import section
from benchmarks.finetune.padded import collator
from stages.finetune.pack import IGNORED, Documents

CHECKED = 32  # conversations whose loss is compared
RELATIVE = 1e-4


def main(folder: Path) -> None:
    """Raises AssertionError on the first difference."""
    from transformers import AutoModelForCausalLM

    from stages.finetune.model import load

    documents = read_tokens(folder)
    trainer = _trl(folder)
    rows = [(row["input_ids"], row["labels"]) for row in trainer.train_dataset]
    assert rows == documents, "TRL's tokens or labels are not ours"
    ours = load(section(folder, "fp32"), folder / "base")
    plain = AutoModelForCausalLM.from_pretrained(folder / "base")
    digests = {
        name: _digest(model) for name, model in (("ours", ours), ("padded", plain), ("trl", trainer.model))
    }
    assert len(set(digests.values())) == 1, f"the weights differ: {digests}"
    chosen = documents[:CHECKED]
    losses = {
        "ours": _packed_loss(ours, chosen, LENGTHS[folder.name.partition("-")[0]].row_length),
        "padded": _padded_loss(plain, chosen, collator(folder)),
        "trl": _trl_loss(trainer, chosen),
    }
    low, high = min(losses.values()), max(losses.values())
    assert high - low < RELATIVE * low, f"the losses under the first weights differ: {losses}"
    learned, tokens = _learned(documents), sum(len(ids) for ids, _ in documents)
    print(
        f"equal work: {len(documents)} conversations, {tokens} tokens, {learned} learned; first losses {losses}"
    )


def _trl(folder: Path) -> Any:
    """TRL's trainer as trl/scripts/sft.py makes it, in fp32."""
    from datasets import load_dataset
    from trl import SFTConfig, SFTTrainer

    out = tempfile.mkdtemp()
    return SFTTrainer(
        model=str(folder / "base"),
        args=SFTConfig(output_dir=out, bf16=False, report_to="none"),
        train_dataset=load_dataset(str(folder / "rows"))["train"],
    )


def _digest(model: Any) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode() + str(tensor.dtype).encode() + tensor.numpy().tobytes())
    return found.hexdigest()


def _packed_loss(model: Any, documents: Documents, length: int) -> float:
    import torch

    from stages.finetune.attention import within_documents
    from stages.finetune.data import collate_rows
    from stages.finetune.head import project_supervised_only

    project_supervised_only(model)
    sums = 0.0
    for row in packed(documents, length):
        batch = collate_rows([row], length, 0)
        with torch.no_grad(), within_documents():
            sums += float(fused_loss(model, batch)) * float((batch["labels"][:, 1:] != IGNORED).sum())
    return sums / _learned(documents)


def _padded_loss(model: Any, documents: Documents, collate: Any) -> float:
    import torch

    sums = 0.0
    for start in range(0, len(documents), 8):
        part = documents[start : start + 8]
        batch = collate([{"input_ids": ids, "labels": labels} for ids, labels in part])
        with torch.no_grad():
            sums += float(model(**batch).loss) * _learned(part)
    return sums / _learned(documents)


def _trl_loss(trainer: Any, documents: Documents) -> float:
    import torch

    sums = 0.0
    for start in range(0, len(documents), 8):
        part = documents[start : start + 8]
        batch = trainer.data_collator([{"input_ids": ids, "labels": labels} for ids, labels in part])
        with torch.no_grad():
            sums += float(trainer.compute_loss(trainer.model, batch)) * _learned(part)
    return sums / _learned(documents)


def _learned(documents: Documents) -> int:
    return sum(label != IGNORED for _, labels in documents for label in labels)


if __name__ == "__main__":
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    main(Path(sys.argv[1]))
