"""The base stage: tiny is a loadable, repeatable model; hub and local let in nothing that runs code."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.base.__main__ import OUT, main
from stages.base.config import Base, Model, Source, Tiny
from stages.base.packing import IGNORED, Batches, pack
from stages.base.tiny import rate
from stages.common.files import tree_digest, write_jsonl

SHA = "0123456789abcdef0123456789abcdef01234567"
TINY = Tiny(
    vocab_size=300, hidden_size=32, intermediate_size=64, layers=2, heads=2, context=128, steps=12,
    batch_size=2, row_length=64, learning_rate=0.003, warmup_steps=2, weight_decay=0.01,
)  # fmt: skip


@pytest.fixture
def cfg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Base:
    monkeypatch.chdir(tmp_path)
    chat = [{"role": "user", "content": "is it on?"}, {"role": "assistant", "content": "It is."}]
    text = {"text": "ticket 1: the router is off\nagent: turn it on"}
    write_jsonl(Path("corpus/pretrain.jsonl"), [text, {"messages": chat}] * 10)
    model = Model("tiny", "Tiny", Source.tiny, "", "", trust_remote_code=False, tiny=TINY)
    return Base(seed=5, threads=2, model=model, corpus="corpus")


def test_tiny_loads_speaks_and_counts_itself(cfg: Base) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    metrics = main(cfg)
    tokenizer, model = AutoTokenizer.from_pretrained(OUT), AutoModelForCausalLM.from_pretrained(OUT)
    names = {path.name for path in OUT.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert metrics["base/parameters"]["value"] == sum(p.numel() for p in model.parameters())
    assert metrics["base/pretrain_documents"]["value"] == 20
    assert metrics["base/pretrain_loss"]["value"] < math.log(TINY.vocab_size)
    text = 'Ünïcode, "quotes"\nand\ttabs 漢字'
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    asked = tokenizer("is it on?", return_tensors="pt")
    assert model.generate(**asked, max_new_tokens=4).shape[1] > asked["input_ids"].shape[1]


def test_chat_template_marks_what_the_assistant_says(cfg: Base) -> None:
    from transformers import AutoTokenizer

    main(cfg)
    tokenizer = AutoTokenizer.from_pretrained(OUT)
    chat = [
        {"role": role, "content": role[0]} for role in ("system", "user", "assistant", "user", "assistant")
    ]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    assert (
        text
        == "<|system|>s<|end|><|user|>u<|end|><|assistant|>a<|end|>" + "<|user|>u<|end|><|assistant|>a<|end|>"
    )
    out = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    spoken = [token for token, said in zip(out["input_ids"], out["assistant_masks"], strict=True) if said]
    assert tokenizer.decode(spoken) == "a<|end|>a<|end|>"
    asked = tokenizer.apply_chat_template(chat[:2], tokenize=False, add_generation_prompt=True)
    assert asked == "<|system|>s<|end|><|user|>u<|end|><|assistant|>"
    assert len(tokenizer(asked)["input_ids"]) == 7


def test_two_runs_give_the_same_bytes_and_another_seed_does_not(cfg: Base) -> None:
    digests = []
    for seed in (5, 5, 6):
        main(replace(cfg, seed=seed))
        digests.append(tree_digest(OUT))
    assert digests[0] == digests[1] != digests[2]


def test_a_refused_run_leaves_the_model_that_stood_there(cfg: Base) -> None:
    main(cfg)
    before = tree_digest(OUT)
    with pytest.raises(ValueError, match="holds no row"):
        main(replace(cfg, corpus="nowhere"))
    with pytest.raises(ValueError, match="tiny is null"):
        main(replace(cfg, model=replace(cfg.model, tiny=None)))
    assert tree_digest(OUT) == before


def test_a_models_own_code_is_refused_before_anything_is_made(cfg: Base) -> None:
    for source in Source:
        model = replace(cfg.model, name="some", source=source, trust_remote_code=True)
        with pytest.raises(
            ValueError, match=r"trust_remote_code=true \(conf/model/some.yaml\): no model's own code"
        ):
            main(replace(cfg, model=model))
    assert not Path(".lathe").exists()


def test_a_corpus_row_of_another_shape_or_too_long_is_named(cfg: Base) -> None:
    write_jsonl(Path("other/a.jsonl"), [{"text": "fine"}, {"words": 1}])
    with pytest.raises(ValueError, match=r"other/a.jsonl:2: .* needs `text`"):
        main(replace(cfg, corpus="other"))
    write_jsonl(Path("long/a.jsonl"), [{"text": "x y " * 200}])
    with pytest.raises(ValueError, match="row_length=64: raise it"):
        main(replace(cfg, corpus="long"))


def test_local_takes_safetensors_and_leaves_the_rest(cfg: Base, tiny_model: Path, tmp_path: Path) -> None:
    source = tmp_path / "mine"
    source.mkdir()
    for file in tiny_model.iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    (source / "optimizer.pt").write_bytes(b"a pickle beside the weights")
    (source / "modeling_mine.py").write_text("raise SystemExit")
    main(replace(cfg, model=replace(cfg.model, source=Source.local, id=str(source))))
    assert {path.name for path in OUT.iterdir()} == {path.name for path in tiny_model.iterdir()}


def test_local_refuses_pickled_weights(cfg: Base, tmp_path: Path) -> None:
    source = tmp_path / "mine"
    source.mkdir()
    (source / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    (source / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"pytorch_model.bin, which can run code .* save_pretrained"):
        main(replace(cfg, model=replace(cfg.model, source=Source.local, id=str(source))))
    assert not OUT.exists()


@pytest.mark.parametrize("missing", ["model.safetensors", "config.json", "tokenizer.json"])
def test_local_refuses_a_folder_that_is_no_model(
    cfg: Base, tiny_model: Path, tmp_path: Path, missing: str
) -> None:
    source = tmp_path / "mine"
    source.mkdir()
    for file in tiny_model.iterdir():
        if file.name.split(".")[0].split("_")[0] != missing.split(".", maxsplit=1)[0]:
            (source / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match=r"has no .*: Lathe needs"):
        main(replace(cfg, model=replace(cfg.model, source=Source.local, id=str(source))))


def test_local_refuses_an_adapter_and_names_its_base(cfg: Base, tiny_model: Path, tmp_path: Path) -> None:
    """With the base's own files beside it too: transformers would load the two as one."""
    for files in ((), tiny_model.iterdir()):
        source = tmp_path / f"mine-{bool(files)}"
        source.mkdir()
        for file in files:
            (source / file.name).write_bytes(file.read_bytes())
        (source / "adapter_model.safetensors").write_bytes(b"")
        (source / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}')
        with pytest.raises(
            ValueError, match=r"mine.* is an adapter .* name its base, 'owner/base'"
        ) as refusal:
            main(replace(cfg, model=replace(cfg.model, source=Source.local, id=str(source))))
        assert "\n" not in str(refusal.value)
        assert not OUT.exists()


