"""Compose conf/ into params.yaml, as `dvc exp run` does: `python -m ops.compose [key=value ...]`.

`dvc repro` never composes, so run this after an edit under conf/. Overrides take Hydra's grammar:
`python -m ops.compose experiment=gsm8k finetune.learning_rate=0.002`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from stages.common.files import write_text

ROOT = Path(__file__).resolve().parent.parent


def main(overrides: list[str]) -> None:
    """Replace params.yaml by what conf/ and `overrides` compose to; on an error leave it as it was."""
    target = ROOT / "params.yaml"
    before = target.read_text(encoding="utf-8") if target.exists() else ""
    text = composed(overrides)
    write_text(target, text)
    print("params.yaml: unchanged" if text == before else "params.yaml: written; now run `dvc repro`")


def composed(overrides: list[str]) -> str:
    """The text that DVC itself would write for `overrides`. Raises ValueError with one clear line."""
    import tempfile

    from dvc.utils.hydra import compose_and_dump
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "params.yaml"
        try:
            compose_and_dump(output, str(ROOT / "conf"), None, "config", str(ROOT), overrides)
        except (HydraException, OmegaConfBaseException) as error:
            raise ValueError(one_line(error)) from error
        return output.read_text(encoding="utf-8")


def one_line(error: BaseException) -> str:
    """An error's own words and its cause's, on one line."""
    parts = [str(error)] + ([str(error.__cause__)] if error.__cause__ else [])
    return "; ".join(" ".join(part.split()) for part in dict.fromkeys(parts))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as problem:
        sys.exit(f"compose: {problem}")
