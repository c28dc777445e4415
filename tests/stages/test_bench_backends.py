"""Other back ends of lm-eval's are one line of YAML away, and give the numbers of our own engine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from stages.bench.__main__ import main
from stages.bench.config import Backend, Bench, Precision, Variant
from stages.common.prompt import Prompt
from tests.stages.chat import beginning
from tests.stages.completions_server import Server, serving
from tests.stages.test_bench import NO_CODE, ROWS, items, write

TASKS = ["heldout_loss", "helpdesk_intent", "helpdesk_triage"]
CFG = Bench(7, 2, "sample", TASKS, 0, 2, 256, Prompt("p", "You triage.", [], 12), 0, True, ["style"], NO_CODE)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> Path:
    """Three rows, and the variant's folder at models/base: the current directory."""
    monkeypatch.chdir(tmp_path)
    write(ROWS)
    shutil.copytree(tiny_model, "models/base")
    return tmp_path


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[Server]:
    with serving(tiny_model) as made:
        yield made


def on(backend: Backend, **model_args: Any) -> Variant:
    return Variant("models/base", "", Precision.fp32, backend, model_args)


def scored(name: str, variant: Variant, cfg: Bench = CFG) -> list[dict[str, Any]]:
    main(cfg, name, variant)
    return items(name)


def same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected) == 3 * len(TASKS)
    for one, other in zip(found, expected, strict=True):
        for key in ("task", "id", "prompt_hash", "output", "target"):
            assert one[key] == other[key], (key, one, other)
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-4)
        assert one["loglikelihoods"] == pytest.approx(other["loglikelihoods"], abs=1e-3)


