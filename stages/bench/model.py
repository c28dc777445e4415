"""lm-eval's Hugging Face model, refusing what it would let pass: a cut prompt, a NaN, a lost system turn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jinja2.exceptions import TemplateError
from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from stages.bench.choices import group_by_context, score_choices
from stages.bench.config import Variant
from stages.common.adapter import CONFIG, attach, base_of

Request = tuple[tuple[str, str], list[int], list[int]]


class Nats(float):
    """A log-likelihood that knows over how many tokens it was summed."""

    tokens: int

    def __new__(cls, value: float, tokens: int) -> Nats:
        """A float with a count beside it."""
        self = super().__new__(cls, value)
        self.tokens = tokens
        return self


class Scorer(HFLM):  # type: ignore[misc]  # lm-eval carries no types
    """HFLM for one variant: greedy, in the asked precision, on the GPU where there is one."""

    def __init__(self, variant: Variant, batch_size: int) -> None:
        """Load the variant, an adapter onto its base.

        Raises ValueError where there is no such folder and no pinned revision, or not the adapter's base.
        """
        _check_source(variant)
        base = base_of(Path(variant.path))
        tokenizer = AutoTokenizer.from_pretrained(variant.path, revision=variant.revision or None)
        super().__init__(
            pretrained=str(base or variant.path),
            revision=variant.revision or "main",
            tokenizer=tokenizer,
            dtype=variant.precision.value,
            device="cuda" if torch.cuda.is_available() else "cpu",
            batch_size=batch_size,
            # A chat template writes its own special tokens; the tokenizer must not add them again.
            add_bos_token=False if tokenizer.chat_template else None,
        )
        if base:  # not HFLM's own `peft`: it resizes the embeddings to the tokenizer first
            self._model = attach(self.model, Path(variant.path))
        self.source = variant.path
        self.model.generation_config = self._greedy()
        self.model.register_forward_hook(self._refuse_nan)

    @property
    def end(self) -> str:
        """The token with which the chat template ends an answer."""
        return str(self.tokenizer.convert_ids_to_tokens(end_of_turn(self.tokenizer)))

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The turns as the template writes them. Raises ValueError where it refuses, a system turn say."""
        try:
            text = self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        except TemplateError as error:
            raise ValueError(
                f"{self.source}: its chat template refuses the prompt ({error}); "
                "change prompt.system or prompt.examples"
            ) from error
        return str(text)

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and mask (batch, length) of a batch to generate from; too long is refused, not cut."""
        ids, mask = super().tok_batch_encode(strings, padding_side)
        if left_truncate_len and ids.shape[1] > left_truncate_len:
            self._refuse_length(ids.shape[1], left_truncate_len, strings[0])
        return ids, mask

    def _loglikelihood_tokens(self, requests: list[Request], **kwargs: Any) -> list[tuple[Nats, bool]]:
        (text, _), context, answer = max(requests, key=lambda request: len(request[1]) + len(request[2]))
        if len(context) + len(answer) > self.max_length + 1:
            self._refuse_length(len(context) + len(answer), self.max_length + 1, text)
        pairs = [(context, answer) for _, context, answer in requests]
        groups = group_by_context(pairs)
        shared = [group for group in groups if len(group) > 1 and self._caches]
        found = score_choices(self.model, shared, pairs, self.batch_size)
        single = [index for index in range(len(requests)) if index not in found]
        if single:
            alone = super()._loglikelihood_tokens([requests[index] for index in single], **kwargs)
            found.update(zip(single, alone, strict=True))
        return [(Nats(found[index][0], len(pairs[index][1])), found[index][1]) for index in range(len(pairs))]

    @property
    def _caches(self) -> bool:
        # A cache of keys and values can be repeated for each answer; a state-space model has none.
        return not getattr(self.model, "_is_stateful", False)

    def _greedy(self) -> GenerationConfig:
        # Decoding is the prompt's matter: a repetition penalty or sampling of the model's folder is dropped.
        own = self.model.generation_config.eos_token_id
        ends = {self.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
        if self.tokenizer.chat_template:
            ends.add(end_of_turn(self.tokenizer))
        return GenerationConfig(do_sample=False, eos_token_id=sorted(ends - {None}))

    def _refuse_length(self, tokens: int, room: int, text: str) -> None:
        raise ValueError(
            f"a prompt of {tokens} tokens does not fit the {room} that {self.source} has room for "
            f"({text[-60:]!r}): lower bench.fewshot or prompt.max_new_tokens, or drop the row"
        )

    def _refuse_nan(self, _: torch.nn.Module, __: Any, output: Any) -> None:
        if torch.isnan(output.logits).any():
            raise ValueError(
                f"{self.source} computes NaN: its weights are broken, or its precision is too low"
            )


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the token that the chat template writes after an answer; else the tokenizer's eos."""
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "answer"}]
    tail = str(tokenizer.apply_chat_template(turns, tokenize=False)).rpartition("answer")[2]
    added = set(tokenizer.added_tokens_decoder) | set(tokenizer.all_special_ids)
    ids = tokenizer(tail, add_special_tokens=False)["input_ids"]
    return int(next((token for token in ids if token in added), tokenizer.eos_token_id))


def _check_source(variant: Variant) -> None:
    held = any((Path(variant.path) / name).is_file() for name in ("config.json", CONFIG))
    if not variant.revision and not held:
        raise ValueError(
            f"no model folder at {variant.path!r} (variants.<name>.path): run `dvc repro`, "
            "or, for a hub model, set its `revision` to a commit"
        )
