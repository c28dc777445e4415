"""finetune: whatever is wrong with a checkpoint, it is never used, the last good one is, and the log says so."""

from __future__ import annotations

import logging
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stages.finetune import launch
from stages.finetune.checkpoint import KEEP, MANIFEST, Checkpoints, commit, verify
from stages.finetune.config import Scheduler
from stages.finetune.progress import PROGRESS, Progress
from stages.finetune.train import _lay_out, result
from stages.finetune.trainers import Exact
from tests.stages.finetune_rows import made, trained, weights, workspace
from tests.stages.finetune_runs import WORLDS, Life, content
from tests.stages.finetune_section import LORA, section

# Dropout, so that random states count. Checkpoints after 3, 6 and 9 steps, evaluations after 4, 8 and 11.
CFG = section(replace(LORA, dropout=0.2), max_steps=11, eval_every=4, keep_best=True, learning_rate=0.02)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Path]:
    """The work folder of an undisturbed run. Never write to it. The workspace is the current directory."""
    splits = {"train": made(30, 1), "valid": made(6, 2)}
    folder = workspace(tmp_path_factory.mktemp("calm"), tiny_model, splits, 64)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("LATHE_CHECKPOINT_STEPS", "3")
        trained(CFG, folder / "calm")
        yield folder / "calm"


BEST = "best-00000004"


def best_of(work: Path) -> Path:
    """The best weights that the newest checkpoint counts on."""
    return work / BEST


@pytest.fixture
def work(calm: Path, tmp_path: Path) -> Path:
    """The folder as it is when all is trained and the result is not written yet."""
    return Path(shutil.copytree(calm, tmp_path / "work", ignore=shutil.ignore_patterns("result")))


def test_the_newest_two_are_kept_and_are_as_they_were_written(calm: Path) -> None:
    found = sorted((calm / "checkpoints").iterdir())
    assert [path.name for path in found] == ["step-00000006", "step-00000009"] and KEEP == 2
    assert all(verify(path) == "" for path in (*found, best_of(calm), calm / "result"))
    assert Checkpoints(calm / "checkpoints").latest() == found[-1]


def truncated(file: Path, draw: random.Random) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: draw.randrange(len(content))])


