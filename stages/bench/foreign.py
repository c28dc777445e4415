"""Other back ends of lm-eval's (transformers as it is, vLLM, SGLang, an OpenAI-compatible server), asked as ours is.

They get our tokens for likelihoods and our templated texts for generation, so that only what computes is another. The
variant's folder holds the tokenizer and the chat template, also where a server holds the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from transformers import AutoConfig, AutoTokenizer

from stages.bench.config import ENDPOINTS, QUANTISED, Backend, Bench, Precision, Variant
from stages.bench.encoding import Pair
from stages.bench.likelihood import NotANumber
from stages.bench.load import check_source
from stages.bench.prompts import Prompts, Seen
from stages.bench.respondent import Respondent
from stages.bench.turns import Messages
from stages.common.adapter import base_of

# Beyond the model's context, how many tokens of prompt and answer lm-eval's class takes; its windows of longer texts
# are one shorter. `hf` does not read the last token; servers write one more.
ROOM = {Backend.hf: 1, Backend.sglang: 0, Backend.vllm: -1, Backend.completions: -1, Backend.chat: 0}
NO_LIMIT = 1 << 40
SECRET = ("auth_token", "api_key", "header")


class Foreign(Respondent):
    """One variant on another back end."""

    def __init__(self, cfg: Bench, variant: Variant, kept: Path | None = None) -> None:
        """Start the back end. Raises ValueError where it is not installed, does not start or was told a secret."""
        check_source(variant)
        _check_arguments(variant)
        folder = Path(variant.path)
        config = AutoConfig.from_pretrained(base_of(folder) or folder)
        super().__init__(variant.path, AutoTokenizer.from_pretrained(folder), config, cfg.seed, kept)
        self.room = self.max_length + ROOM[variant.backend]
        self.what = f"back end {variant.backend.name} of {variant.path}"
        self.inner = self._start(variant.backend, arguments(cfg, variant, self))

    def score(self, pairs: Sequence[Pair], seen: Seen) -> list[tuple[float, bool]]:
        """As Respondent's; NaN and infinity are refused."""
        requests = [(("", ""), context, answer) for context, answer in pairs]
        found = self._asked(requests, self.inner._loglikelihood_tokens, seen)
        scored = [(float(nats), bool(greedy)) for nats, greedy in found]
        if not all(math.isfinite(nats) for nats, _ in scored):
            raise NotANumber(f"{self.what} computes NaN: weights, precision or server are broken")
        return scored

    def complete(self, asked: Prompts) -> list[str]:
        """As Respondent's."""
        requests = _requests(asked, asked.texts)
        plain = self.encoder.encode(asked.texts, False)
        begun = [tokens != plain[text] for text, tokens in zip(asked.texts, asked.tokens, strict=True)]
        found = [""] * len(requests)
        for special in (False, True):
            # The back end makes tokens of a text itself: of the same text the same as ours
            self.inner.add_bos_token = special
            mine = [number for number, each in enumerate(begun) if each is special]
            answers = self._asked(
                [requests[number] for number in mine], self.inner.generate_until, asked.seen
            )
            for number, answer in zip(mine, answers, strict=True):
                found[number] = str(answer)
        return found

    def _start(self, backend: Backend, given: dict[str, Any]) -> Any:
        from lm_eval.api.registry import get_model

        try:
            return get_model(backend.value).create_from_arg_obj(given)
        except ImportError as error:
            text = " ".join(str(error).split())
            raise ValueError(
                f"{self.what} is not installed ({text}); backend: own needs nothing more"
            ) from error
        except Exception as error:
            raise self._failed(error) from error

    def _asked(self, requests: list[Any], ask: Callable[..., list[Any]], seen: Seen) -> list[Any]:
        try:
            found = list(ask(requests, disable_tqdm=True)) if requests else []
        except Exception as error:  # a server's, a client's, a library's: there is no common base
            raise self._failed(error) from error
        if len(found) != len(requests):
            raise ValueError(f"{self.what} answered {len(found)} of {len(requests)} requests")
        seen(len(found))
        return found

    def _failed(self, error: Exception) -> ValueError:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return ValueError(
            f"{self.what} failed ({text[:300]}): look at variants.<name>.model_args and at its server"
        )


