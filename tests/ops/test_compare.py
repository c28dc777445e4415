"""ops.compare through its command line, on a real git and DVC project, and on a registry as ops.promote leaves it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ops import compare
from ops.direction import directions
from ops.results import Results, read
from stages.common.files import sha256, write_json, write_text
from stages.common.store import connect
from tests.small_project import HOUSE, Project, flip_bit, make_project

BENCH = """
import json, pathlib, sys
import pyarrow as pa, pyarrow.parquet as pq, yaml

params = yaml.safe_load(pathlib.Path("params.yaml").read_text())
bench, variant = params["bench"], params["variants"][sys.argv[1]]
rows = []
for number in range(bench["limit"]):
    right = number % 10 > 0 and number >= variant["broken"]
    scores = {"acc": float(right), "nll_per_byte": 0.5 + number % 7 / 100 + variant["broken"] / 1000}
    rows.append({
        "task": "sums", "id": f"{number:04d}", "slice": "", "prompt_hash": f"{bench['prompt']['name']} {number}",
        "output": "", "target": "2", "scores": json.dumps(scores), "loglikelihoods": [-1.0, -2.0],
    })
results = pathlib.Path("data/results")
results.mkdir(parents=True, exist_ok=True)
pq.write_table(pa.Table.from_pylist(rows), results / f"{sys.argv[1]}.parquet")
"""
STAGES = """
stages:
  bench:
    foreach: ${variants}
    do:
      cmd: python bench.py ${key}
      deps: [bench.py]
      params: [bench, "variants.${key}"]
      outs: ["data/results/${key}.parquet"]
"""
BASE = {"path": "models/base", "revision": "", "precision": "fp32", "broken": 60}
GOOD = {"path": "models/tuned", "revision": "", "precision": "fp32", "broken": 0}
BAD = {"path": "models/tuned", "revision": "", "precision": "bf16", "broken": 40}
NAME = "SumsAssistant"


def set_params(project: Project, tuned: dict[str, Any], *, limit: int, prompt: str) -> None:
    bench = {"name": prompt, "tasks": ["sums"], "limit": limit, "prompt": {"name": prompt, "system": ""}}
    write_json(project.root / "params.yaml", {"bench": bench, "variants": {"base": BASE, "tuned": tuned}})
    project.dvc("repro", "-q")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Tag `good`; experiment `worse-exp` and commit main, worse, under another prompt, limit and precision.

    The experiment's results are no commit's but its own: it has a limit of 150, main one of 160.
    """
    made = make_project(tmp_path_factory.mktemp("compare") / "first")
    write_text(made.root / "bench.py", BENCH)
    write_text(made.root / "dvc.yaml", STAGES)
    write_text(made.root / "requirements.lock", "torch==2.13.0\ntorchao==1.0\nlm_eval==0.4.13\n")
    set_params(made, GOOD, limit=200, prompt="plain")
    commit(made, "good")
    made.run("git", "tag", "good")
    set_params(made, BAD, limit=150, prompt="plain")
    made.dvc("exp", "save", "-q", "-n", "worse-exp")
    write_text(made.root / "requirements.lock", "torch==2.14.0\ntorchao==1.1\nlm_eval==0.4.13\n")
    set_params(made, BAD, limit=160, prompt="chatty")
    commit(made, "worse")
    return made


def commit(project: Project, message: str) -> None:
    project.run("git", "add", "-A")
    project.run("git", "commit", "-q", "-m", message)


