"""bench: what is sent to the model, what each item scores, and that likelihoods are the model's own."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stages.bench.__main__ import main
from stages.bench.config import Backend, Bench, Code, Precision, Variant
from stages.bench.evaluation import evaluate
from stages.bench.results import interval
from stages.bench.tasks.rouge import rouge_l
from stages.bench.tasks.scoring import final_number, gsm8k, triage
from stages.common.prompt import Example, Message, Prompt, with_prompt
from tests.small_project import HOUSE

FIELDS = {"intent": "refund", "product": "router", "priority": "high", "sentiment": "negative"}
REPLY = "We are sorry. Send it back to us."


def answer(reply: str = REPLY, **changes: str) -> str:
    return json.dumps(FIELDS | changes) + "\n" + reply


def row(number: int, turns: list[Message], target: str, style: str = "terse") -> dict[str, Any]:
    messages = [*turns, {"role": "assistant", "content": target}]
    return {"id": f"t{number}", "messages": messages, "meta": {"style": style}}


ROWS = [
    row(3, [{"role": "user", "content": "the router is broken, give me my money"}], answer()),
    row(1, [{"role": "user", "content": "wo ist mein Paket? ☂"}], answer("On its way.", intent="order")),
    row(
        2,
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "Hello, what is wrong?"},
            {"role": "user", "content": "my bill"},
        ],
        answer(intent="billing"),
        "chatty",
    ),
]
IDS = ("t1", "t2", "t3")
NO_CODE = Code(run=False, wall=30, cpu=3, memory=1 << 30, processes=8, file_bytes=8 << 20)
PROMPT = Prompt("p", "You triage.", [Example("one", answer("Done.")), Example("two", "unused")], 12)


def section(*tasks: str, limit: int = 0, prompt: Prompt = PROMPT, fewshot: int = 1) -> Bench:
    return Bench(7, 2, "sample", list(tasks), limit, 2, 256, prompt, fewshot, True, ["style"], NO_CODE)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(ROWS)
    return tmp_path


def write(rows: list[dict[str, Any]]) -> None:
    path = Path("data/prepared/test.jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def items(name: str = "base") -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(f"data/results/{name}.parquet").to_pylist()
    return [row | {name: json.loads(row[name]) for name in ("scores", "slices")} for row in rows]


def variant(model: Path) -> Variant:
    return Variant(str(model), "", Precision.fp32, Backend.own, {})


def direct_nats(model: Path, prompt: str, target: str) -> float:
    """Log-likelihood of `target` after `prompt`, by one unpadded, unbatched forward pass."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    head = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    ids = tokenizer(prompt + target, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(model)(torch.tensor([ids])).logits[0]
    likely = torch.log_softmax(logits, -1)
    return float(sum(likely[at - 1, ids[at]] for at in range(len(head), len(ids))))


def rendered(model: Path, row: dict[str, Any]) -> str:
    """The string that the prepare stage and production ask with."""
    from transformers import AutoTokenizer

    one_shot = Prompt(PROMPT.name, PROMPT.system, PROMPT.examples[:1], PROMPT.max_new_tokens)
    turns = with_prompt(one_shot, row["messages"][:-1], examples=True)
    tokenizer = AutoTokenizer.from_pretrained(model)
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


