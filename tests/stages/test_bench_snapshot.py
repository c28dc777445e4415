"""stages.bench.snapshot: what lm-eval would read is what the card names, or one clear line says what is not."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ops import snapshot as making
from stages.bench import snapshot
from stages.bench.evaluation import load_tasks, set_fewshot
from stages.bench.modules import module_file
from stages.bench.snapshot import ROW, dataset, folders, parse, read_card, untagged, verify
from stages.common.files import read_json, sha256, write_json, write_jsonl
from stages.prepare.overlap.tested import benchmark_items
from tests.small_project import HOUSE
from tests.stages.test_bench import items, section, variant

SWAG = {"activity_label": "a", "ctx_a": "b", "ctx_b": "c", "endings": ["d", "e", "f", "g"], "label": "1"}
MMLU = {"question": "q?", "subject": "s", "choices": ["w", "x", "y", "z"], "answer": 2}
FOLDER = Path("data/benchmarks")
UTILS = "lm_eval.tasks.hellaswag.utils"
# A task that leaves rows out: of these, the second and the fourth.
PAIRED = "crows_pairs_english_race_color"
PAIRS = [
    {"sent_more": f"More {n}.", "sent_less": f"Less {n}.", "stereo_antistereo": "stereo", "bias_type": kind}
    for n, kind in enumerate(["age", "race-color", "gender", "race-color"])
]
# Prints what a verification has imported, of what is heavy and of a module beside the YAML.
IMPORTED = """
import sys
from stages.bench.snapshot import verify
try:
    verify(sys.argv[1:])
except ValueError as problem:
    print(problem)
print(sorted({"torch", "lm_eval", "datasets", "pyarrow", "beside"} & set(sys.modules)))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MMLU (57 tasks in four groups in one), hellaswag (which has functions) and a tag, made once."""
    root = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for task in (
            path.stem for path in (module_file("lm_eval.tasks").parent / "mmlu/default").glob("mmlu_*.yaml")
        ):
            write_jsonl(
                root / f"in/{task}/test.jsonl", [MMLU | {"question": f"{task} {n}?"} for n in range(3)]
            )
            write_jsonl(root / f"in/{task}/dev.jsonl", [MMLU] * 5)
        for split in ("train", "validation"):
            write_jsonl(root / f"in/{split}.jsonl", [SWAG | {"ctx_a": f"{split} {n}"} for n in range(2)])
        making.main(["--task", "mmlu", "--from", "in"])
        making.main(["--task", "hellaswag", "--from", "in"])
        write_jsonl(root / "pairs/test.jsonl", PAIRS)
        making.main(["--task", PAIRED, "--from", "pairs"])
        for split in ("train", "test"):
            write_jsonl(root / f"sums/{split}.jsonl", [{"question": "1 + 1?", "answer": "#### 2"}] * 6)
        making.main(["--task", "gsm8k", "--from", "sums"])
    return root / "data"


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of them in an empty folder that is the current one; data/benchmarks."""
    shutil.copytree(made, tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return FOLDER


def rewrite(path: Path, change: Callable[[str], str]) -> None:
    """Change a file and the card with it: what somebody does who knows the format."""
    path.write_text(change(path.read_text()))
    card = read_json(path.parent / "card.json")
    card["files"].setdefault(path.name, {})["sha256"] = sha256(path)
    write_json(path.parent / "card.json", card)


def refused(*names: str) -> str:
    with pytest.raises(ValueError) as caught:
        verify(list(names))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_was_made_is_whole(here: Path) -> None:
    verify(["mmlu", "hellaswag", "mmlu_stem", "mmlu_anatomy"])
    found = [path.name for path in folders(["mmlu", "mmlu_anatomy"])]
    assert len(found) == len(set(found)) == 57 + 4 + 1
    assert found.index("mmlu_anatomy") < found.index("mmlu_stem") < found.index("mmlu")


def test_lm_eval_loads_the_group_as_it_is(here: Path) -> None:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(here), include_defaults=False)
    loaded = manager.load(["mmlu"])
    assert (len(loaded["tasks"]), len(loaded["groups"])) == (57, 5)
    assert loaded["group_map"]["mmlu"] == [
        "mmlu_stem",
        "mmlu_other",
        "mmlu_social_sciences",
        "mmlu_humanities",
    ]
    [metric] = loaded["groups"]["mmlu"].aggregate_metric_list
    assert (metric.metric, metric.weight_by_size) == ("acc", True)
    task = loaded["tasks"]["mmlu_anatomy"]
    assert (task.config.fewshot_config.sampler, len(task.fewshot_docs())) == ("first_n", 5)


