"""One process's part of the training: `train` in the stage itself, or in each process that launch.py starts.

Everything stands under `work`, a folder of this run's fingerprint: checkpoints/, best-<step>/, and at the end result/
with trained/ (the weights as save_pretrained writes them) and progress.json.
"""

from __future__ import annotations

import copy
import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.common.memory import out_of_memory
from stages.finetune.checkpoint import MANIFEST, finish_commit, remove, verify
from stages.finetune.checks import QUANTISED
from stages.finetune.config import Finetune, Method, Objective, Precision, Strategy
from stages.finetune.data import Data, read_split
from stages.finetune.model import load
from stages.finetune.order import order_of, total_steps
from stages.finetune.progress import PROGRESS, Progress
from stages.finetune.sharding import sum_in_fp32

log = logging.getLogger("lathe")
PREPARED, BASE = Path("data/prepared"), Path("models/base")
RESULT, TRAINED = "result", "trained"


def train(cfg: Finetune, work: Path) -> None:
    """Train, from the last good checkpoint if there is one, and leave `work`/result.

    Raises ValueError in one line on a loss that is not finite, a full disk, or not enough memory.
    """
    from transformers import AutoTokenizer

    from stages.finetune.attention import within_documents

    splits = read_split(cfg, PREPARED, "train"), read_split(cfg, PREPARED, "valid")
    with enough_memory(cfg), within_documents():
        trainer = _trainer(cfg, AutoTokenizer.from_pretrained(BASE), splits)
        trainer.begin(cfg, order_of(cfg, len(splits[0])), splits, work)
        trainer.go(_last(trainer))
        _finish(trainer, work)


def result(work: Path) -> Path | None:
    """The finished training of this fingerprint, if a run got that far before it was stopped."""
    folder = work / RESULT
    if not folder.exists():
        return None
    if problem := verify(folder):
        log.warning("%s is damaged (%s): not used", folder, problem)
        remove(folder)
        return None
    return folder


@contextmanager
def enough_memory(cfg: Finetune) -> Iterator[None]:
    """Turn what torch, NumPy, safetensors and Python raise when memory is out into one clear line (ValueError)."""
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise ValueError(
            f"not enough memory for finetune.batch_size={cfg.batch_size} with gradient_accumulation="
            f"{cfg.gradient_accumulation}: raise gradient_accumulation, set gradient_checkpointing=true, or choose "
            f"method=lora; where the model alone is too large, a smaller one, or method.weights in fewer bits "
            f"({' '.join(str(error).split())[:160]}); the next run goes on from the last checkpoint"
        ) from error


def _last(trainer: Any) -> Path | None:
    """Where to go on from. The first process looks and tells the others: what is damaged is moved away meanwhile."""
    from torch import distributed

    found = [_good(trainer) if trainer.rank == 0 else None]
    if trainer.ranks > 1:
        distributed.broadcast_object_list(found)
    return found[0]


def _good(trainer: Any) -> Path | None:
    """The last good checkpoint. Without the best weights that it counts on, none is used."""
    last: Path | None = trainer.checkpoints.latest()
    if last is None:
        return None
    if trainer.cfg.keep_best and (step := Progress.read(last / PROGRESS).best_step):
        best: Path = trainer.checkpoints.best(step)
        finish_commit(best)
        if problem := verify(best):
            log.warning("%s is damaged (%s): the run starts again", best, problem)
            remove(trainer.checkpoints.folder)
            remove(best)
            return None
    log.info("resumed from %s", last)
    return last


def _finish(trainer: Any, work: Path) -> None:
    """Write result/ as a whole: the best weights where they were asked for, or the last."""
    trainer.write("the trained weights", work / RESULT, lambda draft: _lay_out(trainer, draft))


