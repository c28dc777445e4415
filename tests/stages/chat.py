"""A tokenizer, conversations and small helpers that the tests of tokenisation share."""

from __future__ import annotations

from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from stages.common.prompt import Message
from stages.prepare.tokens.tokenise import Conversation, Encoder, Tokens

WORDS = [
    "the cat sat on the mat and the assistant said hello hello",
    "answers to questions are words, words 12 345",
]
MARKS = [
    "<|im_start|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|end_header_id|>",
    "<think>",
    "</think>",
    "<end_of_turn>",
]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
MARKED = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def turn(role: str, content: str, **more: Any) -> Message:
    return {"role": role, "content": content, **more}  # type: ignore[typeddict-item]


CALL = {"type": "function", "id": "call12345", "function": {"name": "weather", "arguments": {"city": "Bonn"}}}
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "Where."}},
    "required": ["city"],
}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "Look outside.", "parameters": CITY},
}
PAIR = [turn("user", "Question 1?"), turn("assistant", "Réponse 1 😀.")]
MULTI = [*PAIR, turn("user", "Question 2?"), turn("assistant", "Reply 2.")]
CALLING = [
    turn("user", "Question 1?"),
    turn("assistant", "", tool_calls=[CALL]),
    turn("tool", "Outside 7", name="weather", tool_call_id="call12345"),
    *MULTI[1:],
]


def byte_level(marks: list[str]) -> Any:
    """A byte-level BPE tokenizer with a few merges; `marks` are special tokens."""
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(WORDS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    return tokenizer


def beginning(tokenizer: Any, template: str) -> Any:
    """The tokenizer with a first token that it writes itself, as Llama's does, and the chat template."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{tokenizer.bos_token} $A", special_tokens=[(tokenizer.bos_token, tokenizer.bos_token_id)]
    )
    tokenizer.chat_template = template
    return tokenizer


def encoder(tokenizer: Any, template: str) -> Encoder:
    tokenizer.chat_template = template
    return Encoder(tokenizer)


def encode(
    found: Encoder, messages: list[Message], tools: list[dict[str, Any]] | None = None, first_answer: int = 0
) -> list[Tokens]:
    (result,) = found.encode([Conversation(messages, tools or [], first_answer)])
    assert not isinstance(result, str), result
    return result


def learned(tokenizer: Any, tokens: Tokens) -> str:
    assert tokens.input_ids.dtype == np.int32 and len(tokens.input_ids) == len(tokens.learned)
    return str(tokenizer.decode(tokens.input_ids[tokens.learned]))