def test_a_server_gives_the_numbers_of_our_own_engine(
    workspace: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-x")
    server.seen.clear()
    own = scored("own", on(Backend.own))
    same(scored("served", on(Backend.completions, base_url=server.url, model="tiny")), own)
    assert {asked["model"] for asked in server.seen} == {"tiny"} and set(server.keys) == {"Bearer sk-x"}
    assert {bool(asked.get("echo")) for asked in server.seen} == {True, False}
    assert not [file for file in Path().rglob("*.json") if b"sk-x" in file.read_bytes()]
    same(scored("several", on(Backend.completions, base_url=server.url, num_concurrent=3)), own)


def test_a_chat_endpoint_writes_the_answers_of_our_own_engine(workspace: Path, server: Server) -> None:
    """It gets messages, and its template is the model's; what it cannot do is one line."""
    generated = replace(CFG, tasks=["helpdesk_triage"])
    served = on(Backend.chat, base_url=server.chat, model="tiny", max_retries=1)
    server.seen.clear()
    own, found = scored("own", on(Backend.own), generated), scored("served", served, generated)
    for one, other in zip(found, own, strict=True):
        assert [one[key] for key in ("id", "output", "target", "scores")] == [
            other[key] for key in ("id", "output", "target", "scores")
        ]
    Path("models/base/chat_template.jinja").unlink()
    for one, other in zip(scored("served", served, generated), found, strict=True):
        assert one["output"] == other["output"]  # the server has the template
    asked = [each["messages"] for each in server.seen[: len(ROWS)]]
    assert sorted(map(len, asked)) == [2, 2, 4] and all(each[0]["role"] == "system" for each in asked)
    refused(
        served, "back end chat of models/base has no log-likelihoods: take tasks whose answers are generated"
    )
    write([row | {"tools": [{"type": "function", "function": {"name": "f"}}]} for row in ROWS])
    refused(served, "sends messages alone, and a prompt has tools", generated)


def test_transformers_as_lm_eval_runs_it_gives_the_numbers_of_our_own_engine(workspace: Path) -> None:
    same(scored("hf", on(Backend.hf)), scored("own", on(Backend.own)))


@pytest.mark.parametrize("first", ["", "{{ bos_token }}"])
def test_a_first_token_is_written_once_and_where_the_template_writes_none_our_tasks_have_none(
    workspace: Path, server: Server, first: str
) -> None:
    """As in training: the tokenizer adds nothing to what its chat template has written. Other prompts begin with it."""
    from lm_eval.api.instance import Instance
    from transformers import AutoTokenizer

    from stages.bench.foreign import Foreign

    tokenizer = AutoTokenizer.from_pretrained("models/base")
    plain = str(tokenizer.chat_template).removeprefix("{{ bos_token }}")
    beginning(tokenizer, first + plain).save_pretrained("models/base")
    bos = tokenizer.bos_token_id
    own, served = on(Backend.own), on(Backend.completions, base_url=server.url)
    server.seen.clear()
    expected = scored("own", own)
    same(scored("served", served), expected)
    same(scored("hf", on(Backend.hf)), expected)
    prompts = [line for asked in server.seen for line in asked["prompt"]]
    assert {(line[0] == bos, line.count(bos)) for line in prompts} == {(bool(first), len(first[:1]))}
    server.seen.clear()
    asked = [
        Instance("generate_until", {}, (text, {"max_gen_toks": 2}), 0, ("other", 0, 1))
        for text in ("plain", "<|bos|>begun")
    ]
    Foreign(CFG, served).generate_until(asked)
    found = [line for asked in server.seen for line in asked["prompt"]]
    assert sorted(found) == sorted(
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("<|bos|>plain", "<|bos|>begun")
    )


def test_a_text_longer_than_the_context_is_cut_as_by_lm_evals_hf(workspace: Path, tiny_model: Path) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from stages.bench.foreign import Foreign
    from stages.bench.model import Scorer

    texts = ["the router is broken and nothing helps, " * 90, "short"]
    asked = [
        Instance("loglikelihood_rolling", {}, (text,), number, ("t", number, 1))
        for number, text in enumerate(texts)
    ]
    variant = on(Backend.hf)
    expected = HFLM(pretrained="models/base", device="cpu", dtype="float32", batch_size=2)
    nats = expected.loglikelihood_rolling(asked)
    assert len(expected.tok_encode(texts[0])) > expected.max_length
    for model in (Foreign(CFG, variant), Scorer(CFG, on(Backend.own))):
        assert [float(each) for each in model.loglikelihood_rolling(asked)] == pytest.approx(nats, abs=1e-3)


def test_an_adapter_that_writes_tokens_is_refused(workspace: Path) -> None:
    Path("adapter").mkdir()
    told = {"peft_type": "PROMPT_TUNING", "base_model_name_or_path": "models/base"}
    Path("adapter/adapter_config.json").write_text(json.dumps(told))
    refused(replace(on(Backend.own), path="adapter"), "PROMPT_TUNING, which puts tokens of its own before")


def refused(variant: Variant, match: str, cfg: Bench = CFG) -> None:
    with pytest.raises(ValueError, match=match) as no:
        main(cfg, "x", variant)
    assert "\n" not in str(no.value)
    assert not Path("data/results/x.parquet").exists()


def test_what_a_back_end_lacks_is_one_clear_line(
    workspace: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = {"max_retries": 1, "model": "tiny"}
    refused(on(Backend.completions), r"completions of models/base needs model_args: \{base_url: ")
    bf16 = replace(on(Backend.completions, base_url="x"), precision=Precision.bf16)
    refused(
        bf16, "precision bf16 of models/base: what backend completions computes in is its server's to say"
    )
    refused(on(Backend.chat), r"chat of models/base needs model_args: \{base_url: .*/v1/chat/completions")
    refused(on(Backend.completions, base_url="http://a@b/v1"), "has a user in it: set OPENAI_API_KEY")
    refused(on(Backend.completions, auth_token="t"), "auth_token would stand in params.yaml and git")
    refused(on(Backend.hf, add_bos_token=True), "the tokenizer and the chat template say what")
    refused(on(Backend.hf, trust_remote_code=True), "no model's own code is run here")
    refused(on(Backend.hf, nonsense=1), r"back end hf of models/base failed \(TypeError: .*nonsense")
    refused(on(Backend.own, dtype="float16"), "mean nothing to backend: own; leave them empty")
    refused(
        replace(on(Backend.hf), precision=Precision.nf4), "precision nf4 of models/base is for backend own"
    )
    refused(
        on(Backend.completions, base_url="http://127.0.0.1:9/v1/completions", **once),
        r"back end completions of models/base failed \(ConnectionError: ",
    )
    monkeypatch.setattr(server, "failure", 503)
    refused(on(Backend.completions, base_url=server.url, **once), r"failed \(HTTPError: 503")
    long = replace(CFG, prompt=replace(CFG.prompt, system="word " * 400))
    refused(
        on(Backend.completions, base_url=server.url, **once),
        r"a prompt of \d+ tokens does not fit the 10\d\d",
        long,
    )


@pytest.mark.parametrize("backend", [Backend.vllm, Backend.sglang])
def test_a_back_end_that_is_not_installed_is_one_clear_line(workspace: Path, backend: Backend) -> None:
    if find_spec(backend.name):
        pytest.skip(f"{backend.name} is installed")
    refused(on(backend), f"back end {backend.name} of models/base is not installed .*backend: own")
