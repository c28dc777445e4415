"""The judge stage as a whole: labels and results in, verdicts and metrics out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.common.files import write_jsonl
from stages.judge.__main__ import COLUMNS, main
from stages.judge.config import Backend, Judge, JudgePrompt
from stages.judge.pairs import INJECTION, labelled_pairs
from tests.stages.judge_server import Server, completion, config, serving


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A scripted endpoint, reached past any proxy of the environment."""
    monkeypatch.setenv("no_proxy", "*")
    yield from serving()


def label(number: int, split: str = "test", better: str = "A") -> dict[str, str]:
    answers = {"A": ("a long good answer", "bad"), "B": ("bad", "a long good answer")}[better]
    return {
        "id": f"l{number}",
        "split": split,
        "question": "why?",
        "answer_a": answers[0],
        "answer_b": answers[1],
        "label": better,
        "kind": "clear" if number % 2 else "close",
    }


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Labels, test rows and both models' answers, of which item t1's are equal."""
    monkeypatch.chdir(tmp_path)
    rows = [label(i, "test", "AB"[i % 2]) for i in range(6)] + [label(9, "train")]
    write_jsonl(Path("labels/a.jsonl"), rows)
    tests = [
        {"id": f"t{i}", "messages": [{"role": "user", "content": f"q{i}"}], "meta": {}} for i in range(4)
    ]
    write_jsonl(Path("data/prepared/test.jsonl"), tests)
    answers(Path("data/results/tuned.parquet"), "a long good reply")
    answers(Path("data/results/base.parquet"), "bad", same="a long good reply")
    return tmp_path


def answers(path: Path, text: str, same: str | None = None, task: str = "triage") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    outputs = [same if same and i == 1 else text for i in (3, 1, 0, 2)]
    table = {
        "task": [task] * 4,
        "id": ["t3", "t1", "t0", "t2"],
        "output": ['{"a": 1}\n' + o for o in outputs],
    }
    pq.write_table(pa.table(table), path)


def served(server: Server, **changes: Any) -> Judge:
    """The stage with a judge on the endpoint that prefers the longer answer and obeys no injection."""

    def longer(asked: dict[str, Any]) -> dict[str, Any]:
        first, second = asked["messages"][-1]["content"].split("\n\nA: ")[1].split("\n\nB: ")
        scores = [len(text.replace(INJECTION, "")) for text in (first, second)]
        return completion("A" if scores[0] >= scores[1] else "B")

    server.script = [(200, longer)]
    return config(backend=Backend.openai, endpoint=f"http://127.0.0.1:{server.server_port}/v1", **changes)


def test_stage_measures_the_judge_and_compares(workplace: Path, server: Server) -> None:
    found = main(served(server))
    values = {name: metric["value"] for name, metric in found.items()}
    assert values["judge/agreement"] == values["judge/kappa"] == 1.0 and values["judge/malformed"] == 0.0
    assert values["judge/win_rate"] == 3.5 / 4 and values["judge/win_rate_corrected"] == 3.5 / 4
    assert values["judge/length_bias"] == 1.0 and found["judge/length_bias"]["n"] == 3
    assert values["judge/canary_identical"] == values["judge/canary_injection"] == 1.0
    assert found["judge/evaluated"]["n"] == 6 and found["judge/malformed"]["n"] == 2 * (6 + 3 + 4)
    assert all(metric["lo"] <= metric["value"] <= metric["hi"] for metric in found.values())
    table = pq.read_table("data/results/judge.parquet")
    rows = table.to_pylist()
    assert (
        tuple(table.column_names) == COLUMNS
        and [r["kind"] for r in rows] == ["agreement"] * 6 + ["canary"] * 4 + ["comparison"] * 4
    )
    assert [(r["id"], r["verdict"]) for r in rows[-4:]] == [
        ("t0", "A"),
        ("t1", "tie"),
        ("t2", "A"),
        ("t3", "A"),
    ]
    asked = [asked["messages"][-1]["content"] for asked in server.seen]
    assert "q0\n\nA: a long good reply\n\nB: bad" in asked  # the reply alone, without its line of JSON


def test_stage_takes_the_first_items_in_id_order(workplace: Path, server: Server) -> None:
    assert main(served(server, limit=2))["judge/win_rate"]["n"] == 2
    rows = pq.read_table("data/results/judge.parquet").to_pylist()
    assert [row["id"] for row in rows if row["kind"] == "comparison"] == ["t0", "t1"]


def test_stage_writes_the_same_bytes_again(workplace: Path, tiny_model: Path) -> None:
    first = main(config(model=str(tiny_model))), Path("data/results/judge.parquet").read_bytes()
    assert first == (main(config(model=str(tiny_model))), Path("data/results/judge.parquet").read_bytes())


@pytest.mark.parametrize("rows", [None, [], [label(1, "train")]])
def test_absent_labels_are_not_evaluated(workplace: Path, rows: list[Any] | None) -> None:
    Path("labels/a.jsonl").unlink()
    if rows is not None:
        write_jsonl(Path("labels/a.jsonl"), rows)
    assert main(config(model="nowhere")) == {"judge/evaluated": {"value": 0.0, "lo": 0.0, "hi": 0.0, "n": 0}}
    table = pq.read_table("data/results/judge.parquet")
    assert table.num_rows == 0 and tuple(table.column_names) == COLUMNS
    assert b"not evaluated: labels holds no" in table.schema.metadata[b"agreement"]


def test_absent_task_leaves_the_agreement(workplace: Path, server: Server) -> None:
    found = main(served(server, task="other"))
    assert found["judge/agreement"]["n"] == 6 and "judge/win_rate" not in found
    assert b"task other" in pq.read_schema("data/results/judge.parquet").metadata[b"comparison"]


def test_too_many_malformed_answers_stop_the_stage(workplace: Path, server: Server) -> None:
    cfg = served(server)
    server.script = [(200, completion("hm"))]
    with pytest.raises(ValueError, match=r"26 of 26 answers .*max_malformed_share=0\.02") as error:
        main(cfg)
    assert "\n" not in str(error.value) and not Path("data/results/judge.parquet").exists()


def test_results_of_other_items_are_refused(workplace: Path) -> None:
    write_jsonl(Path("data/prepared/test.jsonl"), [])
    with pytest.raises(ValueError, match="'t0' of task triage is no row of"):
        main(config())
    table = pa.table({"task": ["triage"], "id": ["t9"], "output": [""]})
    pq.write_table(table, "data/results/base.parquet")
    with pytest.raises(ValueError, match="'t0' of task triage is not in both"):
        main(config())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "C"}, "label is 'C'"),
        ({"split": "dev"}, "split is 'dev'"),
        ({"question": None}, "question is None"),
    ],
)
def test_a_broken_label_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write_jsonl(tmp_path / "a.jsonl", [label(1), label(2) | change])
    with pytest.raises(ValueError, match=rf"a\.jsonl:2: .*{message}"):
        labelled_pairs(tmp_path)
    write_jsonl(tmp_path / "a.jsonl", [label(1), label(1)])
    with pytest.raises(ValueError, match="twice"):
        labelled_pairs(tmp_path)


def test_a_template_without_an_answer_is_refused(workplace: Path) -> None:
    with pytest.raises(ValueError, match=r"no \{answer_b\}"):
        main(config(prompt=JudgePrompt("odd", "", "{question} {answer_a}")))
