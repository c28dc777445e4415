"""Adapter folders: a PEFT adapter whose base stands beside or inside it, and how a mismatch of the two is noticed."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.common.files import read_json, write_json

CONFIG, WEIGHTS, IDENTITY = "adapter_config.json", "adapter_model.safetensors", "base.json"
INSIDE = "base"  # a folder in the adapter's own: a variant carries its base along (ops/variant.py)
SAMPLE = 4096  # bytes of each tensor


def base_of(folder: Path) -> Path | None:
    """The base that an adapter's folder carries or names; None where `folder` holds no adapter.

    Raises ValueError where that base is not here, or is not the one that the adapter was trained on.
    """
    if not (folder / CONFIG).is_file():
        return None
    name = read_json(folder / CONFIG)["base_model_name_or_path"]
    if (folder / INSIDE / "config.json").is_file():
        name = str(folder / INSIDE)
    if not name or not (Path(name) / "config.json").is_file():
        raise ValueError(
            f"{folder} is an adapter of {name!r} ({CONFIG}), which is no model folder here: run "
            "`dvc repro base`, or merge the adapter into its base"
        )
    check_base(folder, Path(name))
    return Path(name)


def check_base(folder: Path, base: Path) -> None:
    """Raise ValueError where `base` is not what the adapter in `folder` was trained on.

    An adapter that was not written by Lathe does not say; PEFT then compares the shapes alone.
    """
    path = folder / IDENTITY
    if path.is_file() and read_json(path)["identity"] != identity(base):
        raise ValueError(
            f"the adapter in {folder} was trained on another base than {base} ({IDENTITY} has its identity): "
            "run `dvc repro finetune`"
        )


def mark(folder: Path, base: Path) -> None:
    """Write down in the adapter's folder what `base` is; PEFT and transformers leave a further JSON file alone."""
    write_json(folder / IDENTITY, {"identity": identity(base)})


def identity(base: Path) -> str:
    """Hex digest of a base: its configuration, and each tensor's name, type, shape and first bytes.

    Names and shapes alone would not do: a model and its instruction-tuned sister have the same. Nor need every byte
    be read, which takes a minute for 16 GB at each load: training moves every tensor. How tensors are shared out
    among files does not matter.
    """
    digest = hashlib.sha256((base / "config.json").read_bytes())
    for line in sorted(line for file in base.glob("model*.safetensors") for line in _tensors(file)):
        digest.update(line)
    return digest.hexdigest()


def attach(model: Any, folder: Path) -> Any:
    """The model with the adapter of `folder` on it, kept apart from its weights, in evaluation mode.

    Raises ValueError without safetensors: PEFT would take a pickle instead, or ask the hub for the folder's name.
    """
    from peft import PeftModel

    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"{folder} has no {WEIGHTS}: an adapter is loaded from safetensors alone")
    return PeftModel.from_pretrained(model, folder).eval()


def _tensors(file: Path) -> Iterator[bytes]:
    """A line for each tensor of a file (8 bytes of length, JSON, data: github.com/huggingface/safetensors)."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header: dict[str, Any] = json.loads(stream.read(length))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            stream.seek(8 + length + begin)
            sample = hashlib.sha256(stream.read(min(end - begin, SAMPLE))).hexdigest()
            yield f"{name} {entry['dtype']} {entry['shape']} {sample}\n".encode()
