"""model=tiny: a small Llama-architecture model, made from the data's pretraining file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from stages.base.config import Base, Tiny
from stages.base.packing import Batches
from stages.base.tokenizer import encode_corpus, make_tokenizer, read_corpus
from stages.common.statistics import Metrics, bootstrap, exact
from stages.common.tracking import track

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

BETAS = (0.9, 0.95)  # as usual in pretraining; the default 0.999 remembers longer than this run lasts
MAX_GRAD_NORM = 1.0
EVERY = 25  # steps between two logged losses
LAST = 50  # steps whose losses are the reported one


def make_tiny(cfg: Base, folder: Path) -> Metrics:
    """Train tokenizer and model on `cfg.corpus` and save both: a pure function of cfg and corpus."""
    tiny = cfg.model.tiny
    if tiny is None:
        raise ValueError(
            f"model.tiny is null (conf/model/{cfg.model.name}.yaml) though source is tiny: give its shape"
        )
    rows = read_corpus(Path(cfg.corpus))
    tokenizer = make_tokenizer(rows, tiny.vocab_size, tiny.context)
    documents = encode_corpus(tokenizer, rows, tiny.row_length)
    model = fresh_model(tiny, tokenizer, cfg.seed)
    losses = pretrain(model, Batches(documents, tiny.row_length, tiny.batch_size, cfg.seed), tiny)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {
        "base/pretrain_loss": bootstrap(losses[-LAST:], cfg.seed),
        "base/pretrain_tokens": exact(sum(map(len, documents))),
        "base/pretrain_documents": exact(len(documents)),
    }


def fresh_model(tiny: Tiny, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """The architecture of `tiny` with seeded random weights, fp32."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=tiny.hidden_size,
        intermediate_size=tiny.intermediate_size,
        num_hidden_layers=tiny.layers,
        num_attention_heads=tiny.heads,
        num_key_value_heads=tiny.heads,
        max_position_embeddings=tiny.context,
        tie_word_embeddings=True,
        initializer_range=tiny.hidden_size
        ** -0.5,  # 0.02 suits wide models; narrow ones take long to attend with it
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    return model


def pretrain(model: LlamaForCausalLM, batches: Batches, tiny: Tiny) -> list[float]:
    """AdamW on the loss of every token for `tiny.steps` steps; the loss of each step, nats per token.

    Raises ValueError as soon as the loss is not finite.
    """
    import torch
    from tqdm import tqdm

    optimizer = torch.optim.AdamW(_groups(model, tiny.weight_decay), lr=tiny.learning_rate, betas=BETAS)
    model.train()
    losses: list[float] = []
    for step, batch in zip(tqdm(range(tiny.steps), desc="pretrain", mininterval=5), batches, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = tiny.learning_rate * rate(step, tiny.warmup_steps, tiny.steps)
        loss = model(**batch, use_cache=False).loss
        losses.append(_finite(float(loss.detach()), step))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        if step % EVERY == 0 or step == tiny.steps - 1:
            track.metric("pretrain/loss", losses[-1], step)
    return losses


def rate(step: int, warmup: int, steps: int) -> float:
    """Share of the learning rate at `step`: linear over `warmup` steps, then half a cosine down to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _groups(model: LlamaForCausalLM, weight_decay: float) -> list[dict[str, object]]:
    """Matrices decay, the norms' gains do not."""
    weights: list[torch.nn.Parameter] = list(model.parameters())
    return [
        {"params": [weight for weight in weights if weight.dim() > 1], "weight_decay": weight_decay},
        {"params": [weight for weight in weights if weight.dim() <= 1], "weight_decay": 0.0},
    ]


def _finite(loss: float, step: int) -> float:
    if not math.isfinite(loss):
        raise ValueError(f"pretraining loss is {loss} at step {step}: lower base.model.tiny.learning_rate")
    return loss