def test_local_leaves_a_second_copy_of_the_weights(cfg: Base, tiny_model: Path, tmp_path: Path) -> None:
    """Mistral's repositories hold one under another name."""
    source = Path(shutil.copytree(tiny_model, tmp_path / "mine"))
    one = main(replace(cfg, model=replace(cfg.model, source=Source.local, id=str(tiny_model))))
    shutil.copy(source / "model.safetensors", source / "consolidated.safetensors")
    two = main(replace(cfg, model=replace(cfg.model, source=Source.local, id=str(source))))
    assert one == two
    assert not (OUT / "consolidated.safetensors").exists()


def test_local_refuses_a_path_that_is_no_folder(cfg: Base) -> None:
    with pytest.raises(ValueError, match=r"'models/none' .* is no folder"):
        main(replace(cfg, model=replace(cfg.model, source=Source.local, id="models/none")))


@pytest.mark.parametrize("revision", ["", "main", "v1.0", "0123abc", SHA.upper(), SHA + "0"])
def test_hub_refuses_a_revision_that_can_move(cfg: Base, revision: str) -> None:
    model = replace(cfg.model, name="some", source=Source.hub, id="owner/name", revision=revision)
    with pytest.raises(
        ValueError, match=r"model.revision=.*conf/model/some.yaml.*git ls-remote .*owner/name"
    ):
        main(replace(cfg, model=model))


def test_hub_says_in_one_line_that_it_is_out_of_reach(cfg: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    model = replace(cfg.model, name="some", source=Source.hub, id="owner/name", revision=SHA)
    with pytest.raises(ValueError, match=r"did not download .*check name and network") as caught:
        main(replace(cfg, model=model))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="is no hub name"):
        main(replace(cfg, model=replace(model, id="a/b/c")))


DOCUMENTS = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=16), min_size=1, max_size=200)


@given(DOCUMENTS)
@settings(max_examples=100, deadline=None)
def test_packing_loses_and_cuts_nothing(documents: list[list[int]]) -> None:
    rows = pack(documents, 16)
    assert all(0 < sum(map(len, row)) <= 16 for row in rows)
    assert sorted(document for row in rows for document in row) == sorted(documents)


def test_batches_restart_positions_and_hide_first_tokens() -> None:
    batch = next(iter(Batches([[7, 8, 9], [5, 6]], row_length=7, batch_size=1, seed=0)))
    ids, labels, positions = (batch[name][0].tolist() for name in ("input_ids", "labels", "position_ids"))
    first, second = ([7, 8, 9], [5, 6]) if ids[0] == 7 else ([5, 6], [7, 8, 9])
    assert ids == [*first, *second, 0, 0]
    assert labels == [IGNORED, *first[1:], IGNORED, *second[1:], IGNORED, IGNORED]
    assert positions == [*range(len(first)), *range(len(second)), 0, 1]


def test_a_packed_document_is_read_as_if_it_stood_alone(tiny_model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    documents = [[11, 12, 13, 14], [21, 22, 23]]
    batch = next(iter(Batches(documents, row_length=8, batch_size=1, seed=0)))
    with torch.no_grad():
        packed = model(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
        ).logits[0]
        for document in documents:
            at = batch["input_ids"][0].tolist().index(document[0])
            alone = model(input_ids=torch.tensor([document])).logits[0]
            assert torch.allclose(packed[at : at + len(document)], alone, atol=1e-4)


def test_the_rate_rises_then_falls_to_zero() -> None:
    rates = [rate(step, 10, 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[10] == pytest.approx(1.0)
    assert rates[:11] == sorted(rates[:11]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0)


def test_no_weight_file_can_run_code(cfg: Base) -> None:
    main(cfg)
    assert not [path for path in OUT.rglob("*") if path.suffix in {".bin", ".pt", ".pkl", ".py"}]
    assert json.loads((OUT / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
