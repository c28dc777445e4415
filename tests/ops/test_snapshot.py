"""ops.snapshot: lm-eval's tasks from a hub, at one commit, complete or absent; the real clients, a server of ours.

One process makes most snapshots: HF_ENDPOINT is read when huggingface_hub is imported, and lm-eval's index takes
seconds to read.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from ops import snapshot, snapshot_code
from stages.bench.snapshot import ROW, Function, folders, untagged, verify
from stages.common.files import read_json, sha256, tree_digest, write_jsonl
from tests.ops.local_hub import Hub, serve
from tests.small_project import HOUSE, IDENTITY
from tests.stages.code_problems import humaneval_rows, mbpp_rows

SECONDS = 300  # a bound, far above what anything takes: a hang fails
GSM8K = HOUSE.parent / "shared/data/gsm8k"
ARC, SWAG, WMDP = "allenai/ai2_arc", "Rowan/hellaswag", "cais/wmdp"
WORKER = """
import contextlib, importlib, io, json, os, sys
for line in sys.stdin:
    asked = json.loads(line)
    os.chdir(asked["root"])
    module, name = asked["function"].split(":")
    said, problem, value = io.StringIO(), "", None
    with contextlib.redirect_stdout(said):
        try:
            value = getattr(importlib.import_module(module), name)(*asked["arguments"])
        except ValueError as error:
            problem = str(error)
    print(json.dumps({"said": said.getvalue(), "problem": problem, "value": value}), flush=True)
"""
# Loads what is there with every connection refused, and shows that it is refused.
OFFLINE = """
import json, os, sys, urllib.request
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise OSError(f"refused: {event}")
sys.addaudithook(refuse)
try:
    urllib.request.urlopen(os.environ["HF_ENDPOINT"])
except OSError as error:
    assert "refused" in str(error), error