def test_what_is_sent_is_the_chat_templates_string_and_special_tokens_come_once(
    workspace: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stages.bench.generation import Generation
    from stages.bench.model import Scorer

    sent: dict[str, list[str]] = {"generate_until": [], "loglikelihood": []}
    fed: list[list[int]] = []
    for kind in sent:
        real = getattr(Scorer, kind)

        def spy(self: Scorer, requests: list[Any], kind: str = kind, real: Any = real) -> Any:
            sent[kind] += [request.args[0] for request in requests]
            return real(self, requests)

        monkeypatch.setattr(Scorer, kind, spy)
    complete = Generation.complete

    def watch(self: Generation, prompts: Any, stops: list[str], most: int, seen: Any) -> Any:
        fed.extend(prompts)
        assert self.ends == {self.tokenizer.convert_tokens_to_ids("<|end|>")}
        assert stops == ["<|end|>"] and most == PROMPT.max_new_tokens
        return complete(self, prompts, stops, most, seen)

    monkeypatch.setattr(Generation, "complete", watch)
    main(section("helpdesk_triage", "heldout_loss"), "base", variant(tiny_model))

    expected = [rendered(tiny_model, row) for row in ROWS]
    assert sent["generate_until"] == sent["loglikelihood"] == expected
    assert "You triage." in expected[0] and "You triage." not in expected[2] and "unused" not in expected[0]
    bos = 256
    assert sorted(line.count(bos) for line in fed) == [1, 1, 1] and all(line[0] == bos for line in fed)


def test_every_item_has_a_row_with_the_models_own_greedy_answer(workspace: Path, tiny_model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    metrics = main(section("helpdesk_triage", "heldout_loss", "helpdesk_intent"), "base", variant(tiny_model))
    found = items()
    assert [(row["task"], row["id"]) for row in found] == [
        (task, item) for task in ("heldout_loss", "helpdesk_intent", "helpdesk_triage") for item in IDS
    ]
    assert [row["slices"] for row in found[:3]] == [{"style": each} for each in ("terse", "chatty", "terse")]
    assert [len(row["loglikelihoods"]) for row in found] == [1, 1, 1, 3, 3, 3, 0, 0, 0]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    by_id = {row["id"]: row for row in ROWS}
    for item in found[6:]:
        text = rendered(tiny_model, by_id[item["id"]])
        prompt = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        with torch.no_grad():
            out = model.generate(**prompt, do_sample=False, max_new_tokens=12)[0]
        out = out[prompt["input_ids"].shape[1] :]
        assert item["output"] == tokenizer.decode(out, skip_special_tokens=True)
        assert item["scores"] == triage({"id": "x", "target": item["target"]}, [item["output"]])
    fields = [item["scores"]["fields"] for item in found[6:]]
    assert metrics["helpdesk_triage/fields"] == interval(fields, 7)


def test_likelihoods_are_those_of_a_direct_computation(workspace: Path, tiny_model: Path) -> None:
    metrics = main(section("heldout_loss", "helpdesk_intent"), "base", variant(tiny_model))
    found = items()
    by_id = {row["id"]: row for row in ROWS}
    for item in found[:3]:
        target = by_id[item["id"]]["messages"][-1]["content"]
        nats = direct_nats(tiny_model, rendered(tiny_model, by_id[item["id"]]), target)
        size = len(target.encode())  # byte-level tokenizer without merges: a token is a byte
        assert item["scores"]["nll_per_byte"] == pytest.approx(-nats / size, abs=1e-4)
        assert item["scores"]["nll_per_token"] == pytest.approx(-nats / size, abs=1e-4)
    mean = sum(item["scores"]["nll_per_token"] for item in found[:3]) / 3
    assert metrics["heldout_loss/perplexity"]["value"] == pytest.approx(math.exp(mean))
    for item in found[3:]:
        prompt = rendered(tiny_model, by_id[item["id"]])
        choices = [f'{{"intent": "{intent}",' for intent in ("billing", "order", "refund")]
        best = max(choices, key=lambda choice: direct_nats(tiny_model, prompt, choice))
        assert item["output"] == best
        assert item["scores"] == {"acc": float(best == item["target"])}


def test_two_runs_write_equal_bytes_and_limit_takes_the_first_rows(workspace: Path, tiny_model: Path) -> None:
    cfg = section("helpdesk_triage", "heldout_loss", limit=2)
    assert main(cfg, "a", variant(tiny_model)) == main(cfg, "b", variant(tiny_model))
    assert Path("data/results/a.parquet").read_bytes() == Path("data/results/b.parquet").read_bytes()
    assert {item["id"] for item in items("a")} == {"t1", "t3"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (answer(), {"fields": 1.0, "all_fields": 1.0, "valid_json": 1.0, "rouge_l": 1.0}),
        (answer(priority="low"), {"priority": 0.0, "intent": 1.0, "fields": 0.75, "all_fields": 0.0}),
        ('{"intent": "refund"}\nWe are', {"fields": 0.25, "valid_json": 0.0, "rouge_l": 0.4}),
        (REPLY, {"fields": 0.0, "valid_json": 0.0, "rouge_l": 1.0}),
        ('{"intent": "refund", "product"', {"fields": 0.0, "valid_json": 0.0, "rouge_l": 0.0}),
        ("[" * 100000, {"fields": 0.0, "valid_json": 0.0}),
        ("", {"fields": 0.0, "valid_json": 0.0, "rouge_l": 0.0}),
    ],
)
def test_triage_scores_by_hand(given: str, expected: dict[str, float]) -> None:
    scores = triage({"id": "t", "target": answer()}, [given])
    assert {name: scores[name] for name in expected} == pytest.approx(expected)


def test_rouge_equals_the_rouge_score_package() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    random.seed(3)
    scorer = RougeScorer(["rougeL"])
    words = ["We", "are", "sorry,", "the", "router", "is", "24/7", "naïve", "-", "o'clock", "\n", "THE"]
    for _ in range(200):
        a, b = (" ".join(random.choices(words, k=random.randint(0, 12))) for _ in range(2))
        assert rouge_l(a, b) == pytest.approx(scorer.score(a, b)["rougeL"].fmeasure, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 3 + 4\n#### 1,007", "1007"),
        ("it is $18.50.", "18.50"),
        ("a 5, then -2", "-2"),
        ("none", None),
        ("7 #### none", None),
    ],
)
def test_final_number(text: str, number: str | None) -> None:
    assert (str(final_number(text)) if number else final_number(text)) == number


