"""Problems of ours in the form in which HumanEval and MBPP are published, and bench on answers that are given."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ops import snapshot as making
from stages.bench.config import Backend, Bench, Code, Precision, Variant
from stages.bench.modules import module_file
from stages.common.files import write_jsonl
from stages.common.prompt import Prompt

CODE = Code(run=True, wall=20, cpu=1, memory=1 << 30, processes=8, file_bytes=8 << 20)
# name, arguments, what it does, its body, calls and what they give, and one operator to change
PROBLEMS: list[tuple[str, str, str, str, dict[str, Any], tuple[str, str]]] = [
    ("stock_left", "stock, sold", "What is left of a stock.", "return stock - sold",
     {"(9, 4)": 5, "(0, 3)": -3, "(2, 2)": 0}, ("-", "+")),
    ("longest", "words", "The longest word, the first of several, '' of none.",
     "best = ''\nfor word in words:\n    if len(word) > len(best):\n        best = word\nreturn best",
     {"(['a', 'bcd', 'efg'],)": "bcd", "([],)": "", "(['xy'],)": "xy"}, (">", "<")),
    ("both_even", "a, b", "Whether two numbers are even.", "return a % 2 == 0 and b % 2 == 0",
     {"(2, 4)": True, "(2, 3)": False, "(1, 4)": False}, ("and", "or")),
    ("area", "sides", "Products of pairs of sides.", "return [width * height for width, height in sides]",
     {"([(2, 3)],)": [6], "([],)": [], "([(1, 5), (4, 4)],)": [5, 16]}, ("*", "**")),
]  # fmt: skip


def indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines())


def humaneval_rows() -> list[dict[str, str]]:
    rows = []
    for number, (name, arguments, about, body, calls, _) in enumerate(PROBLEMS):
        asserts = "\n".join(f"assert candidate(*{call}) == {value!r}" for call, value in calls.items())
        rows.append(
            {
                "task_id": f"Ours/{number}",
                "prompt": f'def {name}({arguments}):\n    """ {about}\n    """\n',
                "canonical_solution": indented(body),
                "test": f"\n\nMETADATA = {{}}\n\n\ndef check(candidate):\n{indented(asserts)}",
                "entry_point": name,
            }
        )
    return rows


def mbpp_rows() -> list[dict[str, Any]]:
    return [
        {
            "task_id": number,
            "text": f"Write a function. {about}",
            "code": f"def {name}({arguments}):\n{indented(body)}".replace("\n", "\r\n"),
            "test_list": [f"assert {name}(*{call}) == {value!r}" for call, value in calls.items()],
            "test_setup_code": "",
            "challenge_test_list": [],
        }
        for number, (name, arguments, about, body, calls, _) in enumerate(PROBLEMS, 11)
    ]


def changed(text: str, number: int) -> str:
    """A solution with one operator changed."""
    old, new = PROBLEMS[number][-1]
    assert f" {old} " in text
    return text.replace(f" {old} ", f" {new} ", 1)


def index_of_code_tasks() -> dict[str, Any]:
    """lm-eval's index of three folders: the whole takes ten seconds to read."""
    from lm_eval.tasks import TaskManager

    tasks = module_file("lm_eval.tasks").parent
    folders = [str(tasks / name) for name in ("humaneval", "humaneval_infilling", "mbpp")]
    index: dict[str, Any] = TaskManager(include_path=folders, include_defaults=False).task_index
    return index


def make(task: str, rows: Sequence[dict[str, Any]]) -> None:
    """`python -m ops.snapshot --task ... --from ...` here."""
    write_jsonl(Path(f"in/{task}/test.jsonl"), rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making, "_index", index_of_code_tasks)
        making.main(["--task", task, "--from", f"in/{task}"])


def section(*tasks: str, code: Code = CODE, fewshot: int = 0) -> Bench:
    return Bench(7, 2, "code", list(tasks), 0, 2, 256, Prompt("none", "", [], 64), fewshot, False, [], code)


def variant(model: Path) -> Variant:
    return Variant(str(model), "", Precision.fp32, Backend.own, {})


def answer_with(monkeypatch: pytest.MonkeyPatch, answers: dict[Any, str | list[str]]) -> dict[str, list[str]]:
    """Have the model answer an item by its task_id, from a list in turn; returns what it is asked, by task."""
    from stages.bench.model import Scorer

    turns = {
        key: itertools.cycle([given] if isinstance(given, str) else given) for key, given in answers.items()
    }
    asked = defaultdict(list)

    def generate_until(_: Scorer, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        for request in requests:
            asked[request.task_name].append(request.args[0])
        return [next(turns[request.doc["task_id"]]) for request in requests]

    monkeypatch.setattr(Scorer, "generate_until", generate_until)
    return asked


def items() -> list[dict[str, Any]]:
    """The rows that bench has written."""
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table("data/results/base.parquet").to_pylist()
    return [row | {"scores": json.loads(row["scores"])} for row in rows]