from stages.bench.snapshot import folders, untagged, verify
from lm_eval.tasks import TaskManager
names = sys.argv[1:]
verify(names)
manager = TaskManager(include_path=[str(folder) for folder in folders(names)], include_defaults=False)
loaded = manager.load(untagged(names))
print(json.dumps({name: len(task.eval_docs) for name, task in loaded["tasks"].items()}))
"""


@dataclass
class Worker:
    """A process in which `python -m ops.snapshot` is run again and again, in one folder or another."""

    process: subprocess.Popen[str]
    log: Path
    env: dict[str, str]

    def call(self, root: Path, function: str, *arguments: Any) -> dict[str, Any]:
        """What a function said, its value, and the ValueError that it raised, if any."""
        assert self.process.stdin is not None and self.process.stdout is not None
        asked = {"root": str(root), "function": function, "arguments": arguments}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, self.log.read_text()
        return dict(json.loads(answer))

    def snapshot(self, root: Path, *arguments: str) -> str:
        """Run the command, which has to succeed; what it said."""
        answer = self.call(root, "ops.snapshot:main", arguments)
        assert answer["problem"] == "", answer
        return str(answer["said"])

    def refused(self, root: Path, *arguments: str) -> str:
        """Run the command, which has to refuse in one line; the line."""
        answer = self.call(root, "ops.snapshot:main", arguments)
        assert answer["problem"] and "\n" not in answer["problem"], answer
        return str(answer["problem"])


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with serve() as hub:
        yield hub


@pytest.fixture(scope="module")
def worker(server: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    home = tmp_path_factory.mktemp("home")
    places = {"HF_HOME": home / "hf", "DVC_SITE_CACHE_DIR": home / "site", "XDG_CONFIG_HOME": home / "config"}
    own = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "DVC_", "GIT_"))}
    env = own | IDENTITY | {name: str(place) for name, place in places.items()}
    env |= {"HF_ENDPOINT": server.url, "PYTHONPATH": str(HOUSE), "GIT_CONFIG_GLOBAL": os.devnull}
    log = home / "log"
    with log.open("w") as file:
        command = [sys.executable, "-c", WORKER]
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=file, text=True, env=env, cwd=home
        )
    yield Worker(process, log, env)
    process.kill()
    process.communicate()


@pytest.fixture
def hub(server: Hub) -> Hub:
    """The hub with one commit of three datasets."""
    server.commits.clear()
    server.gated.clear()
    server.asked.clear()
    server.down = False
    server.commit(ARC, arc())
    server.commit(
        SWAG, {"README.md": b"# no header", "data/validation.parquet": swag(4), "data/train.parquet": swag(6)}
    )
    kinds = {f"{WMDP[5:]}-{kind}": {"test": wmdp(kind)} for kind in ("bio", "chem", "cyber")}
    server.commit(WMDP, configured("mit", kinds))
    return server


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty project folder with a suite of one own task and one of lm-eval's."""
    for name in ("conf/bench/mini.yaml", "stages/bench/tasks/own_task.yaml"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("tasks: [own_task, arc_easy]\n")
    return tmp_path


def arc(extra: int = 0) -> dict[str, bytes]:
    """A repository like allenai/ai2_arc with two configurations; `extra` more test questions."""
    config = {
        "train": parquet([question("train", number) for number in range(6)]),
        "validation": parquet([question("validation", number) for number in range(2)]),
        "test": parquet([question("test", number) for number in range(4 + extra)]),
    }
    return configured("cc-by-sa-4.0", {"ARC-Easy": config, "ARC-Challenge": config}) | {
        "LICENSE": b"the licence"
    }


def question(split: str, number: int) -> dict[str, Any]:
    choices = {"text": [f"{split} {number} {letter}" for letter in "uvw"], "label": ["A", "B", "C"]}
    return {
        "id": f"{split}_{number}",
        "question": f"Which {number}?",
        "choices": choices,
        "answerKey": "ABC"[number % 3],
    }


def swag(count: int) -> bytes:
    fields = {"activity_label": "Cooking", "ctx_a": "A man [title] cuts", "ctx_b": "the bread"}
    rows = [
        {"ind": n, **fields, "endings": [f"{n} a", f"{n} b", "c", "d"], "label": str(n % 4)}
        for n in range(count)
    ]
    return parquet(rows)


def wmdp(kind: str) -> bytes:
    rows = [{"question": f"{kind} {n}?", "choices": list("wxyz"), "answer": n} for n in range(3)]
    return parquet(rows, answer=list("ABCD"))


def parquet(rows: list[dict[str, Any]], **labels: list[str]) -> bytes:
    """Rows as the hub has them: Parquet that `datasets` wrote, with class labels where named."""
    from datasets import ClassLabel, Dataset

    data, file = Dataset.from_list(rows), io.BytesIO()
    for column, names in labels.items():
        data = data.cast_column(column, ClassLabel(names=names))
    data.to_parquet(file)
    return file.getvalue()


def configured(licence: str, configs: dict[str, dict[str, bytes]]) -> dict[str, bytes]:
    """A repository's files with the header that names its configurations."""
    listed = [
        {
            "config_name": name,
            "data_files": [{"split": split, "path": f"{name}/{split}-*"} for split in splits],
        }
        for name, splits in configs.items()
    ]
    header = yaml.safe_dump({"license": licence, "configs": listed})
    files = {"README.md": f"---\n{header}---\n# A dataset\n".encode()}
    return files | {f"{c}/{s}-0.parquet": data for c, splits in configs.items() for s, data in splits.items()}


def rows_of(path: Path) -> list[dict[str, Any]]:
    from pyarrow.parquet import read_table

    return list(read_table(path).to_pylist())


def compare(names: list[str]) -> dict[str, int]:
    """In the worker: each task as lm-eval loads it from the hub, and from its snapshot; number of equal requests."""
    from lm_eval.tasks import TaskManager

    ours = TaskManager(include_path=[str(f) for f in folders(names)], include_defaults=False)
    ours = ours.load(untagged(names))
    theirs = TaskManager().load(names)
    assert ours["group_map"] == theirs["group_map"]
    for name, group in theirs["groups"].items():
        assert ours["groups"][name].aggregate_metric_list == group.aggregate_metric_list, name
    requests = {}
    for name, task in theirs["tasks"].items():
        mine, asked = ours["tasks"][name], []
        docs = mine.eval_docs.remove_columns(ROW)
        assert list(docs) == list(task.eval_docs) and docs.features == task.eval_docs.features, name
        for one in (mine, task):
            one.set_config("num_fewshot", 2)
            one.set_fewshot_seed(3)
            one.build_all_requests(limit=None, rank=0, world_size=1)
            asked.append([instance.arguments for instance in one.instances])
        assert asked[0] == asked[1], name
        assert (mine.VERSION, mine.higher_is_better()) == (task.VERSION, task.higher_is_better()), name
        requests[name] = len(asked[0])
    return requests


def test_a_task_at_a_pinned_commit_and_not_a_later_one(worker: Worker, hub: Hub, root: Path) -> None:
    [first] = hub.commits[ARC]
    hub.commit(ARC, arc(extra=3))
    worker.snapshot(root, "--task", "arc_easy", "--revision", first)
    made = root / "data/benchmarks/arc_easy"
    card = read_json(made / "card.json")
    assert rows_of(made / "test.parquet") == [question("test", number) for number in range(4)]
    told = {"path": ARC, "name": "ARC-Easy", "revision": first, "licence": "cc-by-sa-4.0"}
    assert (card["dataset"], card["tested"], card["version"]) == (told, "test.parquet", 1.0)
    # the test split, the one that few-shot examples come from, and not validation, which lm-eval reads for neither
    rows = {name: entry["rows"] for name, entry in card["files"].items() if "rows" in entry}
    assert rows == {"test.parquet": 4, "train.parquet": 6}
    assert {name: entry["sha256"] for name, entry in card["files"].items()} == {
        path.name: sha256(path) for path in made.iterdir() if path.name != "card.json"
    }
    assert (made / "LICENSE").read_bytes() == b"the licence"
    assert (made / "README.md").read_bytes() == hub.commits[ARC][first]["README.md"]


def test_snapshots_ask_what_lm_eval_asks_and_need_no_network(worker: Worker, hub: Hub, root: Path) -> None:
    """A class-labelled group, a tag, and a task with functions: equal to lm-eval's own over the hub."""
    names = ["wmdp", "ai2_arc", "hellaswag"]
    for name in names:
        worker.snapshot(root, "--task", name)
    cards = {path.parent.name: read_json(path) for path in (root / "data/benchmarks").glob("*/card.json")}
    assert cards["wmdp"]["tasks"] == ["wmdp_bio", "wmdp_chem", "wmdp_cyber"]
    assert cards["ai2_arc"]["tasks"] == ["arc_challenge", "arc_easy"]
    assert list(cards["hellaswag"]["modules"]) == ["lm_eval.tasks.hellaswag.utils"]
    answer = worker.call(root, "tests.ops.test_snapshot:compare", names)
    assert answer["value"] == {
        "arc_challenge": 12, "arc_easy": 12, "hellaswag": 16, "wmdp_bio": 12, "wmdp_chem": 12, "wmdp_cyber": 12,
    }, answer  # fmt: skip
    env = worker.env | {"HF_HOME": str(root / "hf")}
    command = [sys.executable, "-c", OFFLINE, *names]
    done = subprocess.run(
        command, cwd=root, env=env, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"arc_challenge": 4, "arc_easy": 4, "hellaswag": 4} | dict.fromkeys(
        ("wmdp_bio", "wmdp_chem", "wmdp_cyber"), 3
    )
    assert not (root / "hf/datasets").exists()  # hellaswag's map has left no cache


def test_tasks_of_a_group_are_of_one_commit(worker: Worker, hub: Hub, root: Path) -> None:
    [sha] = hub.commits[WMDP]
    worker.snapshot(root, "--task", "wmdp")
    cards = [read_json(path) for path in (root / "data/benchmarks").glob("wmdp_*/card.json")]
    assert [card["dataset"]["revision"] for card in cards] == [sha] * 3
    assert hub.asked.count(f"GET /api/datasets/{WMDP}") == 1  # looked up once: main may move in between


def test_killed_in_a_download_leaves_nothing_and_the_next_run_finishes(
    worker: Worker, hub: Hub, root: Path, tmp_path: Path
) -> None:
    hub.commit(ARC, arc(extra=50))
    hub.hang("ARC-Easy/test")
    command = [sys.executable, "-m", "ops.snapshot", "bench=mini"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=root, env=worker.env, stdout=log, stderr=log, start_new_session=True
        )
    try:
        assert hub.stalled.wait(SECONDS), (tmp_path / "log").read_text()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        hub.release()
    assert list((root / "data").rglob("*") if (root / "data").exists() else []) == []
    worker.snapshot(root, "bench=mini")
    assert [path.name for path in (root / "data/benchmarks").iterdir()] == [
        "arc_easy"
    ]  # the suite's own task is not
    assert list((root / ".lathe/snapshots").iterdir()) == []
    (tmp_path / "calm").mkdir()
    worker.snapshot(tmp_path / "calm", "--task", "arc_easy")
    assert tree_digest(root / "data") == tree_digest(tmp_path / "calm/data")


def test_the_code_suite_runs_nothing_of_lm_evals_and_says_where_programs_run(
    worker: Worker, hub: Hub, root: Path
) -> None:
    """`humaneval` and `mbpp` of lm-eval import a module that downloads code: here it is never imported."""
    shutil.copy(HOUSE / "conf/bench/code.yaml", root / "conf/bench/code.yaml")
    hub.commit("openai/openai_humaneval", {"data/test.parquet": parquet(humaneval_rows())})
    hub.commit(
        "google-research-datasets/mbpp", configured("cc-by-4.0", {"full": {"test": parquet(mbpp_rows())}})
    )
    worker.snapshot(root, "bench=code")
    for task, rows in (("humaneval", humaneval_rows()), ("mbpp", mbpp_rows())):
        made = root / "data/benchmarks" / task
        assert rows_of(made / "test.parquet") == rows
        text = (made / "task.yaml").read_text()
        assert "class: !function 'stages.bench.tasks.code.CodeTask'" in text and "lm_eval.tasks" not in text
        assert read_json(made / "card.json")["modules"] == {}
    assert "there already" in worker.snapshot(root, "--task", "mbpp")
    assert (
        worker.call(
            root, "tests.ops.test_snapshot:imported", "lm_eval.tasks.mbpp", "lm_eval.tasks.humaneval"
        )["value"]
        == []
    )


def imported(*names: str) -> list[str]:
    """In the worker: modules whose names begin so."""
    return sorted(name for name in sys.modules if name.startswith(names))


def test_lm_evals_code_in_another_version_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"unsafe_code": True, "metric_list": [{"metric": Function(f"{snapshot_code.MBPP}.pass_at_1")}]}
    assert snapshot_code.sandboxed("mbpp", config)["metric_list"][0]["k"] == [1]
    other = config | {"process_docs": Function(f"{snapshot_code.MBPP}.extract_code_blocks")}
    with pytest.raises(ValueError, match=r"mbpp: lm_eval.*extract_code_blocks executes .* is refused"):
        snapshot_code.sandboxed("mbpp", other)
    monkeypatch.setitem(snapshot_code.KNOWN, snapshot_code.MBPP, "0" * 64)
    with pytest.raises(ValueError, match=r"is not the one that stages\.bench\.tasks\.code was written after"):
        snapshot_code.sandboxed("mbpp", config)


