"""The vocabulary's projection only where the loss is, for TRL's trainers on devices without Triton.

TRL's fused head does so on GPUs; elsewhere it projects every position and then masks. With a vocabulary of tens of
thousands and prompts longer than answers, that is most of a small model's time.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

IGNORED = -100


def project_supervised_only(model: Any) -> None:
    """Answer `model(..., labels=..., fused_lm_head=True)`, as TRL's trainers call it, from the supervised positions.

    `model` is a causal language model after TRL's add_fused_lm_head, not yet wrapped by PEFT's or DDP's forward.
    """
    inner = model.forward

    @functools.wraps(inner)  # generate() reads the signature
    def forward(
        _: Any, *args: Any, fused_lm_head: bool = False, labels: torch.Tensor | None = None, **kwargs: Any
    ) -> Any:
        if not fused_lm_head:
            return inner(*args, **kwargs) if labels is None else inner(*args, labels=labels, **kwargs)
        assert labels is not None
        # The last position predicts nothing
        mask = labels.roll(-1, 1) != IGNORED
        mask[:, -1] = False
        kwargs["use_cache"] = False  # a cache would switch the mask between documents off
        with _only(model.get_output_embeddings(), mask):
            found = inner(*args, **kwargs)
        output = _output(found.logits[0], labels[:, 1:][mask[:, :-1]], mask[:, :-1])
        output.aux_loss = found.get("aux_loss")  # of models with experts that are configured to balance them
        return output

    model.forward = types.MethodType(forward, model)


@contextmanager
def _only(head: Any, mask: torch.Tensor) -> Iterator[None]:
    """While open, the head projects the positions of the mask: (batch, length, width) becomes (1, count, width)."""
    handle = head.register_forward_pre_hook(lambda _, args: (args[0][mask].unsqueeze(0), *args[1:]))
    try:
        yield
    finally:
        handle.remove()


def _output(logits: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor) -> Any:
    """TRL's output: log-probabilities and what its metrics want, by position, zero where there is no loss."""
    from trl.trainer.utils import FusedCausalLMOutput

    from stages.finetune.log_probabilities import LogProbabilities

    found, entropy, means, top = LogProbabilities.apply(logits, targets)  # type: ignore[no-untyped-call]

    def spread(values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(mask.shape).masked_scatter(mask, values)

    return FusedCausalLMOutput(
        log_probs=spread(found),
        entropy=spread(entropy),
        mean_logits=spread(means),
        is_top1=spread(top),
        label_mask=mask,
    )
