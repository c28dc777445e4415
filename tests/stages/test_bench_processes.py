"""Several processes answer for one variant: the same bytes as from one, also where a share begins within a prefix."""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.bench.__main__ import main
from stages.bench.config import Backend, Bench, Precision, Variant
from stages.bench.ranks import Ranks
from stages.common.agent import plain
from stages.common.files import write_json
from stages.common.prompt import Example, Prompt
from tests.small_project import HOUSE
from tests.stages.test_bench import NO_CODE, ROWS, answer, row, write

TASKS = ["heldout_loss", "helpdesk_intent", "helpdesk_triage"]
PROMPT = Prompt("p", "You triage.", [Example("my line is dead", answer("Done."))], 12)
VARIANT = Variant("models/base", "", Precision.fp32, Backend.own, {})
CFG = Bench(7, 1, "sample", TASKS, 0, 2, 160, PROMPT, 1, True, ["style"], NO_CODE)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(HOUSE))
    more = [
        row(
            number,
            [{"role": "user", "content": f"item {number} " * (number % 5 + 1)}],
            answer(f"To {number}."),
        )
        for number in range(10, 17)
    ]
    write([*ROWS, *more])
    shutil.copytree(tiny_model, "models/base")
    return tmp_path


def run(name: str) -> bytes:
    main(CFG, name, VARIANT)
    return Path(f"data/results/{name}.parquet").read_bytes()


def test_three_processes_write_the_bytes_of_one(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = run("base")
    monkeypatch.setenv("LATHE_BENCH_PROCESSES", "3")
    monkeypatch.setattr("stages.bench.processes.Scorer", None)  # the stage itself loads no model
    assert run("base") == one
    assert not list(Path(".ckpt").glob("bench*"))


def test_what_stops_a_process_is_the_stages_one_line(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(tiny_model / "model.safetensors")
    weights["model.norm.weight"][0] = math.nan
    Path("models/base/model.safetensors").unlink()
    save_file(weights, "models/base/model.safetensors", {"format": "pt"})
    monkeypatch.setenv("LATHE_BENCH_PROCESSES", "2")
    with pytest.raises(ValueError, match="models/base computes NaN") as no:
        run("base")
    assert "\n" not in str(no.value)
    monkeypatch.setenv("LATHE_BENCH_PROCESSES", "many")
    with pytest.raises(ValueError, match="LATHE_BENCH_PROCESSES='many': give a number"):
        run("base")


def test_a_process_waits_for_days_for_the_slowest(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gloo's own half an hour is less than a share of a large task may take."""
    import torch

    from stages.bench import worker

    class Met(Exception):
        """In place of the other processes."""

    def meet(backend: str, timeout: timedelta) -> None:
        assert backend == "gloo" and timeout >= timedelta(days=1)
        raise Met

    write_json(Path("job.json"), {"bench": plain(asdict(CFG)), "variant": plain(asdict(VARIANT))})
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LATHE_PARENT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(worker, "die_with_parent", lambda _: None)
    monkeypatch.setattr(worker, "seed_everything", lambda _: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.distributed, "init_process_group", meet)
    with pytest.raises(Met):
        worker.main(Path())


def pairs() -> list[tuple[list[int], list[int]]]:
    """A prefix of all, prefixes of some, and answers of different lengths."""
    draw = np.random.default_rng(3)
    stem, found = draw.integers(1, 250, 40).tolist(), []
    for _ in range(5):
        middle = draw.integers(1, 250, int(draw.integers(1, 30))).tolist()
        for _ in range(6):
            own, tail = (draw.integers(1, 250, int(draw.integers(1, 9))).tolist() for _ in range(2))
            found.append((stem + middle + own, tail))
    return found


@pytest.mark.parametrize("budget", [48, 200])
@pytest.mark.parametrize("trees", [True, False])
def test_shares_are_scored_to_the_last_bit_as_the_whole(
    tiny_model: Path, budget: int, trees: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a share begins behind a prefix that another process reads, and where it is empty."""
    from transformers import AutoModelForCausalLM

    from stages.bench.likelihood import Likelihood

    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    shares: list[dict[int, Any]] = []

    def merged(_: Ranks, found: dict[int, Any]) -> dict[int, Any]:
        shares.append(found)
        return dict.fromkeys(range(30)) | found

    whole = Likelihood(model, budget)
    whole.trees = trees
    expected = whole.score(pairs(), lambda _: None)
    monkeypatch.setattr(Ranks, "merged", merged)
    for world in (2, 3, 40):
        shares.clear()
        for rank in range(world):
            part = Likelihood(model, budget, ranks=Ranks(rank, world))
            part.trees = trees
            part.score(pairs(), lambda _: None)
        found = {index: each for share in shares for index, each in share.items()}
        assert [found[index] for index in range(30)] == expected
        assert sum(map(len, shares)) < 3 * 30 + 40 * world / 2  # what is read twice is little
