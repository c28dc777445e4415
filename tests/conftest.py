"""Fixtures that several tests share: a model folder like models/base, small enough to be made in a second."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.life import finished, source  # noqa: F401 - fixtures
from tests.small_project import HOUSE

# Before torch is loaded: as stages do, or the threads of two workers on two cores spin while the other computes
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
LIFE = "life"  # the group of tests on the finished pipeline

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SPECIAL = ["<|pad|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest groups go first, so that no worker ends with one of them alone."""
    slow = {group_of(item.nodeid) for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: ((group := group_of(item.nodeid)) != LIFE, group not in slow, group))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Groups stay whole. Ours, since xdist 3.8 writes its own into a field that pytest 9.2 does not read any more."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return Groups(config, log)


def group_of(nodeid: str) -> str:
    """A module, with its fixtures; or all that need the finished pipeline, which is made once."""
    module = nodeid.partition("::")[0]
    return LIFE if _needs_the_pipeline(module) else module


@cache
def _needs_the_pipeline(module: str) -> bool:
    path = HOUSE / module
    return path.is_file() and "finished: Finished" in path.read_text(encoding="utf-8")


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