def test_rows_are_as_they_were_and_no_cache_is_written(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = dataset("hellaswag", version=1.0, config_source="anything")
    assert list(rows) == ["train", "validation"]
    assert list(rows["train"]) == [SWAG | {"ctx_a": f"train {n}", ROW: n} for n in range(2)]
    assert rows["train"].split == "train"
    assert rows["validation"].map(lambda row: {"length": len(row["ctx_a"])})["length"] == [12, 12]
    assert rows["train"]._fingerprint == read_card(here / "hellaswag").files["train.parquet"][:16]
    assert not (tmp_path / "cache").exists()


def test_items_of_a_task_that_leaves_rows_out_keep_their_rows_numbers(here: Path, tiny_model: Path) -> None:
    """Prepare numbers all rows, whatever the task asks: `clean` is about the same item in both."""
    from stages.bench.__main__ import main

    line = {"benchmark": PAIRED, "item": "0000003", "clean": False, "rows": 1, "rows_removed": 0}
    Path("data/prepared").mkdir(parents=True)
    write_jsonl(Path("data/prepared/items.jsonl"), [line])
    main(section(PAIRED), "base", variant(tiny_model))
    found = [(item["id"], item["clean"]) for item in items()]
    assert found == [("0000001", True), ("0000003", False)]
    assert [item.id for item in benchmark_items(FOLDER / PAIRED)] == [f"{n:07d}" for n in range(4)]


def test_a_task_whose_name_is_near_to_one_of_ours_is_itself(here: Path) -> None:
    """gsm8k beside our gsm8k_match; without its snapshot the line says what was perhaps meant, and what makes it."""
    assert list(load_tasks(section("gsm8k"))["tasks"]) == ["gsm8k"]
    shutil.rmtree(here / "gsm8k")
    with pytest.raises(
        ValueError, match=r"'gsm8k' \(did you mean gsm8k_match\?\).*ops.snapshot --task gsm8k"
    ):
        load_tasks(section("gsm8k"))


@pytest.mark.parametrize(
    ("asked", "task", "own"),
    [(None, "gsm8k", 5), (None, "hellaswag", 0), (2, "gsm8k", 2), (2, "hellaswag", 2)],
)
def test_a_suite_may_leave_a_task_its_own_number_of_examples(
    here: Path, asked: int | None, task: str, own: int
) -> None:
    cfg = replace(section(task), fewshot=asked)
    loaded = load_tasks(cfg)["tasks"][task]
    set_fewshot(cfg, loaded)
    assert loaded.get_config("num_fewshot") == own


def test_a_package_that_a_tasks_module_needs_is_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, UTILS, raising=False)
    monkeypatch.setitem(sys.modules, "datasets", None)
    line = r"hellaswag of bench.tasks \(data/benchmarks/hellaswag/task.yaml\): .*datasets.*: install it, or leave the"
    with pytest.raises(ValueError, match=line):
        load_tasks(section("hellaswag"))


def test_a_tag_is_its_tasks(here: Path) -> None:
    (here / "mine").mkdir()
    card = {"tag": "mine", "tasks": ["hellaswag"], "files": {}, "modules": {}, "lm_eval": "0"}
    write_json(here / "mine/card.json", card)
    verify(["mine"])
    assert untagged(["mine", "mmlu", "hellaswag"]) == ["hellaswag", "mmlu"]
    assert [path.name for path in folders(["mine"])] == ["hellaswag", "mine"]


def test_verification_imports_nothing_that_a_task_names(here: Path, tmp_path: Path) -> None:
    """Neither a module beside the YAML, which lm-eval would take before an installed one, nor any library."""
    env = os.environ | {"PYTHONPATH": str(HOUSE)}
    command = [sys.executable, "-c", IMPORTED, "mmlu", "hellaswag"]
    run = lambda: subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout  # noqa: E731
    assert run() == "[]\n"
    (here / "hellaswag/beside.py").write_text("raise SystemExit('I ran')")
    rewrite(
        here / "hellaswag/task.yaml",
        lambda text: text.replace(f"{UTILS}.process_docs", "beside.process_docs"),
    )
    assert "beside.py belongs to no snapshot" in (said := run())
    assert said.endswith("[]\n")


def remove(path: str) -> Callable[[Path], None]:
    return lambda here: (here / path).unlink()


def overwrite(path: str, content: str) -> Callable[[Path], None]:
    def write(here: Path) -> None:
        (here / path).parent.mkdir(parents=True, exist_ok=True)
        (here / path).write_text(content)

    return write


