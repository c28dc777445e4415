"""A model from the Hugging Face hub, at a revision that cannot move."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from stages.base.config import Model
from stages.base.weights import PATTERNS


def download(model: Model, folder: Path) -> None:
    """Download `model.id` at `model.revision` into `folder`: safetensors and descriptions only.

    Raises ValueError if the revision is no full commit hash, or the hub does not give the files.
    """
    origin = f"conf/model/{model.name}.yaml"
    if not re.fullmatch(r"[0-9a-f]{40}", model.revision):
        raise ValueError(
            f"model.revision={model.revision!r} ({origin}) can move: set the full 40-digit commit hash, as "
            f"`git ls-remote https://huggingface.co/{model.id} HEAD` prints it"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        snapshot_download(model.id, revision=model.revision, allow_patterns=list(PATTERNS), local_dir=folder)
    except HFValidationError as error:
        raise ValueError(f"model.id={model.id!r} ({origin}) is no hub name: write owner/name") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"model.id={model.id!r} ({origin}) at {model.revision[:10]} did not download "
            f"({type(error).__name__}): check name and network; for a gated model accept its "
            "terms and set HF_TOKEN (.env.example)"
        ) from error
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # download times: not a function of the parameters
