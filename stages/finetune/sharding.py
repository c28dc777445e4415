"""FSDP2 by accelerate: on CPUs too, where accelerate passes over the request, and with sums in fp32."""

from __future__ import annotations

from typing import Any


def sum_in_fp32(arguments: Any) -> None:
    """Have FSDP2 compute in bf16 and reduce gradients in fp32; what the model returns stays as it is.

    accelerate's own policy for bf16 casts that and the reduction too: log-probabilities of a sequence would be rounded
    to whole nats.
    """
    import torch
    from torch.distributed.fsdp import MixedPrecisionPolicy

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    arguments.fsdp_plugin_args["mixed_precision_policy"] = policy


def shard_on_cpus(trainer: Any) -> None:
    """Switch FSDP2 on where accelerate has made plain CPU processes of the request, without a word."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    state = trainer.accelerator.state
    if state.distributed_type != DistributedType.MULTI_CPU:
        return
    state.fsdp_plugin = FullyShardedDataParallelPlugin(**trainer.args.fsdp_plugin_args)
    state.distributed_type = DistributedType.FSDP
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    trainer.is_fsdp_enabled = True