def test_a_second_run_downloads_nothing_and_another_content_wants_replace(
    worker: Worker, hub: Hub, root: Path
) -> None:
    [first] = hub.commits[ARC]
    worker.snapshot(root, "--task", "arc_easy")
    before = tree_digest(root / "data")
    hub.asked.clear()
    assert "there already" in worker.snapshot(root, "--task", "arc_easy")
    assert hub.asked == [f"GET /api/datasets/{ARC}"]
    later = hub.commit(ARC, arc(extra=1))
    line = worker.refused(root, "--task", "arc_easy")
    assert first in line and "--replace" in line
    assert tree_digest(root / "data") == before
    assert "there already" in worker.snapshot(root, "--task", "arc_easy", "--revision", first)
    worker.snapshot(root, "--task", "arc_easy", "--replace")
    card = read_json(root / "data/benchmarks/arc_easy/card.json")
    assert (card["dataset"]["revision"], card["files"]["test.parquet"]["rows"]) == (later, 5)


def test_a_damaged_snapshot_is_not_passed_over(worker: Worker, hub: Hub, root: Path) -> None:
    worker.snapshot(root, "--task", "arc_easy")
    (root / "data/benchmarks/arc_easy/README.md").write_text("other")
    assert "README.md is not the file" in worker.refused(root, "--task", "arc_easy")
    worker.snapshot(root, "--task", "arc_easy", "--replace")
    assert "there already" in worker.snapshot(root, "--task", "arc_easy")


