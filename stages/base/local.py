"""A model from a folder on this machine, or of this repository."""

from __future__ import annotations

import shutil
from pathlib import Path

from stages.base.weights import PATTERNS, PICKLES


def copy_model(source: Path, folder: Path) -> None:
    """Copy weights, configuration and tokenizer of `source` into `folder`.

    Raises ValueError if `source` is no folder, or holds weights only in a form that can run code when loaded.
    """
    if not source.is_dir():
        raise ValueError(
            f"model.id={str(source)!r} (conf/model/local.yaml) is no folder: give the path of one"
        )
    files = sorted({file for pattern in PATTERNS for file in source.glob(pattern) if file.is_file()})
    pickles = sorted(file.name for file in source.iterdir() if file.suffix in PICKLES)
    if pickles and not any(file.suffix == ".safetensors" for file in files):
        raise ValueError(
            f"model.id={str(source)!r} (conf/model/local.yaml) has its weights in {pickles[0]}, which can "
            "run code when loaded: save it again with save_pretrained(), which writes safetensors"
        )
    for file in files:
        shutil.copyfile(file, folder / file.name)
