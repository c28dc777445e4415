"""bench's confusion tables: which fields are classified, what each file says, and that DVC draws it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from stages.bench.confusion import MOST, NONE, OTHER, confusions, write
from stages.bench.corpus import label_parts
from stages.bench.results import Row
from tests.small_project import HOUSE, make_project


def row(task: str, number: int, target: str, output: str, **changes: Any) -> Row:
    made = {
        "task": task, "id": f"{number:04d}", "slices": {}, "prompt_hash": "", "output": output, "target": target,
        "scores": {}, "parts": {}, "loglikelihoods": [], "clean": True,
    }  # fmt: skip
    return Row(**(made | changes))  # type: ignore[typeddict-item]


def triage(intent: str, product: str) -> str:
    return json.dumps({"intent": intent, "product": product, "count": 1}) + "\nWe are sorry."


def test_each_field_of_a_json_answer_has_a_table() -> None:
    answers = [
        triage("refund", "router"),
        triage("order", "modem"),
        triage("nonsense", "router"),
        "prose",
        "[" * 9999,
    ]
    rows = [
        row("t", at, triage("refund" if at % 2 else "order", "router"), answers[at % 5]) for at in range(10)
    ]
    found = confusions(rows, ["t"])
    assert set(found) == {"t.intent"}  # the product is always the same, and a count is no class
    actual = ["refund" if at % 2 else "order" for at in range(10)]
    assert found["t.intent"] == list(zip(actual, ["refund", "order", OTHER, NONE, NONE] * 2, strict=True))


def test_a_choice_between_few_answers_has_one_and_says_only_what_differs() -> None:
    texts = [f'{{"intent": "{intent}",' for intent in ("order", "other order", "refund")]
    rows = [row("t", at, texts[at % 3], texts[at % 2], loglikelihoods=[-1.0, -2.0, -3.0]) for at in range(6)]
    names = ["order", "other order", "refund"]
    assert confusions(rows, ["t"])["t"] == [(names[at % 3], names[at % 2]) for at in range(6)]


def test_macro_f1s_labels_have_one() -> None:
    pairs = [("a", "a"), ("b", "a"), ("a", "x"), ("b", "b")]
    rows = [row("t", at, "", "", parts={"f1_macro": label_parts(*pair)}) for at, pair in enumerate(pairs)]
    assert confusions(rows, ["t"]) == {"t": [("a", "a"), ("b", "a"), ("a", OTHER), ("b", "b")]}


def test_what_is_no_classification_has_none() -> None:
    many = [row("m", at, f"{at % (MOST + 1)}", "0", loglikelihoods=[-1.0, -2.0]) for at in range(4 * MOST)]
    once = [row("o", at, f"{at}", "0", loglikelihoods=[-1.0, -2.0]) for at in range(9)]
    prose = [row("p", at, "yes\n", "no") for at in range(9)]
    member = [row("mmlu_anatomy", at, "AB"[at % 2], "A", loglikelihoods=[-1.0, -2.0]) for at in range(9)]
    loss = [row("l", at, triage("a" if at % 2 else "b", "c"), "", loglikelihoods=[-1.0]) for at in range(9)]
    rows = [*many, *once, *prose, *member, *loss]
    assert confusions(rows, ["m", "o", "p", "l", "mmlu", "absent"]) == {}


def test_files_are_those_of_this_run_and_equal_for_equal_rows(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base/old.csv").write_text("x")
    write(tmp_path / "base", {"t.intent": [("a, b", "a"), ('"c"', NONE)]})
    [file] = (tmp_path / "base").iterdir()
    assert file.read_text() == 'actual,predicted\n"a, b",a\n"""c""",(none)\n'
    write(tmp_path / "base", {})
    assert list((tmp_path / "base").iterdir()) == []


def declared() -> dict[str, Any]:
    stage = yaml.safe_load((HOUSE / "dvc.yaml").read_text(encoding="utf-8"))["stages"]["bench"]["do"]
    [plot] = stage["plots"]
    return dict(plot["reports/confusion/${key}"])


def test_dvc_draws_a_matrix_for_each_file_as_dvc_yaml_declares_it(tmp_path: Path) -> None:
    """The counts stand in the page's data, one record an item, under the template that draws squares."""
    project = make_project(tmp_path / "p")
    stages = {"stages": {"bench": {"cmd": "true", "plots": [{"reports/confusion/base": declared()}]}}}
    (project.root / "dvc.yaml").write_text(yaml.safe_dump(stages))
    write(project.root / "reports/confusion/base", {
        "t.intent": [("refund", "order"), ("order", "order")] * 2, "t.product": [("router", "modem")],
    })  # fmt: skip
    said = project.dvc("plots", "show", "--json")
    told = json.JSONDecoder().raw_decode(said[said.index("{") :])[0]["data"]
    assert {Path(name).name for name in told} == {"t.intent.csv", "t.product.csv"}
    [drawn] = next(value for name, value in told.items() if name.endswith("t.intent.csv"))
    points = [(each["actual"], each["predicted"]) for each in drawn["content"]["data"]["values"]]
    assert points == [("refund", "order"), ("order", "order")] * 2
    assert '"rect"' in json.dumps(drawn["content"])