@pytest.fixture
def inside(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The project, as the current directory of this process."""
    monkeypatch.chdir(project.root)
    return project


def write_rows(path: Path, items: Sequence[dict[str, float]], **columns: Any) -> Path:
    """A results file with these scores as the items of task sums; `columns` are the same for all of them."""
    rows = [
        {"task": "sums", "id": f"{number:04d}", "scores": json.dumps(scores)} | columns
        for number, scores in enumerate(items)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that compare says instead of comparing."""
    capsys.readouterr()
    assert compare.main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and said.err.startswith("compare: ")
    return said.err


def test_a_worse_revision_fails_and_the_reports_say_why(project: Project, tmp_path: Path) -> None:
    files = (tmp_path / "reports/c.json", tmp_path / "c.md")
    command = ("good", "main", "--json", str(files[0]), "--markdown", str(files[1]))
    done = project.ops("compare", *command)
    assert done.returncode == 1 and done.stderr == ""
    told = json.loads(files[0].read_text())
    assert told["worse"] == ["sums/acc", "sums/nll_per_byte"]
    acc = told["metrics"]["sums/acc"]
    assert (acc["n"], acc["only_a"], acc["only_b"], acc["test"]) == (160, 40, 0, "mcnemar")
    assert (acc["a"], acc["b"], acc["gained"], acc["lost"]) == (0.9, 0.675, 0, 36)
    assert acc["difference"]["value"] == pytest.approx(-0.225)
    assert acc["p"] == pytest.approx(2 * 0.5**36) and acc["p_holm"] == pytest.approx(2 * acc["p"])
    nll = told["metrics"]["sums/nll_per_byte"]
    assert not nll["higher_is_better"] and nll["difference"]["value"] == pytest.approx(0.04)
    head = project.run("git", "rev-parse", "--short=8", "main").stdout.strip()
    assert told["b"] == {"name": "main", "source": f"data/results/tuned.parquet at commit {head}"}
    assert told["warnings"] == [
        "sums: 40 items only in A, 0 only in B",
        "sums: 160 of 160 items were asked with another prompt in A than in B",
        "bench.limit: 200 in A, 160 in B",
        "bench.prompt.name: plain in A, chatty in B",
        "pinned torch: 2.13.0 in A, 2.14.0 in B",
        "variant.broken: 0 in A, 40 in B",
        "variant.precision: fp32 in A, bf16 in B",
    ]
    for text in (files[1].read_text(), done.stdout):
        assert "B against A in 2 metrics: 2 worse." in text and "sums/acc ↑" in text
        assert "-0.2250 [-0.2" in text and "warning: bench.limit: 200 in A, 160 in B" in text
    assert max(map(len, done.stdout.splitlines())) <= 160
    before = [file.read_bytes() for file in files]
    project.ops("compare", *command)
    assert [file.read_bytes() for file in files] == before


def test_a_better_revision_and_an_equal_one_pass(project: Project) -> None:
    done = project.ops("compare", "main", "good")
    assert done.returncode == 0 and "2 better" in done.stdout
    done = project.ops("compare", "HEAD", ".")
    assert done.returncode == 0 and "Every score of B equals that of A (2 metrics)." in done.stdout
    assert "warning" not in done.stdout


def test_what_cannot_be_compared_is_status_2(project: Project) -> None:
    done = project.ops("compare", "nosuch", ".")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        "compare: 'nosuch' is no revision, experiment, folder with data/results or .parquet file\n"
    )
    assert project.ops("compare", "good").returncode == 2


