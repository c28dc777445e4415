"""conf/model and conf/method: every pair composes, and the commands in their headers are accepted as they stand."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise, product
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from ops.compose import composed
from stages.base.config import Base
from stages.common.files import write_json
from stages.finetune.config import Finetune, Method, Weights
from stages.finetune.model import check
from tests.small_project import HOUSE

MODELS = sorted(path.stem for path in (HOUSE / "conf/model").glob("*.yaml"))
METHODS = sorted(path.stem for path in (HOUSE / "conf/method").glob("*.yaml"))
SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
}  # fmt: skip
# What `model_type` in the config.json of each says.
TYPES = {
    "gemma-2-2b": "gemma2", "llama-3.1-8b": "llama", "mistral-7b": "mistral", "phi-4-mini": "phi3",
    "qwen2.5-0.5b": "qwen2", "qwen2.5-7b": "qwen2", "smollm2-1.7b": "llama", "smollm2-135m": "llama",
    "smollm2-360m": "llama",
}  # fmt: skip


def section(overrides: list[str]) -> Finetune:
    """Section finetune of what the overrides compose to, as a stage would get it."""
    params = yaml.safe_load(composed(overrides))
    OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Base), params["base"]))
    made = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Finetune), params["finetune"]))
    assert isinstance(made, Finetune)
    return made


def header(path: Path) -> list[str]:
    """The overrides of the `dvc exp run` in a file's header, each -S with its value."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#   ")]
    start = next(number for number, line in enumerate(lines) if "dvc exp run" in line)
    words = []
    for line in lines[start:]:
        words += shlex.split(line.removeprefix("#").rstrip("\\"))
        if not line.endswith("\\"):
            break
    return [word.replace("<hash>", "0" * 40) for flag, word in pairwise(words) if flag == "-S"]


@pytest.mark.parametrize(("model", "method"), product(MODELS, METHODS))
def test_every_model_composes_with_every_method(model: str, method: str) -> None:
    made = section([f"model={model}", f"method={method}"]).method
    assert made.name == method
    assert made.kind is (Method.full if method == "full" else Method.lora)


@pytest.mark.parametrize("model", sorted(TYPES))
def test_the_command_of_a_models_header_trains_that_architecture(model: str, tmp_path: Path) -> None:
    overrides = header(HOUSE / f"conf/model/{model}.yaml")
    assert overrides[:2] == [f"model={model}", f"model.revision={'0' * 40}"]
    write_json(tmp_path / "config.json", SMALL | {"model_type": TYPES[model]})
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    check(section(overrides), tmp_path)


@pytest.mark.parametrize("model", sorted(TYPES))
def test_the_override_that_a_models_header_offers_goes_with_its_command(model: str) -> None:
    path = HOUSE / f"conf/model/{model}.yaml"
    words = shlex.split(re.findall(r"One override: (.*)", path.read_text(encoding="utf-8"))[0])
    offered = [word.rstrip(";,") for flag, word in pairwise(words) if flag == "-S"]
    made = section([*header(path), *offered])
    assert made.learning_rate <= 0.0003
    if "method=qlora" in offered:
        assert made.method.name == "qlora" and made.method.weights is Weights.nf4


@pytest.mark.parametrize("world", ["gpus8", "nodes2"])
def test_the_command_of_a_worlds_header_composes(world: str) -> None:
    made = section(header(HOUSE / f"conf/world/{world}.yaml"))
    assert made.world.name == world and made.learning_rate <= 0.00002


def test_every_model_from_the_hub_is_among_them() -> None:
    from_hub = {
        name for name in MODELS if "\nsource: hub\n" in (HOUSE / f"conf/model/{name}.yaml").read_text()
    }
    assert from_hub == set(TYPES)


@pytest.mark.parametrize("method", ["dora", "qlora", "rslora"])
def test_the_command_of_a_methods_header_composes(method: str) -> None:
    assert section(header(HOUSE / f"conf/method/{method}.yaml")).method.name == method


def test_layers_that_have_other_names_are_said_and_not_trained_without(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", SMALL | {"model_type": "phi3"})
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"'q_proj', 'up_proj', 'v_proj'\] .*Phi3ForCausalLM has .*'qkv_proj'"
    ):
        check(section(["model=phi-4-mini", "method=lora"]), tmp_path)


@pytest.mark.parametrize("method", ["dora", "qlora", "rslora"])
def test_the_file_that_a_method_is_a_diff_against_took_part(method: str) -> None:
    files = yaml.safe_load(composed([f"method={method}"]))["digest"]["files"]
    assert {f"method/{method}.yaml", "method/lora.yaml"} <= set(files)
