"""Precision of a variant: fewer bits score near fp32, twice the same, and an item alone as in any company."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from stages.bench.__main__ import main
from stages.bench.config import Backend, Bench, Precision, Variant
from stages.bench.model import Scorer
from stages.common.prompt import Prompt
from stages.finetune.outs import write_out
from tests.stages.finetune_section import LORA, section, trained_adapter
from tests.stages.test_bench import NO_CODE, ROWS, items, write

needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="no bitsandbytes: pip install -r requirements-qlora.txt"
)
TASKS = ["heldout_loss", "helpdesk_intent", "helpdesk_triage"]
CFG = Bench(7, 2, "sample", TASKS, 0, 2, 256, Prompt("p", "", [], 12), 0, True, ["style"], NO_CODE)
FEWER = [Precision.int8, Precision.nf4]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A random Llama wide enough for blocks of 64, some of whose activations are outliers to int8 (6 and more)."""
    import torch
    from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("wide")
    shape = AutoConfig.from_pretrained(tiny_model)
    shape.hidden_size, shape.intermediate_size, shape.initializer_range, shape.head_dim = 64, 128, 0.3, 32
    torch.manual_seed(0)
    LlamaForCausalLM(shape).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(ROWS)


def scored(model: Path, precision: Precision, cfg: Bench = CFG) -> list[dict[str, Any]]:
    main(cfg, "base", Variant(str(model), "", precision, Backend.own, {}))
    return items()


def nats(rows: list[dict[str, Any]]) -> list[float]:
    return [value for row in rows for value in row["loglikelihoods"]]


@needs_bitsandbytes
@pytest.mark.parametrize("precision", FEWER)
def test_fewer_bits_score_twice_the_same_near_the_full_model(model: Path, precision: Precision) -> None:
    full, once = scored(model, Precision.fp32), scored(model, precision)
    before = Path("data/results/base.parquet").read_bytes()
    scored(model, precision)
    assert Path("data/results/base.parquet").read_bytes() == before
    assert nats(once) != nats(full)
    limit = {Precision.int8: 0.15, Precision.nf4: 0.6}[precision]
    assert nats(once) == pytest.approx(nats(full), rel=limit)


@needs_bitsandbytes
@pytest.mark.parametrize("precision", FEWER)
def test_an_item_scores_alone_as_in_any_company(model: Path, precision: Precision) -> None:
    """int8 keeps the columns of outliers in 16 bits, and finds them in whatever is computed together."""
    whole = scored(model, precision)
    alone = scored(model, precision, replace(CFG, limit=1, batch_size=1, batch_tokens=64))
    assert len(alone) == len(TASKS)
    of = {(row["task"], row["id"]): row for row in whole}
    for row in alone:
        assert row["output"] == of[row["task"], row["id"]]["output"]
        assert row["loglikelihoods"] == pytest.approx(of[row["task"], row["id"]]["loglikelihoods"], abs=1e-3)


@needs_bitsandbytes
def test_likelihoods_in_int8_are_those_of_transformers(model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    [row, *_] = scored(model, Precision.int8, replace(CFG, tasks=["heldout_loss"], limit=1))
    tokenizer = AutoTokenizer.from_pretrained(model)
    item = next(row for row in ROWS if row["id"] == "t3")
    render = tokenizer.apply_chat_template
    head = render(item["messages"][:-1], tokenize=False, add_generation_prompt=True)
    start = len(tokenizer(head, add_special_tokens=False)["input_ids"])
    ids = tokenizer(head + item["messages"][-1]["content"], add_special_tokens=False)["input_ids"]
    direct = AutoModelForCausalLM.from_pretrained(
        model,
        quantization_config=BitsAndBytesConfig(load_in_8bit=True),
        device_map={"": "cpu"},
        dtype=torch.float32,
    )
    with torch.no_grad():
        likely = torch.log_softmax(direct(torch.tensor([ids[:-1]])).logits[0], -1)
    expected = sum(float(likely[at - 1, ids[at]]) for at in range(start, len(ids)))
    assert row["loglikelihoods"] == pytest.approx([expected], rel=1e-5)


@needs_bitsandbytes
@pytest.mark.parametrize("precision", FEWER)
def test_an_adapter_on_a_base_of_fewer_bits(model: Path, precision: Precision) -> None:
    trained = trained_adapter(section(LORA), model, Path("trained"))
    write_out(section(replace(LORA, merge=False)), model, trained, Path("adapter"))
    adapter, base = scored(Path("adapter"), precision), scored(model, precision)
    assert Scorer(CFG, Variant("adapter", "", precision, Backend.own, {})).likelihood.picks
    assert nats(adapter) != nats(base)
    assert nats(adapter) == pytest.approx(nats(scored(Path("adapter"), Precision.fp32)), rel=0.6)


@pytest.mark.parametrize("precision", FEWER)
def test_without_the_library_the_line_says_what_to_install(
    model: Path, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if name == "bitsandbytes":
            raise PackageNotFoundError(name)
        return "1"

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr("stages.bench.fingerprint.version", version)
    with pytest.raises(
        ValueError, match=f"precision {precision.name} of .* needs bitsandbytes: .*requirements-qlora"
    ) as no:
        scored(model, precision)
    assert "\n" not in str(no.value)


@needs_bitsandbytes
def test_a_machine_that_cannot_says_so_in_one_line(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: Any) -> Any:
        raise RuntimeError("no kernel\nfor this")

    monkeypatch.setattr("stages.bench.load.layer", broken)
    with pytest.raises(
        ValueError, match=r"precision nf4 of .* does not work on this machine's \w+ \(no kernel for this\)"
    ):
        scored(model, Precision.nf4)
