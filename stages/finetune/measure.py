"""How fast a run is, and what each of its processes uses: to the tracker, never into an out.

Conventions. tokens/s counts real tokens (no padding). Model FLOPs of a step are PaLM's (arXiv:2204.02311, appendix B):
6 for each weight and token, 4 where the weight is frozen (no gradient of it is computed), and 12 * layers * heads *
head size * length for each token's attention within its document, not halved for causality. The vocabulary's projection
counts for learned tokens only, embeddings for none. DPO adds its reference's forward pass: 2 for each of the base's
weights and a third of the attention. MFU divides by the dense peak of what the layers compute in: a GPU's as its maker
states it (of one that PEAKS has not, no MFU is logged), a processor's by the rate of a matrix product measured here at
the start.
"""

from __future__ import annotations

import logging
import math
import os
import re
import resource
import time
from typing import Any

from stages.common import provenance
from stages.common.tracking import track
from stages.finetune.config import Finetune, Objective, Precision, Weights
from stages.finetune.data import Data
from stages.finetune.order import Order
from stages.finetune.progress import Progress

log = logging.getLogger("lathe")

# Dense tensor-core peaks in FLOP/s, from NVIDIA's data sheets (half of what they state with sparsity): (bf16, fp32
# outside the tensor cores). A key is whole words of the device's name, and the first that fits counts. None: the T4 has
# no bf16; the sheets of GB200 and GB300 differ in fp32 from one edition to the next.
PEAKS: dict[str, tuple[float | None, float | None]] = {
    "GB300": (2500e12, None),
    "GB200": (2500e12, None),
    "B300": (2250e12, 75e12),  # B300 and B200: an eighth of the HGX board's
    "B200": (2250e12, 75e12),
    "GH200": (990e12, 67e12),
    "H200 NVL": (835e12, 60e12),
    "H100 NVL": (835e12, 60e12),
    "H100 PCIe": (756e12, 51e12),
    "H200": (989e12, 67e12),
    "H100": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "A40": (149.7e12, 37.4e12),
    "A30": (165e12, 10.3e12),
    "RTX A6000": (154.8e12, 38.7e12),
    "L40S": (362e12, 91.6e12),
    "L40": (181e12, 90.5e12),
    "L4": (121e12, 30.3e12),
    "A10": (125e12, 31.2e12),
    "T4": (None, 8.1e12),
}
SYSTEM_SECONDS = 10.0
REFERENCE = ".ref."  # TRL's name for the frozen copy of an adapter that DPO compares with


class Meter:
    """Reports one process's steps; the first process reports the losses, every process its machine."""

    def __init__(self, cfg: Finetune, model: Any, rows: Data, order: Order) -> None:
        """Measure nothing yet; count the model's weights."""
        self.cfg, self.rows, self.order = cfg, rows, order
        self.rank = int(os.environ.get("RANK", "0"))
        self.ranks = order.ranks
        self.last = 0
        reference = cfg.objective is Objective.dpo
        self._body, self._head = _costs(model, reference)
        self._attention = (16 if reference else 12) * _attention_width(model.config.get_text_config())
        self._peak = peak(cfg)
        if self._peak is None and self.rank == 0:
            log.warning(
                "no MFU is logged: PEAKS in stages/finetune/measure.py has no dense peak of %s in %s; add it there as "
                "its data sheet states it",
                processor(),
                computed_in(cfg).name,
            )
        self._work = self._sampled = self._stepped = 0.0

    def begin(self, progress: Progress) -> None:
        """Start the clock; a run that resumes shows the losses of its earlier life too."""
        if self.rank == 0:
            for step, loss in enumerate(progress.losses, 1):
                track.metric("train/loss", loss, step)
            for step, loss in progress.evaluations:
                track.metric("eval/loss", loss, step)
        self.last, self._stepped = len(progress.losses), time.perf_counter()
        self._sampled, self._cpu = self._stepped, time.process_time()

    def worked(self, seconds: float) -> None:
        """Add time of a forward and backward pass."""
        self._work += seconds

    def report(self, step: int, values: dict[str, float]) -> None:
        """What a step came to, and how fast it was."""
        now = time.perf_counter()
        seconds, self._stepped, self.last = now - self._stepped, now, step
        if self.rank == 0:
            tokens, flops = self.step_cost(step - 1)
            speed = {"tokens_per_second": tokens / seconds}
            if self._peak:
                speed["mfu"] = flops / seconds / (self._peak * self.ranks)
            epoch = {"epoch": step * self.cfg.batch_size / len(self.rows)}
            for name, value in (values | epoch).items():
                track.metric(f"train/{name}", value, step)
            for name, value in speed.items():
                track.metric(f"speed/{name}", value, step)
        if now - self._sampled > SYSTEM_SECONDS or step == 1:
            self._system(step, now)

    def evaluated(self, step: int, values: dict[str, float]) -> None:
        """What an evaluation came to; its time is no step's."""
        if self.rank == 0:
            for name, value in values.items():
                track.metric(f"eval/{name}", value, step)
        self._stepped = time.perf_counter()

    def step_cost(self, step: int) -> tuple[int, float]:
        """Real tokens and model FLOPs of a step (the first is 0) over all processes."""
        rows = self.order.step(step)
        tokens = int(self.rows.tokens[rows].sum())
        learned, squares = int(self.rows.learned[rows].sum()), int(self.rows.squares[rows].sum())
        return tokens, float(self._body * tokens + self._head * learned + self._attention * squares)

    def _system(self, step: int, now: float) -> None:
        """This process's memory and processor time, by rank, so that imbalance can be seen."""
        span, cpu = max(now - self._sampled, 1e-9), time.process_time()
        values = {
            "memory_mib": _resident(),
            "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "cpu_cores": (cpu - self._cpu) / span,
        }
        # On a GPU the clock would see the launch of the work alone
        values |= _gpu() or {"compute_share": self._work / span}
        for name, value in values.items():
            track.metric(f"system/rank{self.rank}/{name}", value, step)
        self._sampled, self._cpu, self._work = now, cpu, 0.0