def test_an_experiment_by_its_name(inside: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main(["good", "worse-exp"]) == 1
    assert "bench.limit: 200 in A, 150 in B" in capsys.readouterr().out
    assert compare.main(["worse-exp", "main~0:tuned"]) == 0


@pytest.mark.parametrize("name", ["good:base", "HEAD~1:base", ".:base", "workspace:base"])
def test_a_variant_by_its_name(inside: Project, name: str) -> None:
    assert compare.main([name, "good:tuned"]) == compare.main(["good", name, "--variant", "base"]) == 0
    assert compare.main(["good:tuned", name]) == compare.main(["good", name]) == 1
    assert compare.main(["good:base", name, "--variant", "tuned"]) == 0


def test_two_variants_differ_in_how_they_were_made_not_in_what_they_are(inside: Project) -> None:
    base, tuned = (read(f".:{variant}", "", inside.root) for variant in ("base", "tuned"))
    assert compare.warnings(base, tuned) == [
        "variant.broken: 60 in A, 40 in B",
        "variant.precision: fp32 in A, bf16 in B",
    ]


def test_a_folder_elsewhere_and_a_file_are_compared_without_a_record(
    inside: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(inside.root / "data/results", tmp_path / "data/results")
    file = tmp_path / "data/results/tuned.parquet"
    assert compare.main([str(tmp_path), str(file)]) == 0
    assert "no record of how A and B came about" in capsys.readouterr().out
    assert compare.main([f"{tmp_path}:base", str(file)]) == 0


def test_results_that_dvc_lock_does_not_name_have_no_record(
    inside: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stage that was run by hand may have had any parameters."""
    for name in ("dvc.lock", "requirements.lock"):
        shutil.copy(inside.root / name, tmp_path)
    file = write_rows(tmp_path / "data/results/tuned.parquet", [{"acc": 1.0}] * 5, prompt_hash="x")
    assert compare.main([".", str(tmp_path)]) == 0
    assert "no record of how B came about" in capsys.readouterr().out
    shutil.copy(inside.root / "data/results/tuned.parquet", file)
    assert compare.main([".", str(tmp_path)]) == 0
    assert "no record" not in capsys.readouterr().out


def test_results_come_from_the_remote_or_there_is_a_line(project: Project, tmp_path: Path) -> None:
    """A clone has no cache; a remote can be any place."""
    remote = ("remote", "add", "--local", "-d", "spare", str(tmp_path))
    alone = project.clone("alone")
    done = alone.ops("compare", "good", "origin/main")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "data/results/tuned.parquet of good is missing in the cache" in done.stderr
    assert "no bucket is set: run `python -m ops.remote" in done.stderr
    project.dvc(*remote)
    project.dvc("push", "-q", "-A")
    project.dvc("remote", "remove", "--local", "spare")
    alone.dvc(*remote)
    assert alone.ops("compare", "good", "origin/main").returncode == 1
    alone.dvc("pull", "-q")
    alone.dvc("remote", "remove", "--local", "spare")
    flip_bit(alone.cached("data/results/tuned.parquet"))
    done = alone.ops("compare", "HEAD", "HEAD")
    assert done.returncode == 2 and "tuned.parquet of HEAD is bad in the cache" in done.stderr


def test_one_line_for_what_is_not_there(inside: Project, capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        ("good:nix", "."): "good:nix: dvc.lock there has no 'nix' (there: base, tuned)",
        (".", ".:nix"): "./data/results/nix.parquet does not exist (there: base, tuned)",
        ("good~1", "."): "good~1: dvc.lock there has no 'tuned' (there: none)",
        ("nosuch.parquet", "."): "nosuch.parquet: no such file",
        (".", ".", "--noise", "."): "--noise takes at least two repeats",
        (".", ".", "--margin", "-0.1"): "--margin -0.1: give the fall that is tolerated",
        (".", ".", "--margin", "nan"): "--margin nan: give the fall that is tolerated",
        ("models:/Nix@champion", "."): "registry/champion.json has no 'Nix' (there: none)",
        ("models:/Nix", "."): "models:/Nix is neither models:/Name@alias nor models:/Name/3",
    }
    for arguments, said in cases.items():
        assert said in refused(capsys, *arguments)


def test_one_line_for_a_file_that_holds_no_results(
    inside: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write_rows(tmp_path / "good.parquet", [{"acc": 1.0}] * 3)
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(b"PAR1 and then nothing")
    assert "is not a parquet file" in refused(capsys, str(good), str(bad))
    pq.write_table(pa.table({"id": ["1"], "winner": ["a"]}), bad)
    assert "it has no column scores, task" in refused(capsys, str(good), str(bad))
    write_rows(bad, [{"acc": 1.0}, {"acc": 1.0}], id="0000")
    assert "item 0000 of sums stands there twice" in refused(capsys, str(good), str(bad))
    write_rows(bad, [{"acc": float("nan")}])
    assert "item 0000 of sums has acc nan" in refused(capsys, str(good), str(bad))
    write_rows(bad, [{}], scores="half a {")
    assert "scores that are no JSON object: 'half a {'" in refused(capsys, str(good), str(bad))
    write_rows(bad, [{"acc": 1.0}], task="other")
    assert "no item is scored in both (1 metrics in A, 1 in B, 0 in both)" in refused(
        capsys, str(good), str(bad)
    )


def test_a_report_that_cannot_be_written_is_status_2(
    inside: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "params.yaml" in refused(capsys, "good", "main", "--json", "params.yaml/c.json")


def test_repeats_stand_in_the_table_and_excuse_what_they_show(
    inside: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shifts = (0.0, 0.03, -0.01, 0.02, -0.02)
    a, b, *repeats = (
        str(
            write_rows(
                tmp_path / f"{shift}.parquet", [{"nll_per_byte": 1 + n % 3 + shift} for n in range(30)]
            )
        )
        for shift in shifts
    )
    report = tmp_path / "c.json"
    assert compare.main([a, b]) == 1
    assert compare.main([a, b, "--noise", *repeats, "--json", str(report)]) == 0
    out = capsys.readouterr().out
    assert "worse (within noise)" in out and "SD 0.0208, 100.0 % flip" in out
    told = json.loads(report.read_text())
    assert told["noise"] == repeats and told["worse"] == []
    assert told["metrics"]["sums/nll_per_byte"]["mark"] == "within noise"
    foreign = str(write_rows(tmp_path / "foreign.parquet", [{"nll_per_byte": 1.0}] * 20, target="3"))
    compare.main([a, b, "--noise", repeats[0], foreign])
    assert f"sums: 10 items only in {repeats[0]}, 0 only in {foreign}" in capsys.readouterr().out


def test_a_task_and_the_gate_say_of_which_metric_less_is_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    a = write_rows(Path("a.parquet"), [{"edits,all": 2.0, "cost": 2.0}] * 30)
    b = write_rows(Path("b.parquet"), [{"edits,all": 1.0, "cost": 1.0}] * 30)
    assert compare.main([str(a), str(b)]) == 1
    task = (
        "task: sums\nclass: !function os.system\nmetric_list:\n  - {metric: edits, higher_is_better: false}\n"
    )
    write_text(Path("stages/bench/tasks/sums.yaml"), task)
    write_text(Path("stages/bench/tasks/other.yaml"), "task: other\n")
    score = {"task": "sums", "metric": "cost", "higher_is_better": False}
    write_json(Path("params.yaml"), {"register": {"target": score, "guards": []}})
    assert directions(tmp_path) == {"sums/edits": False, "sums/cost": False}
    assert compare.main([str(a), str(b)]) == 0


def test_a_snapshot_says_of_which_metric_less_is_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """lm-eval's crows_pairs: a larger share of stereotypes is no progress, whatever functions its file names."""
    monkeypatch.chdir(tmp_path)
    names = {"pct_stereotype": 1.0, "cost": 1.0}
    a = write_rows(Path("a.parquet"), [dict.fromkeys(names, 0.0)] * 30)
    b = write_rows(Path("b.parquet"), [names] * 30)
    assert compare.main([str(a), str(b)]) == 0
    task = """task: sums
process_results: !function lm_eval.tasks.crows_pairs.utils.process_results
metric_list:
  - {metric: pct_stereotype, aggregation: mean, higher_is_better: false}
  - {metric: !function lm_eval.tasks.crows_pairs.utils.cost, higher_is_better: false}
  - {metric: other}
"""
    write_text(Path("data/benchmarks/sums/task.yaml"), task)
    assert directions(tmp_path) == {"sums/pct_stereotype": False, "sums/cost": False}
    assert compare.main([str(a), str(b)]) == 1


def test_changed_targets_long_settings_and_lone_metrics_are_told() -> None:
    ids = {"1": 1.0}
    many = {f"t/m{number}": ids for number in range(6)}
    a = Results(
        "a", "", many | {"t/x": ids}, {"t": {"1": "p"}}, {"t": {"1": "2"}}, {"prompt": "a" * 90, "b": "1"}
    )
    b = Results("b", "", {"t/x": ids}, {"t": {"1": "p"}}, {"t": {"1": "3"}}, {"prompt": "b" * 90})
    assert compare.warnings(a, b) == [
        "only A holds t/m0, t/m1, t/m2, t/m3 and 2 more",
        "t: 1 of 1 items were scored against another target in A than in B",
        "b: 1 in A, not recorded in B",
        "prompt is not the same",
    ]
    assert compare.warnings(a, a) == []


def test_repeats_of_other_items_are_told_and_excuse_nothing(
    inside: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of ten items a mean moves far more than of two hundred."""

    def rows(name: str, shift: float, count: int) -> str:
        items = [{"nll_per_byte": 1 + n % 3 + shift} for n in range(count)]
        return str(write_rows(tmp_path / f"{name}.parquet", items))

    a, b = rows("a", 0.0, 200), rows("b", 0.03, 200)
    short = [rows(f"short{shift}", shift, 10) for shift in (-0.05, 0.05)]
    assert compare.main([a, b, "--noise", *short]) == 1
    assert f"sums: 190 items only in A, 0 only in {short[0]}" in capsys.readouterr().out
    longer = [rows(f"long{shift}", shift, 300) for shift in (-0.05, 0.05)]
    assert compare.main([a, b, "--noise", *longer, "--json", str(tmp_path / "c.json")]) == 0
    told = json.loads((tmp_path / "c.json").read_text())["metrics"]["sums/nll_per_byte"]
    assert told["spread"]["n"] == 200


def test_a_and_b_are_not_each_others_noise(
    inside: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "A and B are both among the repeats" in refused(capsys, "good", "main", "--noise", "good", "main")
    for shift in (0.0, 0.03):
        write_rows(tmp_path / f"noise/{shift}.parquet", [{"acc": shift + n % 3} for n in range(30)])
    folder = str(tmp_path / "noise")
    a, b = (str(shutil.copytree(folder, tmp_path / "other") / "0.0.parquet"), f"{folder}/0.03.parquet")
    assert "A and B are both among" in refused(capsys, a, b, "--noise", folder)
    assert compare.main([a, a, "--noise", folder]) == 0
    write_rows(tmp_path / "noise/again.parquet", [{"acc": 0.01 + n % 3} for n in range(30)])
    assert compare.main([a, b, "--noise", folder, "--json", str(tmp_path / "c.json")]) == 0
    spread = json.loads((tmp_path / "c.json").read_text())["metrics"]["sums/acc"]["spread"]
    assert spread["repeats"] == 2 and spread["sd"] == pytest.approx(0.01 / 2**0.5)  # B is left out


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two champions in registry/, and a store in which version 3 was never one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    entries = []
    for model, right in (("a" * 64, 9), ("b" * 64, 5)):
        draft = tmp_path / "draft.json"
        write_json(draft, {"sums/acc": {f"{n:04d}": float(n % 10 < right) for n in range(60)}})
        entries.append({"model": model, "items": sha256(draft)})
        kept = tmp_path / "registry/items" / f"{sha256(draft)[:16]}.json"
        kept.parent.mkdir(parents=True, exist_ok=True)
        draft.rename(kept)
    write_json(tmp_path / "registry/champion.json", {NAME: {"champion": entries[1], "previous": entries[0]}})
    lines = [json.dumps(entry | {"registered_model": NAME}) + "\n" for entry in entries]
    write_text(tmp_path / "registry/ledger.jsonl", "".join(lines))
    return tmp_path


def test_champions_are_compared_by_the_scores_that_the_registry_keeps(
    registry: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare.main([f"{NAME}@previous", f"models:/{NAME}@champion"]) == 1
    out = capsys.readouterr().out
    assert "model aaaaaaaa in registry/" in out and "0.9000  0.5000" in out
    assert "prompts of A and B were not compared" in out and "no record of how A and B came about" in out
    file = str(write_rows(registry / "now.parquet", [{"acc": 1.0, "f1": 0.5}] * 60))
    assert compare.main([f"{NAME}@champion", file]) == 0
    assert "only B holds sums/f1" in capsys.readouterr().out
    [kept] = (registry / "registry/items").glob(f"{sha_of(registry, 'champion')}*.json")
    write_text(kept, "{}\n")
    assert f"{kept.relative_to(registry)} is missing or changed" in refused(capsys, f"{NAME}@champion", file)


def sha_of(root: Path, which: str) -> str:
    state = json.loads((root / "registry/champion.json").read_text())
    return str(state[NAME][which]["items"][:16])


def test_a_version_of_the_store_by_its_number_and_alias(
    registry: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client = connect(registry)
    client.create_registered_model(NAME)
    for letter in "abc":
        client.create_model_version(NAME, "here", tags={"lathe.model": letter * 64})
    client.set_registered_model_alias(NAME, "first", "1")
    assert compare.main([f"models:/{NAME}/1", f"models:/{NAME}/2"]) == 1
    assert read(f"{NAME}@first", "tuned", registry).source == "model aaaaaaaa in registry/"
    said = refused(capsys, f"models:/{NAME}/3", f"models:/{NAME}/1")
    assert "was never champion, and registry/ keeps no other's scores" in said
    assert "not found" in refused(capsys, f"models:/{NAME}/4", f"models:/{NAME}/1")


def test_the_import_is_light() -> None:
    heavy = {"torch", "mlflow", "pyarrow", "pandas", "dvc.repo"}
    code = f"import sys, ops.compare; print(sorted({heavy!r} & set(sys.modules)))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=HOUSE, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