class Chat(Foreign):
    """One variant on a server that takes messages and writes the prompt of them itself."""

    def __init__(self, cfg: Bench, variant: Variant, kept: Path | None = None) -> None:
        """As Foreign's."""
        super().__init__(cfg, variant, kept)
        # The server counts the tokens of what it makes of the messages, and refuses what is too long
        self.template, self.max_length = Messages(self.tokenizer, variant.path), NO_LIMIT

    @property
    def speaks(self) -> bool:
        """Always: the server has the template."""
        return True

    @property
    def end(self) -> str:
        """As the folder's template has it, or its tokenizer where it has none; the server ends an answer by itself."""
        return super().end if self.tokenizer.chat_template else str(self.tokenizer.eos_token)

    def score(self, pairs: Sequence[Pair], seen: Seen) -> list[tuple[float, bool]]:
        """Refused: a chat endpoint has no likelihoods of a given text."""
        raise ValueError(
            f"{self.what} has no log-likelihoods: take tasks whose answers are generated, or backend completions"
        )

    def complete(self, asked: Prompts) -> list[str]:
        """As Respondent's. Raises ValueError where a task asks with a text."""
        from lm_eval.models.api_models import JsonChatStr

        if plain := [text for text in asked.texts if not text.startswith("[{")]:
            raise ValueError(
                f"{self.what} takes messages, and a task asks with a text ({plain[0][:60]!r}): set "
                "bench.chat_template=true"
            )
        requests = _requests(asked, [JsonChatStr(text) for text in asked.texts])
        return [str(answer) for answer in self._asked(requests, self.inner.generate_until, asked.seen)]


def connect(cfg: Bench, variant: Variant, kept: Path | None = None) -> Foreign:
    """The variant on the back end that it names. Raises ValueError as Foreign does."""
    return (Chat if variant.backend is Backend.chat else Foreign)(cfg, variant, kept)


def _requests(asked: Prompts, prompts: Sequence[Any]) -> list[Instance]:
    decoding = {**asked.decoding, "until": asked.stops, "max_gen_toks": asked.most}
    return [
        Instance("generate_until", {}, (prompt, dict(decoding)), number)
        for number, prompt in enumerate(prompts)
    ]


def arguments(cfg: Bench, variant: Variant, asked: Respondent) -> dict[str, Any]:
    """What lm-eval's class is made with: ours, then what the variant's model_args say instead."""
    folder, base = variant.path, base_of(Path(variant.path))
    weights = {"pretrained": str(base or folder), "tokenizer": folder, "dtype": variant.precision.value}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    known: dict[Backend, dict[str, Any]] = {
        Backend.hf: weights
        | {"batch_size": cfg.batch_size, "device": device}
        | ({"peft": folder} if base else {}),
        Backend.vllm: weights
        | {"batch_size": "auto", "seed": cfg.seed, "max_model_len": asked.max_length}
        | ({"lora_local_path": folder, "enable_lora": True} if base else {}),
        Backend.sglang: {"pretrained": folder, "dtype": variant.precision.value, "random_seed": cfg.seed},
        Backend.completions: {
            "model": folder,
            "tokenizer": folder,
            "tokenizer_backend": "huggingface",
            "seed": cfg.seed,
            "max_length": asked.max_length,
        },
        Backend.chat: {"model": folder, "seed": cfg.seed, "eos_string": asked.tokenizer.eos_token},
    }
    return known[variant.backend] | variant.model_args


def _check_arguments(variant: Variant) -> None:
    """Raise ValueError on what model_args must not say, or do not say, and on a precision that is ours alone."""
    name, given = variant.backend.name, variant.model_args
    if secrets := [key for key in given if key in SECRET]:
        raise ValueError(
            f"variants.<name>.model_args.{secrets[0]} would stand in params.yaml and git: set OPENAI_API_KEY instead"
        )
    if "@" in str(given.get("base_url", "")):
        raise ValueError("variants.<name>.model_args.base_url has a user in it: set OPENAI_API_KEY instead")
    if "add_bos_token" in given:
        raise ValueError(
            f"variants.<name>.model_args.add_bos_token of {variant.path}: the tokenizer and the chat template say what "
            "a prompt begins with; leave it out"
        )
    if given.get("trust_remote_code"):
        raise ValueError("variants.<name>.model_args.trust_remote_code: no model's own code is run here")
    if variant.backend in ENDPOINTS and not given.get("base_url"):
        raise ValueError(
            f"backend {name} of {variant.path} needs model_args: "
            f"{{base_url: http://127.0.0.1:8000/v1/{ENDPOINTS[variant.backend]}, model: <the server's name of it>}}"
        )
    if variant.backend in ENDPOINTS and variant.precision is not Precision.fp32:
        raise ValueError(
            f"precision {variant.precision.name} of {variant.path}: what backend {name} computes in is its server's to "
            "say; leave precision at fp32"
        )
    if variant.precision in QUANTISED:
        raise ValueError(
            f"precision {variant.precision.name} of {variant.path} is for backend own: take fp32 or bf16, and let "
            f"model_args say what {name} calls it"
        )
