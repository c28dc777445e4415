"""finetune: a packed row is to a model what its documents are alone, and where it is not the model is refused."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from stages.finetune.__main__ import main
from stages.finetune.attention import within_documents
from stages.finetune.config import Init
from stages.finetune.data import check_context, check_packing, collate_rows
from stages.finetune.pack import IGNORED, Documents
from tests.stages.finetune_rows import made, workspace
from tests.stages.finetune_section import section
from tests.stages.finetune_shapes import LONGROPE, SOUND, UNSOUND, tiny

DOCUMENTS = [ids for ids, _ in made(5, 3)]


def packed(documents: list[list[int]], length: int) -> dict[str, Any]:
    """One row, twice, so that rows of a batch cannot see each other either."""
    row = {
        "input_ids": [token for ids in documents for token in ids],
        "labels": [IGNORED] * sum(map(len, documents)),
        "lengths": [len(ids) for ids in documents],
    }
    other = {"input_ids": [9, 8, 7], "labels": [IGNORED] * 3, "lengths": [2, 1]}
    batch = collate_rows([other, row], length=length, pad=0)
    return {name: value for name, value in batch.items() if name != "labels"}


def difference(model: Any, documents: list[list[int]], length: int) -> float:
    """The largest of the logits of the row against those of its documents, as a share of the largest logit."""
    import torch

    with torch.no_grad():
        together = model(**packed(documents, length), use_cache=False).logits[1]
        alone = torch.cat(
            [model(input_ids=torch.tensor([ids]), use_cache=False).logits[0] for ids in documents]
        )
    return float((together[: len(alone)] - alone).abs().max() / alone.abs().max())


@pytest.mark.parametrize("attention", ["by document", "sdpa", "eager"])
@pytest.mark.parametrize("name", SOUND)
def test_no_token_sees_another_document(name: str, attention: str) -> None:
    within = within_documents() if attention == "by document" else nullcontext()
    attention = "eager" if attention == "eager" else "sdpa"
    try:
        model = tiny(SOUND[name], attention)
    except ValueError as error:
        assert name == "gemma2" and "does not support an attention implementation" in str(error)
        pytest.skip("no sdpa with softcapping in transformers")
    assert model.config._attn_implementation == attention
    length = sum(map(len, DOCUMENTS)) + 7
    with within:
        assert difference(model, DOCUMENTS, length) < 1e-5
    check_packing(model, Path("models/base"))


@pytest.mark.parametrize("name", UNSOUND)
def test_an_architecture_that_mixes_documents_is_one_clear_line(name: str) -> None:
    model = tiny(UNSOUND[name])
    assert difference(model, DOCUMENTS, 128) > 1e-2
    kind = UNSOUND[name][0]
    message = rf"base \(config.json, model_type {kind}\) lets documents of a packed row see each other"
    with pytest.raises(ValueError, match=message) as refusal:
        check_packing(model, Path("models/base"))
    assert "\n" not in str(refusal.value)


def test_the_check_leaves_the_model_as_it_was() -> None:
    model = tiny(SOUND["llama"]).train()
    check_packing(model, Path("models/base"))
    assert model.training


LONG: Documents = [(list(range(10, 50)), list(range(10, 50))), ([7, 8, 9], [7, 8, 9])]


def test_a_long_document_would_turn_its_neighbours_and_is_refused(tmp_path: Path) -> None:
    """longrope and dynamic choose one set of frequencies for all that is in a batch, by its largest position."""
    base = tmp_path / "base"
    model = tiny(SOUND["phi4-mini"])
    assert difference(model, [ids for ids, _ in LONG], 43) > 1e-2
    assert difference(model, [ids[:32] for ids, _ in LONG], 43) < 1e-5
    model.save_pretrained(base)
    limit = LONGROPE["original_max_position_embeddings"]
    prepared = workspace(tmp_path, base, {"train": LONG, "valid": []}, 64) / "data/prepared"
    with pytest.raises(
        ValueError, match=f"a document of 40 tokens; over {limit}, .* turns all .*: lower prepare"
    ):
        check_context(section(), prepared, base)


@pytest.mark.parametrize("name", ["phi4-mini", "gpt2"])
def test_padding_does_not_count_as_a_long_document(name: str) -> None:
    """The row is far longer than any document, and than what gpt2 has positions for."""
    assert difference(tiny(SOUND[name]), [ids for ids, _ in made(2, 4)], 200) < 1e-5


def test_a_document_over_the_context_is_one_clear_line(tmp_path: Path) -> None:
    base = tmp_path / "base"
    tiny(SOUND["gpt2"]).save_pretrained(base)
    documents: Documents = [([5] * 129, [5] * 129)]
    prepared = (
        workspace(tmp_path, base, {"train": [([5] * 128, [5] * 128)], "valid": documents}, 160)
        / "data/prepared"
    )
    cfg = section(row_length=160)
    with pytest.raises(
        ValueError, match=r"split valid has a document of 129 tokens, over the 128 that .* can see"
    ):
        check_context(cfg, prepared, base)


@pytest.mark.parametrize("init", list(Init))
def test_the_stage_refuses_what_mixes_documents_before_any_training(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, init: Init
) -> None:
    from transformers import AutoTokenizer

    base = tmp_path / "base"
    tiny(UNSOUND["opt"]).save_pretrained(base)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(base)
    monkeypatch.chdir(workspace(tmp_path, base, {"train": made(9, 1), "valid": made(3, 2)}, 64))
    with pytest.raises(ValueError, match="lets documents of a packed row see each other"):
        main(section(init=init))
    assert not Path("models/tuned").exists()
