"""Code benchmarks in bench: given answers are executed as items, in the real sandbox, by lm-eval's own loop."""

from __future__ import annotations

import importlib.util
import itertools
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ops.snapshot_code import FILTERS, KNOWN
from stages.bench import evaluation, programs, sandbox
from stages.bench.__main__ import main
from stages.bench.modules import module_file, module_hash
from stages.bench.programs import pass_at_k
from stages.bench.responses import Responses
from stages.bench.sandbox import Verdict
from stages.bench.snapshot import SNAPSHOTS, dataset, parse, verify
from stages.bench.tasks import code as ours
from stages.common.files import read_json, sha256, write_json
from tests.stages.code_problems import (
    CODE,
    PROBLEMS,
    answer_with,
    changed,
    humaneval_rows,
    items,
    make,
    mbpp_rows,
    section,
    variant,
)
from tests.stages.test_sandbox import OPEN_OUTSIDE, TOO_MUCH, filled, target, way  # noqa: F401 - fixtures

HUMANEVAL, MBPP = humaneval_rows(), mbpp_rows()
TASKS = ("humaneval", "mbpp")
CANONICAL = {row["task_id"]: row["canonical_solution"] for row in HUMANEVAL}
CANONICAL |= {row["task_id"]: row["code"] for row in MBPP}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Snapshots of four tasks."""
    root = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for task in (*TASKS, "humaneval_instruct", "mbpp_instruct", "humaneval_64"):
            make(task, HUMANEVAL if task.startswith("humaneval") else MBPP)
    return root


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with those snapshots, the current one."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/benchmarks").symlink_to(made / "data/benchmarks")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- right and wrong


def test_canonical_solutions_pass_and_one_changed_operator_fails(
    here: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_with(monkeypatch, CANONICAL)
    metrics = main(section(*TASKS), "base", variant(tiny_model))
    assert {key: (value["value"], value["n"]) for key, value in metrics.items()} == {
        f"{task}/pass_at_1": (1.0, len(PROBLEMS)) for task in TASKS
    }
    assert [row["verdicts"] for row in items()] == [["passed"]] * 8

    answer_with(
        monkeypatch, {key: changed(text, place % 4) for place, (key, text) in enumerate(CANONICAL.items())}
    )
    metrics = main(section(*TASKS), "base", variant(tiny_model))
    assert [metrics[f"{task}/pass_at_1"]["value"] for task in TASKS] == [0.0, 0.0]
    rows = items()
    assert [row["scores"] for row in rows] == [{"pass_at_1": 0.0}] * 8
    assert [row["verdicts"] for row in rows] == [["failed: AssertionError"]] * 8
    assert rows[0]["output"] == HUMANEVAL[0]["prompt"] + "    return stock + sold\n"
    assert rows[0]["target"] == f"{HUMANEVAL[0]['test']}\ncheck(stock_left)"
    assert rows[4]["target"] == "\n".join(MBPP[0]["test_list"]) and rows[4]["loglikelihoods"] == []
    # what a model's answer is executed by is not what lm-eval would have downloaded
    assert not {f"{module}" for module in KNOWN} & sys.modules.keys()


def test_answers_of_chat_models_end_with_their_fence(
    here: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fenced = {key: f"{text}\n```\nThat is it: ```1 / 0```" for key, text in CANONICAL.items()}
    fenced |= {row["task_id"]: f"\n{fenced[row['task_id']]}" for row in MBPP[:3]}
    fenced["Ours/1"], fenced[12] = "no body", CANONICAL[12]  # MBPP's wants the end of the fence
    asked = answer_with(monkeypatch, fenced)
    metrics = main(section("humaneval_instruct", "mbpp_instruct", fewshot=3), "base", variant(tiny_model))
    assert metrics["humaneval_instruct/pass_at_1"]["value"] == 0.75
    told = {(row["task"], row["id"][-1]): row["verdicts"][0] for row in items()}
    assert [told["mbpp_instruct", number] for number in "0123"] == [
        "passed",
        "failed: NameError: name 'longest' is not defined",
        "passed",
        "failed: IndentationError: unexpected indent",  # lm-eval takes its "def" for the fence's language
    ]
    for text, row in zip(asked["humaneval_instruct"], HUMANEVAL, strict=True):
        assert text.rpartition("```python\n")[2].rstrip() == row["prompt"].rstrip()
    assert [text.count("\nYour code should pass these tests:\n") for text in asked["mbpp_instruct"]] == [
        4
    ] * 4


def test_of_many_answers_the_paper_s_estimate(
    here: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = {"Ours/0": 0, "Ours/1": 1, "Ours/2": 40, "Ours/3": 64}
    answers = {
        key: [CANONICAL[key]] * count + [changed(CANONICAL[key], place)] * (64 - count)
        for place, (key, count) in enumerate(right.items())
    }
    answer_with(monkeypatch, answers)
    metrics = main(section("humaneval_64"), "base", variant(tiny_model))
    counts = (2, 8, 16, 32, 64)
    for row, count in zip(items(), right.values(), strict=True):
        assert row["scores"] == {f"pass_at_{k}": pytest.approx(estimate(64, count, k)) for k in counts}
        assert row["verdicts"].count("passed") == count and len(row["verdicts"]) == 64
    assert metrics["humaneval_64/pass_at_8"]["value"] == pytest.approx(
        sum(estimate(64, count, 8) for count in right.values()) / 4
    )


def estimate(n: int, c: int, k: int) -> float:
    """As the paper's figure 3 computes it."""
    return 1.0 if n - c < k else float(1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


@pytest.mark.parametrize(
    ("n", "c", "k"), [(1, 0, 1), (1, 1, 1), (5, 2, 1), (5, 2, 3), (5, 2, 4), (200, 3, 100)]
)
def test_pass_at_k_is_the_paper_s_and_unbiased(n: int, c: int, k: int) -> None:
    assert pass_at_k(n, c, k) == pytest.approx(estimate(n, c, k), abs=1e-12)
    assert pass_at_k(n, c, 1) == pytest.approx(c / n)


def test_more_draws_than_answers_is_one_line(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    config, _ = parse(SNAPSHOTS / "mbpp/task.yaml")
    config |= {
        "custom_dataset": dataset,
        "metric_list": [{**config["metric_list"][0], "metric": pass_at_k, "k": [5]}],
    }
    config["fewshot_config"] = {"sampler": "first_n", "samples": [MBPP[0]]}
    for changes in ({}, {"repeats": 5}):
        with pytest.raises(ValueError, match=r"^pass@5 of 1 answers: `repeats` .* keeps the first alone$"):
            ours.CodeTask(config | changes)


# --- nobody gets out

HEAD = 'def add(a, b):\n    """ The sum.\n    """\n'
ADD = {
    "prompt": HEAD,
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
    "entry_point": "add",
}
SHOOT = (
    "import os\nwon = False\nfor n in (2, 15, 9):\n"
    "    for hit in (lambda: os.kill(PARENT, n), lambda: os.kill(os.getppid(), n),\n"
    "                lambda: os.kill(-1, n), lambda: os.killpg(1, n)):\n"
    "        try:\n            hit()\n        except OSError:\n            pass"
)
LIES = {  # these end well without the tests
    "an early end": "import os\nos._exit(0)\nwon = False",
    "an exception to end with": "raise SystemExit(0)\nwon = False",
    "a test that is skipped": "won = False",  # its last line is a backslash, see below
    "a test that is replaced": "won = False",
}
TAKEN = (
    "an endless loop",
    "sleep",
    "a fork bomb",
    "a fork bomb that tries again",
    "8 GB",
    "8 GB in processes",
    "output",
)
ESCAPES = (
    OPEN_OUTSIDE | {name: f"{TOO_MUCH[name][0]}\nwon = True" for name in TAKEN} | {"signals": SHOOT} | LIES
)
ENDS = {"a test that is skipped": "if 0:\\", "a test that is replaced": "@(lambda _: lambda _: None)"}


@pytest.mark.slow
def test_no_answer_escapes_and_each_fails(
    way: str,  # noqa: F811 - a fixture
    target: dict[str, str],  # noqa: F811 - a fixture
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An attack is a right answer exactly if it works; between them stand answers that are right."""
    root = tmp_path / "stage"
    root.mkdir()
    monkeypatch.chdir(root)
    right = "def add(a, b):\n    return a + b if won else None\n"
    answers = {name: f"{filled(code, target)}\n{right}{ENDS.get(name, '')}" for name, code in ESCAPES.items()}
    answers |= {f"right {number}": "    return a + b\n" for number in range(3)}
    names = sorted(answers)
    make("humaneval", [ADD | {"task_id": name, "canonical_solution": ""} for name in names])
    make("mbpp", MBPP)
    answer_with(monkeypatch, answers | CANONICAL)
    with subprocess.Popen(["/usr/bin/sleep", "1000"]) as bystander:
        metrics = main(section("humaneval", "mbpp", code=replace(CODE, wall=3)), "base", variant(tiny_model))
        assert bystander.poll() is None
        bystander.kill()
    found = dict(zip(names, items(), strict=False))
    passed = [name for name, row in found.items() if row["scores"]["pass_at_1"]]
    assert passed == ["right 0", "right 1", "right 2"], {name: found[name]["verdicts"] for name in passed}
    assert metrics["mbpp/pass_at_1"]["value"] == 1.0
    told = {name: row["verdicts"][0] for name, row in found.items()}
    assert not any(
        "NameError" in text or "SyntaxError" in text for name, text in told.items() if name not in LIES
    )
    assert told["8 GB"].startswith("out of memory: ") and told["an endless loop"].startswith("timed out: ")
    assert told["an early end"] == "failed: it ended before its last line" and told["sleep"].startswith(
        "timed out"
    )
    assert target["SECRET"] not in str(told) and not Path(target["FOLDER"], "written").exists()


# --- the switch


def refused(cfg: Any, model: Path) -> str:
    with pytest.raises(ValueError) as caught:
        main(cfg, "base", variant(model))
    assert "\n" not in str(caught.value) and not Path("data/results/base.parquet").exists()
    return str(caught.value)


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from stages.bench.model import Scorer

    monkeypatch.setattr(Scorer, "generate_until", lambda *_, **__: pytest.fail("the model was asked"))
    monkeypatch.setattr(programs, "run_programs", lambda *_: pytest.fail("a program was executed"))


def test_off_is_one_line_before_anything_is_asked(here: Path, tiny_model: Path, nothing_runs: None) -> None:
    line = refused(section(*TASKS, code=replace(CODE, run=False)), tiny_model)
    assert line.startswith("humaneval, mbpp of bench.tasks executes programs that the model writes")
    assert "bench.code.run is false: `python -m ops.compose bench.code.run=true`" in line


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"memory": 1000}, "bench.code.memory=1000: no program ends within that, give it at least 134217728"),
        ({"cpu": 0}, "bench.code.cpu=0: "),
        ({"wall": math.nan}, "bench.code.wall=nan: "),
    ],
)
def test_limits_that_nothing_keeps_are_one_line(
    changes: dict[str, Any], said: str, here: Path, tiny_model: Path, nothing_runs: None
) -> None:
    assert refused(section("mbpp", code=replace(CODE, **changes)), tiny_model).startswith(said)


def test_no_sandbox_is_one_line_before_anything_is_asked(
    here: Path, tiny_model: Path, nothing_runs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Verdict:
        raise ValueError("it does not start: no namespaces")

    monkeypatch.setattr(sandbox, "_execute", broken)
    monkeypatch.setattr(sandbox, "WAYS", (sandbox.BUBBLEWRAP, sandbox.OWN))
    sandbox.isolation.cache_clear()
    line = refused(section("mbpp"), tiny_model)
    assert line.startswith(
        "no sandbox for generated code here (bubblewrap: it does not start: no namespaces; user"
    )
    assert "leave the code benchmarks out" in line


def test_a_task_that_would_execute_answers_elsewhere_is_refused(
    here: Path, tiny_model: Path, nothing_runs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A team's own YAML with lm-eval's mark; the switch is on."""
    folder = here / "tasks"
    folder.mkdir()
    (folder / "mine.yaml").write_text(
        "task: mine\nunsafe_code: true\ncustom_dataset: !function stages.bench.snapshot.dataset\n"
        "dataset_kwargs: {snapshot: mbpp}\ntest_split: test\noutput_type: generate_until\ndoc_to_text: text\n"
        "doc_to_target: code\nnum_fewshot: 0\nmetric_list:\n  - {metric: exact_match, aggregation: mean, "
        "higher_is_better: true}\n"
    )
    monkeypatch.setattr(evaluation, "TASKS", folder)
    assert "it has to say `task: mine` and `class: !function" in refused(section("mine"), tiny_model)


def test_a_task_object_that_would_execute_answers_itself_is_refused(nothing_runs: None) -> None:
    """However it was loaded: lm-eval's own mark is what counts."""
    marked = SimpleNamespace(UNSAFE_CODE=True)
    with pytest.raises(
        ValueError, match="mine would execute what the model writes in this process"
    ) as caught:
        evaluation.set_execution(section("mine"), {"mine": marked}, Responses(None))
    assert "stages.bench.tasks.code.CodeTask" in str(caught.value)


# --- a snapshot that would


def rewrite(folder: Path, old: str, new: str, modules: dict[str, str | None]) -> None:
    """Change task.yaml and the card with it, as somebody does who knows the format."""
    path = folder / "task.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    card = read_json(folder / "card.json") | {"modules": modules}
    card["files"]["task.yaml"]["sha256"] = sha256(path)
    write_json(folder / "card.json", card)


THEIRS = "lm_eval.tasks.mbpp.utils"
UNSAFE: dict[str, tuple[str, str, dict[str, str | None], str]] = {
    "lm-eval's module": (
        "stages.bench.tasks.code.pass_at_k", f"{THEIRS}.pass_at_1", {THEIRS: module_hash(THEIRS)},
        f"{THEIRS} executes what a model writes outside of the sandbox, so it is not imported",
    ),
    "lm-eval's module, unlisted": (
        "stages.bench.tasks.code.pass_at_k", f"{THEIRS}.pass_at_1", {}, "is from no module of lm_eval.tasks",
    ),
    "the mark alone": ("class: !function 'stages.bench.tasks.code.CodeTask'\n", "", {}, "is not the task that"),
    "another class": ("tasks.code.CodeTask", "tasks.chat.ChatTask", {}, "is not the task that"),
    "the class without the mark": ("unsafe_code: true", "unsafe_code: false", {}, "is not the task that"),
}  # fmt: skip


@pytest.mark.parametrize("what", UNSAFE)
def test_a_snapshot_that_would_execute_answers_elsewhere_is_refused(
    what: str, tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    monkeypatch.chdir(tmp_path)
    shutil.copytree(made / "data/benchmarks/mbpp", SNAPSHOTS / "mbpp")
    verify(["mbpp"])
    old, new, modules, said = UNSAFE[what]
    rewrite(SNAPSHOTS / "mbpp", old, new, modules)
    with pytest.raises(ValueError, match=said) as caught:
        verify(["mbpp"])
    assert "\n" not in str(caught.value) and "--replace" in str(caught.value)


# --- as lm-eval does it


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """lm-eval's two modules, imported with a stand-in for the library that downloads `code_eval`."""
    metric = SimpleNamespace(compute=lambda **_: ({"pass@1": 0.0}, {}))
    monkeypatch.setitem(sys.modules, "evaluate", SimpleNamespace(load=lambda name: metric))  # type: ignore[arg-type]
    found = {}
    for name in KNOWN:
        spec = importlib.util.spec_from_file_location(name.replace(".", "_"), module_file(name))
        assert spec and spec.loader
        found[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found[name])
    return found


TEXTS = [
    "    return 1\n", "", "```", "    return 1\n```", "    return 1```\nmore\n```python\nx\n```", "python\nx = 1\n```",
    "x\n```python\ny = 1\n```\n", "\n```\n", "``` ```", "a```b```c```d```", "py thon\n```\r\n", "x = '```'\n```",
]  # fmt: skip


@pytest.mark.parametrize("function", FILTERS)
def test_of_an_answer_counts_what_counts_in_lm_eval(function: str, theirs: dict[str, ModuleType]) -> None:
    module, _, name = function.rpartition(".")
    docs = [{"prompt": f"def f{number}():\n"} for number in range(2)]
    for first, second in itertools.pairwise(TEXTS):
        given = [[first, second], [second]]
        expected = getattr(theirs[module], name)([list(texts) for texts in given], docs)
        assert getattr(ours, FILTERS[function])(given, docs) == expected


@pytest.mark.parametrize("name", ["humaneval", "humaneval_instruct", "mbpp", "mbpp_instruct"])
def test_what_is_asked_is_what_lm_eval_asks(
    name: str, here: Path, theirs: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets
    from lm_eval.tasks import TaskManager

    rows = HUMANEVAL if name.startswith("humaneval") else MBPP
    local = {"test": datasets.Dataset.from_list(rows)}
    monkeypatch.setattr(datasets, "load_dataset", lambda **_: local)
    folder = module_file(f"lm_eval.tasks.{name.partition('_')[0]}.utils").parent
    requests = []
    for path in (folder, SNAPSHOTS / name):
        task = TaskManager(include_path=str(path), include_defaults=False).load([name])["tasks"][name]
        task.set_fewshot_seed(7)
        task.build_all_requests(limit=None, rank=0, world_size=1)
        requests.append([(one.args, one.repeats, task.doc_to_target(one.doc)) for one in task.instances])
        for module in KNOWN:  # lm-eval keeps what it imports
            sys.modules.pop(module, None)
    assert requests[0] == requests[1] and len(requests[0]) == len(PROBLEMS)
    assert math.isclose(task.VERSION, 4.0 if name == "humaneval_instruct" else 1.0)


# --- a stage that died


def test_a_program_is_not_executed_again_after_a_kill(
    here: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_with(monkeypatch, CANONICAL)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("stages.bench.__main__.item_rows", interrupted)
        main(section(*TASKS), "base", variant(tiny_model))
    assert len(list(Path(".ckpt").glob("bench.base-*/*-verdicts-*.json"))) == 2
    monkeypatch.setattr(programs, "run_programs", lambda *_: pytest.fail("executed again"))
    assert main(section(*TASKS), "base", variant(tiny_model))["mbpp/pass_at_1"]["value"] == 1.0
    assert [row["verdicts"] for row in items()] == [["passed"]] * 8


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt
