"""What an unfinished run may be taken up again by: a digest of everything that decides the outs."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from stages.common.files import sha256, tree_digest
from stages.finetune.checks import QUANTISED
from stages.finetune.config import Finetune
from stages.finetune.train import BASE, PREPARED

# Libraries whose next version may train to other bytes.
DECIDE = ("accelerate", "datasets", "numpy", "peft", "safetensors", "torch", "transformers", "trl")


def fingerprint(cfg: Finetune) -> str:
    """Hex digest of the section, the prepared rows, the base, this code and its libraries."""
    here = Path(__file__).resolve().parent
    code = [path for folder in (here, here.parent / "common") for path in sorted(folder.rglob("*.py"))]
    libraries = (*DECIDE, *(("bitsandbytes",) if cfg.method.weights in QUANTISED else ()))
    parts = [
        json.dumps(asdict(cfg), default=str, sort_keys=True),
        [sha256(PREPARED / f"{name}.parquet") for name in ("train", "valid", "pairs")],
        tree_digest(BASE),
        [(path.relative_to(here.parent).as_posix(), sha256(path)) for path in code],
        [platform.python_version(), *((name, version(name)) for name in libraries)],
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
