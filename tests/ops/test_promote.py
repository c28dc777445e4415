"""ops.promote on fabricated decisions about a tiny model: what it does, and that doing it again changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from ops import package, promote
from stages.common.files import sha256, tree_digest, write_json
from stages.common.store import connect
from tests.ops.decided import NAME, Decided, decide, make_decided

# Everything promote does, in order: a crash before any of them must leave nothing that a second run cannot finish.
STEPS: list[tuple[Any, str]] = [
    (package, "_store"),
    (package, "_link"),
    (MlflowClient, "create_model_version"),
    (promote, "write_bytes"),
    (promote, "_append"),
    (promote, "write_json"),
    (MlflowClient, "set_registered_model_alias"),
]


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's schema takes seconds to make: made once, copied for each test."""
    root = tmp_path_factory.mktemp("store")
    connect(root)
    return root / "mlflow.db"


@pytest.fixture
def decided(tmp_path: Path, tiny_model: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Decided:
    """A workspace, the current directory, whose gate says promote; its store is its own sqlite file."""
    root = tmp_path / "work"
    made = make_decided(root, tiny_model, f"sqlite:///{root / 'mlflow.db'}")
    shutil.copy(empty_store, root / "mlflow.db")
    monkeypatch.chdir(root)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return made


class Crash(BaseException):
    """Ends promote as a kill would: nothing catches it."""


def test_promote_moves_the_champion(decided: Decided) -> None:
    assert promote.main(decided.root, confirmed=False)
    champion = {"model": decided.model, "items": sha256(decided.items)}
    state = json.loads((decided.root / "registry/champion.json").read_text())
    assert state == {NAME: {"champion": champion, "previous": None}}
    kept = decided.root / "registry/items" / f"{champion['items'][:16]}.json"
    assert kept.read_bytes() == decided.items.read_bytes()
    [line] = decided.ledger()
    assert {key: line[key] for key in ("model", "items", "previous")} == champion | {"previous": None}
    assert decided.champion_version() == "1"


def test_the_champion_is_founded_anew_for_a_reason(decided: Decided) -> None:
    """Whatever the gate says; the ledger tells."""
    decide(decided.root, "reject")
    assert not promote.main(decided.root, confirmed=True)
    assert promote.main(decided.root, confirmed=False, reason="the raw data was cleaned")
    assert decided.champion_version() == "1"
    [line] = decided.ledger()
    assert line["founded"] == "the raw data was cleaned" and line["model"] == decided.model


def test_founding_without_a_reason_is_one_clear_line(decided: Decided) -> None:
    command = [sys.executable, "-m", "ops.promote", "--found"]
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": root}, check=False
    )
    assert done.returncode == 1 and done.stderr.startswith("promote: --found wants a reason")


def test_the_version_carries_what_made_it(decided: Decided) -> None:
    promote.main(decided.root, confirmed=False)
    [version] = decided.versions()
    assert version.tags["lathe.model"] == decided.model
    assert version.tags["lathe.verdict"] == "promote"
    assert {"params.digest", "lathe.base", "lathe.prepared", "lathe.results"} <= set(version.tags)


def test_twice_changes_nothing(decided: Decided) -> None:
    promote.main(decided.root, confirmed=False)
    before = tree_digest(decided.root / "registry"), tree_digest(decided.root / "mlartifacts")
    assert not promote.main(decided.root, confirmed=False)
    assert before == (tree_digest(decided.root / "registry"), tree_digest(decided.root / "mlartifacts"))
    assert len(decided.versions()) == 1
    assert decided.champion_version() == "1"


@pytest.mark.parametrize("verdict", ["reject", "inconclusive"])
def test_what_did_not_pass_is_registered_and_the_champion_stays(decided: Decided, verdict: str) -> None:
    promote.main(decided.root, confirmed=False)
    before = tree_digest(decided.root / "registry")
    decide(decided.root, verdict, worse=True)
    assert not promote.main(decided.root, confirmed=True)
    assert tree_digest(decided.root / "registry") == before
    assert [version.tags["lathe.verdict"] for version in decided.versions()] == ["promote", verdict]
    assert decided.champion_version() == "1"


def test_the_next_champion_remembers_the_last(decided: Decided) -> None:
    promote.main(decided.root, confirmed=False)
    decide(decided.root, "promote", worse=True)
    promote.main(decided.root, confirmed=False)
    state = json.loads((decided.root / "registry/champion.json").read_text())
    assert state[NAME]["previous"]["model"] == decided.model
    assert [line["previous"] for line in decided.ledger()] == [None, decided.model]
    assert decided.champion_version() == "2"


def pulled(root: Path) -> None:
    """A colleague's champion comes in after the decision."""
    write_json(root / "registry/champion.json", {NAME: {"champion": {"model": "e" * 64, "items": "f" * 64}}})


@pytest.mark.parametrize("verdict", ["promote", "reject"])
def test_a_decision_against_another_champion_moves_nothing(decided: Decided, verdict: str) -> None:
    decide(decided.root, verdict)
    pulled(decided.root)
    before = tree_digest(decided.root / "registry")
    with pytest.raises(
        ValueError, match=r"against no champion, .* is champion eeeeeeee: run `dvc repro`"
    ) as refusal:
        promote.main(decided.root, confirmed=True)
    assert "\n" not in str(refusal.value)
    assert tree_digest(decided.root / "registry") == before and decided.versions() == []
    assert promote.main(decided.root, confirmed=False, reason="theirs cannot be made any more")