def flip(path: str) -> Callable[[Path], None]:
    def write(here: Path) -> None:
        data = bytearray((here / path).read_bytes())
        data[len(data) // 2] ^= 1
        (here / path).write_bytes(data)

    return write


def functions(name: str) -> Callable[[Path], None]:
    """hellaswag's process_docs named so, with a card that agrees."""
    return lambda here: rewrite(
        here / "hellaswag/task.yaml", lambda text: text.replace(f"{UTILS}.process_docs", name)
    )


def leave_pointer(here: Path) -> None:
    shutil.rmtree(here / "hellaswag")
    (here / "hellaswag.dvc").touch()


def list_a_module(here: Path) -> None:
    (here / "hellaswag/utils.py").touch()
    rewrite(here / "hellaswag/utils.py", str)


def link_a_folder(here: Path) -> None:
    """Python imports through a link to a folder as from any other."""
    elsewhere = here.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "utils.py").write_text("raise SystemExit('I ran')")
    (here / "hellaswag/lm_eval").symlink_to(elsewhere.resolve(), target_is_directory=True)


def hide_a_function(here: Path) -> None:
    """The key comes again, so the value is gone once the YAML is read; but lm-eval imports while it reads."""
    rewrite(here / "hellaswag/task.yaml", lambda text: "task: !function os.system\n" + text)


def edited(path: str, **changes: Any) -> Callable[[Path], None]:
    return lambda here: write_json(here / path, read_json(here / path) | changes)


def append(path: str, lines: str) -> Callable[[Path], None]:
    return lambda here: rewrite(here / path, lambda text: text + lines)


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "no folder": (
        lambda here: shutil.rmtree(here / "hellaswag"),
        r"no snapshot of task hellaswag at data/benchmarks/hellaswag: .*`python -m ops\.snapshot bench=<suite>`",
    ),
    "not pulled": (leave_pointer, r"`dvc pull data/benchmarks/hellaswag\.dvc`"),
    "a bit": (flip("hellaswag/train.parquet"), r"hellaswag/train\.parquet is not the file"),
    "the YAML": (
        overwrite("hellaswag/task.yaml", "task: hellaswag\n"),
        r"hellaswag/task\.yaml is not the file",
    ),
    "no rows": (remove("hellaswag/train.parquet"), r"train\.parquet is missing"),
    "one file more": (
        overwrite("hellaswag/other.yaml", "task: other\n"),
        r"other\.yaml belongs to no snapshot",
    ),
    "a link to a folder": (link_a_folder, r"hellaswag/lm_eval belongs to no snapshot"),
    "a module beside": (
        overwrite("hellaswag/stages/bench/snapshot.py", ""),
        r"stages/bench/snapshot\.py belongs",
    ),
    "a listed module": (list_a_module, r"utils\.py belongs to no"),
    "no card": (remove("hellaswag/card.json"), r"card\.json is no snapshot's card"),
    "half a card": (
        overwrite("hellaswag/card.json", '{"task": "hell'),
        r"card\.json is no snapshot's card \(.*not valid JSON",
    ),
    "a list": (overwrite("hellaswag/card.json", "[]"), r"card\.json is no snapshot's card"),
    "no hashes": (edited("hellaswag/card.json", files={"task.yaml": {}}), r"no snapshot's card \('sha256'\)"),
    "another's card": (edited("hellaswag/card.json", task="arc_easy"), r"is the card of 'arc_easy'"),
    "another lm-eval": (
        edited("hellaswag/card.json", modules={UTILS: "0" * 64}),
        rf"made with lm-eval [\d.]+, and {UTILS} of the installed one differs",
    ),
    "a lost module": (
        edited("hellaswag/card.json", modules={UTILS + "x": "0" * 64}),
        r"utilsx of the installed one differs",
    ),
    "no hash": (
        edited("hellaswag/card.json", modules={}),
        rf"!function '{UTILS}\.process_docs' is from no module",
    ),
    "a library": (functions("os.system"), r"!function 'os\.system' is from no module"),
    "our own": (functions("ops.promote.main"), r"!function 'ops\.promote\.main' is from no module"),
    "relative": (functions("utils.process_docs"), r"!function 'utils\.process_docs' is from no module"),
    "upwards": (functions("lm_eval.tasks./tmp/x.f"), r"is from no module"),
    "no dots": (functions("process_docs"), r"is from no module"),
    "lm-eval's core": (functions("lm_eval.utils.simple_parse_args_string"), r"is from no module"),
    "hidden": (hide_a_function, r"!function 'os\.system' is from"),
    "an include": (
        append("hellaswag/task.yaml", "include: /etc/other.yaml\n"),
        r"task\.yaml is not the task that",
    ),
    "the hub": (
        append("hellaswag/task.yaml", "dataset_path: Rowan/hellaswag\n"),
        r"task\.yaml is not the task that",
    ),
    "other rows": (
        append("hellaswag/task.yaml", "dataset_kwargs: {snapshot: mmlu_anatomy}\n"),
        r"task\.yaml is not the task",
    ),
    "other reader": (
        append("hellaswag/task.yaml", "custom_dataset: !function stages.bench.other.rows\n"),
        r"task\.yaml is not",
    ),
    "a class": (
        append("hellaswag/task.yaml", "class: !function stages.bench.tasks.chat.ChatTask\n"),
        r"task\.yaml is not",
    ),
    "a group in it": (append("hellaswag/task.yaml", "group: other\n"), r"task\.yaml is not the task that"),
    "another name": (append("hellaswag/task.yaml", "task: other\n"), r"task\.yaml is not the task that"),
    "no YAML": (append("hellaswag/task.yaml", "task: [\n"), r"not readable as YAML"),
    "Python in it": (
        append("hellaswag/task.yaml", "x: !!python/object/apply:os.system [ls]\n"),
        r"not readable as YAML",
    ),
    "a list in it": (
        lambda here: rewrite(here / "hellaswag/task.yaml", lambda _: "- task\n"),
        r"a list, and not",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_task_that_is_not_its_cards(what: str, here: Path) -> None:
    change, said = BROKEN[what]
    change(here)
    line = refused("mmlu_anatomy", "hellaswag")
    assert re.search(said, line), line
    verify(["mmlu_anatomy"])


GROUPS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a leaf": (lambda here: shutil.rmtree(here / "mmlu_virology"), "no snapshot of task mmlu_virology"),
    "a leaf's rows": (flip("mmlu_virology/dev.parquet"), "mmlu_virology/dev.parquet is not the file"),
    "a group in it": (lambda here: shutil.rmtree(here / "mmlu_other"), "no snapshot of task mmlu_other"),
    "its YAML": (append("mmlu/group.yaml", "aggregate_metric_list: [\n"), "not readable as YAML"),
    "one more": (
        append("mmlu/group.yaml", "task: [mmlu_stem, hellaswag]\n"),
        "group.yaml is not the group that",
    ),
    "one within": (
        append("mmlu/group.yaml", "task: [{group: new, task: [hellaswag]}]\n"),
        "is not the group that",
    ),
    "none": (append("mmlu/group.yaml", "task: 1\n"), "group.yaml is not the group that"),
    "a function": (append("mmlu/group.yaml", "process_docs: !function os.system\n"), "!function 'os.system'"),
    "up": (edited("mmlu/card.json", tasks=["../../../etc"]), "no snapshot of task ../../../etc"),
}


