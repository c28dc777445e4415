"""ops.promote with an adapter in models/tuned: the version carries its base too, once on the disk."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ops import promote
from stages.common.files import read_json, tree_digest, write_json
from stages.common.store import connect
from stages.finetune.outs import write_out
from tests.ops.decided import NAME, Decided, decide, make_decided
from tests.stages.finetune_section import LORA, section, trained_adapter


@pytest.fixture
def decided(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Decided:
    """A workspace, the current directory, whose candidate is an adapter."""
    root = tmp_path / "work"
    root.mkdir()
    monkeypatch.chdir(root)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    base = Path(shutil.copytree(tiny_model, "models/base"))
    trained = trained_adapter(section(LORA), base, tmp_path / "trained")
    write_out(section(replace(LORA, merge=False)), base, trained, tmp_path / "adapter")
    shutil.rmtree("models/base")
    made = make_decided(root, tmp_path / "adapter", f"sqlite:///{root / 'mlflow.db'}")
    shutil.copytree(tiny_model, "models/base")
    name_base(root)
    write_out(section(LORA), base, trained, tmp_path / "merged")
    connect(root)
    return made


def name_base(root: Path) -> None:
    path = root / "reports/decision/manifest.json"
    write_json(path, read_json(path) | {"base": tree_digest(root / "models/base")})


def test_the_champion_answers_from_anywhere_and_is_stored_once(decided: Decided, tmp_path: Path) -> None:
    promote.main(decided.root, confirmed=False)
    stored = decided.root / "mlartifacts/versions" / decided.model[:16] / "artifacts"
    for folder in ("tuned", "base"):
        assert tree_digest(stored / folder) == tree_digest(decided.root / "models" / folder)
        assert all(
            file.samefile(decided.root / "models" / folder / file.name)
            for file in (stored / folder).iterdir()
        )
    assert "peft==" in (stored.parent / "requirements.txt").read_text(encoding="utf-8")
    (decided.root / "models").rename(decided.root / "gone")  # the version needs nothing of the workspace
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    adapter = decided.ask(elsewhere, f"models:/{NAME}@champion")
    (decided.root / "models").mkdir()
    shutil.copytree(tmp_path / "merged", decided.tuned)
    decide(decided.root, "promote")
    promote.main(decided.root, confirmed=False)
    assert decided.ask(elsewhere, f"models:/{NAME}@champion") == adapter
    assert decided.champion_version() == "2"


def test_a_base_of_another_decision_is_refused_and_nothing_is_registered(decided: Decided) -> None:
    (decided.root / "models/base/chat_template.jinja").write_text("another", encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"models/base, on which the adapter .* is not the one .*dvc repro"
    ) as refusal:
        promote.main(decided.root, confirmed=False)
    assert "\n" not in str(refusal.value)
    assert decided.versions() == []
    assert not (decided.root / "mlartifacts/versions").exists()