def flipped(file: Path, draw: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


def deleted(file: Path, _: random.Random) -> None:
    file.unlink()


def made_a_folder(file: Path, _: random.Random) -> None:
    file.unlink()
    file.mkdir()


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def made_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_bytes(b"")


def with_a_file_too_many(folder: Path) -> None:
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04.")


def with_a_manifest_too_many(folder: Path) -> None:
    (folder / "more").mkdir()
    (folder / "more" / MANIFEST).write_text("")


def with_another_manifest(folder: Path) -> None:
    shutil.copyfile(folder.with_name("step-00000006") / MANIFEST, folder / MANIFEST)


def with_weights_of_another(folder: Path) -> None:
    name = "adapter_model.safetensors"
    shutil.copyfile(folder.with_name("step-00000006") / name, folder / name)


def unreadable(folder: Path) -> None:
    """As a bad sector is: the file is there, reading it is an I/O error (EIO)."""
    (folder / "optimizer.pt").unlink()
    (folder / "optimizer.pt").symlink_to("/proc/self/mem")


FILE_DAMAGES = (truncated, flipped, deleted, made_a_folder)
FOLDER_DAMAGES: tuple[Callable[[Path], None], ...] = (
    emptied, made_a_file, with_a_file_too_many, with_a_manifest_too_many, with_another_manifest,
    with_weights_of_another, unreadable,
)  # fmt: skip


@pytest.mark.parametrize("number", range(100))
def test_what_is_damaged_is_never_used(
    calm: Path, work: Path, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Each file in each way, and each way of a folder; the second round cuts and flips elsewhere."""
    checkpoints, draw = Checkpoints(work / "checkpoints"), random.Random(number)
    good, newest = checkpoints.path(6), checkpoints.path(9)
    files = sorted(path.name for path in newest.iterdir())
    assert {"adapter_model.safetensors", "optimizer.pt", "rng_state.pth", "progress.json", MANIFEST} <= set(
        files
    )
    cases = [(damage, name) for damage in FILE_DAMAGES for name in files]
    chosen = number % (len(cases) + len(FOLDER_DAMAGES))
    if chosen < len(cases):
        damage, name = cases[chosen]
        damage(newest / name, draw)
    else:
        name = ""
        FOLDER_DAMAGES[chosen - len(cases)](newest)
    assert checkpoints.latest() == good
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 1 and said[0].startswith(f"checkpoint {newest} is damaged (") and name in said[0]
    assert checkpoints.latest() == good and len(caplog.records) == 1  # it is set aside, not looked at again
    assert checkpoints.latest_step() == 6


def test_an_older_one_that_is_damaged_does_not_matter_until_it_is_needed(work: Path) -> None:
    checkpoints = Checkpoints(work / "checkpoints")
    made_a_file(checkpoints.path(6))
    assert checkpoints.latest() == checkpoints.path(9)
    shutil.copytree(checkpoints.path(9), checkpoints.path(12))
    checkpoints.prune(4)
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["step-00000009", "step-00000012"]


@pytest.mark.parametrize("damage", [emptied, made_a_file], ids=lambda damage: damage.__name__)
def test_all_damaged_is_none(work: Path, damage: Callable[[Path], None]) -> None:
    checkpoints = Checkpoints(work / "checkpoints")
    damage(checkpoints.path(9))
    damage(checkpoints.path(6))
    assert checkpoints.latest() is None and checkpoints.latest_step() == 0
    with pytest.raises(FileNotFoundError):
        checkpoints.path(6).lstat()


def test_a_draft_that_a_kill_left_is_nothing(work: Path) -> None:
    checkpoints = Checkpoints(work / "checkpoints")
    (checkpoints.draft() / "model.safetensors").write_bytes(b"half")
    assert checkpoints.latest() == checkpoints.path(9)
    assert list(checkpoints.draft().iterdir()) == []


@pytest.mark.parametrize("stood", ["nothing", "folder", "file"])
def test_committing_replaces_whatever_stood_there(work: Path, stood: str) -> None:
    checkpoints = Checkpoints(work / "checkpoints")
    path = checkpoints.path(12)
    if stood == "folder":
        shutil.copytree(checkpoints.path(9), path)
    elif stood == "file":
        path.write_bytes(b"")
    (checkpoints.draft() / "weights").write_bytes(b"new")
    commit(checkpoints.folder / ".draft", path)
    assert verify(path) == "" and {file.name for file in path.iterdir()} == {"weights", MANIFEST}


def flip(folder: Path) -> None:
    flipped(folder / "adapter_model.safetensors", random.Random(5))


# What is damaged and how, by folder of the work; the lines of the log that say so.
LIVES: dict[str, tuple[dict[str, Callable[[Path], None]], list[str]]] = {
    "newest": ({"checkpoints/step-00000009": flip}, ["step-00000009 is damaged (not as written: ad", "resumed"]),
    "both": (
        {"checkpoints/step-00000009": emptied, "checkpoints/step-00000006": flip},
        ["step-00000009 is damaged (no readable MANIFEST", "step-00000006 is damaged (not as written: adapter_model"],
    ),
    "folders as files": (
        {"checkpoints/step-00000009": made_a_file, "checkpoints/step-00000006": made_a_file},
        ["step-00000009 is damaged (no readable MANIFEST", "step-00000006 is damaged (no readable MANIFEST"],
    ),
    "best": ({BEST: flip}, ["best-00000004 is damaged (not as written: adapter_model", "the run starts again"]),
    "best gone": ({BEST: shutil.rmtree}, ["best-00000004 is damaged (no readable MANIFEST", "the run starts again"]),
    "best as a file": ({BEST: made_a_file}, ["best-00000004 is damaged (no readable MANIFEST", "the run starts again"]),
}  # fmt: skip


@pytest.mark.parametrize("life", LIVES)
def test_a_run_that_goes_on_after_damage_ends_the_same(
    calm: Path, work: Path, life: str, caplog: pytest.LogCaptureFixture
) -> None:
    damages, lines = LIVES[life]
    for name, damage in damages.items():
        damage(work / name)
    with caplog.at_level(logging.INFO, "lathe"):
        trained(CFG, work)
    assert content(work / "result") == content(calm / "result")
    assert [path.name for path in sorted((work / "checkpoints").glob("step-*"))] == [
        "step-00000006",
        "step-00000009",
    ]
    assert all(line in caplog.text for line in lines)
    assert "goes on on" not in caplog.text  # it is the same processor


def test_best_weights_that_were_damaged_at_last_make_no_result(work: Path) -> None:
    flip(best_of(work))
    trainer: Any = SimpleNamespace(
        cfg=CFG,
        checkpoints=Checkpoints(work / "checkpoints"),
        progress=Progress(evaluations=[(4, 1.0)], best_step=4),
        args=SimpleNamespace(should_save=True),
    )
    with pytest.raises(ValueError, match=r"best-\d+ is damaged \(not as written: adapter_model.*starts anew"):
        _lay_out(trainer, work / "draft")
    assert not (work / "draft").exists()


def test_a_kill_between_the_two_names_of_the_best_weights_loses_nothing(calm: Path, work: Path) -> None:
    best = best_of(work)
    best.rename(work / f".{best.name}.old")
    trained(CFG, work)
    assert content(work / "result") == content(calm / "result")
    assert best_of(work) == best and not (work / f".{best.name}.old").exists()


def test_best_weights_of_a_later_evaluation_than_the_checkpoint_knows_are_not_taken_for_its_own(
    calm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after an evaluation that was the best, gone on with on a processor on which it is not."""
    cfg = replace(CFG, max_steps=8, eval_every=2, scheduler=Scheduler.constant_with_warmup)
    monkeypatch.setenv("LATHE_CHECKPOINT_STEPS", "5")
    scores = [3.0, 2.0, 1.0]

    def scored(trainer: Any, _: Any) -> float:
        if not scores:
            raise KeyboardInterrupt
        return scores.pop(0)

    monkeypatch.setattr(Exact, "_heldout_loss", scored)
    with pytest.raises(KeyboardInterrupt):
        trained(cfg, tmp_path / "work")
    scores.extend([2.5, 2.25])  # at the steps 6 and 8, as another processor finds them
    progress = trained(cfg, tmp_path / "work")
    assert progress.best_step == 4
    scores.append(1.0)
    trained(replace(cfg, max_steps=4, eval_every=9, keep_best=False), tmp_path / "until")
    found, wanted = (weights(tmp_path / name / "result/trained") for name in ("work", "until"))
    assert all(bool((found[name] == wanted[name]).all()) for name in wanted)
    assert [path.name for path in (tmp_path / "work").glob("best*")] == ["best-00000004"]


def test_best_weights_stay_as_long_as_a_checkpoint_names_them(work: Path) -> None:
    """The newest checkpoint may turn out to be damaged."""
    checkpoints = Checkpoints(work / "checkpoints")
    assert checkpoints.best(4).is_dir()
    for step, best in ((6, 2), (9, 4)):
        Progress(best_step=best).write(checkpoints.path(step) / PROGRESS)
    for step in (1, 2, 10):
        checkpoints.best(step).mkdir()
    replaced = work / ".best-00000004.old"  # a kill came before it went
    replaced.mkdir()
    checkpoints.prune(10)
    assert not replaced.exists()
    assert set(work.glob("best-*")) == {checkpoints.best(step) for step in (2, 4, 10)}
    (checkpoints.path(6) / PROGRESS).write_text("{")  # damaged: never used, so its best is nobody's
    checkpoints.prune(10)
    assert not checkpoints.best(2).exists() and checkpoints.best(4).exists()


@pytest.mark.parametrize(
    "damage", [emptied, made_a_file, with_a_file_too_many], ids=lambda damage: damage.__name__
)
def test_a_result_that_is_damaged_is_made_again(
    calm: Path, work: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(calm / "result", work / "result")
    assert result(work) == work / "result"
    damage(work / "result")
    assert launch.run(CFG, work) == work / "result"
    assert content(work / "result") == content(calm / "result")
    assert "result is damaged (" in caplog.text


@pytest.mark.slow
def test_two_processes_agree_on_the_last_good_one(prepared: Path) -> None:
    """All of them would look at the same folder while one of them moves it away."""
    cfg = replace(CFG, world=WORLDS["ddp"])
    calm = Life(prepared / "calm", cfg).run()
    life = Life(prepared / "damaged", cfg).run("end-1")
    flip(life.checkpoints()[-1])
    life.run()
    assert life.returncode == 0, life.log()
    assert life.log().count("is damaged (not as written: adapter_model") == 1
    assert content(life.work / "result") == content(calm.work / "result")


def test_going_on_on_another_processor_is_said(
    work: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.finetune.trainers.processor", lambda: "Another CPU (avx2)")
    trained(CFG, work)
    (line,) = (record.getMessage() for record in caplog.records if "began on" in record.getMessage())
    assert line.startswith("the run began on ") and "goes on on Another CPU (avx2): " in line