@pytest.mark.parametrize("what", GROUPS)
def test_a_group_is_as_good_as_all_its_tasks(what: str, here: Path) -> None:
    change, said = GROUPS[what]
    change(here)
    assert said in refused("hellaswag", "mmlu")
    verify(["hellaswag"])


def test_a_group_within_itself_ends(here: Path) -> None:
    edited("mmlu_stem/card.json", tasks=["mmlu"])(here)
    assert "group.yaml is not the group that" in refused("mmlu")


@pytest.mark.parametrize("name", ["", ".", "..", "../benchmarks/hellaswag", "hellaswag/", "/etc"])
def test_a_name_is_no_path(name: str, here: Path) -> None:
    assert "no snapshot of task" in refused(name)


LEAVES = st.none() | st.booleans() | st.integers() | st.text()


@given(st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
@settings(deadline=None)
def test_no_card_whatever_it_holds_is_more_than_a_line(
    tmp_path_factory: pytest.TempPathFactory, value: Any
) -> None:
    folder = tmp_path_factory.getbasetemp() / "card"
    folder.mkdir(exist_ok=True)
    for told in (
        value,
        {"task": value},
        {"group": "x", "tasks": value, "files": value, "modules": {}, "lm_eval": ""},
    ):
        (folder / "card.json").write_text(json.dumps(told))
        try:
            read_card(folder)
        except ValueError as problem:
            assert str(problem).count("\n") == 0


def test_parse_reads_what_lm_eval_reads(tmp_path: Path) -> None:
    """And tells of each function, even of one that a later key hides: lm-eval imports it when it constructs it."""
    text = "a: !function x.y\na: 1\nb: [!function 'p-q.r', {c: !function s.t}]\n"
    (tmp_path / "task.yaml").write_text(text)
    config, met = parse(tmp_path / "task.yaml")
    assert config == {"a": 1, "b": ["p-q.r", {"c": "s.t"}]}
    assert sorted(met) == ["p-q.r", "s.t", "x.y"]
    with pytest.raises(yaml.constructor.ConstructorError):
        yaml.safe_load(text)


def test_the_rows_reader_has_the_name_that_task_yaml_has() -> None:
    module, _, name = snapshot.DATASET.rpartition(".")
    assert (module, getattr(snapshot, name)) == (snapshot.__name__, dataset)
