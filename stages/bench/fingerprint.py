"""What a killed stage's answers may be taken up again by: a digest of everything that decides them."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from stages.bench.config import QUANTISED, Bench, Variant
from stages.common.adapter import base_of
from stages.common.files import sha256, tree_digest

STAGES = Path(__file__).resolve().parent.parent
# Libraries whose next version may compute other logits, ask or score otherwise.
DECIDE = (
    "jinja2", "lm_eval", "numpy", "peft", "rouge_score", "sacrebleu", "tokenizers", "torch", "transformers",
)  # fmt: skip


def fingerprint(cfg: Bench, variant: Variant) -> str:
    """Hex digest of section, model, this code and its libraries; what is asked is part of each answer's own key."""
    folders = [path for path in (Path(variant.path), base_of(Path(variant.path))) if path and path.is_dir()]
    libraries = (*DECIDE, *(("bitsandbytes",) if variant.precision in QUANTISED else ()))
    parts = [
        json.dumps([asdict(cfg), asdict(variant)], default=str, sort_keys=True),
        [tree_digest(folder) for folder in folders],
        [(path.relative_to(STAGES).as_posix(), sha256(path)) for path in deciding_files()],
        [platform.python_version(), *((name, _version(name)) for name in libraries)],
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def deciding_files() -> list[Path]:
    """This stage's code and tasks, what loads a model for it, and what it writes prompts by."""
    own = [path for kind in ("*.py", "*.yaml") for path in (STAGES / "bench").rglob(kind)]
    return sorted([*own, *(STAGES / "common" / name for name in ("adapter.py", "prompt.py", "quantised.py"))])


def _version(name: str) -> str:
    """Empty where it is not installed: what needs it says so in a line of its own."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