def script(hub: Hub) -> None:
    hub.commit(ARC, arc() | {"ai2_arc.py": b"raise SystemExit('I ran')"})


def lose_a_split(hub: Hub) -> None:
    hub.commit(SWAG, {"data/validation.parquet": swag(4)})


def rename(hub: Hub) -> None:
    hub.commit(ARC, configured("mit", {"ARC-Simple": {"test": wmdp("a")}}))


REFUSED: dict[str, tuple[Callable[[Hub], Any], list[str], str]] = {
    "script": (script, ["--task", "arc_easy"], "is a script (ai2_arc.py at"),
    "gated": (lambda hub: hub.gated.add(ARC), ["--task", "arc_easy"], "HF_TOKEN"),
    "no dataset": (lambda hub: hub.commits.pop(ARC), ["--task", "arc_easy"], "RepositoryNotFoundError"),
    "no network": (lambda hub: setattr(hub, "down", True), ["--task", "arc_easy"], "network"),
    "no such commit": (lambda hub: None, ["--task", "arc_easy", "--revision", "f" * 40], "RevisionNotFoundError"),
    "a branch": (lambda hub: None, ["--task", "arc_easy", "--revision", "main"], "can move"),
    "no configuration": (rename, ["--task", "arc_easy"], "ARC-Easy"),
    "no split": (lose_a_split, ["--task", "hellaswag"], "no rows in the split train"),
    "no task": (lambda hub: None, ["--task", "arc_esay"], "near it: arc_easy"),
    "rows of a class": (lambda hub: None, ["--task", "squadv2"], "a Python class"),
    "rows of a function": (lambda hub: None, ["--task", "babilong_qa1"], "a function"),
    "rows of no commit": (lambda hub: None, ["--task", "arithmetic_1dc"], "--from"),
    "metric of elsewhere": (lambda hub: None, ["--task", "polemo2_in"], "metric f1 is code"),
    "programs run in the open": (lambda hub: None, ["--task", "humaneval_infilling"], "outside of a sandbox"),
    "programs of another kind": (lambda hub: None, ["--task", "cruxeval_input"], "outside of a sandbox"),
    "a group's own rows": (lambda hub: None, ["--task", "openllm"], "fewshot_split"),
    "no suite": (lambda hub: None, ["bench=absent"], "mini"),
    "no bench=": (lambda hub: None, ["mini"], "not bench=SUITE"),
    "revision of a suite": (lambda hub: None, ["bench=mini", "--revision", "f" * 40], "goes with --task"),
    "two sources": (lambda hub: None, ["--task", "gsm8k", "--revision", "f" * 40, "--from", "."], "--from"),
    "no files": (lambda hub: None, ["--task", "gsm8k", "--from", "."], "has no test.parquet, test.jsonl or"),
}  # fmt: skip


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_had_is_one_line_and_leaves_nothing(
    why: str, worker: Worker, hub: Hub, root: Path
) -> None:
    change, arguments, said = REFUSED[why]
    change(hub)
    line = worker.refused(root, *arguments)
    assert said in line
    assert not (root / "data").exists()
    assert not any((root / ".lathe").rglob("*/*"))


