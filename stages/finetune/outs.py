"""models/tuned: a whole model that plain transformers loads, or an adapter that PEFT loads; same input, same bytes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from stages.common.adapter import CONFIG, WEIGHTS, attach, check_base, mark
from stages.common.files import fresh_dir, read_json, write_json
from stages.finetune.checks import QUANTISED
from stages.finetune.config import Finetune, Method, Weights
from stages.finetune.model import start

OF_THE_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "config.json")
SETS = ("target_modules", "exclude_modules", "modules_to_save")


def write_out(cfg: Finetune, base: Path, trained: Path, out: Path) -> None:
    """Make `out` from what save_pretrained left in `trained` (every weight, or an adapter): complete, or not at all.

    Tokenizer, chat template and generation settings are the base's own files: training changes none of them.
    """
    draft = fresh_dir(out.with_name(f".{out.name}"))
    try:
        if cfg.method.kind is Method.full:
            _whole(base, trained, draft)
        elif cfg.method.merge:
            _merged(cfg, base, trained, draft)
        else:
            _adapter(base, trained, draft)
        for file in _descriptions(base):
            shutil.copyfile(file, draft / file.name)
    except BaseException:
        shutil.rmtree(draft)
        raise
    if out.exists():
        shutil.rmtree(out)
    draft.rename(out)


def load_out(out: Path, base: Path, weights: Weights = Weights.fp32) -> Any:
    """The model as anybody would load it, in evaluation mode: fp32 if `weights` are, else bf16, to fit where they do.

    Raises ValueError on an adapter of another base.
    """
    import torch
    from transformers import AutoModelForCausalLM

    adapter = (out / CONFIG).is_file()
    if adapter:
        check_base(out, base)
    dtype = torch.float32 if weights is Weights.fp32 else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(base if adapter else out, dtype=dtype).eval()
    return attach(model, out) if adapter else model


def _whole(base: Path, trained: Path, draft: Path) -> None:
    for pattern in OF_THE_WEIGHTS[:2]:
        for file in sorted(trained.glob(pattern)):
            _place(file, draft / file.name)
    _config(base, draft, "float32")


def _merged(cfg: Finetune, base: Path, trained: Path, draft: Path) -> None:
    """Into the unquantised base: what was learned beside int8 or nf4 is added to the weights that they stand for."""
    weights = Weights.fp32 if cfg.method.weights in QUANTISED else cfg.method.weights
    model = attach(start(cfg, base, weights), trained).merge_and_unload()
    model.save_pretrained(draft)
    (draft / "generation_config.json").unlink(missing_ok=True)
    _config(base, draft, "bfloat16" if weights is Weights.bf16 else "float32")


def _adapter(base: Path, trained: Path, draft: Path) -> None:
    _place(trained / WEIGHTS, draft / WEIGHTS)
    config = read_json(trained / CONFIG)
    for name in SETS:  # their order follows PYTHONHASHSEED
        if isinstance(config[name], list):
            config[name] = sorted(config[name])
    write_json(draft / CONFIG, config | {"base_model_name_or_path": base.as_posix()})
    mark(draft, base)


def _config(base: Path, draft: Path, dtype: str) -> None:
    """The base's configuration; TRL writes into the trained model's."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(base)
    config.dtype = dtype
    config.save_pretrained(draft)


def _descriptions(base: Path) -> list[Path]:
    """Files of the base that are about its use and not about its weights."""
    return sorted(
        file
        for file in base.iterdir()
        if file.is_file() and not any(file.match(pattern) for pattern in OF_THE_WEIGHTS)
    )


def _place(file: Path, target: Path) -> None:
    """A hard link where the disk allows it: weights are large, and neither name is ever written into."""
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)
