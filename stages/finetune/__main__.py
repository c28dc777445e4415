"""Fine-tuning with TRL and PEFT: `python -m stages.finetune`.

models/base + data/prepared -> models/tuned (safetensors: every weight, a merged adapter, or the adapter alone), the
loss curve as a DVC plot, sample generations before and after. A run that was killed goes on from its last checkpoint
under $DVC_ROOT/.ckpt, to the same bytes. `dvc repro finetune`, or `dvc exp run -S method=lora`.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from stages.common.files import write_text
from stages.common.memory import give_back_memory
from stages.common.run import run
from stages.common.statistics import Metrics, bootstrap, exact, paired_difference, wilson
from stages.common.tracking import track
from stages.common.workspace import workspace
from stages.finetune import launch
from stages.finetune.checkpoint import once, write_safely
from stages.finetune.config import Finetune, Init, Objective
from stages.finetune.data import check_context, check_heldout, check_packing, padding, read_pairs
from stages.finetune.evaluate import generate, heldout_losses, preferences, samples_page
from stages.finetune.fingerprint import fingerprint
from stages.finetune.measure import size
from stages.finetune.model import check, load
from stages.finetune.outs import load_out, write_out
from stages.finetune.pack import read_documents
from stages.finetune.progress import PROGRESS, Progress
from stages.finetune.train import BASE, PREPARED, TRAINED, enough_memory

OUT, BEFORE = Path("models/tuned"), "before"
KEPT = "what was trained is kept, and the next run writes it"
PLOT, SAMPLES = Path("reports/loss.csv"), Path("reports/samples.md")


def main(cfg: Finetune, last: ExitStack | None = None) -> Metrics:
    """Train, write the outs, and measure what the model learned on the held-out rows (nats) and pairs.

    The workspace goes at the end, or at that of `last`.
    """
    launch.choose_device(cfg)
    check(cfg, BASE)
    check_heldout(cfg, PREPARED)
    check_context(cfg, PREPARED, BASE)
    with ExitStack() as here, enough_memory(cfg):
        work = (last or here).enter_context(workspace("finetune", fingerprint(cfg)))
        launch.forget(work)
        before = once(work / BEFORE, lambda: measure(cfg, untrained(cfg)))
        give_back_memory()
        found = launch.run(cfg, work)
        give_back_memory()
        progress = Progress.read(found / PROGRESS)
        write_safely(str(OUT), KEPT, lambda: write_out(cfg, BASE, found / TRAINED, OUT))
        after = measure(cfg, load_out(OUT, BASE, cfg.method.weights))
        write_safely(str(PLOT.parent), KEPT, lambda: _report(progress, before, after))
        return _metrics(cfg, progress, before, after)


def untrained(cfg: Finetune) -> Any:
    """The model that training starts from, without adapters: they do nothing yet. ValueError if it cannot pack."""
    model = load_out(BASE, BASE, cfg.method.weights) if cfg.init is Init.base else load(cfg, BASE)
    if cfg.objective is Objective.sft:
        check_packing(model, BASE)
    return model


def _report(progress: Progress, before: dict[str, Any], after: dict[str, Any]) -> None:
    progress.plot(PLOT)
    write_text(SAMPLES, samples_page(before["samples"], after["samples"]))
    track.artifact(PLOT)
    track.artifact(SAMPLES)


def measure(cfg: Finetune, model: Any) -> dict[str, Any]:
    """Held-out loss of each document, the preference for each chosen answer, and sample generations."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(BASE)
    documents = read_documents(PREPARED / "valid.parquet")
    pairs = read_pairs(PREPARED, "valid") if cfg.objective is Objective.dpo else []
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    return {
        "parameters": sum(size(parameter) for parameter in model.parameters()),
        "losses": heldout_losses(model, documents, padding(tokenizer), cfg.batch_size),
        "preferences": preferences(model, pairs, padding(tokenizer), cfg.batch_size),
        "samples": generate(model, tokenizer, documents or [pair[0] for pair in pairs], cfg),
    }


def _metrics(cfg: Finetune, progress: Progress, before: dict[str, Any], after: dict[str, Any]) -> Metrics:
    metrics = {
        "train/steps": exact(len(progress.losses)),
        "train/loss": exact(progress.losses[-1]),
        "model/parameters": exact(after["parameters"]),
        "model/trained_share": exact(progress.trained_share),
    }
    if cfg.keep_best:
        metrics["train/best_step"] = exact(progress.best_step)
    if old := before["losses"]:
        new = after["losses"]
        metrics["heldout/loss_before"] = bootstrap(old, cfg.seed)
        metrics["heldout/loss"] = bootstrap(new, cfg.seed)
        metrics["heldout/loss_change"] = paired_difference(new, old, cfg.seed)
    if was := [float(margin > 0) for margin in before["preferences"]]:
        now = [float(margin > 0) for margin in after["preferences"]]
        metrics["preference/accuracy_before"] = wilson(int(sum(was)), len(was))
        metrics["preference/accuracy"] = wilson(int(sum(now)), len(now))
        metrics["preference/accuracy_change"] = paired_difference(now, was, cfg.seed)
    return metrics


if __name__ == "__main__":
    with ExitStack() as last:  # a kill before metrics are written and the run is closed loses no training
        run(Finetune, partial(main, last=last))
