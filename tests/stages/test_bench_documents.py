"""Tasks that draw while they read their documents: what is asked is what is scored, by a seed and by nothing else."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ops import snapshot as making
from stages.bench.__main__ import main
from stages.bench.evaluation import load_tasks
from stages.common.files import write_jsonl
from tests.stages.test_bench import items, section, variant

GPQA = "gpqa_main_zeroshot"
QUESTIONS = [
    {
        "Question": f"Which is {n}?",
        "Correct Answer": f"right {n}",
        **{f"Incorrect Answer {k}": f"wrong {n}.{k}" for k in (1, 2, 3)},
    }
    for n in range(12)
]
SENTENCES = [
    {"sentence": f"The ball {n} is not in the box since the _ is small.", "answer": str(1 + n % 2)}
    | {"option1": "box", "option2": "ball"}
    for n in range(6)
]

TEXTS = [{"text": f"So she went to number {n}"} for n in (0, 0, 0, 0, 1, 2)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot of GPQA, which shuffles the answers as it is read; its only split is for examples and items."""
    root = tmp_path_factory.mktemp("gpqa")
    write_jsonl(root / "in/train.jsonl", QUESTIONS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        making.main(["--task", GPQA, "--from", "in"])
        write_jsonl(root / "twice/train.jsonl", SENTENCES)
        write_jsonl(root / "twice/validation.jsonl", SENTENCES)
        making.main(["--task", "winogrande", "--from", "twice"])
        write_jsonl(root / "texts/test.jsonl", TEXTS)
        making.main(["--task", "lambada_openai", "--from", "texts"])
    return root


@pytest.fixture
def workspace(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def asked(seed: int, examples: int) -> list[tuple[str, str]]:
    """(prompt, right answer) of each item; the documents are read once more for the answers, as lm-eval does."""
    task = load_tasks(replace(section(GPQA), seed=seed))["tasks"][GPQA]
    task.set_config("num_fewshot", examples)
    task.set_fewshot_seed(seed)
    task.build_all_requests(rank=0, world_size=1)
    prompts = {request.doc_id: request.args[0] for request in task.instances}
    return [(prompts[number], str(task.doc_to_target(doc))) for number, doc in task.doc_iterator()]


@pytest.mark.parametrize("examples", [0, 3])
def test_the_letter_that_is_right_is_the_one_of_the_prompt(workspace: Path, examples: int) -> None:
    pairs = asked(5, examples)
    assert len(pairs) == len(QUESTIONS)
    for prompt, gold in pairs:
        own = prompt.rpartition("question:")[2]
        number = own.partition("Which is ")[2].partition("?")[0]
        assert f"{gold} right {number}\n" in own
        assert prompt.count(f"Which is {number}?") == 1, "the item is one of its own examples"


def test_the_order_is_the_seeds_and_no_others(workspace: Path) -> None:
    first = asked(5, 3)
    random.seed(99)
    assert asked(5, 3) == first
    assert asked(6, 3) != first
    assert len({gold for _, gold in first}) > 1


def test_the_stage_scores_what_it_asked(workspace: Path, tiny_model: Path) -> None:
    main(replace(section(GPQA), seed=5), "base", variant(tiny_model))
    assert [row["target"].strip() for row in items()] == [gold for _, gold in asked(5, 0)]


def test_a_row_that_stands_there_twice_is_no_example_of_itself(workspace: Path) -> None:
    """Examples and items are of one split; lm-eval leaves every row out of the examples that equals the item."""
    from lm_eval.api.samplers import ContextSampler

    task = load_tasks(section("lambada_openai"))["tasks"]["lambada_openai"]
    task.set_config("num_fewshot", 2)
    task.fewshot_cfg.split = "test"  # as a YAML's fewshot_split would
    task.set_fewshot_seed(17)
    task.build_all_requests(rank=0, world_size=1)
    sampler = ContextSampler(TEXTS, rnd=17)
    drawn = [sampler.sample(2, eval_doc=text) for text in TEXTS]
    asked = [[words.split() for words in request.args[0].split("\n\n")[:2]] for request in task.instances]
    assert asked == [[each["text"].split() for each in examples] for examples in drawn]
    assert not any(text in examples for text, examples in zip(TEXTS, drawn, strict=True))


def test_where_choices_stand_in_the_prompts_the_output_is_the_chosen_one(
    workspace: Path, tiny_model: Path
) -> None:
    main(section("winogrande"), "base", variant(tiny_model))
    rows = items()
    assert [row["target"] for row in rows] == ["box", "ball"] * 3
    assert {row["output"] for row in rows} <= {"box", "ball"}
    assert [row["scores"]["acc"] for row in rows] == [float(row["output"] == row["target"]) for row in rows]
    assert 0 < sum(row["scores"]["acc"] for row in rows) < 6