def test_a_decision_against_a_champion_that_is_gone_moves_nothing(decided: Decided) -> None:
    promote.main(decided.root, confirmed=False)
    decide(decided.root, "promote", worse=True)
    write_json(decided.root / "registry/champion.json", {})
    with pytest.raises(
        ValueError, match=f"against champion {decided.model[:8]}, .* is no champion: run `dvc repro`"
    ):
        promote.main(decided.root, confirmed=False)


@pytest.mark.parametrize("arguments", [["--help"], ["--dry-run"], ["--ye"], ["now"], ["--found", "a", "b"]])
def test_a_word_that_is_not_known_promotes_nothing(decided: Decided, arguments: list[str]) -> None:
    command = [sys.executable, "-m", "ops.promote", *arguments]
    done = subprocess.run(command, env=decided.env(), capture_output=True, text=True, check=False)
    assert done.returncode == (0 if arguments == ["--help"] else 2), done.stderr
    assert decided.ledger() == [] and "usage: python -m ops.promote" in done.stdout + done.stderr


@pytest.mark.parametrize(("owner", "step"), STEPS, ids=[step for _, step in STEPS])
def test_a_crash_is_finished_by_the_next_run(
    decided: Decided, owner: Any, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: Any, **__: Any) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(owner, step, crash)
        with pytest.raises(Crash):
            promote.main(decided.root, confirmed=False)
    promote.main(decided.root, confirmed=False)
    assert len(decided.ledger()) == 1
    assert len(decided.versions()) == 1
    assert decided.champion_version() == "1"
    assert (
        json.loads((decided.root / "registry/champion.json").read_text())[NAME]["champion"]["model"]
        == decided.model
    )
    assert [path.name for path in (decided.root / "mlartifacts/versions").iterdir()] == [decided.model[:16]]


def test_a_kill_while_the_weights_are_stored_leaves_nothing_behind(decided: Decided) -> None:
    code = "import os; from pathlib import Path; from ops import package, promote\n"
    code += "package._link = lambda copy: os.kill(os.getpid(), 9)\npromote.main(Path.cwd(), confirmed=False)"
    done = subprocess.run([sys.executable, "-c", code], env=decided.env(), capture_output=True, check=False)
    assert done.returncode == -9
    promote.main(decided.root, confirmed=False)
    assert [path.name for path in (decided.root / "mlartifacts/versions").iterdir()] == [decided.model[:16]]


def test_manual_waits_for_yes(decided: Decided, capsys: pytest.CaptureFixture[str]) -> None:
    decide(decided.root, "promote", promotion="manual")
    assert not promote.main(decided.root, confirmed=False)
    assert "python -m ops.promote --yes" in capsys.readouterr().out
    assert decided.ledger() == []
    assert promote.main(decided.root, confirmed=True)
    assert decided.champion_version() == "1"


def other_weights(root: Path) -> None:
    (root / "models/tuned/config.json").write_text("{}")


def other_items(root: Path) -> None:
    write_json(root / "reports/decision/items.json", {})


def no_decision(root: Path) -> None:
    shutil.rmtree(root / "reports")


REFUSED: list[tuple[Callable[[Path], None], str]] = [
    (other_weights, "models/tuned is not the model that reports/decision is about"),
    (other_items, "items.json is not the file that"),
    (no_decision, "no decision in reports/decision"),
]


@pytest.mark.parametrize(("break_it", "said"), REFUSED, ids=[case[0].__name__ for case in REFUSED])
def test_what_does_not_belong_together_is_refused(
    decided: Decided, break_it: Callable[[Path], None], said: str
) -> None:
    break_it(decided.root)
    before = tree_digest(decided.root / "registry")
    with pytest.raises(ValueError, match=said) as refusal:
        promote.main(decided.root, confirmed=True)
    assert "run `dvc repro`" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert tree_digest(decided.root / "registry") == before


def test_the_command_says_it_in_one_line(decided: Decided) -> None:
    no_decision(decided.root)
    done = subprocess.run(
        [sys.executable, "-m", "ops.promote"], env=decided.env(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "promote: no decision in reports/decision: run `dvc repro` first\n"


def test_weights_are_stored_once(decided: Decided) -> None:
    promote.main(decided.root, confirmed=False)
    stored = decided.root / "mlartifacts/versions" / decided.model[:16] / "artifacts/tuned"
    names = sorted(path.name for path in decided.tuned.iterdir())
    assert sorted(path.name for path in stored.iterdir()) == names
    assert all((stored / name).stat().st_ino == (decided.tuned / name).stat().st_ino for name in names)


def test_a_stored_version_outlives_the_next_training(decided: Decided) -> None:
    """A stage replaces its outs, so the version's links keep the old weights."""
    promote.main(decided.root, confirmed=False)
    decide(decided.root, "reject", worse=True)
    stored = decided.root / "mlartifacts/versions" / decided.model[:16] / "artifacts/tuned"
    assert tree_digest(stored) == decided.model != tree_digest(decided.tuned)


def test_the_champion_answers_from_another_directory_and_process(decided: Decided, tmp_path: Path) -> None:
    promote.main(decided.root, confirmed=False)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert decided.ask(elsewhere, f"models:/{NAME}@champion")