def _costs(model: Any, reference: bool) -> tuple[float, float]:
    """FLOPs of a step for each token in the body, and for each learned token in the vocabulary's projection."""
    head = model.get_output_embeddings().weight
    inputs = model.get_input_embeddings().weight
    body = 0.0
    for name, parameter in model.named_parameters():
        if parameter is not head and parameter is not inputs and REFERENCE not in name:
            body += _cost(
                parameter, reference and "lora_" not in name
            )  # the reference's own few are left out
    return body, _cost(head, reference)


def _cost(parameter: Any, reference: bool) -> float:
    """Forward, backward to the inputs, backward to the weight if it is trained; the reference's forward."""
    return float(size(parameter) * ((6 if parameter.requires_grad else 4) + (2 if reference else 0)))


def size(parameter: Any) -> int:
    """How many weights it holds: four bits are packed, two weights to a byte."""
    state = getattr(parameter, "quant_state", None)
    return int(math.prod(state.shape) if state is not None else parameter.numel())


def _attention_width(config: Any) -> int:
    """Layers * heads * size of a head, which need not be the model's width."""
    heads = config.num_attention_heads
    return int(
        config.num_hidden_layers * heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    )


def peak(cfg: Finetune) -> float | None:
    """FLOP/s of one process's device at what the layers compute in; None for a GPU of which that is not known."""
    import torch

    if torch.cuda.is_available():
        return stated(torch.cuda.get_device_name(), computed_in(cfg))
    return _measured(computed_in(cfg))


def stated(name: str, precision: Precision) -> float | None:
    """FLOP/s by the data sheet of a GPU of this name, if PEAKS has it: of the whole GPU, so of no MIG slice."""
    found = next((value for key, value in PEAKS.items() if re.search(rf"\b{key}\b", name)), (None, None))
    return None if " MIG " in name else found[0 if precision is Precision.bf16 else 1]


def computed_in(cfg: Finetune) -> Precision:
    """What the layers compute in: weights held in bf16 do so whatever the section's precision is."""
    return Precision.bf16 if cfg.method.weights is Weights.bf16 else cfg.precision


def processor() -> str:
    """What the arithmetic runs on: the GPU, or the CPU and its instructions."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{provenance.cpu_model()} ({provenance.instruction_class()})"


def _measured(precision: Precision, size: int = 768) -> float:
    """The best of five products of two square matrices on the processor, 2 n^3 operations each."""
    import torch

    kind = torch.bfloat16 if precision is Precision.bf16 else torch.float32
    matrix = torch.ones((size, size), dtype=kind)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        float((matrix @ matrix)[0, 0])
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def _resident() -> float:
    """Resident memory in MiB now, where /proc tells it."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - read on every sample
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _gpu() -> dict[str, float]:
    import torch

    if not torch.cuda.is_available():
        return {}
    return {
        "gpu_memory_mib": torch.cuda.memory_allocated() / 2**20,
        "gpu_peak_memory_mib": torch.cuda.max_memory_allocated() / 2**20,
    }
