"""ops.latency: a real model is timed, the figures are those of the timings, and none of it is an out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ops import latency
from ops.latency import Shape, Timings
from tests.ops import bench_project


@pytest.fixture
def workspace(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    bench_project.make(tiny_model, [])
    return tmp_path


def test_each_batch_size_is_measured_and_logged(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = ["--batch", "1", "3", "--prompt", "9", "--new", "5"]
    latency.main(["base", *shape, "--repeats", "4", "--json", "found.json"], workspace)
    for number, measured in zip((1, 3), json.loads(Path("found.json").read_text())["measured"], strict=True):
        assert measured["shape"] == {"batch": number, "prompt": 9, "new": 5}
        found = measured["figures"]
        assert found["n"] == 4 and found["tokens_per_second"] > 0 and found["peak_memory_mib"] > 50
        for part in ("first", "further"):
            assert 0 < found[f"{part}/p50_ms"] <= found[f"{part}/p95_ms"] <= found[f"{part}/p99_ms"]
    assert "prompts of 9 tokens, 5 written" in capsys.readouterr().out
    journals = [path.read_text() for path in sorted(Path(".lathe/tracking").rglob("*.jsonl"))]
    assert len([text for text in journals if '"latency/first/p99_ms"' in text]) == 2
    assert not Path("metrics").exists() and not Path("data/results").exists()


def test_a_batch_with_no_room_loses_nothing_that_was_measured(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Small batches come first, whatever the order asked for: so their peak memory is their own, on CPUs too."""
    measured, measure = list[int](), latency.measure

    def limited(model: Any, shape: Shape, repeats: int, seed: int) -> Timings:
        measured.append(shape.batch)
        if shape.batch > 2:
            raise RuntimeError("out of memory\ntried to allocate 20.00 GiB")
        return measure(model, shape, repeats, seed)

    monkeypatch.setattr(latency, "measure", limited)
    asked = [
        "base",
        "--batch",
        "4",
        "2",
        "1",
        "2",
        "--prompt",
        "5",
        "--new",
        "2",
        "--repeats",
        "1",
        "--json",
        "f.json",
    ]
    with pytest.raises(ValueError, match="batch 4: out of memory tried to allocate 20") as no:
        latency.main(asked, workspace)
    assert "\n" not in str(no.value) and measured == [1, 2, 4]
    assert [each["shape"]["batch"] for each in json.loads(Path("f.json").read_text())["measured"]] == [1, 2]
    journals = [path.read_text() for path in Path(".lathe/tracking").rglob("*.jsonl")]
    assert len([text for text in journals if '"latency/first/p50_ms"' in text]) == 2
    assert "prompts of 5 tokens" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"batch 3: out of memory.*; lower --batch, --prompt or --new"):
        latency.main(["base", "--batch", "3"], workspace)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["base", "--prompt", "1000", "--new", "100"],
            "--prompt 1000 and --new 100 are more than the 1024 tokens",
        ),
        (["best"], "variant 'best' is not under `variants`"),
    ],
)
def test_what_cannot_be_measured_is_refused(workspace: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        latency.main(arguments, workspace)


def test_another_back_end_is_not_passed_off_as_timed(workspace: Path) -> None:
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["variants"]["base"]["backend"] = "hf"
    Path("params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(ValueError, match=r"variants.base of params.yaml has backend: hf.*backend: own"):
        latency.main(["base"], workspace)


def test_the_figures_are_those_of_the_timings() -> None:
    timings = Timings(first=[0.1, 0.3], further=[0.01, 0.02, 0.03, 0.04], peak_mib=7.0)
    found = latency.figures(timings, Shape(batch=2, prompt=5, new=3))
    assert found["first/p50_ms"] == 100 and found["first/p99_ms"] == 300 and found["further/p50_ms"] == 20
    assert found["tokens_per_second"] == pytest.approx(2 * 3 * 2 / 0.5)
    assert found["decode_tokens_per_second"] == pytest.approx(2 * 4 / 0.1)
    assert "further/p50_ms" not in latency.figures(Timings(first=[0.1]), Shape(1, 5, 1))


@given(st.lists(st.floats(0, 1e6), min_size=1), st.sampled_from([0.5, 0.95, 0.99, 1.0]))
def test_a_percentile_is_numpys_inverted_distribution(values: list[float], share: float) -> None:
    assert latency.quantile(values, share) == np.quantile(values, share, method="inverted_cdf")
