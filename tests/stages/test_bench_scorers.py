"""bench's ready scorers: equal to the reference implementations, and named by a task's YAML."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.bench import corpus, evaluation
from stages.bench.__main__ import main
from stages.bench.tasks import scorers
from stages.bench.tasks.rouge import rouge_l, rouge_n
from tests.small_project import HOUSE
from tests.stages.test_bench import direct_nats, items, section, variant

WORDS = [
    "We",
    "are",
    "sorry,",
    "the",
    "router",
    "is",
    "24/7",
    "naïve",
    "-",
    "o'clock",
    "\n",
    "THE",
    "Größe",
    "北京",
    ".",
]
TEXT = st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join)
PAIRS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=8)
LABELS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abcx")), min_size=1, max_size=30)
QUICK = settings(max_examples=60, deadline=None)


def parts(name: str, pairs: list[tuple[str, str]]) -> list[corpus.Parts]:
    return [corpus.translation_parts(name, output, [target])[1] for target, output in pairs]


@given(PAIRS)
@QUICK
def test_bleu_and_chrf_are_sacrebleus(pairs: list[tuple[str, str]]) -> None:
    import sacrebleu

    targets, outputs = zip(*pairs, strict=True)
    for name, whole, single in (
        ("bleu", sacrebleu.corpus_bleu, sacrebleu.sentence_bleu),
        ("chrf", sacrebleu.corpus_chrf, sacrebleu.sentence_chrf),
    ):
        assert corpus.value(name, parts(name, pairs)) == pytest.approx(
            whole(outputs, [targets]).score, abs=1e-9
        )
        own = corpus.translation_parts(name, outputs[0], [targets[0]])[0]
        assert own == pytest.approx(single(outputs[0], [targets[0]]).score, abs=1e-9)


@given(TEXT, TEXT)
@QUICK
def test_rouge_is_the_rouge_score_packages(target: str, output: str) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    expected = RougeScorer(["rouge1", "rouge2", "rougeL"]).score(target, output)
    found = (rouge_n(target, output, 1), rouge_n(target, output, 2), rouge_l(target, output))
    assert found == pytest.approx([each.fmeasure for each in expected.values()], abs=1e-12)


@given(LABELS)
@QUICK
def test_macro_f1_is_scikit_learns_over_the_targets_classes(pairs: list[tuple[str, str]]) -> None:
    from sklearn.metrics import f1_score

    targets, outputs = zip(*pairs, strict=True)
    expected = f1_score(targets, outputs, average="macro", labels=sorted(set(targets)), zero_division=0)
    cells = [corpus.label_parts(target, output) for target, output in pairs]
    assert corpus.value("f1_macro", cells) == pytest.approx(expected, abs=1e-12)
    assert [corpus.cell(key) for each in cells for key in each] == pairs


@pytest.mark.parametrize("name", ["bleu", "f1_macro"])
def test_the_interval_is_that_of_drawn_items_and_of_the_seed(name: str) -> None:
    """Each draw's value from the sums equals the value of the drawn items themselves, so the interval is theirs."""
    draw = random.Random(4)
    pairs = [
        (target, target if draw.random() < 0.6 else draw.choice("abx"))
        for target in draw.choices("abc", k=40)
    ]
    if name == "bleu":
        pairs = [(" ".join(draw.choices(WORDS, k=9)), " ".join(draw.choices(WORDS, k=9))) for _ in range(40)]
        pairs = [(target, target[:30] + output[30:]) for target, output in pairs]
    added = parts(name, pairs) if name == "bleu" else [corpus.label_parts(*pair) for pair in pairs]
    found = corpus.summary(name, added, 3)
    rng = np.random.default_rng(3)
    drawn = [rng.integers(0, 40, 40) for _ in range(corpus.RESAMPLES)]
    values = [corpus.value(name, [added[at] for at in places]) for places in drawn[:100]]
    keys, matrix = corpus.table(added)
    sums = np.array([matrix[places].sum(0) for places in drawn])
    assert corpus.values(name, keys, sums)[:100] == pytest.approx(values)
    lo, hi = np.percentile(corpus.values(name, keys, sums), [2.5, 97.5])
    assert (found["lo"], found["hi"], found["n"]) == pytest.approx((lo, hi, 40))
    assert found["lo"] < found["value"] == corpus.value(name, added) < found["hi"]
    assert found == corpus.summary(name, added, 3) != corpus.summary(name, added, 4)


