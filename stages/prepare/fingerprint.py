"""What unfinished work may be taken up again by: a digest of everything that decides the outs."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from stages.common.files import sha256, tree_digest
from stages.prepare.config import Prepare
from stages.prepare.reading.read import RawFile

# Libraries whose next version may write other bytes.
DECIDE = (
    "datasets", "jinja2", "numpy", "orjson", "phonenumbers", "pyarrow", "python-stdnum", "rensa", "tokenizers",
    "transformers",
)  # fmt: skip


def fingerprint(cfg: Prepare, files: Sequence[RawFile], base: Path, tested: Sequence[Path]) -> str:
    """Hex digest of the section, the raw files, the tokenizer, the tested items, this code and its libraries."""
    here = Path(__file__).resolve().parent
    parts = [
        json.dumps(asdict(cfg), default=str, sort_keys=True),
        [asdict(file) for file in files],
        [(path.name, sha256(path)) for path in _tokenizer(base)],
        [tree_digest(path) if path.exists() else "" for path in tested],
        [
            (path.relative_to(folder).as_posix(), sha256(path))
            for folder in (here, here.parent / "common")
            for path in sorted(folder.rglob("*.py"))
        ],
        [platform.python_version(), *((name, version(name)) for name in DECIDE)],
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _tokenizer(base: Path) -> list[Path]:
    """The small files of a model folder: its weights do not decide a token."""
    return sorted(path for path in base.rglob("*") if path.is_file() and path.suffix != ".safetensors")
