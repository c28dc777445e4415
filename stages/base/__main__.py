"""Stage base: puts the base model into models/base. `python -m stages.base`, or `dvc repro base`."""

from __future__ import annotations

import shutil
from pathlib import Path

from stages.base.config import Base, Source
from stages.base.hub import download
from stages.base.local import copy_model
from stages.base.tiny import make_tiny
from stages.base.weights import check_files, parameters
from stages.common.files import fresh_dir
from stages.common.run import run
from stages.common.statistics import Metrics, exact

OUT = Path("models/base")
PARTIAL = Path(".lathe/base.partial")  # the same file system: finished, it is renamed


def main(cfg: Base) -> Metrics:
    """Write models/base as a whole, or leave what stands there. Metrics: size, and for tiny the loss.

    Raises ValueError, in one line, on a floating revision, a model without safetensors, one that would bring its own
    code, or no corpus.
    """
    if cfg.model.trust_remote_code:
        raise ValueError(
            f"model.trust_remote_code=true (conf/model/{cfg.model.name}.yaml): no model's own code is run here; set "
            "false, and name a model whose architecture transformers has"
        )
    folder, metrics = fresh_dir(PARTIAL), Metrics()
    if cfg.model.source is Source.hub:
        download(cfg.model, folder)
    elif cfg.model.source is Source.local:
        copy_model(Path(cfg.model.id), folder)
    else:
        metrics |= make_tiny(cfg, folder)
    check_files(folder, cfg.model)
    metrics["base/parameters"] = exact(parameters(folder))
    _replace(folder, OUT)
    return metrics


def _replace(folder: Path, out: Path) -> None:
    if out.exists():
        shutil.rmtree(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    folder.replace(out)


if __name__ == "__main__":
    run(Base, main)
