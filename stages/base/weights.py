"""What a model folder must hold, and what its weight files say of themselves."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from stages.base.config import Model

# Weights as safetensors and what describes them: nothing that can carry code, no second copy of the weights (Mistral's
# consolidated.safetensors is one).
PATTERNS = ("model*.safetensors", "*.json", "*.jinja", "tokenizer.model", "vocab.txt", "merges.txt")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack")


def check_files(folder: Path, model: Model) -> None:
    """Raise ValueError if `folder` holds an adapter, or lacks safetensors, a configuration or a tokenizer."""
    if (folder / "adapter_config.json").is_file():
        adapter = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        raise ValueError(
            f"model {model.name}: {model.id} (conf/model/{model.name}.yaml, id) is an adapter (adapter_config.json): "
            f"name its base, {adapter.get('base_model_name_or_path')!r}, or save the two merged (merge_and_unload())"
        )
    needed = {"model*.safetensors": "weights", "config.json": "a configuration", "tokenizer*": "a tokenizer"}
    for pattern, what in needed.items():
        if not any(folder.glob(pattern)):
            raise ValueError(
                f"model {model.name}: {model.id or 'tiny'} (conf/model/{model.name}.yaml, id) has no "
                f"{pattern}: Lathe needs {what} in that form; save_pretrained() writes it"
            )


def parameters(folder: Path) -> int:
    """Number of parameters in the safetensors files of `folder`, tied ones once. Reads headers only."""
    shapes = [tensor["shape"] for file in sorted(folder.glob("*.safetensors")) for tensor in _tensors(file)]
    return sum(math.prod(shape) for shape in shapes)


def _tensors(file: Path) -> list[dict[str, Any]]:
    """What a safetensors header says (8 bytes of length, then JSON: github.com/huggingface/safetensors)."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header: dict[str, Any] = json.loads(stream.read(length))
    return [value for name, value in header.items() if name != "__metadata__"]
