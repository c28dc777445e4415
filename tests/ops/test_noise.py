"""ops.noise: repeats of a suite on one model, kept and not run again, and ops.compare reads them."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import pytest
import yaml

from ops import compare, noise
from ops.results import Results
from stages.bench import evaluation
from stages.bench.config import Bench, Variant
from stages.common.files import write_json, write_text
from tests.ops import bench_project

FOLDER = Path(".lathe/noise/base")
TASKS = ["heldout_loss", "helpdesk_intent"]


@pytest.fixture
def model(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    copied = tmp_path / "model"
    shutil.copytree(tiny_model, copied)
    bench_project.make(copied, TASKS)
    return copied


def test_repeats_are_kept_and_compare_reads_them(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise.main(["base", "--seeds", "8", "--batch-size", "1", "--precision", "bf16"], Path.cwd())
    made = {path.name.rpartition("-")[0]: path for path in FOLDER.iterdir()}
    assert sorted(made) == ["batch-1", "bf16", "plain", "seed-8"]
    out = capsys.readouterr().out
    assert "+0.0000 (0.0 %)" in out  # no few-shot example is drawn, so the seed moves nothing
    assert "heldout_loss/nll_per_token" in out and "limit" in out

    times = {path: path.stat().st_mtime_ns for path in FOLDER.iterdir()}
    noise.main(["base", "--seeds", "8", "--batch-size", "1", "--precision", "bf16"], Path.cwd())
    assert times == {path: path.stat().st_mtime_ns for path in FOLDER.iterdir()}

    assert compare.main([str(made["plain"]), str(made["bf16"]), "--noise", str(FOLDER)]) == 0
    assert "repeats" in capsys.readouterr().out


def test_repeats_of_another_model_are_run_anew(model: Path) -> None:
    noise.main(["base", "--seeds", "8"], Path.cwd())
    before = {path.name for path in FOLDER.iterdir()}
    (model / "NOTES").write_text("another model, by its digest")
    noise.main(["base", "--seeds", "9"], Path.cwd())
    after = {path.name for path in FOLDER.iterdir()}
    assert len(after) == 2 and not before & after


def test_repeats_on_other_items_are_run_anew(model: Path) -> None:
    noise.main(["base", "--seeds", "8"], Path.cwd())
    before = {path.name for path in FOLDER.iterdir()}
    rows = Path("data/prepared/test.jsonl")
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[:2]))
    noise.main(["base", "--seeds", "8"], Path.cwd())
    after = {path.name for path in FOLDER.iterdir()}
    assert len(after) == 2 and not before & after


@pytest.mark.parametrize("task", ["heldout_loss", "mine", "far"])
def test_the_items_digest_has_a_tasks_data(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prepare's rows, the file of a task of one's own, and a snapshot: none is in the stage's fingerprint."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(evaluation.TASKS, "tasks")
    text = Path("tasks/heldout_loss.yaml").read_text().replace("data/prepared/", "data/benchmarks/mine/")
    Path("tasks/mine.yaml").write_text(text)
    for module in (evaluation, noise):
        monkeypatch.setattr(module, "TASKS", Path("tasks"))
    write_json(
        Path("data/benchmarks/far/card.json"), {"task": "far", "files": {}, "modules": {}, "lm_eval": "0"}
    )
    data = {"heldout_loss": "data/prepared/test.jsonl", "mine": "data/benchmarks/mine/test.jsonl"}
    path = Path(data.get(task, "data/benchmarks/far/test.parquet"))
    before = noise.items_digest([task])
    write_text(path, "rows")
    assert noise.items_digest([task]) != before


def test_nothing_to_change_is_refused(model: Path) -> None:
    with pytest.raises(ValueError, match="nothing is changed"):
        noise.main(["base", "--precision", "fp32"], Path.cwd())


def test_what_a_back_end_cannot_change_is_no_repeat(model: Path) -> None:
    """A server's own batches and precision: a run that asks the same again would count as one that does not move."""
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["variants"]["base"] |= {
        "backend": "completions",
        "model_args": {"base_url": "http://127.0.0.1:9/v1"},
    }
    Path("params.yaml").write_text(yaml.safe_dump(params))
    loaded = noise.load("bench", Bench, ["base"], Variant)
    usual = argparse.Namespace(seeds=[], batch_size=[], precision=[])
    assert [each.name for each in noise.repeats(loaded, usual)] == [
        "plain",
        f"seed-{loaded.section.seed + 1}",
    ]
    for option in (["--batch-size", "7"], ["--precision", "bf16"]):
        with pytest.raises(ValueError, match=f"{option[0]} changes nothing of backend completions"):
            noise.main(["base", *option], Path.cwd())


def test_a_batch_size_that_is_none_is_refused(model: Path) -> None:
    with pytest.raises(ValueError, match="--batch-size 0: give numbers from 1"):
        noise.main(["base", "--batch-size", "3", "0"], Path.cwd())
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["bench"]["batch_size"] = 0
    Path("params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(ValueError, match=r"bench.batch_size=0 \(params.yaml\): give 1 or more"):
        noise.main(["base"], Path.cwd())


def test_the_table_says_how_far_each_repeat_moves() -> None:
    plain = {"t/acc": {"a": 1.0, "b": 0.0, "c": 1.0, "d": 0.0}, "t/loss": {"a": 2.0}}
    other = {"t/acc": {"a": 1.0, "b": 1.0, "c": 1.0, "d": 0.0}}
    runs = {name: Results(name, "", scores) for name, scores in (("plain", plain), ("seed-2", other))}
    head, *lines = noise.table(runs)
    assert head == ["metric", "n", "plain", "seed-2", "limit"]
    # SD of the means 0.5 and 0.75 is 0.1768; 1.96 * sqrt(2) * that is 0.4900
    assert lines[0] == ["t/acc", "4", "0.5000", "+0.2500 (25.0 %)", "0.4900"]
    assert lines[1] == ["t/loss", "1", "2.0000", "not scored", ""]


def test_values_that_are_no_mean_over_items_are_in_the_table() -> None:
    """Perplexities of two items: exp(4 / 4), and exp(8 / 4) where one of them is less likely."""
    plain, other = ({"a": {"nats": 2.0, "size": 2.0}, "b": {"nats": n, "size": 2.0}} for n in (2.0, 6.0))
    found = {
        name: Results(name, "", {}, parts={"t/perplexity": parts} if parts else {})
        for name, parts in (("plain", plain), ("bf16", other), ("seed-2", {}))
    }
    _, line = noise.table(found)
    # |e^2 - e| = 4.6708 apart, and the limit is 1.96 of it
    assert line == ["t/perplexity", "2", "2.7183", "+4.6708 (50.0 %)", "not scored", "9.1545"]
