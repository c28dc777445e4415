"""Log-probability of the wanted token at each position, in one pass over the logits and in their own memory.

Apart, log_softmax, its backward and the measures beside it go over the logits a dozen times and keep four copies of
them: with a vocabulary of tens of thousands that is a tenth of a small model's time, and most of its memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

AT_ONCE = 16  # positions: 3 MB of a vocabulary of 50,000, which a cache holds


class LogProbabilities(torch.autograd.Function):
    """(log-probability, entropy, mean logit, is it the likeliest) of `targets` (n) under `logits` (n, vocabulary).

    The first has a gradient. `logits` are overwritten: with what their gradient is made of, and in backward with it.
    Autograd refuses a backward of whatever else has kept them.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Everything in fp32, a few positions at a time."""
        own, learns = logits.detach(), ctx.needs_input_grad[0]
        found, entropy, means = (logits.new_empty(len(targets), dtype=torch.float32) for _ in range(3))
        top = torch.empty(len(targets), dtype=torch.bool, device=logits.device)
        for start in range(0, len(targets), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            wide, wanted = own[part].float(), targets[part, None]
            largest, own_logit = wide.amax(-1, keepdim=True), wide.gather(-1, wanted)
            likely = (wide - largest).exp_()
            total = likely.sum(-1, keepdim=True)
            logs = (largest + total.log())[:, 0]
            found[part] = own_logit[:, 0] - logs
            entropy[part] = logs - torch.linalg.vecdot(likely, wide) / total[:, 0]
            means[part] = wide.mean(-1)
            top[part] = _first(wide, wanted, own_logit == largest)
            if learns:
                own[part] = likely.div_(total)
        if learns:
            ctx.save_for_backward(own, found, targets)
        ctx.mark_non_differentiable(entropy, means, top)
        return found, entropy, means, top

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor, *_: Any) -> tuple[torch.Tensor, None]:
        """d log p_t / d logit_j = [j = t] - p_j, where 1 - p_t is taken from log p_t: it is exact near p_t = 1."""
        own, found, targets = ctx.saved_tensors
        rest = gradient * -torch.expm1(found)
        for start in range(0, len(targets), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            wide = own[part].float().mul_(-gradient[part, None])
            own[part] = wide.scatter_(-1, targets[part, None], rest[part, None])
        return own, None


def _first(logits: torch.Tensor, wanted: torch.Tensor, likeliest: torch.Tensor) -> torch.Tensor:
    """Whether argmax is `wanted` (n, 1): of equal logits, which bf16 has many of, it takes the first.

    Only where `wanted` is among the likeliest is it looked for, since that is as slow as all the rest.
    """
    found = likeliest[:, 0].clone()
    rows = found.nonzero()[:, 0]
    if len(rows):
        found[rows] = logits[rows].argmax(-1) == wanted[rows, 0]
    return found