def test_one_task_that_cannot_be_had_stops_no_other(worker: Worker, hub: Hub, root: Path) -> None:
    (root / "conf/bench/two.yaml").write_text("tasks: [squadv2, arc_easy, babilong_qa1]\n")
    answer = worker.call(root, "ops.snapshot:main", ["bench=two"])
    assert [line.split(":")[0] for line in answer["problem"].split("\nsnapshot: ")] == [
        "squadv2",
        "babilong_qa1",
    ]
    assert [path.name for path in (root / "data/benchmarks").iterdir()] == ["arc_easy"]


def test_a_suite_that_takes_its_tasks_from_another_says_so(worker: Worker, root: Path) -> None:
    (root / "conf/bench/short.yaml").write_text("defaults: [two, _self_]\nname: short\nlimit: 10\n")
    assert "conf/bench/short.yaml has no tasks of its own" in worker.refused(root, "bench=short")


BROKEN = {
    b'{"question": "q", "answer": "a"}\n{"question": \n': "test.jsonl:2: not valid JSON",
    b'{"question": "q"}\n["q"]\n': "no JSON object",
    b'{"question": "q"}\n{"question": ["q"]}\n': "not readable as a table",
    b"": "no rows in the split test",
}


@pytest.mark.parametrize("content", BROKEN)
def test_broken_files_are_one_line(content: bytes, worker: Worker, root: Path) -> None:
    (root / "in").mkdir()
    (root / "in/test.jsonl").write_bytes(content)
    write_jsonl(root / "in/train.jsonl", [{"question": "q", "answer": "a"}])
    assert BROKEN[content] in worker.refused(root, "--task", "gsm8k", "--from", "in")
    assert not (root / "data").exists()


