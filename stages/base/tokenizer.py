"""The tokenizer of model=tiny: byte-level BPE trained on the corpus, with a chat template."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.common.files import read_jsonl

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, END = "<|pad|>", "<|end|>"
ROLES = ("system", "user", "assistant")
# The generation markers are what apply_chat_template(return_assistant_tokens_mask=True) goes by.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{- '<|assistant|>' -}}{%- generation -%}{{- message['content'] + '<|end|>' -}}{%- endgeneration -%}
{%- elif message['role'] in ['system', 'user'] -%}
{{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' -}}
{%- else -%}
{{- raise_exception('unknown role ' + message['role'] + ': system, user or assistant') -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""


def read_corpus(folder: Path) -> list[dict[str, Any]]:
    """Rows of the JSON-lines files in `folder`, each with `text` or with `messages`.

    Raises ValueError if there is none, or on a row of another shape.
    """
    rows = []
    for path in sorted(folder.glob("*.jsonl")):
        for number, row in enumerate(read_jsonl(path), 1):
            if not (isinstance(row.get("text"), str) or isinstance(row.get("messages"), list)):
                raise ValueError(
                    f"{path}:{number}: a pretraining row needs `text` (a string) or `messages` (a list)"
                )
            rows.append(row)
    if not rows:
        raise ValueError(
            f"base.corpus={str(folder)!r} (conf/config.yaml) holds no row in any *.jsonl: model=tiny learns "
            "its language from it; choose another model=... or write the file"
        )
    return rows


def make_tokenizer(rows: list[dict[str, Any]], vocab_size: int, context: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of at most `vocab_size` tokens; every text can be written in it, none is unknown."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, END, *(f"<|{role}|>" for role in ROLES)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(rows), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=[f"<|{role}|>" for role in ROLES],
        chat_template=CHAT_TEMPLATE,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def encode_corpus(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], longest: int
) -> list[list[int]]:
    """Each row as token ids, closed by the end token. Raises ValueError if one is longer than `longest`."""
    texts = [
        tokenizer.apply_chat_template(row["messages"], tokenize=False)
        if "messages" in row
        else row["text"] + END
        for row in rows
    ]
    documents: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    for row, ids in zip(rows, documents, strict=True):
        if len(ids) > longest:
            raise ValueError(
                f"a pretraining row of {len(ids)} tokens ({json.dumps(row)[:60]}...) does not fit "
                f"base.model.tiny.row_length={longest}: raise it, or shorten the row"
            )
    return documents


def _texts(rows: list[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        if "messages" in row:
            yield from (message["content"] for message in row["messages"])
        else:
            yield row["text"]
