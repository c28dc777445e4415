"""The prepare stage on a folder of rows: `python -m benchmarks.prepare.ours FOLDER OUT`. Workers: LATHE_WORKERS."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from omegaconf import OmegaConf

from stages.prepare.__main__ import main
from stages.prepare.config import Prepare

ROOT = Path(__file__).resolve().parents[2]


def section(folder: Path, **changes: object) -> Prepare:
    """The committed section with the rows of `folder`, its tokenizer's room, and no prompt."""
    values = OmegaConf.load(ROOT / "params.yaml").prepare
    values.prompt = {"name": "none", "system": "", "examples": [], "max_new_tokens": 1}
    values.data.path = str(folder)
    values = OmegaConf.merge(values, {"max_length": 2048, "row_length": 2048, **changes})
    found = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Prepare), values))
    assert isinstance(found, Prepare)
    return found


if __name__ == "__main__":
    folder, out = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    (out / "models").mkdir(parents=True, exist_ok=True)
    os.chdir(out)
    if not Path("models/base").exists():
        Path("models/base").symlink_to(folder / "base")
    main(section(folder))
