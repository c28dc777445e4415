"""Fixtures that several tests share: a model folder like models/base, small enough to be made in a second."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.life import finished, source  # noqa: F401 - fixtures

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SPECIAL = ["<|pad|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in its own
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under xdist a module stays on one worker, and so do all that need the finished pipeline, which is made once.

    The longest go first, so that no worker ends with one of them alone.
    """
    groups: dict[str, bool] = {}
    for item in items:
        life = "finished" in getattr(item, "fixturenames", ())
        group = "life" if life else item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group(group))
        groups[group] = groups.get(group, False) or item.get_closest_marker("slow") is not None
    name = {item: str(next(item.iter_markers("xdist_group")).args[0]) for item in items}
    items.sort(key=lambda item: (name[item] != "life", not groups[name[item]], name[item]))


@pytest.fixture(scope="module", autouse=True)
def no_store_of_another_module() -> None:
    """MLflow's set_tracking_uri writes MLFLOW_TRACKING_URI into this process's environment, for good."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama, byte-level tokenizer and chat template as a Hugging Face folder. Never write to it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny_model")
    tokenizer = _tokenizer()
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer():  # type: ignore[no-untyped-def]  # transformers is imported inside, as in the stages
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|bos|>", eos_token="<|end|>", pad_token="<|pad|>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL[3:]})
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
