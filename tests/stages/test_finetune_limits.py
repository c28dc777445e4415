"""finetune, when the machine has no more to give: one clear line, and what was reached stays usable."""

from __future__ import annotations

import errno
import os
import runpy
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stages.common import run
from stages.common.files import read_json, write_json
from stages.finetune import __main__ as finetune
from stages.finetune import launch
from stages.finetune.__main__ import main
from stages.finetune.checkpoint import verify
from stages.finetune.config import Finetune
from stages.finetune.data import check_heldout
from stages.finetune.fingerprint import fingerprint
from stages.finetune.train import enough_memory
from tests.stages.finetune_runs import Life, content
from tests.stages.finetune_section import LORA, section

CFG = section(LORA, max_steps=12, eval_every=100)


@pytest.mark.slow
def test_a_full_disk_keeps_the_last_checkpoint(prepared: Path) -> None:
    """A real file system of 1 MB: one checkpoint fits beside the ballast, the next does not."""
    work = prepared / "killed"
    work.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(work)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("may not mount a file system here")
    try:
        life = Life(work, CFG)
        life.run("committed-1")  # to see how large a checkpoint is
        size = sum(file.stat().st_size for file in life.checkpoints()[0].rglob("*"))
        ballast = work / "ballast"
        ballast.write_bytes(bytes(2**20 - int(size * 1.5) - 16_384))
        assert life.run().returncode == 1
        line = life.refusal()
        assert line.startswith("ValueError: no space left on the disk for the checkpoint of step 4 (")
        assert line.endswith("free some and run again; step 2 is kept and will be gone on from")
        assert [verify(path) for path in life.checkpoints()] == [""]
        ballast.unlink()
        assert life.run().returncode == 0, life.log()
        found = content(work / "result")
    finally:
        subprocess.run(["umount", str(work)], check=True)
    calm = Life(prepared / "calm", CFG).run()
    assert found == content(calm.work / "result")


@pytest.mark.slow
def test_a_full_disk_under_the_outs_keeps_what_was_trained(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, cfg = prepared / "models", replace(CFG, max_steps=2)
    base = (models / "base").resolve()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(models)], check=False
    ).returncode:
        pytest.skip("may not mount a file system here")
    try:
        (models / "base").symlink_to(base)
        with pytest.raises(
            ValueError, match=r"no space left on the disk for models/tuned: free some.*is kept"
        ):
            main(cfg)
        assert [path.name for path in models.iterdir()] == ["base"]
    finally:
        subprocess.run(["umount", str(models)], check=True)
    monkeypatch.setattr(launch, "train", None)  # it is not called again, and nothing is measured twice
    monkeypatch.setattr(finetune, "untrained", None)
    assert main(cfg)["train/steps"]["value"] == 2
    assert (models / "tuned/model.safetensors").is_file()


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: an illegal memory access was encountered",
        "Error while creating shared memory segment /dev/shm/x",
    ],
)
def test_another_trouble_with_memory_keeps_its_own_words(text: str) -> None:
    with pytest.raises(RuntimeError, match=text[:20]), enough_memory(CFG):
        raise RuntimeError(text)


@pytest.mark.parametrize("where", ["untrained", "write_out", "load_out", "heldout_losses"])
def test_memory_that_runs_out_before_or_after_training_is_one_clear_line_too(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """A folder's weights are mapped, and the kernel refuses the map as an OSError."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(finetune, where, full)
    with pytest.raises(ValueError, match=r"^not enough memory for finetune.*Cannot allocate memory"):
        main(replace(CFG, max_steps=1))


def test_what_was_measured_before_is_measured_again_where_it_is_damaged(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = replace(CFG, max_steps=1)
    calm = main(cfg)
    measured: list[Path] = []

    def spoil(*given: Any) -> Path:
        (folder,) = given[1].glob("before")
        (folder / "measured.json").write_text("{}")
        measured.append(folder)
        raise ValueError("stopped here")

    with monkeypatch.context() as patch, pytest.raises(ValueError, match="stopped here"):
        patch.setattr(launch, "run", spoil)
        main(cfg)
    assert main(cfg) == calm and len(measured) == 1
    assert "before is damaged (not as written: measured.json): measured again" in caplog.text


@pytest.mark.slow
def test_out_of_memory_is_one_clear_line(prepared: Path) -> None:
    cfg = section(batch_size=512, row_length=1024)
    life = Life(prepared / "killed", cfg).run("memory")
    assert life.returncode == 1
    line = life.refusal()
    assert line.startswith(
        "ValueError: not enough memory for finetune.batch_size=512 with gradient_accumulation=1: raise"
    )


def test_a_document_longer_than_the_context_is_one_clear_line(prepared: Path) -> None:
    base = prepared / "models/base"
    short = prepared / "models/short"
    short.mkdir()
    for file in base.resolve().iterdir():
        (short / file.name).symlink_to(file)
    (short / "config.json").unlink()
    write_json(short / "config.json", read_json(base / "config.json") | {"max_position_embeddings": 8})
    base.unlink()
    base.symlink_to(short)
    message = r"split train has a document of \d+ tokens, over the 8 that models/base can see .*lower prepare"
    with pytest.raises(ValueError, match=message):
        main(replace(CFG, samples=0))


def test_held_out_rows_that_are_to_decide_and_are_not_there_are_one_clear_line(prepared: Path) -> None:
    import pyarrow.parquet as pq

    path = prepared / "data/prepared/valid.parquet"
    table = pq.read_table(path)
    path.unlink()
    pq.write_table(table.slice(0, 0), path)
    check_heldout(section(), prepared / "data/prepared")
    with pytest.raises(
        ValueError, match=r"patience=2 .* has no row of split valid: raise prepare.valid_share"
    ):
        check_heldout(section(patience=2), prepared / "data/prepared")


def test_what_was_trained_is_kept_until_the_stage_has_ended(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill before metrics are written and the run is closed would lose a night's work."""
    cfg = replace(CFG, max_steps=1)

    def stage(_: type[Finetune], work: Callable[..., Any]) -> None:
        work(cfg)
        if killed:
            raise KeyboardInterrupt

    monkeypatch.setenv("DVC_ROOT", str(prepared))
    monkeypatch.setattr(run, "run", stage)
    folder, killed = prepared / f".ckpt/finetune-{fingerprint(cfg)}", True
    with pytest.raises(KeyboardInterrupt):
        runpy.run_path(str(finetune.__file__), run_name="__main__")
    assert verify(folder / "result") == "" and read_json(folder / "before/measured.json")
    monkeypatch.setattr(launch, "train", None)  # it is not called again
    killed = False
    runpy.run_path(str(finetune.__file__), run_name="__main__")
    assert not folder.exists()