def test_a_function_that_nothing_is_known_of_gets_an_interval_or_is_left_out() -> None:
    found = corpus.other(lambda items: sorted(items)[len(items) // 2], [float(n) for n in range(30)], 1)
    assert found is not None and found["lo"] < found["value"] == 15.0 < found["hi"] and found["n"] == 30
    assert corpus.other(lambda items: math.nan, [1.0], 1) is None


def test_draws_that_such_a_function_fails_on_do_not_count() -> None:
    """One class of four items is missing in a third of the draws, and a function may count on all being there."""

    def least(items: list[str]) -> float:
        return min(items.count(kind) / (kind in items) for kind in ("a", "b"))

    found = corpus.other(least, ["a", "b", "b", "b"], 1)
    assert found is not None and 1.0 <= found["lo"] <= found["value"] == 1.0 <= found["hi"] <= 2.0
    with pytest.raises(ZeroDivisionError):
        corpus.other(least, ["a", "a"], 1)


SCHEMA = {
    "type": "object", "required": ["intent"], "additionalProperties": False,
    "properties": {"intent": {"enum": ["refund", "order"]}, "score": {"type": "number"}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "fits"),
    [
        ('{"intent": "refund"}', True),
        (' {"intent": "order", "score": 1.5}\n', True),
        ('{"intent": "order", "score": NaN}', False),
        ('{"intent": "other"}', False),
        ('{"intent": "order"} and so on', False),
        ("[" * 100000, False),
        ("", False),
    ],
)
def test_an_answer_fits_its_schema_or_not(answer: str, fits: bool) -> None:
    check = scorers.schema("t", [{"metric": "json_schema", "schema": SCHEMA}])
    assert check is not None and check(answer) is fits


def write_task(name: str, rows: list[dict[str, Any]], text: str) -> None:
    folder = Path("data/benchmarks") / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    head = (
        f"task: {name}\nclass: !function stages.bench.tasks.chat.ChatTask\n"
        "custom_dataset: !function stages.bench.tasks.chat.fields\n"
        f"dataset_kwargs: {{path: data/benchmarks/{name}/test.jsonl}}\n"
    )
    Path(f"tasks/{name}.yaml").write_text(head + text + "metadata: {version: 1.0}\n")


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("tasks").mkdir()
    monkeypatch.setattr(evaluation, "TASKS", Path("tasks").resolve())
    return tmp_path


ROWS = [
    {"text": "wo ist es?", "language": "German", "number": "about 7", "style": "terse"},
    {"text": "where is it?", "language": "English", "number": "1,007", "style": "chatty"},
    {"text": "the router is on", "language": "English", "number": "-2", "style": "terse"},
]
GENERATED = """
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "{{language}} {{number}}"
generation_kwargs: {do_sample: false, max_gen_toks: 6}
metric_list: [{metric: exact_match}, {metric: numeric_match}, {metric: f1_macro}, {metric: bleu}, {metric: chrf},
  {metric: rouge_1}, {metric: rouge_2}, {metric: rouge_l}, {metric: json_schema, schema: {type: string}}]
"""
CHOSEN = """
output_type: multiple_choice
description: You name the language of a text.
doc_to_text: "Which language? {{text}}"
doc_to_target: language
doc_to_choice: [German, English]
metric_list: [{metric: acc}, {metric: acc_norm}, {metric: f1_macro}]
"""
LIKELY = """
output_type: {kind}
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{language}}}} {{{{text}}}}"
metric_list: [{{metric: perplexity}}, {{metric: bits_per_byte}}]
"""


def rendered(model: Path, turns: list[dict[str, str]]) -> str:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


def test_a_yaml_names_its_scorers_and_each_is_the_reference_on_what_the_model_wrote(
    workspace: Path, tiny_model: Path
) -> None:
    import sacrebleu
    from sklearn.metrics import f1_score

    write_task("written", ROWS, GENERATED)
    write_task("chosen", [{"id": f"r{at}"} | row for at, row in enumerate(ROWS)], CHOSEN)
    metrics = main(section("written", "chosen"), "base", variant(tiny_model))
    chosen, written = items()[:3], items()[3:]
    outputs, targets = ([row[side] for row in written] for side in ("output", "target"))
    assert targets == ["German about 7", "English 1,007", "English -2"]
    assert metrics["written/bleu"]["value"] == pytest.approx(sacrebleu.corpus_bleu(outputs, [targets]).score)
    assert metrics["written/chrf"]["value"] == pytest.approx(sacrebleu.corpus_chrf(outputs, [targets]).score)
    assert {row["id"] for row in chosen} == {"r0", "r1", "r2"} and written[0]["id"] == "0000000"
    answers = [row["output"] for row in chosen]
    prompt = [{"role": "system", "content": "You name the language of a text."}]
    for row, source in zip(chosen, ROWS, strict=True):
        asked = rendered(
            tiny_model, [*prompt, {"role": "user", "content": f"Which language? {source['text']}"}]
        )
        nats = [direct_nats(tiny_model, asked, choice) for choice in ("German", "English")]
        assert row["loglikelihoods"] == pytest.approx(nats, abs=1e-3)
        assert row["scores"]["acc"] == row["scores"]["f1_macro_item"] == float(row["output"] == row["target"])
    golds = [row["target"] for row in chosen]
    assert golds == ["German", "English", "English"]
    expected = f1_score(golds, answers, average="macro", labels=sorted(set(golds)), zero_division=0)
    assert metrics["chosen/f1_macro"]["value"] == pytest.approx(expected)
    assert all(each["n"] == 3 for name, each in metrics.items() if "style" not in name)
    assert {"written/bleu_item", "written/bleu_item/style:gap", "written/json_schema"} <= set(metrics)
    assert main(section("written", "chosen"), "again", variant(tiny_model)) == metrics
    assert Path("data/results/again.parquet").read_bytes() == Path("data/results/base.parquet").read_bytes()


@pytest.mark.parametrize(
    ("told", "stops", "most"),
    [
        ("until: two words, max_new_tokens: 3", ["<|end|>", "two words"], 3),
        ("until: [a, b], max_tokens: 4", ["<|end|>", "a", "b"], 4),
        ("max_gen_toks: 5", ["<|end|>"], 5),
        ("do_sample: false", ["<|end|>"], 12),
    ],
)
def test_a_yaml_says_where_an_answer_ends_by_any_of_lm_evals_names(
    workspace: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, told: str, stops: list[str], most: int
) -> None:
    from stages.bench.generation import Generation

    def watch(self: Generation, prompts: Any, *given: Any) -> list[list[int]]:
        assert given[:2] == (stops, most)
        return [[65] for _ in prompts]

    monkeypatch.setattr(Generation, "complete", watch)
    plain = "{do_sample: false, max_gen_toks: 6}"
    assert plain in GENERATED
    write_task("written", ROWS, GENERATED.replace(plain, f"{{{told}}}"))
    main(section("written"), "base", variant(tiny_model))


def test_perplexity_and_bits_per_byte_are_computed_from_logits(workspace: Path, tiny_model: Path) -> None:
    write_task("answers", ROWS, LIKELY.format(kind="loglikelihood"))
    write_task("texts", ROWS, LIKELY.format(kind="loglikelihood_rolling"))
    metrics = main(section("answers", "texts"), "base", variant(tiny_model))
    targets = [f"{row['language']} {row['text']}" for row in ROWS]
    prompts = {
        "answers": [rendered(tiny_model, [{"role": "user", "content": row["text"]}]) for row in ROWS],
        "texts": ["<|bos|>"] * 3,
    }
    size = sum(
        len(target.encode()) for target in targets
    )  # byte-level tokenizer without merges: a token is a byte
    for task, asked in prompts.items():
        nats = -sum(direct_nats(tiny_model, *pair) for pair in zip(asked, targets, strict=True))
        assert metrics[f"{task}/perplexity"]["value"] == pytest.approx(math.exp(nats / size), rel=1e-4)
        assert metrics[f"{task}/bits_per_byte"]["value"] == pytest.approx(nats / size / math.log(2), rel=1e-4)
        found = metrics[f"{task}/perplexity"]
        assert found["lo"] < found["value"] < found["hi"] and found["n"] == 3
    assert items()[0]["scores"].keys() == {"perplexity_item", "bits_per_byte_item"}


def test_the_documented_task_runs_and_prepare_marks_its_items(workspace: Path, tiny_model: Path) -> None:
    shutil.copy(HOUSE / "docs/task.yaml", "tasks/ticket_language.yaml")
    Path("data/benchmarks/ticket_language").mkdir(parents=True)
    rows = [
        {"id": at, "text": row["text"], "language": row["language"]}
        for at, row in enumerate([*ROWS, ROWS[0]])
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    Path("data/benchmarks/ticket_language/test.jsonl").write_text(text)
    line = {"benchmark": "ticket_language", "item": "1", "clean": False, "rows": 1, "rows_removed": 0}
    Path("data/prepared").mkdir()
    Path("data/prepared/items.jsonl").write_text(json.dumps(line) + "\n")
    metrics = main(section("ticket_language"), "base", variant(tiny_model))
    assert metrics["ticket_language/exact_match"]["n"] == metrics["ticket_language/f1_macro"]["n"] == 4
    assert metrics["ticket_language/exact_match/clean"]["n"] == 3
    assert [row["clean"] for row in items()] == [True, False, True, True]
    drawn = Path("reports/confusion/base/ticket_language.csv").read_text().splitlines()
    assert drawn[0] == "actual,predicted" and [line.split(",")[0] for line in drawn[1:]] == [
        "German", "English", "English", "German",
    ]  # fmt: skip


def swap(old: str, new: str) -> Callable[[], None]:
    path = Path("tasks/chosen.yaml")
    return lambda: path.write_text(path.read_text().replace(old, new)) and None


def rows_are(*rows: Any) -> Callable[[], None]:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    return lambda: Path("data/benchmarks/chosen/test.jsonl").write_text(text) and None


def beside() -> None:
    Path("data/benchmarks/chosen/more.jsonl").write_text("{}\n")


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (swap("acc_norm", "acc_nrom"), "chosen: unknown scorer 'acc_nrom'.*for multiple_choice: acc, acc_norm, f1"),
        (swap("acc_norm", "bleu"), "unknown scorer 'bleu'"),
        (swap("[{metric: acc}, ", "[acc, "), r"metric_list is \['acc', .* it wants a list of scorers"),
        (swap("[{metric: acc}, ", "{metric: acc} #"), r"metric_list is \{'metric': 'acc'\}: it wants a list"),
        (swap("{metric: acc}", "{metric: acc, hf_evaluate: true}"), "scorer acc has no option hf_evaluate"),
        (swap("metric: f1_macro", "metric: f1_macro, aggregation: mean"), "f1_macro knows its aggregation"),
        (swap("output_type: multiple_choice", "output_type: multiple"), "output_type 'multiple' has no ready scorers"),
        (swap("class:", "klass:"), "it has to say `task: chosen` and `class: !function"),
        (swap("output_type: multiple_choice", ""), "chosen.yaml: it has to say `output_type`"),
        (swap("{{text}}", "{{txt}}"), r"chosen of bench.tasks \(.*chosen.yaml\): a template does not fit .*'txt'"),
        (swap("doc_to_text", "doc_to_txt"), r"chosen of bench.tasks \(.*chosen.yaml\): .*TypeError: .*'doc_to_txt'"),
        (swap("{{text}}", "{{text + 1}}"), r"chosen of bench.tasks \(.*chosen.yaml\): .*TypeError: .*concatenate"),
        (swap("[German, English]", "'{{text}}'"), r"chosen of bench.tasks \(.*chosen.yaml\): .*SyntaxError: invalid"),
        (swap("target: language", "target: 7"), r"chosen of bench.tasks \(.*chosen.yaml\): .*IndexError: list index"),
        (swap("target: language", "target: right"), "item t3 of chosen: doc_to_target says choice 2, .* there are 2"),
        (swap("output_type", "num_fewshot: 2\noutput_type"), "chosen: num_fewshot has no effect on a task that asks"),
        (swap("output_type", "gen_prefix: So\noutput_type"), "chosen: gen_prefix has no effect"),
        (swap("path: data/benchmarks/chosen", "path: data/raw/chosen"), "a task's data lies in data/benchmarks/"),
        (swap("test.jsonl", "none.jsonl"), "no test rows at data/benchmarks/chosen/none.jsonl"),
        (rows_are(), "chosen/test.jsonl holds no rows"),
        (rows_are([1]), "test.jsonl:1: not a JSON object"),
        (rows_are({"id": 1}, {"id": "1"}), "id '1' stands there twice"),
        (rows_are({"text": 1}, {"text": "a"}), "a field has values of several kinds"),
        (beside, "is not alone: one data file a folder"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_task_is_one_line(
    workspace: Path, tiny_model: Path, break_it: Callable[[], None], said: str
) -> None:
    write_task("chosen", [row | {"id": f"t{n}", "right": n - 1} for n, row in enumerate(ROWS, 1)], CHOSEN)
    break_it()
    with pytest.raises(ValueError, match=said) as caught:
        evaluation.evaluate(section("chosen"), NoModel())
    assert "\n" not in str(caught.value)


def test_a_bug_of_ours_and_what_fails_in_a_model_are_no_mistakes_in_a_task(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_task("chosen", ROWS, CHOSEN)
    with monkeypatch.context() as patch, pytest.raises(TypeError, match="argument"):
        patch.setattr(scorers, "label", lambda: None)
        evaluation.evaluate(section("chosen"), NoModel())
    with pytest.raises(KeyError, match="weights"):
        monkeypatch.setattr(NoModel, "loglikelihood", lambda *_: {}["weights"])
        evaluation.evaluate(section("chosen"), NoModel())


class NoModel:
    """Knows nothing: all is as likely."""

    source, end, speaks = "none", "<|end|>", True
    rank, world_size, responses = 0, 1, None

    def __init__(self) -> None:
        self.rendered: set[str] = set()
        self.template = self

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        return [(-1.0, False)] * len(requests)

    def asked(self, turns: list[dict[str, str]], tools: Any = None) -> str:
        return str(turns)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"metric": "json_schema"}, "json_schema wants the schema itself"),
        ({"metric": "json_schema", "schema": {"type": "strange"}}, "json_schema's schema is none"),
        (
            {"metric": "json_schema", "schema": {"$ref": "https://example.org/x"}},
            "json_schema's schema is not whole",
        ),
        ({"metric": "json_schema", "schema": {"pattern": "("}}, "json_schema's schema is"),
    ],
)
def test_a_schema_that_is_none_is_refused_and_nothing_is_fetched(entry: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        _, ours = scorers.entries("t", "generate_until", [entry])
        check = scorers.schema("t", ours)
        assert check is not None and check('"a"')
