"""finetune on several machines: what a further one is told, and what it says when the first one is gone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stages.common.files import write_json
from stages.common.workspace import workspace
from stages.finetune import __main__ as finetune
from stages.finetune import launch, node
from stages.finetune.checkpoint import commit
from stages.finetune.config import Strategy, World
from stages.finetune.fingerprint import fingerprint
from tests.stages.finetune_section import section

CFG = section(world=World("two", 2, 1, Strategy.ddp))


@pytest.fixture(autouse=True)
def first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv(launch.RENDEZVOUS, "localhost:29500")


def test_what_a_killed_run_told_is_gone_before_anything_is_measured(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A further machine would take it for the new run's, since that one holds the lock again."""
    job = prepared / f".ckpt/finetune-{fingerprint(CFG)}" / launch.JOB
    write_json(job, {"journal": "of another life"})

    def measuring(*_: Any) -> None:
        assert job.parent.is_dir() and not job.exists()
        raise ValueError("measuring")

    monkeypatch.setattr(finetune, "untrained", measuring)
    with pytest.raises(ValueError, match="measuring"):
        finetune.main(CFG)


def test_a_further_machine_ends_where_all_is_trained_already(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(node, "agent", None)  # it is not called
    with workspace("finetune", fingerprint(CFG)) as work:
        (work / "draft").mkdir()
        commit(work / "draft", work / "result")
        assert launch.run(CFG, work) == work / "result"
        node.main()
    assert "trained already" in capsys.readouterr().out.splitlines()[-1]
    with workspace("finetune", fingerprint(CFG)) as work:
        (work / "draft").mkdir()
        commit(work / "draft", work / "result")
        launch.run(replace(CFG, world=World("one", 1, 2, Strategy.ddp)), work)
        assert not (work / launch.JOB).exists()  # nobody waits


@pytest.mark.parametrize("began", [False, True])
def test_a_first_machine_that_is_gone_is_told_from_one_that_was_never_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, began: bool
) -> None:
    from torch.distributed.elastic.rendezvous import RendezvousConnectionError
    from torch.distributed.launcher import api

    def lost(config: api.LaunchConfig, _: str) -> Any:
        def run(*_: str) -> None:
            if began:
                assert config.logs_specs is not None
                config.logs_specs.reify({0: {}})  # as the agent does when it starts its processes
            raise RendezvousConnectionError("The connection to the C10d store has failed.")

        return run

    monkeypatch.setattr(api, "elastic_launch", lost)
    with pytest.raises(ValueError, match="machine") as refusal:
        launch.agent(CFG, tmp_path)
    said = str(refusal.value)
    assert ("did not meet at localhost:29500" in said) is not began
    assert ("the first machine is gone" in said and "goes on from the last checkpoint" in said) is began
