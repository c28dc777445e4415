"""TRL's SFTTrainer on packed rows, and the loss curve it leaves."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from stages.common.tracking import track
from stages.finetune.config import Finetune, Precision
from stages.finetune.pack import Row, padded

LOG_EVERY = 10


@dataclass
class Curve:
    """Losses by step and split (nats per learned token), and the share of parameters that was trained."""

    points: list[tuple[int, str, float]] = field(default_factory=list)
    trained_share: float = 0.0

    def add(self, step: int, split: str, loss: float) -> None:
        """Keep a point. Raises ValueError when the loss is not finite: the run is lost, and says so."""
        if not math.isfinite(loss):
            raise ValueError(
                f"the {split} loss is {loss} at step {step}: lower finetune.learning_rate, "
                "lengthen finetune.warmup_steps or lower finetune.max_grad_norm"
            )
        self.points.append((step, split, loss))

    def last(self, split: str) -> float:
        """The latest loss of a split."""
        return next(loss for _, name, loss in reversed(self.points) if name == split)

    def csv(self) -> str:
        """step,split,loss with a header: the DVC plot."""
        return "step,split,loss\n" + "".join(
            f"{step},{split},{loss:.6f}\n" for step, split, loss in self.points
        )


def train(cfg: Finetune, model: Any, tokenizer: Any, rows: Any, heldout: Any, curve: Curve) -> Any:
    """Train `model` in place on packed rows (tables of read_rows) and return it; their order comes from the seed."""
    from datasets import Dataset
    from trl import SFTTrainer

    parameters = list(model.parameters())
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    curve.trained_share = trained / sum(parameter.numel() for parameter in parameters)
    trainer = SFTTrainer(
        model=model,
        args=_arguments(cfg, evaluate=bool(len(heldout))),
        # Fingerprints are given, or datasets would make them by hashing a copy of all rows.
        train_dataset=Dataset(rows, fingerprint="train"),
        eval_dataset=Dataset(heldout, fingerprint="heldout") if len(heldout) else None,
        processing_class=tokenizer,
        data_collator=partial(collate, length=cfg.row_length, pad=tokenizer.pad_token_id),
        callbacks=[_recorder(curve)],
    )
    trainer.train()
    return model


def collate(rows: list[dict[str, list[int]]], length: int, pad: int) -> dict[str, Any]:
    """Pad and stack packed rows; there is no attention mask on purpose (see pack.py)."""
    import torch

    full = [vars(padded(row, length, pad)) for row in rows]
    return {name: torch.tensor([row[name] for row in full]) for name in Row.__annotations__}


def _arguments(cfg: Finetune, *, evaluate: bool) -> Any:
    from trl import SFTConfig

    return SFTConfig(
        output_dir="models/.trainer",
        max_steps=cfg.max_steps,
        per_device_train_batch_size=cfg.batch_size,
        per_device_eval_batch_size=cfg.batch_size,
        gradient_accumulation_steps=cfg.gradient_accumulation,
        learning_rate=cfg.learning_rate,
        lr_scheduler_type=cfg.scheduler,
        warmup_steps=cfg.warmup_steps,
        weight_decay=cfg.weight_decay,
        max_grad_norm=cfg.max_grad_norm,
        eval_strategy="steps" if evaluate else "no",
        eval_steps=cfg.eval_every,
        logging_steps=LOG_EVERY,
        logging_nan_inf_filter=False,
        save_strategy="no",
        seed=cfg.seed,
        data_seed=cfg.seed,
        bf16=cfg.precision is Precision.bf16,
        fp16=False,
        gradient_checkpointing=False,
        packing=False,
        max_length=None,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        dataloader_pin_memory=False,
        report_to=[],
    )


def _recorder(curve: Curve) -> Any:
    """A callback that turns the trainer's log lines into curve points and MLflow metrics."""
    from transformers import TrainerCallback

    names = {"loss": "train", "eval_loss": "heldout"}

    class Recorder(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_log |= state.global_step == state.max_steps  # the curve ends where training ends

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
            for key, split in names.items():
                if key in logs:
                    curve.add(state.global_step, split, logs[key])
            for key, value in logs.items():
                track.metric(f"trainer/{key}", value, state.global_step)

    return Recorder()
