"""Modules of the installed lm-eval, found, read and hashed: nothing is imported."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from stages.common.files import sha256


def module_file(module: str) -> Path:
    """Where a module of the installed lm-eval lies: its package is found, not imported."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("lm-eval is not installed: pip install -r requirements.txt")
    inner = Path(spec.submodule_search_locations[0], *module.split(".")[1:])
    return inner / "__init__.py" if inner.is_dir() else inner.with_name(f"{inner.name}.py")


def module_hash(module: str) -> str | None:
    """SHA-256 of its file, None where there is none."""
    path = module_file(module)
    return sha256(path) if path.is_file() else None


def executes(module: str) -> bool:
    """Whether it loads `code_eval`: downloaded code, which then executes programs in the process that imports it."""
    path = module_file(module)
    return path.is_file() and b"code_eval" in path.read_bytes()
