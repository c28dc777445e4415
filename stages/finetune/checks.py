"""What a section says that cannot be meant, found before any work."""

from __future__ import annotations

from typing import Any

from stages.finetune.config import Finetune, Init, Method, MethodConfig, Objective, Strategy, Weights
from stages.finetune.order import total_steps

QUANTISED = (Weights.int8, Weights.nf4)
ADAPTERS = ("rank", "alpha", "dropout", "targets", "dora", "rslora")
POSITIVE = ("threads", "batch_size", "gradient_accumulation", "row_length", "eval_every", "max_steps")
NOT_NEGATIVE = ("warmup_steps", "weight_decay", "max_grad_norm", "patience", "samples", "sample_tokens")


def check_values(cfg: Finetune) -> None:
    """Raise ValueError, in one line, on numbers out of range and on choices that exclude each other."""
    _numbers(cfg)
    _parts(cfg)
    _method(cfg.method)
    _random_start(cfg)
    _preference(cfg)
    if cfg.objective is Objective.dpo and cfg.method.dropout:
        raise ValueError(
            f"method.dropout={cfg.method.dropout} (conf/method/{cfg.method.name}.yaml) with finetune.objective=dpo: "
            "policy and reference are compared without dropout; set method.dropout=0"
        )
    if cfg.method.weights in QUANTISED and cfg.world.strategy is Strategy.fsdp:
        raise ValueError(
            f"finetune.world.strategy=fsdp cannot shard method.weights={cfg.method.weights.name} "
            f"(conf/method/{cfg.method.name}.yaml): take world.strategy=ddp, or method.weights=bf16"
        )


def _numbers(cfg: Finetune) -> None:
    for name in POSITIVE:
        value = getattr(cfg, name)
        if value is not None:
            _at_least(f"finetune.{name}", value, 1)
    for name in NOT_NEGATIVE:
        _at_least(f"finetune.{name}", getattr(cfg, name), 0)
    if cfg.samples:
        _at_least("finetune.sample_tokens", cfg.sample_tokens, 1)
    for name in ("nodes", "processes"):
        _at_least(f"finetune.world.{name}", getattr(cfg.world, name), 1)
    for name in ("learning_rate", "epochs"):
        value = getattr(cfg, name)
        if value is not None and not value > 0:
            raise ValueError(f"finetune.{name}={value} (params.yaml): give a number above 0")

    total_steps(cfg, 1)


def _at_least(name: str, value: Any, least: int) -> None:
    if not value >= least:
        raise ValueError(f"{name}={value} (params.yaml): give {least} or more")


def _parts(cfg: Finetune) -> None:
    ranks = cfg.world.nodes * cfg.world.processes
    if ranks == 1 and cfg.world.strategy is Strategy.fsdp:
        raise ValueError(
            f"finetune.world.strategy=fsdp (conf/world/{cfg.world.name}.yaml) with one process: there is nobody to "
            "share the model with; take more processes, or world.strategy=ddp"
        )
    if cfg.batch_size % (ranks * cfg.gradient_accumulation):
        raise ValueError(
            f"finetune.batch_size={cfg.batch_size} is not divisible by {ranks} processes (finetune.world) times "
            f"gradient_accumulation={cfg.gradient_accumulation}: change one of them"
        )


def _method(method: MethodConfig) -> None:
    origin = f"conf/method/{method.name}.yaml"
    if method.kind is Method.full:
        if method.weights is not Weights.fp32:
            raise ValueError(
                f"method.weights={method.weights.name} with method.kind=full ({origin}): what is trained is held in "
                "fp32, only a frozen base may be in less; take method=lora, or finetune.precision=bf16 for speed"
            )
        # conf/method/full.yaml leaves them empty
        given = {name: getattr(method, name) for name in ADAPTERS} | {"merge": not method.merge}
        if chosen := [name for name, value in given.items() if value]:
            raise ValueError(
                f"method.{chosen[0]}={getattr(method, chosen[0])} with method.kind=full ({origin}) means nothing, "
                "there is no adapter: take method=lora"
            )
        return
    if method.rank < 1 or method.alpha < 1 or not 0 <= method.dropout < 1:
        raise ValueError(
            f"method.rank={method.rank}, alpha={method.alpha}, dropout={method.dropout} ({origin}): "
            "rank and alpha are 1 or more, dropout is in [0, 1)"
        )
    if not method.targets:
        raise ValueError(f"method.targets is empty ({origin}): name the layers that get an adapter")


def _random_start(cfg: Finetune) -> None:
    if cfg.init is not Init.random:
        return
    reasons = {
        "method.merge=false": not cfg.method.merge
        and "the random weights under the adapter stand in no folder",
        f"method.weights={cfg.method.weights.name}": cfg.method.weights in QUANTISED
        and "there is nothing to quantise",
        "finetune.objective=dpo": cfg.objective is Objective.dpo and "there is no reference to stay near",
    }
    for choice, reason in reasons.items():
        if reason:
            raise ValueError(f"finetune.init=random with {choice}: {reason}; take finetune.init=base")


def _preference(cfg: Finetune) -> None:
    if cfg.objective is Objective.dpo and not cfg.preference.beta > 0:
        raise ValueError(
            f"finetune.preference.beta={cfg.preference.beta} (params.yaml): give a number above 0"
        )
