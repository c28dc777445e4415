"""finetune: what a run knows of itself, the best weights and not the last, and an end when nothing gets better."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.finetune.config import MethodConfig, Precision, Scheduler
from stages.finetune.progress import PLOTTED, Progress
from tests.stages.finetune_rows import made, trained, weights, workspace, write
from tests.stages.finetune_section import FULL, LORA, section

finite = st.floats(allow_nan=False, allow_infinity=False)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(finite, max_size=30), st.lists(finite, max_size=8))
def test_progress_comes_back_to_the_last_bit(
    tmp_path: Path, losses: list[float], evaluations: list[float]
) -> None:
    progress = Progress(trained_share=0.1)
    for loss in losses:
        progress.add(loss, 1.0)
    for step, loss in enumerate(evaluations, 1):
        progress.evaluated(step, loss)
    progress.write(tmp_path / "progress.json")
    assert Progress.read(tmp_path / "progress.json") == progress


@given(st.lists(finite, min_size=1, max_size=12))
def test_the_best_is_the_first_of_the_lowest(losses: list[float]) -> None:
    progress = Progress()
    better = [progress.evaluated(step, loss) for step, loss in enumerate(losses)]
    best = losses.index(min(losses))
    assert progress.best_step == best == max(step for step, it_was in enumerate(better) if it_was)
    assert progress.stale == len(losses) - 1 - best


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_said_with_its_step_and_never_kept(bad: float) -> None:
    progress = Progress(losses=[1.0, 0.5])
    with pytest.raises(ValueError, match=f"the loss is {bad} at step 3: .*lower finetune.learning_rate"):
        progress.add(bad, 1.0)
    with pytest.raises(ValueError, match=f"the gradient norm is {bad} at step 3"):
        progress.add(1.0, bad)
    with pytest.raises(
        ValueError, match=f"the heldout loss is {bad} at step 7: lower finetune.learning_rate"
    ):
        progress.evaluated(7, bad)
    assert progress.losses == [1.0, 0.5] and progress.evaluations == []


@pytest.mark.parametrize("steps", [1, PLOTTED, PLOTTED + 1, 3 * PLOTTED - 7])
def test_the_plot_has_at_most_so_many_windows_and_every_loss_counts(tmp_path: Path, steps: int) -> None:
    progress = Progress(losses=[float(step) for step in range(1, steps + 1)], evaluations=[(1, 2.0)])
    progress.plot(tmp_path / "loss.csv")
    header, *lines = (tmp_path / "loss.csv").read_text(encoding="utf-8").splitlines()
    rows = [line.split(",") for line in lines]
    points = [(int(step), float(loss)) for step, split, loss in rows if split == "train"]
    assert header == "step,split,loss" and ["1", "heldout", "2.000000"] in rows
    assert len(points) <= PLOTTED and points[-1][0] == steps
    width = math.ceil(steps / PLOTTED)
    assert sum(
        loss * (min(step, steps) - (step - 1) // width * width) for step, loss in points
    ) == pytest.approx(sum(progress.losses))


# It learns for some steps, then too high a rate destroys what it learned.
WORSE = section(
    FULL,
    max_steps=24,
    learning_rate=0.08,
    scheduler=Scheduler.constant_with_warmup,
    max_grad_norm=0.0,
    warmup_steps=0,
    eval_every=2,
)


@pytest.fixture
def memorised(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace, the current directory, whose held-out rows are unlike the ones to learn."""
    monkeypatch.chdir(tmp_path)
    return workspace(tmp_path, tiny_model, {"train": made(24, 1), "valid": made(8, 2, longest=20)}, 64)


def test_the_weights_of_the_best_evaluation_are_the_result(memorised: Path) -> None:
    progress = trained(replace(WORSE, keep_best=True), memorised / "best")
    best = min(progress.evaluations, key=lambda each: each[1])[0]
    assert progress.best_step == best < progress.evaluations[-1][0]
    until = replace(WORSE, max_steps=best, keep_best=False)
    there = trained(until, memorised / "until")  # the schedule is constant, so its last weights are those
    assert there.losses == progress.losses[:best]
    kept, wanted = (weights(memorised / name / "result/trained") for name in ("best", "until"))
    assert kept.keys() == wanted.keys() and all(bool((kept[name] == wanted[name]).all()) for name in kept)
    last = weights_of_last(memorised)
    assert any(bool((kept[name] != last[name]).any()) for name in kept)


def weights_of_last(folder: Path) -> dict[str, object]:
    trained(WORSE, folder / "last")
    return weights(folder / "last/result/trained")


def test_patience_ends_a_run_that_does_not_get_better(memorised: Path) -> None:
    progress = trained(replace(WORSE, keep_best=True, patience=2), memorised / "work")
    stopped = len(progress.losses)
    assert progress.stale == 2 and stopped == progress.best_step + 2 * WORSE.eval_every < WORSE.max_steps
    whole = trained(replace(WORSE, keep_best=True), memorised / "whole")
    assert progress.losses == whole.losses[:stopped]


def test_a_run_that_patience_ended_and_a_kill_followed_does_not_go_on(
    memorised: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATHE_CHECKPOINT_STEPS", "1")
    cfg = replace(WORSE, keep_best=True, patience=2)
    first = trained(cfg, memorised / "work")
    assert trained(cfg, memorised / "work") == first


def test_epochs_go_through_every_row_as_often(memorised: Path) -> None:
    import pyarrow.parquet as pq

    rows = pq.read_metadata("data/prepared/train.parquet").num_rows
    cfg = section(LORA, max_steps=None, epochs=2.0, batch_size=2, eval_every=100)
    assert len(trained(cfg, memorised / "work").losses) == rows  # twice the rows, two at a time


def test_without_held_out_rows_the_last_weights_are_the_result(memorised: Path) -> None:
    write(memorised / "data/prepared/valid.parquet", [], 64)
    progress = trained(section(keep_best=True, max_steps=2, patience=1, eval_every=1), memorised / "work")
    assert progress.evaluations == [] and len(progress.losses) == 2
    assert weights(memorised / "work/result/trained")


@pytest.mark.parametrize("method", [FULL, LORA], ids=["full", "lora"])
def test_gradient_checkpointing_computes_twice_and_changes_no_loss(
    memorised: Path, monkeypatch: pytest.MonkeyPatch, method: MethodConfig
) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    calls, forward = [0], LlamaMLP.forward
    monkeypatch.setattr(
        LlamaMLP, "forward", lambda *args: (calls.__setitem__(0, calls[0] + 1), forward(*args))[1]
    )
    write(memorised / "data/prepared/valid.parquet", [], 64)
    cfg = section(method, max_steps=8, learning_rate=0.003)
    plain, once = trained(cfg, memorised / "plain").losses, calls[0]
    found = trained(replace(cfg, gradient_checkpointing=True), memorised / "checkpointing").losses
    assert calls[0] == 3 * once == 3 * 8 * 2
    assert found == pytest.approx(plain, abs=1e-6)


def test_bf16_learns_as_fp32_does_and_keeps_its_weights_in_fp32(memorised: Path) -> None:
    cfg = section(FULL, max_steps=12, learning_rate=0.003)
    exact = trained(cfg, memorised / "fp32").losses
    found = trained(replace(cfg, precision=Precision.bf16), memorised / "bf16").losses
    assert found != exact and found == pytest.approx(exact, rel=0.05)
    kept = weights(memorised / "bf16/result/trained")
    assert {str(tensor.dtype) for tensor in kept.values()} == {"torch.float32"}
    assert any(bool((tensor != tensor.bfloat16().float()).any()) for tensor in kept.values())
