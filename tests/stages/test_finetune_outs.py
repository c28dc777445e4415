"""finetune: models/tuned, whole, merged or an adapter beside its base: the same bytes each time, loaded by anybody."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stages.common.adapter import base_of, identity
from stages.common.files import read_json, tree_digest, write_json
from stages.finetune.config import Init, Weights
from stages.finetune.model import load
from stages.finetune.outs import load_out, write_out
from tests.small_project import HOUSE
from tests.stages.finetune_section import ADAPTERS, EVERY_LAYER, FULL, LORA, section, trained_adapter

# What a person types who has never heard of Lathe.
PLAIN = """
import json, peft, torch, transformers
merged = transformers.AutoModelForCausalLM.from_pretrained("merged")
base = transformers.AutoModelForCausalLM.from_pretrained("models/base")
turns = [{"role": "user", "content": "My router blinks."}]

def greedy(model, folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        logits = model.eval()(**inputs).logits[0, -1]
    return model.generate(**inputs, max_new_tokens=40, do_sample=False)[0].tolist(), logits.tolist()

said = [greedy(merged, "merged"), greedy(base, "models/base")]
print(json.dumps([*said, greedy(peft.PeftModel.from_pretrained(base, "adapter"), "adapter")]))
"""
WRITE = """
from pathlib import Path
from dataclasses import replace
from stages.finetune.outs import write_out
from tests.stages.finetune_section import EVERY_LAYER, LORA, section, trained_adapter
method = replace(LORA, targets=EVERY_LAYER)
trained = trained_adapter(section(method), Path("models/base"), Path("trained"))
for merge in (True, False):
    write_out(section(replace(method, merge=merge)), Path("models/base"), trained, Path(f"tuned-{merge}"))
"""


@pytest.fixture
def base(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """models/base of a workspace, the current directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_model, tmp_path / "models/base")
    return Path("models/base")


def run(code: str, **environment: str) -> str:
    """Run Python in a process of its own; returns what it printed."""
    env = {**os.environ, **environment}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ADAPTERS)
def test_merged_and_unmerged_say_the_same_in_plain_transformers_and_peft(base: Path, name: str) -> None:
    cfg = section(ADAPTERS[name])
    trained = trained_adapter(cfg, base, Path("trained"))
    write_out(cfg, base, trained, Path("merged"))
    write_out(section(replace(cfg.method, merge=False)), base, trained, Path("adapter"))
    merged, plain, adapter = json.loads(run(PLAIN))
    assert merged[0] == adapter[0] != plain[0]
    assert max(abs(a - b) for a, b in zip(merged[1], adapter[1], strict=True)) < 1e-5 * max(
        map(abs, merged[1])
    )


def test_an_adapter_stands_alone_with_what_describes_it(base: Path) -> None:
    method = replace(LORA, merge=False, targets=EVERY_LAYER)
    write_json(base / "generation_config.json", {"do_sample": False, "temperature": 0.3})
    write_out(
        section(method), base, trained_adapter(section(method), base, Path("trained")), Path("models/tuned")
    )
    out = Path("models/tuned")
    described = {file.name for file in base.iterdir()} - {"config.json", "model.safetensors"}
    assert {file.name for file in out.iterdir()} == described | {
        "adapter_model.safetensors", "adapter_config.json", "base.json",
    }  # fmt: skip
    assert all((out / name).read_bytes() == (base / name).read_bytes() for name in described)
    config = read_json(out / "adapter_config.json")
    assert config["base_model_name_or_path"] == "models/base"
    assert config["target_modules"] == sorted(EVERY_LAYER)
    assert base_of(out) == base
    assert list(config) == sorted(config)


@pytest.mark.parametrize("weights", [Weights.fp32, Weights.bf16], ids=lambda weights: weights.name)
def test_a_merged_model_is_the_bases_shape_in_the_weights_that_were_asked_for(
    base: Path, weights: Weights
) -> None:
    from safetensors import safe_open

    write_json(base / "generation_config.json", {"do_sample": False, "temperature": 0.3})
    cfg = section(replace(LORA, weights=weights))
    write_out(cfg, base, trained_adapter(cfg, base, Path("trained")), Path("models/tuned"))
    out = Path("models/tuned")
    assert {file.name for file in out.iterdir()} == {file.name for file in base.iterdir()}
    assert (out / "generation_config.json").read_bytes() == (base / "generation_config.json").read_bytes()
    with safe_open(out / "model.safetensors", "pt") as file:
        kinds = {str(file.get_tensor(name).dtype) for name in file.keys()}  # noqa: SIM118 - no mapping
    assert kinds == {f"torch.{weights.value}"}
    assert read_json(out / "config.json") == read_json(base / "config.json") | {"dtype": weights.value}