def test_gsm8k_rows_run_and_score_by_number(workspace: Path, tiny_model: Path) -> None:
    write([row(1, [{"role": "user", "content": "3 + 4?"}], "3 + 4 = 7\n#### 7")])
    metrics = main(section("gsm8k_match", "heldout_loss"), "base", variant(tiny_model))
    assert set(metrics) == {
        "gsm8k_match/exact_match",
        *(f"heldout_loss/{name}" for name in ("nll_per_token", "nll_per_byte", "perplexity")),
    }
    assert gsm8k({"id": "x", "target": "#### 7"}, ["so it is 7.0"]) == {"exact_match": 1.0}


def test_intervals_are_wilsons_for_right_and_wrong_and_bootstrapped_otherwise() -> None:
    from stages.common.statistics import bootstrap, wilson

    assert interval([1.0, 0.0, 1.0], 1) == wilson(2, 3)
    assert interval([0.5, 0.0, 1.0], 1) == bootstrap([0.5, 0.0, 1.0], 1)


def test_bad_input_is_one_line_that_says_what_to_do(workspace: Path, tiny_model: Path) -> None:
    def refused(cfg: Bench, chosen: Variant, expected: str) -> None:
        with pytest.raises(ValueError, match=expected) as caught:
            main(cfg, "base", chosen)
        assert "\n" not in str(caught.value)
        assert not Path("data/results/base.parquet").exists()

    cfg, good = section("helpdesk_triage"), variant(tiny_model)
    refused(
        cfg,
        Variant("models/none", "", Precision.fp32, Backend.own, {}),
        "no model folder at 'models/none'.*dvc repro",
    )
    long = Prompt("p", "", [Example("q " * 500, "a")], 12)
    refused(section("helpdesk_triage", prompt=long), good, "tokens does not fit.*lower bench.fewshot")
    refused(section("heldout_loss", prompt=long), good, "tokens does not fit.*lower bench.fewshot")
    write([ROWS[0], ROWS[0]])
    refused(cfg, good, "id 't3' stands there twice")
    write([row(1, [{"role": "user", "content": "3 + 4?"}], "7")])
    refused(section("helpdesk_intent"), good, "row t1: its answer does not begin with a JSON line")
    write([])
    refused(cfg, good, "test.jsonl holds no rows")
    Path("data/prepared/test.jsonl").unlink()
    refused(cfg, good, "no test rows at .*dvc repro prepare")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_size": 0}, r"bench.batch_size=0 \(params.yaml\): give 1 or more"),
        ({"batch_tokens": 0}, "bench.batch_tokens=0"),
        ({"threads": 0}, "bench.threads=0"),
        ({"limit": -1}, "bench.limit=-1 .*: give 0 or more"),
        ({"fewshot": -1}, "bench.fewshot=-1"),
        ({"prompt": replace(PROMPT, max_new_tokens=0)}, "bench.prompt.max_new_tokens=0"),
        ({"code": replace(NO_CODE, cpu=0)}, "bench.code.cpu=0"),
    ],
)
def test_a_number_that_cannot_be_meant_is_one_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        main(replace(section("heldout_loss"), **changes), "base", variant(Path("none")))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_task_of_lm_evals_own_runs_by_name_beside_ours(workspace: Path, tiny_model: Path) -> None:
    """hellaswag's own YAML over rows where the hub's would be; prepare has found a training row that overlaps one."""
    doc = {"activity_label": "Cooking", "ctx_b": "he", "label": "2", "endings": ["eats.", "runs.", "cooks."]}
    Path("rows").mkdir()
    for split in ("train", "validation"):
        docs = [json.dumps(doc | {"ctx_a": f"A man has {number}."}) + "\n" for number in range(3)]
        Path(f"rows/{split}.jsonl").write_text("".join(docs))
    env = os.environ | {"PYTHONPATH": str(HOUSE)}
    command = [sys.executable, "-m", "ops.snapshot", "--task", "hellaswag", "--from", "rows"]
    subprocess.run(command, check=True, env=env, cwd=workspace)
    line = {"benchmark": "hellaswag", "item": "0000001", "clean": False, "rows": 1, "rows_removed": 0}
    Path("data/prepared/items.jsonl").write_text(json.dumps(line) + "\n")
    metrics = main(section("hellaswag", "heldout_loss", limit=2), "base", variant(tiny_model))
    assert metrics["hellaswag/acc"]["n"] == metrics["heldout_loss/nll_per_byte"]["n"] == 2
    assert metrics["hellaswag/acc/clean"]["n"] == 1 and "heldout_loss/nll_per_byte/clean" not in metrics
    found = [item for item in items() if item["task"] == "hellaswag"]
    assert [(item["id"], item["clean"]) for item in found] == [("0000000", True), ("0000001", False)]
    assert found[0]["target"] == "cooks." and set(found[0]["scores"]) == {"acc", "acc_norm"}
    with pytest.raises(ValueError, match=r"no snapshot of task helaswag at data/benchmarks/helaswag"):
        main(section("helaswag"), "base", variant(tiny_model))
    with pytest.raises(
        ValueError, match=r"unknown task in bench.tasks: 'heldout_los' \(did you mean heldout_loss\?\)"
    ):
        main(section("heldout_los"), "base", variant(tiny_model))
    Path("data/benchmarks/hellaswag/validation.parquet").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"hellaswag.*validation.parquet"):
        main(section("hellaswag"), "base", variant(tiny_model))


