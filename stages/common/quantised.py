"""Models that bitsandbytes holds in 8 or 4 bits: what finetune trains adapters on, and what bench scores."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

INSTALL = "pip install -r requirements-qlora.txt -c requirements.lock"


def load_quantised(folder: Path, compute: torch.dtype, *, nf4: bool) -> Any:
    """The model in `folder` with its linear layers in nf4 (arXiv:2305.14314), else int8 (arXiv:2208.07339).

    What is not quantised, and what is computed, is in `compute`. It stands on this process's device, for good.
    """
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quiet()
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=compute,
        use_safetensors=True,
        quantization_config=BitsAndBytesConfig(
            load_in_8bit=not nf4,
            load_in_4bit=nf4,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
        ),
        device_map={"": int(os.environ.get("LOCAL_RANK", "0")) if torch.cuda.is_available() else "cpu"},
    )
    for module in model.modules():
        # Its evaluation rounds the frozen weights' scales, for good
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def layer(*, nf4: bool) -> Any:
    """A small linear layer as such models have them, to try on this machine."""
    layers = import_module("bitsandbytes").nn
    if nf4:
        return layers.Linear4bit(64, 64, bias=False, quant_type="nf4")
    return layers.Linear8bitLt(64, 64, bias=False, has_fp16_weights=False)


def check_quantised(asked: str, more: str, remedy: str, attempt: Callable[[str], None]) -> None:
    """Raise ValueError, one line, where bitsandbytes is not installed or `attempt` on this machine's device fails.

    Whether it works depends on build, processor and driver. `asked` is the setting, `more` what it is tried with.
    """
    try:
        import_module("bitsandbytes")
    except ImportError as error:
        raise ValueError(f"{asked} needs bitsandbytes: {remedy}") from error
    import torch

    quiet()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        attempt(device)
    except Exception as error:  # a native library: whatever it raises, it cannot do it here
        text = " ".join(str(error).split())
        raise ValueError(
            f"{asked}{more} does not work on this machine's {device} ({text}): {remedy}"
        ) from error


def quiet() -> None:
    """It warns at each multiplication in int8 that it casts, and of CPU kernels that it would fetch from the hub."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
