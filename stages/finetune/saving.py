"""When and how a trainer saves: by steps or minutes, all processes into one draft, complete or absent.

Whole-module import of transformers, because this is a subclass; train.py imports it late.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import Trainer

from stages.finetune.checkpoint import DRAFT, Checkpoints, commit, write_safely
from stages.finetune.config import Finetune, Strategy
from stages.finetune.progress import PROGRESS, Progress

SHARE = 20  # checkpoints that take long are rarer: at most a twentieth of the time goes into them


class Saving(Trainer):  # type: ignore[misc]
    """The part of a trainer that writes checkpoints and weights."""

    cfg: Finetune
    checkpoints: Checkpoints
    progress: Progress
    rank: int
    saved: float
    saving = 0.0  # seconds that the last checkpoint took

    def _due(self) -> bool:
        """Whether the first process wants a checkpoint after this step: every so many steps, or minutes."""
        if self.rank:
            return False
        if every := int(os.environ.get("LATHE_CHECKPOINT_STEPS", "0")):
            return (len(self.progress.losses) + 1) % every == 0
        wanted = float(os.environ.get("LATHE_CHECKPOINT_SECONDS", "300"))
        return time.monotonic() - self.saved > max(wanted, SHARE * self.saving)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        step, began = self.state.global_step, time.monotonic()
        self.write(f"the checkpoint of step {step}", self.checkpoints.path(step), self._save_state)
        self.saved = time.monotonic()
        self.saving = self.saved - began

    def _save_state(self, draft: Path) -> None:
        """Weights, optimizer, schedule, random states and progress, the trainer's own way, into a draft."""
        self.save_model(str(draft), _internal_call=True)
        self._save_optimizer_and_scheduler(str(draft))
        self._save_rng_state(str(draft))
        if self.args.should_save:
            self.state.save_to_json(str(draft / "trainer_state.json"))
            self.progress.write(draft / PROGRESS)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Weights under the model's own names, as resuming loads them: on the hub many architectures have others."""
        model = self.accelerator.unwrap_model(self.model)
        names = {} if hasattr(model, "peft_config") else {"save_original_format": False}
        if self.args.should_save:
            model.save_pretrained(output_dir, state_dict=state_dict, **names)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Raise ValueError on a weight that the checkpoint has not, or has too many, where transformers only warns.

        Of weights that are one (tied embeddings) a file has one.
        """
        own = dict(self.model.named_parameters(remove_duplicate=False)) | dict(self.model.named_buffers())
        there = {weight.data_ptr() for name, weight in own.items() if name not in load_result.missing_keys}
        lacking = [name for name in load_result.missing_keys if own[name].data_ptr() not in there]
        if wrong := [*lacking, *load_result.unexpected_keys]:
            raise ValueError(
                f"a checkpoint in {self.checkpoints.folder} does not fit the model ({len(wrong)} weights, first "
                f"{wrong[0]!r}): remove {self.checkpoints.folder.parent} and run again"
            )

    def save_weights(self, folder: Path) -> None:
        """The trained weights as save_pretrained writes them: a whole model, or an adapter."""
        fsdp = self.cfg.world.strategy is Strategy.fsdp and self.is_fsdp_enabled
        state = self.accelerator.get_state_dict(self.model) if fsdp else None
        if self.args.should_save:
            self.accelerator.unwrap_model(self.model).save_pretrained(folder, state_dict=state)

    def write(self, what: str, path: Path, save: Callable[[Path], None]) -> None:
        """All processes save into one draft; the first one makes it, and gives it its name when all are done."""
        draft = self.checkpoints.folder / DRAFT
        last = self.checkpoints.latest_step()
        remains = f"step {last} is kept and will be gone on from" if last else "it will start again"

        def act() -> None:
            if self.args.should_save:
                self.checkpoints.draft()
            self.accelerator.wait_for_everyone()
            save(draft)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                commit(draft, path)
                self.checkpoints.prune(self.progress.best_step)
            self.accelerator.wait_for_everyone()

        write_safely(f"{what} ({path.parent})", remains, act)