def test_rows_that_lack_a_column_lose_none(worker: Worker, root: Path) -> None:
    rows = [{"question": "q", "answer": "a"}, {"question": "r", "answer": "b", "hints": [{"text": "h"}]}]
    for split in ("train", "test"):
        write_jsonl(root / f"in/{split}.jsonl", rows)
    worker.snapshot(root, "--task", "gsm8k", "--from", "in")
    assert rows_of(root / "data/benchmarks/gsm8k/test.parquet") == [rows[0] | {"hints": None}, rows[1]]


def test_files_may_be_parquet_and_in_parts(worker: Worker, root: Path) -> None:
    """As the hub's branch refs/convert/parquet has them; a group's in a folder a task. Class labels stay."""
    for kind in ("bio", "chem", "cyber"):
        for part in (0, 1):
            path = root / f"in/wmdp_{kind}/test/{part:04d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(wmdp(kind))
    (root / "in/wmdp_bio/README.md").write_text("---\nlicense: mit\n---\n")
    worker.snapshot(root, "--task", "wmdp", "--from", "in")
    made = root / "data/benchmarks/wmdp_bio"
    assert [row["answer"] for row in rows_of(made / "test.parquet")] == [0, 1, 2, 0, 1, 2]
    told = read_json(made / "card.json")["dataset"]
    assert (told["revision"], told["licence"]) == (None, "mit")
    assert told["from"] == dict.fromkeys(
        ("test/0000.parquet", "test/0001.parquet"), sha256(root / "in/wmdp_bio/test/0000.parquet")
    )
    assert b"ClassLabel" in (made / "test.parquet").read_bytes()
    assert "there already" in worker.snapshot(root, "--task", "wmdp", "--from", "in")
    (root / "in/wmdp_bio/test/0001.parquet").unlink()
    assert "--replace" in worker.refused(root, "--task", "wmdp_bio", "--from", "in/wmdp_bio")