def test_an_answer_or_question_without_a_token_is_refused(tiny_model: Path) -> None:
    """Its score would be its neighbour's."""
    from lm_eval.api.instance import Instance

    from stages.bench.model import Scorer

    scorer = Scorer(section("heldout_loss"), variant(tiny_model))

    def refused(asked: tuple[str, str], expected: str) -> None:
        with pytest.raises(ValueError, match=expected) as caught:
            scorer.loglikelihood(
                [
                    Instance("loglikelihood", {}, text, 0, ("t", 0, 1))
                    for text in (("a", "b"), asked, ("a", "c"))
                ]
            )
        assert "\n" not in str(caught.value)

    refused(("is it?", ""), r"an answer after 'is it\?' has no token of its own: .*doc_to_choice")
    refused(("", ""), r"an answer after '<\|bos\|>' has no token of its own")
    refused((" ", "yes"), "no token stands before the answer ' yes': the question is blank")
    with pytest.raises(ValueError, match="no token stands before the answer '': the question is blank"):
        scorer.generate_until(
            [Instance("generate_until", {}, (text, {}), 0, ("t", 0, 1)) for text in ("a", "")]
        )


@pytest.mark.parametrize("task", ["helpdesk_triage", "heldout_loss"])
def test_a_model_of_nan_is_refused(workspace: Path, tiny_model: Path, task: str) -> None:
    from safetensors.torch import load_file, save_file

    broken = workspace / "models" / "tuned"
    shutil.copytree(tiny_model, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = math.nan
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="models/tuned computes NaN"):
        main(section(task), "tuned", variant(broken))


def test_our_own_tasks_need_a_chat_template_and_others_are_asked_without(
    workspace: Path, tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = workspace / "plain"
    shutil.copytree(tiny_model, plain)
    (plain / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="plain has no chat template, and heldout_loss asks through it"):
        main(section("heldout_loss"), "base", variant(plain))
    assert "plain has no chat template: in spite of bench.chat_template=true" in caplog.text


def test_the_other_side_of_the_benchmark_answers_the_same(workspace: Path, tiny_model: Path) -> None:
    """benchmarks/bench has lm-eval's class asked by `evaluate`, which may come to ask more of a model."""
    from benchmarks.bench.__main__ import hf, scorer

    cfg = section("heldout_loss", "helpdesk_triage", "helpdesk_intent")
    theirs, ours = (evaluate(cfg, model)["samples"] for model in (hf(tiny_model, 2), scorer(tiny_model, cfg)))
    for task in cfg.tasks:
        for one, two in zip(theirs[task], ours[task], strict=True):
            assert (one["doc_id"], one["prompt_hash"]) == (two["doc_id"], two["prompt_hash"])
            assert len(one["filtered_resps"]) == len(two["filtered_resps"]) > 0


def test_kept_templates_render_as_fresh_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    from jinja2 import Environment, UndefinedError
    from lm_eval import utils

    from stages.bench.evaluation import compile_templates_once

    monkeypatch.setattr(utils.env, "from_string", None)
    monkeypatch.setattr(utils.env, "globals", dict(utils.env.globals))
    compile_templates_once()
    document = {"q": "a\nb", "choices": ["x", "y"], "range": 3}
    texts = [
        "{{q}}\n",
        "{% set n = namespace(i=0) %}{% for c in choices %}{% set n.i = n.i + 1 %}{{n.i}}{{c}}{% endfor %}",
        "{{choices}}{{range}}{{q|regex_replace('a', 'c')}}",
    ]
    for text in [*texts, *texts]:
        assert utils.apply_template(text, document) == Environment.from_string(utils.env, text).render(
            document
        )
    assert utils.apply_template("{{range(2)|list}}", {}) == "[0, 1]", "a document's names stay its own"
    with pytest.raises(UndefinedError):
        utils.apply_template("{{q}}{{late}}", document)
    utils.env.globals["late"] = "later"
    assert utils.apply_template("{{q}}{{late}}", document) == "a\nblater"
