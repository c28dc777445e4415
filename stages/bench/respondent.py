"""What lm-eval asks of a model, up to tokens: the same whichever back end computes.

Prompts are cut and templated as lm-eval's `hf` does it. What `hf` would let pass is refused: a cut prompt, a NaN, a
lost system turn.
"""

from __future__ import annotations

import functools
import hashlib
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    configure_pad_token,
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
    resolve_max_length,
)
from tqdm import tqdm

from stages.bench.encoding import Encoder, Pair
from stages.bench.load import SAMPLING, end_of_turn
from stages.bench.prompts import Prompts, Seen
from stages.bench.ranks import ALONE, Ranks
from stages.bench.responses import Responses
from stages.bench.turns import ChatTemplate

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance


class Nats(float):
    """A log-likelihood that knows over how many tokens it was summed."""

    tokens: int

    def __new__(cls, value: float, tokens: int) -> Nats:
        """A float with a count beside it."""
        self = super().__new__(cls, value)
        self.tokens = tokens
        return self


class Respondent(TemplateLM):  # type: ignore[misc]  # lm-eval carries no types
    """A model as lm-eval sees it; a subclass scores and completes tokens."""

    def __init__(
        self, source: str, tokenizer: Any, config: Any, seed: int, kept: Path | None, ranks: Ranks = ALONE
    ) -> None:
        """`config` is the model's; answers are kept under `kept` task by task, by the first process of several."""
        super().__init__()
        self.source, self.seed, self.responses = source, seed, Responses(kept, writes=ranks.rank == 0)
        self.tokenizer = configure_pad_token(tokenizer, model_config=config)
        self.template = ChatTemplate(tokenizer, source)
        self.max_length = resolve_max_length(config, tokenizer)
        self.room = self.max_length + 1  # tokens of context and answer: the last one is never read
        self.encoder = Encoder(self.tokenizer, self.prefix_token_id)
        self.settings: dict[str, Any] = {}  # of the model's folder, for the generation of lm-eval's tasks
        self.rendered: set[str] = (
            set()
        )  # tasks whose prompts the chat template has written, to the first token

    @abstractmethod
    def score(self, pairs: Sequence[Pair], seen: Seen) -> list[tuple[float, bool]]:
        """(nats, greedy) of each (context, answer) in tokens; `seen` is told how many are done."""

    @abstractmethod
    def complete(self, asked: Prompts) -> list[str]:
        """What follows each prompt; a stop string may be in it."""

    @property
    def speaks(self) -> bool:
        """Whether a conversation can be put to it."""
        return bool(self.tokenizer.chat_template)

    @property
    def end(self) -> str:
        """The token with which the chat template ends an answer."""
        return str(self.tokenizer.convert_ids_to_tokens(end_of_turn(self.tokenizer)))

    @property
    def eot_token_id(self) -> int:
        """What ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context."""
        first = self.tokenizer.bos_token_id
        return self.eot_token_id if first is None else int(first)

    @property
    def tokenizer_name(self) -> str:
        """As `hf` names it."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The turns as the template writes them. Raises ValueError where it refuses, a system turn say."""
        return self.template.asked(chat_history, to_go_on=not add_generation_prompt)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids of one text."""
        return self.encoder.encode([string], add_special_tokens)[string]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[Nats, bool]]:
        """(nats, greedy) of each (context, answer)."""

        def ask(texts: list[tuple[str, str]], special: bool | None) -> list[Any]:
            return self._score(self.encoder.pairs(texts, special), disable_tqdm)

        found = self._by_task("loglikelihood", requests, ask)
        return [(Nats(nats, tokens), is_greedy) for nats, tokens, is_greedy in found]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Nats]:
        """Nats of whole texts, in windows of the model's context, each token scored once."""

        def ask(asked: list[tuple[str]], _: bool | None) -> list[Any]:
            windows = self.encoder.windows([text for (text,) in asked], self.room - 1)
            scored = iter(self._score([pair for found in windows for pair in found], disable_tqdm))
            parts = [[next(scored) for _ in found] for found in windows]
            return [[sum(nats for nats, *_ in part), sum(count for _, count, _ in part)] for part in parts]

        found = self._by_task("rolling", requests, ask)
        return [Nats(nats, tokens) for nats, tokens in found]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context, up to a stop string of the request."""

        def ask(asked: list[tuple[str, dict[str, Any]]], special: bool | None) -> list[str]:
            groups: dict[str, list[int]] = defaultdict(list)
            for index, (_, decoding) in enumerate(asked):
                groups[repr(decoding)].append(index)
            found = [""] * len(asked)
            with _bar(len(asked), "generate", disable_tqdm) as bar:
                for indices in groups.values():
                    contexts, decoding = [asked[index][0] for index in indices], dict(asked[indices[0]][1])
                    answers = self._generate(contexts, special, decoding, bar.update)
                    for index, answer in zip(indices, answers, strict=True):
                        found[index] = answer
            return found

        return self._by_task("generate", requests, ask)

    def _by_task(
        self, kind: str, requests: list[Instance], ask: Callable[[Any, bool | None], list[Any]]
    ) -> list[Any]:
        """Answers in the requests' order, a task at a time, so that each is kept when it is done.

        `ask` is told whether the tokenizer adds its special tokens: not to what the chat template has written.
        """
        tasks: dict[str, list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            tasks[str(request.task_name)].append(index)
        found: list[Any] = [None] * len(requests)
        for task, indices in tasks.items():
            asked = [requests[index].args for index in indices]
            special = False if task in self.rendered else None
            # What a task draws must not depend on which others were asked before
            torch.manual_seed(int(hashlib.sha256(f"{self.seed} {task}".encode()).hexdigest()[:15], 16))
            answers = self.responses.of(kind, task, asked, functools.partial(ask, asked, special))
            for index, answer in zip(indices, answers, strict=True):
                found[index] = answer
        return found

    def _generate(
        self,
        contexts: list[str],
        special: bool | None,
        asked: dict[str, Any],
        seen: Seen,
    ) -> list[str]:
        decoding: dict[str, Any] = normalize_gen_kwargs(asked)
        if special is not False:  # our own tasks say all of how an answer is made
            greedy = not decoding.get("do_sample")
            own = {name: each for name, each in self.settings.items() if not (greedy and name in SAMPLING)}
            decoding = own | decoding
        most = decoding.pop("max_gen_toks")
        eos = self.tokenizer.decode(self.eot_token_id)
        stops = [stop for stop in handle_stop_sequences(decoding.pop("until", None), eos) if stop]
        encoded = self.encoder.encode(contexts, special)
        longest = max(contexts, key=lambda context: len(encoded[context]))
        if len(encoded[longest]) > self.max_length - most:
            self._refuse_length(len(encoded[longest]), self.max_length - most, longest)
        prompts = [encoded[context] for context in contexts]
        if not all(prompts):
            self._refuse_empty([], [])
        texts = self.complete(Prompts(contexts, prompts, stops, most, decoding, seen))
        return [postprocess_generated_text(text, stops, None) for text in texts]

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        scored = self._score([(context, answer) for _, context, answer in requests], disable_tqdm)
        return [(nats, is_greedy) for nats, _, is_greedy in scored]

    def _score(self, pairs: Sequence[Pair], disable_tqdm: bool) -> list[tuple[float, int, bool]]:
        """(nats, tokens of the answer, greedy)."""
        for context, answer in pairs:
            if not context or not answer:
                self._refuse_empty(context, answer)
            if len(context) + len(answer) > self.room:
                text = self.tokenizer.decode(context + answer)
                self._refuse_length(len(context) + len(answer), self.room, text)
        with _bar(len(pairs), "score", disable_tqdm) as bar:
            scored = self.score(pairs, bar.update)
        return [
            (nats, len(answer), is_greedy)
            for (nats, is_greedy), (_, answer) in zip(scored, pairs, strict=True)
        ]

    def _refuse_empty(self, context: list[int], answer: list[int]) -> None:
        text = repr(self.tokenizer.decode(context + answer)[-60:])
        if context:
            raise ValueError(
                f"an answer after {text} has no token of its own: it is empty, or {self.source}'s tokenizer merges it "
                "with the text before; look at doc_to_choice, doc_to_target and target_delimiter of the task"
            )
        raise ValueError(
            f"no token stands before the answer {text}: the question is blank, and {self.source}'s tokenizer begins "
            "with none; look at doc_to_text of the task, or drop the row"
        )

    def _refuse_length(self, tokens: int, room: int, text: str) -> None:
        raise ValueError(
            f"a prompt of {tokens} tokens does not fit the {room} that {self.source} has room for "
            f"({text[-60:]!r}): lower bench.fewshot or prompt.max_new_tokens, or drop the row"
        )


def _bar(total: int, label: str, hidden: bool) -> tqdm[Any]:
    return tqdm(total=total, desc=label, unit="request", disable=hidden, mininterval=1)