def test_the_command_ends_with_the_line_and_a_failure(root: Path) -> None:
    command = [sys.executable, "-m", "ops.snapshot", "bench=absent"]
    env = os.environ | {"PYTHONPATH": str(HOUSE)}
    done = subprocess.run(
        command, cwd=root, env=env, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert (done.returncode, done.stderr) == (
        1,
        "snapshot: 'bench=absent' is not bench=SUITE, with one of mini\n",
    )


def test_snapshots_are_under_dvc_and_come_back(worker: Worker, root: Path) -> None:
    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=root, env=worker.env, capture_output=True, text=True, check=True)
        return done.stdout

    dvc = (sys.executable, "-m", "dvc")
    run("git", "init", "-q")
    run(*dvc, "init", "-q")
    write_jsonl(root / "in/train.jsonl", [{"question": "q", "answer": "#### 1"}])
    write_jsonl(root / "in/test.jsonl", [{"question": "r", "answer": f"#### {n}"} for n in range(3)])
    asked = ("--task", "gsm8k", "--from", "in")
    assert "commit" in worker.snapshot(root, *asked)
    before = tree_digest(root / "data/benchmarks/gsm8k")
    shutil.rmtree(root / "data/benchmarks/gsm8k")
    assert "dvc pull" in worker.refused(root, *asked)  # made anew it could differ from what the commit names
    run(*dvc, "checkout", "-q", "data/benchmarks/gsm8k.dvc")
    assert tree_digest(root / "data/benchmarks/gsm8k") == before
    (root / "data/benchmarks/gsm8k.dvc").unlink()  # as if killed before `dvc add`
    assert "there already" in worker.snapshot(root, *asked)
    assert (root / "data/benchmarks/gsm8k.dvc").is_file()
    assert run(*dvc, "status", "data/benchmarks/gsm8k.dvc").strip() == "Data and pipelines are up to date."


@pytest.mark.skipif(not GSM8K.is_dir(), reason="no ../shared/data/gsm8k")
def test_gsm8k_of_real_files(worker: Worker, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.tasks import TaskManager

    worker.snapshot(root, "--task", "gsm8k", "--from", str(GSM8K))
    monkeypatch.chdir(root)
    verify(["gsm8k"])
    manager = TaskManager(include_path="data/benchmarks", include_defaults=False)
    task = manager.load(["gsm8k"])["tasks"]["gsm8k"]
    for split, docs, count in (("test", task.test_docs(), 1319), ("train", task.training_docs(), 7473)):
        given = [json.loads(line) for line in (GSM8K / f"{split}.jsonl").read_text().splitlines()]
        assert len(docs) == count
        assert list(docs.remove_columns(ROW)) == given
    assert task.VERSION == 3.0


def test_a_snapshot_that_dvc_does_not_take_is_a_line_beside_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".dvc").mkdir()  # half a repository: no git around it
    monkeypatch.chdir(tmp_path)

    def make(name: str, order: Any, there: dict[str, None]) -> Iterator[str]:
        if name == "bad":
            raise ValueError("bad: no rows")
        there[name] = None
        yield name

    monkeypatch.setattr(snapshot, "_make_all", make)
    monkeypatch.setattr(snapshot, "_suite", lambda _: ["bad", "good"])
    with pytest.raises(
        ValueError, match=r"^bad: no rows\nsnapshot: dvc add data/benchmarks/good failed: "
    ) as no:
        snapshot.main(["bench=any"])
    assert str(no.value).count("\n") == 1
