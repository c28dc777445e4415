"""A workspace in which the gate has decided about a tiny model, made by hand: what ops.promote works on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.common.files import fresh_dir, read_json, sha256, tree_digest, write_json, write_text
from tests.small_project import HOUSE

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

NAME = "HelpdeskAssistant"
PROMPT = {
    "name": "helpdesk",
    "system": "",
    "examples": [{"user": "My router blinks.", "assistant": "Restart it."}],
    "max_new_tokens": 8,
}
ASK = """
import sys, mlflow, pandas
answers = mlflow.pyfunc.load_model(sys.argv[1]).predict(pandas.DataFrame({"input": ["My phone is hot.", "Hello?"]}))
assert len(answers) == 2 and all(isinstance(answer, str) for answer in answers), answers
print("answered", answers)
"""


@dataclass(frozen=True)
class Decided:
    """The workspace at `root`; `model` is the content hash of the first candidate; `store` the tracking URI."""

    root: Path
    model: str
    store: str

    @property
    def tuned(self) -> Path:
        return self.root / "models/tuned"

    @property
    def items(self) -> Path:
        return self.root / "reports/decision/items.json"

    def ledger(self) -> list[dict[str, Any]]:
        """The ledger's lines."""
        text = (self.root / "registry/ledger.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    def versions(self) -> list[ModelVersion]:
        """The registered versions, oldest first."""
        found = self._client().search_model_versions(f"name='{NAME}'")
        return sorted(found, key=lambda version: int(version.version))

    def champion_version(self) -> str:
        """The version that the alias points to."""
        return str(self._client().get_model_version_by_alias(NAME, "champion").version)

    def ask(self, folder: Path, uri: str) -> str:
        """Load the model in a process that runs in `folder` and knows nothing of Lathe; returns what it printed."""
        env = self.env() | {"MLFLOW_TRACKING_URI": self.store}
        env.pop("PYTHONPATH")
        done = subprocess.run(
            [sys.executable, "-c", ASK, uri], cwd=folder, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def env(self) -> dict[str, str]:
        """For a process that is to import this repository's ops from the workspace."""
        return {**os.environ, "PYTHONPATH": str(HOUSE)}

    def _client(self) -> MlflowClient:
        from mlflow.tracking import MlflowClient

        return MlflowClient(self.store)


def make_decided(root: Path, model: Path, store: str) -> Decided:
    """Lay out models/tuned, params.yaml, an empty registry and a decision to promote."""
    shutil.copytree(model, root / "models/tuned")
    write_json(root / "params.yaml", {"bench": {"prompt": PROMPT, "fewshot": 1}})
    write_json(root / "registry/champion.json", {})
    write_text(root / "registry/ledger.jsonl", "")
    decide(root, "promote")
    return Decided(root, tree_digest(root / "models/tuned"), store)


def decide(root: Path, verdict: str, *, promotion: str = "auto", worse: bool = False) -> None:
    """Write reports/decision; `worse` puts another model in the place of models/tuned first, as a stage would."""
    tuned, folder = root / "models/tuned", root / "reports/decision"
    if worse:
        config = (tuned / "config.json").read_text(encoding="utf-8")
        write_text(tuned / "config.json", config + "\n")
    state = read_json(root / "registry/champion.json").get(NAME, {})
    against = state.get("champion")
    if against and against["model"] == tree_digest(tuned):
        against = state["previous"]
    fresh_dir(folder)
    write_json(folder / "items.json", {"helpdesk_triage/fields": {"a": 0.0 if worse else 1.0}})
    write_json(folder / "decision.json", {"verdict": verdict, "checks": []})
    write_json(
        folder / "manifest.json",
        {
            "registered_model": NAME,
            "model": tree_digest(tuned),
            "base": "b" * 64,
            "items": sha256(folder / "items.json"),
            "prepared": "c" * 64,
            "results": "d" * 64,
            "champion": against["model"] if against else None,
            "promote": promotion,
        },
    )