def _lay_out(trainer: Any, draft: Path) -> None:
    if not (trainer.cfg.keep_best and trainer.progress.evaluations):
        trainer.save_weights(draft / TRAINED)
    elif trainer.args.should_save:
        best: Path = trainer.checkpoints.best(trainer.progress.best_step)
        if problem := verify(best):
            raise ValueError(f"{best} is damaged ({problem}): run again, and training starts anew")
        shutil.copytree(best, draft / TRAINED, ignore=shutil.ignore_patterns(MANIFEST))
    if trainer.args.should_save:
        trainer.progress.write(draft / PROGRESS)


def _trainer(cfg: Finetune, tokenizer: Any, splits: tuple[Data, Data]) -> Any:
    """TRL's trainer for the section, its model loaded."""
    import torch
    from datasets import Dataset

    from stages.finetune.trainers import Dpo, Sft

    steps = total_steps(cfg, len(splits[0]))
    kind = Dpo if cfg.objective is Objective.dpo else Sft
    model = load(cfg, BASE)
    if cfg.objective is Objective.dpo and cfg.method.kind is Method.full:
        extra = {"ref_model": copy.deepcopy(model).eval()}  # of an adapter TRL keeps a frozen copy itself
    else:
        extra = {}
    trainer = kind(
        model=model,
        args=_arguments(cfg, steps),
        train_dataset=Dataset(splits[0].table, fingerprint="train"),  # given, or datasets would hash all rows
        processing_class=tokenizer,
        data_collator=lambda rows: rows,
        **extra,
    )
    if cfg.method.weights in QUANTISED:  # TRL casts the adapters to bf16, in which small updates vanish
        for weight in trainer.model.parameters():
            if weight.requires_grad:
                weight.data = weight.data.float()
    torch.manual_seed(cfg.seed + trainer.args.process_index)  # dropout differs between processes
    return trainer


def _arguments(cfg: Finetune, steps: int) -> Any:
    import torch
    from trl import DPOConfig, SFTConfig

    cpu = not torch.cuda.is_available()
    several = cfg.world.nodes * cfg.world.processes > 1
    fsdp = several and cfg.world.strategy is Strategy.fsdp
    # A model that looks for unused parameters keeps its buckets as they are. Else DDP lays them out anew after the
    # first step, also the first after a resume, and in other buckets three gradients and more are summed in another
    # order.
    three = cfg.world.nodes * cfg.world.processes > 2
    given: dict[str, Any] = {
        "output_dir": ".lathe/trainer",
        "max_steps": steps,
        "per_device_train_batch_size": order_of(cfg, 1).part,
        "gradient_accumulation_steps": cfg.gradient_accumulation,
        "gradient_checkpointing": cfg.gradient_checkpointing,
        "learning_rate": cfg.learning_rate,
        "lr_scheduler_type": cfg.scheduler.name,
        "warmup_steps": cfg.warmup_steps,
        "weight_decay": cfg.weight_decay,
        "max_grad_norm": cfg.max_grad_norm,
        "bf16": cfg.precision is Precision.bf16,
        "fp16": False,
        "seed": cfg.seed,
        "use_cpu": cpu,
        "ddp_backend": ("gloo" if cpu else "nccl") if several else None,
        "ddp_find_unused_parameters": three,
        "fsdp": True if fsdp else None,
        "fsdp_config": {"version": 2, "state_dict_type": "SHARDED_STATE_DICT"} if fsdp else None,
        # FSDP2 would keep the whole model's gradients in fp32 on every process until a step's last part
        "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}} if fsdp else None,
        "ignore_data_skip": True,  # order.py knows where to go on
        "save_strategy": "no",  # trainers.py says when
        "eval_strategy": "no",
        "logging_strategy": "no",
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "max_length": None,
        "report_to": [],
    }
    warnings.filterwarnings("ignore", "`gradient_checkpointing` is deprecated")  # TRL's own name for it
    if cfg.objective is Objective.dpo:
        loss = [cfg.preference.loss.name]
        found = DPOConfig(**given, beta=cfg.preference.beta, loss_type=loss, disable_dropout=True)
    else:
        found = SFTConfig(**given, packing=False, dataset_kwargs={"skip_prepare_dataset": True})
    if fsdp and cfg.precision is Precision.bf16:
        sum_in_fp32(found)
    return found
