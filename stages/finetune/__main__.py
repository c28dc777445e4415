"""Supervised fine-tuning with TRL: `python -m stages.finetune`.

models/base + data/prepared -> models/tuned (whole weights as safetensors, adapters merged), the loss curve as
a DVC plot, sample generations before and after.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from stages.common.files import fresh_dir, write_text
from stages.common.run import run
from stages.common.statistics import Metrics, bootstrap, exact, paired_difference
from stages.common.tracking import track
from stages.finetune.config import Finetune, Init, Method
from stages.finetune.evaluate import generate, heldout_losses, samples_page
from stages.finetune.pack import read_documents, read_rows
from stages.finetune.train import Curve, train

BASE, PREPARED, OUT = Path("models/base"), Path("data/prepared"), Path("models/tuned")
PLOT, SAMPLES = Path("reports/loss.csv"), Path("reports/samples.md")
DRAFT = Path("models/.tuned")


def main(cfg: Finetune) -> Metrics:
    """Train, save, and measure the held-out loss per token before and after (nats)."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(BASE)
    rows = read_rows(PREPARED / "train.parquet", cfg.row_length)
    heldout_rows = read_rows(PREPARED / "valid.parquet", cfg.row_length)
    heldout = read_documents(PREPARED / "valid.parquet")
    model = load(cfg)
    before = heldout_losses(model, heldout, tokenizer.pad_token_id, cfg.batch_size)
    asked = generate(model, tokenizer, heldout, cfg)
    curve = Curve()
    tuned = train(cfg, model, tokenizer, rows, heldout_rows, curve)
    save(tuned, tokenizer)
    final = reload()
    after = heldout_losses(final, heldout, tokenizer.pad_token_id, cfg.batch_size)
    write_text(PLOT, curve.csv())
    write_text(SAMPLES, samples_page(asked, generate(final, tokenizer, heldout, cfg)))
    track.artifact(PLOT)
    track.artifact(SAMPLES)
    return _metrics(cfg, final, curve, before, after)


def load(cfg: Finetune) -> Any:
    """The starting model in fp32, with adapters for LoRA; gradients on for what is trained."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if cfg.init is Init.random:
        torch.manual_seed(cfg.seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(BASE), dtype=torch.float32)
    else:
        model = reload(BASE)
    return _with_adapters(cfg, model) if cfg.method.kind is Method.lora else model


def reload(folder: Path = OUT) -> Any:
    """A model from its folder, in fp32, as anybody would load it."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def save(model: Any, tokenizer: Any) -> None:
    """Write models/tuned: complete, or not at all. Adapters are merged, so what is measured is what is served."""
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    draft = fresh_dir(DRAFT)
    model.config.use_cache = True
    model.save_pretrained(draft)
    tokenizer.save_pretrained(draft)
    if OUT.exists():
        shutil.rmtree(OUT)
    draft.rename(OUT)


def _with_adapters(cfg: Finetune, model: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    method = cfg.method
    config = LoraConfig(
        r=method.rank,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        target_modules=sorted(method.targets),
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        text = " ".join(str(error).split())
        raise ValueError(
            f"method.targets {sorted(method.targets)} do not fit the base model: {text}"
        ) from error


def _metrics(cfg: Finetune, model: Any, curve: Curve, before: list[float], after: list[float]) -> Metrics:
    metrics = {
        "train/steps": exact(cfg.max_steps),
        "train/loss": exact(curve.last("train")),
        "model/parameters": exact(sum(parameter.numel() for parameter in model.parameters())),
        "model/trained_share": exact(curve.trained_share),
    }
    if before:
        metrics["heldout/loss_before"] = bootstrap(before, cfg.seed)
        metrics["heldout/loss"] = bootstrap(after, cfg.seed)
        metrics["heldout/loss_change"] = paired_difference(after, before, cfg.seed)
    return metrics


if __name__ == "__main__":
    run(Finetune, main)
