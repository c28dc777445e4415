"""TRL's trainers, made exact: their own data order, finite steps only, checkpoints that are complete or absent.

Whole-module import of heavy libraries, because these are subclasses; train.py imports it late.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import distributed
from torch.utils.data import DataLoader, Dataset
from trl import DPOTrainer, SFTTrainer

from stages.finetune.checkpoint import Checkpoints
from stages.finetune.config import Finetune
from stages.finetune.data import Data, collate_pairs, collate_rows, padding
from stages.finetune.head import project_supervised_only
from stages.finetune.measure import REFERENCE, Meter, processor, size
from stages.finetune.order import Order, turns
from stages.finetune.progress import PROGRESS, Progress
from stages.finetune.saving import Saving
from stages.finetune.sharding import shard_on_cpus

log = logging.getLogger("lathe")


class Exact(Saving):
    """What Sft and Dpo share; a mixin in front of a TRL trainer."""

    EVEN = False  # whether processes must evaluate equally many rows at once

    def create_accelerator_and_postprocess(self) -> None:
        """The Trainer's own, with FSDP2 wherever it was asked for."""
        super().create_accelerator_and_postprocess()
        if self.args.fsdp_plugin_args is not None:
            shard_on_cpus(self)

    def begin(self, cfg: Finetune, order: Order, splits: tuple[Data, Data], work: Path) -> None:
        """Take up the run in `work`: the progress of its last good checkpoint, or none."""
        self.cfg, self.order, (self.rows, self.heldout) = cfg, order, splits
        self.rank, self.ranks = self.args.process_index, self.args.world_size
        if not torch.cuda.is_available():
            model = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
            project_supervised_only(model)
            if (reference := getattr(self, "ref_model", None)) is not None:
                project_supervised_only(reference)
        self.checkpoints = Checkpoints(work / "checkpoints")
        self.progress = Progress(trained_share=_trained_share(self.model), processor=processor())
        self.meter = Meter(cfg, self.model, self.rows, order)
        self.parts: list[torch.Tensor] = []
        self.saved, self.save_now = time.monotonic(), False

    def go(self, last: Path | None) -> None:
        """Train to the end from a checkpoint, or from the start."""
        if last is not None:
            self.progress = Progress.read(last / PROGRESS)
            self._warn_of_another_processor()
        self.meter.begin(self.progress)
        self.train(resume_from_checkpoint=str(last) if last else None)

    def _warn_of_another_processor(self) -> None:
        began, now = self.progress.processor, processor()
        if began != now and self.rank == 0:
            log.warning(
                "the run began on %s and goes on on %s: its weights will be neither's to the last bit",
                began,
                now,
            )

    def get_train_dataloader(self) -> DataLoader[Any]:
        """This process's share of the remaining steps; its own generator takes no random number of the run's."""
        return DataLoader(  # what it indexes need not be torch's own Dataset
            cast("Dataset[Any]", self.rows),
            batch_sampler=_Remaining(self),
            collate_fn=self.collator(),
            generator=torch.Generator(),
        )

    def collator(self) -> Any:
        """Rows to tensors."""
        raise NotImplementedError

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Forward and backward of one part; its loss is kept for the step's."""
        began = time.perf_counter()
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        self.parts.append(loss)
        self.meter.worked(time.perf_counter() - began)
        return loss

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """Without DoRA's magnitudes: like a norm's weights they are lengths."""
        names: list[str] = super().get_decay_parameter_names(model)
        return [name for name in names if "lora_magnitude_vector" not in name]

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted here: measure.py states its own convention."""
        return 0

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> float:
        """The norm before clipping; called before the update, so a step that is not finite ends here."""
        norm = float(super()._get_grad_norm(model, grad_norm=grad_norm))
        found = torch.stack(
            [torch.stack(self.parts).sum(), torch.tensor(float(self._due()), device=self.args.device)]
        )
        if self.ranks > 1:
            distributed.all_reduce(found)
        loss, due = found.tolist()
        self.parts.clear()
        self.save_now = due > 0  # the first process decides by its clock, all of them act
        self.progress.add(loss / self.ranks, norm)
        return norm

    def _maybe_log_save_evaluate(self, tr_loss: Any, grad_norm: Any, *args: Any, **kwargs: Any) -> None:
        step = self.state.global_step
        if step == len(self.progress.losses) and step != self.meter.last:
            last = step == self.state.max_steps
            # The trainer itself counts from where it resumed
            self.state.epoch = step * self.cfg.batch_size / len(self.rows)
            self.control.should_evaluate = bool(len(self.heldout)) and (
                step % self.cfg.eval_every == 0 or last
            )
            self.control.should_save = self.save_now and not last
            values = {"loss": self.progress.losses[-1], "gradient_norm": float(grad_norm)}
            self.meter.report(
                step, values | {"learning_rate": kwargs["learning_rate"]} | self._observed("train")
            )
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, **kwargs)

    def _observed(self, mode: str) -> dict[str, float]:
        """The means of what TRL measured since the last call: token accuracy, entropy, rewards."""
        found = {name: sum(values) / len(values) for name, values in self._metrics[mode].items() if values}
        self._metrics[mode].clear()
        found.pop("num_tokens", None)
        return found

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Nothing: every step is reported already."""

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Held-out loss (mean over learned tokens, or pairs), the batches shared among the processes."""
        step, model = self.state.global_step, self.model
        model.eval()
        loss = self._heldout_loss(model)
        model.train()
        better = self.progress.evaluated(step, loss)
        if better and self.cfg.keep_best:
            self.write("the best weights so far", self.checkpoints.best(step), self.save_weights)
        self.meter.evaluated(step, {"loss": loss} | self._observed("eval"))
        found = {"eval_loss": loss}
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        if self.cfg.patience and self.progress.stale >= self.cfg.patience:
            self.control.should_training_stop = True
            self.control.should_save = False
        return found

    def _heldout_loss(self, model: Any) -> float:
        collate, sums = self.collator(), torch.zeros(2, dtype=torch.float64)
        for shares in turns(len(self.heldout), self.order.part, self.ranks, even=self.EVEN):
            mine = shares[self.rank]  # every process takes every turn: FSDP gathers weights in step
            rows = [self.heldout[index] for index in mine or range(len(shares[0]))]
            inputs = self._prepare_inputs(collate(rows))
            with torch.no_grad(), self.compute_loss_context_manager():
                total, count = self.summed(model, inputs, len(rows))
            sums += torch.tensor([total, count], dtype=torch.float64) * bool(mine)
        if self.ranks > 1:
            sums = sums.to(self.args.device)
            distributed.all_reduce(sums)
        return float(sums[0] / sums[1])

    def summed(self, model: Any, inputs: Any, rows: int) -> tuple[float, float]:
        """The loss summed over what it is a mean of, and over how many."""
        raise NotImplementedError


class Sft(Exact, SFTTrainer):  # type: ignore[misc]
    """Supervised fine-tuning on packed rows."""

    def begin(self, *given: Any) -> None:
        """As for all; and each token of a step counts the same, whatever loss the architecture has of its own.

        TRL computes the loss by itself from the step's count of tokens, which the trainer takes only with this set.
        """
        super().begin(*given)
        self.model_accepts_loss_kwargs = True

    def collator(self) -> Any:
        """Packed rows at their full length."""
        return partial(collate_rows, length=self.cfg.row_length, pad=padding(self.processing_class))

    def summed(self, model: Any, inputs: Any, rows: int) -> tuple[float, float]:
        """Nats over learned tokens."""
        count = float((inputs["labels"][:, 1:] != -100).sum())
        one = torch.tensor(1.0, device=self.args.device)
        return float(self.compute_loss(model, inputs, num_items_in_batch=one)) / self.ranks, count


class Dpo(Exact, DPOTrainer):  # type: ignore[misc]
    """Preference learning on pairs that prepare has tokenised."""

    EVEN = True  # TRL gathers its measures of each pair, which needs equally many from each process

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset

    def collator(self) -> Any:
        """Chosen and rejected answers."""
        return partial(collate_pairs, pad=padding(self.processing_class))

    def summed(self, model: Any, inputs: Any, rows: int) -> tuple[float, float]:
        """Preference loss over pairs."""
        return float(self.compute_loss(model, inputs)) * rows, float(rows)


class _Remaining:
    """Batch sampler of a trainer: what one process still has to work on; its length is the whole run's."""

    def __init__(self, trainer: Exact) -> None:
        self.trainer = trainer

    def __len__(self) -> int:
        return int(self.trainer.state.max_steps or self.trainer.args.max_steps) * self.trainer.order.parts

    def __iter__(self) -> Iterator[list[int]]:
        run, done = self.trainer, len(self.trainer.progress.losses)
        stopped = run.cfg.patience and run.progress.stale >= run.cfg.patience
        return run.order.batches(done, done if stopped else run.args.max_steps, run.rank)


def _trained_share(model: Any) -> float:
    parameters = [parameter for name, parameter in model.named_parameters() if REFERENCE not in name]
    trained = sum(size(parameter) for parameter in parameters if parameter.requires_grad)
    return float(trained / sum(size(parameter) for parameter in parameters))