def test_every_weight_is_written_as_it_was_trained_and_stored_once(base: Path) -> None:
    model = load(section(FULL), base)
    model.config.use_cache = False  # as trainers leave it
    model.generation_config.pad_token_id = 7
    model.save_pretrained("trained")
    Path("trained/training_args.bin").write_bytes(b"\x80\x04.")
    write_out(section(FULL), base, Path("trained"), Path("models/tuned"))
    out = Path("models/tuned")
    assert (out / "model.safetensors").samefile("trained/model.safetensors")
    assert tree_digest(out) == tree_digest(base)


def test_weights_in_several_files_keep_their_index(base: Path) -> None:
    load(section(FULL), base).save_pretrained("trained", max_shard_size="40KB")
    assert len(list(Path("trained").glob("*.safetensors"))) > 1
    write_out(section(FULL), base, Path("trained"), Path("models/tuned"))
    whole, parts = (load_out(Path(folder), base).state_dict() for folder in ("models/base", "models/tuned"))
    assert all(bool((whole[name] == parts[name]).all()) for name in whole)
    assert identity(base) == identity(Path("models/tuned"))  # how tensors are shared out does not count


def test_a_random_start_is_merged_into_its_own_random_weights(base: Path) -> None:
    import torch

    cfg = section(LORA, init=Init.random)
    trained = trained_adapter(cfg, base, Path("trained"))
    write_out(cfg, base, trained, Path("models/tuned"))
    found, start = (
        load_out(Path("models/tuned"), base).state_dict(),
        load(section(FULL, init=Init.random), base),
    )
    assert torch.equal(found["model.embed_tokens.weight"], start.state_dict()["model.embed_tokens.weight"])


def test_the_same_input_gives_the_same_bytes_whatever_the_hash_seed(base: Path) -> None:
    digests = set()
    for seed in ("0", "1", "2"):
        run(WRITE, PYTHONHASHSEED=seed, PYTHONPATH=str(HOUSE))
        digests.add((tree_digest(Path("tuned-True")), tree_digest(Path("tuned-False"))))
    assert len(digests) == 1


@pytest.mark.parametrize("merge", [True, False], ids=["merged", "adapter"])
def test_an_out_is_complete_or_what_it_was(base: Path, merge: bool) -> None:
    cfg = section(replace(LORA, merge=merge))
    trained = trained_adapter(cfg, base, Path("trained"))
    write_out(cfg, base, trained, Path("models/tuned"))
    before = tree_digest(Path("models/tuned"))
    (trained / "adapter_model.safetensors").unlink()
    with pytest.raises((ValueError, OSError), match=r"adapter_model\.safetensors"):
        write_out(cfg, base, trained, Path("models/tuned"))
    assert tree_digest(Path("models/tuned")) == before
    assert sorted(path.name for path in Path("models").iterdir()) == ["base", "tuned"]


def test_an_adapter_of_another_base_is_one_clear_line(base: Path) -> None:
    method = replace(LORA, merge=False)
    out = Path("models/tuned")
    write_out(section(method), base, trained_adapter(section(method), base, Path("trained")), out)
    load_out(out, base)
    retrained = load(section(FULL), base)
    retrained.model.layers[1].self_attn.q_proj.weight.data[0, 0] += 1e-3
    retrained.save_pretrained(base)
    for use in (lambda: load_out(out, base), lambda: base_of(out)):
        with pytest.raises(
            ValueError, match=r"models/tuned was trained on another base than models/base"
        ) as refusal:
            use()
        assert "\n" not in str(refusal.value)


def test_an_adapter_whose_base_is_not_here_is_one_clear_line(base: Path) -> None:
    method = replace(LORA, merge=False)
    write_out(
        section(method), base, trained_adapter(section(method), base, Path("trained")), Path("models/tuned")
    )
    base.rename("elsewhere")
    with pytest.raises(
        ValueError, match=r"adapter of 'models/base' .* no model folder here: run `dvc repro base`"
    ):
        base_of(Path("models/tuned"))
    assert base_of(Path("elsewhere")) is None


def parameters(model: Any) -> int:
    return sum(weight.numel() for weight in model.parameters())


def test_a_loaded_adapter_is_kept_apart_from_its_base(base: Path) -> None:
    method = replace(LORA, merge=False)
    write_out(
        section(method), base, trained_adapter(section(method), base, Path("trained")), Path("models/tuned")
    )
    tuned, plain = load_out(Path("models/tuned"), base), load_out(base, base)
    assert parameters(tuned) > parameters(plain)
    assert not tuned.training and {str(weight.dtype) for weight in tuned.parameters()} == {"torch.float32"}
