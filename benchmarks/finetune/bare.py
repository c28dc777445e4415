"""The same work as a plain PyTorch loop: `python -m benchmarks.finetune.bare FOLDER PRECISION OUT [lean]`.

The stage's model, rows, order, head, attention, optimizer groups, schedule and clipping; tensors made before the clock
starts, nothing logged, nothing saved. With `lean` also without what the stage adds by choice: token accuracy and
entropy of each step, and PyTorch's deterministic mode.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from benchmarks.finetune.measured import stepwise
from benchmarks.finetune.ours import section
from stages.common.run import seed_everything
from stages.finetune.config import Finetune, Precision

IGNORED = -100


def main(folder: Path, precision: str, out: Path, lean: bool) -> None:
    """Train once, with every row once, and write OUT/result.json."""
    os.chdir(folder / "project")
    cfg = section(folder, precision)
    seed_everything(cfg)
    import torch

    from stages.finetune.attention import within_documents
    from stages.finetune.data import read_split
    from stages.finetune.order import order_of, total_steps
    from stages.finetune.train import PREPARED

    torch.use_deterministic_algorithms(not lean)
    data = read_split(cfg, PREPARED, "train")
    order, steps = order_of(cfg, len(data)), total_steps(cfg, len(data))
    rows = [order.step(step) for step in range(steps)]
    batches = [_batch(cfg, [data[index] for index in chosen]) for chosen in rows]
    with within_documents():
        losses, norms, seconds = _train(cfg, batches, _lean if lean else fused_loss)
    stepwise(losses, norms, seconds, sum(int(data.tokens[chosen].sum()) for chosen in rows)).write(
        out / "result.json"
    )


def _train(cfg: Finetune, batches: list[Any], loss_of: Any) -> tuple[list[float], list[float], list[float]]:
    """Loss, gradient norm and seconds of each step."""
    import torch

    from stages.finetune.head import project_supervised_only
    from stages.finetune.model import load
    from stages.finetune.train import BASE

    model = load(cfg, BASE).train()
    if loss_of is fused_loss:
        project_supervised_only(model)
    optimizer, schedule = _optimizer(cfg, model, len(batches))
    found: list[tuple[float, float, float]] = []
    for batch in batches:
        began = time.perf_counter()
        with _autocast(cfg):
            loss = loss_of(model, batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        found.append((loss.item(), float(norm), time.perf_counter() - began))
    losses, norms, seconds = (list(column) for column in zip(*found, strict=True))
    return losses, norms, seconds


def fused_loss(model: Any, batch: dict[str, Any]) -> Any:
    """As the stage computes it, with what TRL's metrics want."""
    output = model(**batch, fused_lm_head=True)
    return (-output.log_probs).sum() / (batch["labels"][:, 1:] != IGNORED).sum()


def _lean(model: Any, batch: dict[str, Any]) -> Any:
    import torch

    mask = batch["labels"][:, 1:] != IGNORED
    hidden = model.model(
        input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
    ).last_hidden_state
    logits = model.lm_head(hidden[:, :-1][mask])
    return torch.nn.functional.cross_entropy(logits.float(), batch["labels"][:, 1:][mask])


def _batch(cfg: Finetune, rows: list[dict[str, Any]]) -> dict[str, Any]:
    from stages.finetune.data import collate_rows

    return collate_rows(rows, cfg.row_length, 0)


def _optimizer(cfg: Finetune, model: Any, steps: int) -> tuple[Any, Any]:
    import torch
    from transformers import get_scheduler

    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": cfg.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=cfg.learning_rate, fused=True)
    return optimizer, get_scheduler(cfg.scheduler.name, optimizer, cfg.warmup_steps, steps)


def _autocast(cfg: Finetune) -> AbstractContextManager[Any]:
    import torch

    return torch.autocast("cpu", torch.bfloat16) if cfg.precision is Precision.bf16 else nullcontext()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]).resolve(), sys.argv[4:] == ["lean"])
