"""The candidate as an MLflow model: one registered version per content hash, weights never stored twice."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.common.adapter import base_of
from stages.common.files import fresh_dir, read_json, tree_digest, write_json
from stages.common.journal import process_tags
from stages.common.prompt import Example, Prompt, with_prompt
from stages.common.provenance import facts
from stages.common.store import connect, ensure_experiment, one_line, shown, tracking_uri

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

MODEL, BASE = Path("models/tuned"), Path("models/base")
ALIAS = "champion"
SERVED_WITH = ("mlflow", "torch", "transformers")


def ensure_version(client: MlflowClient, root: Path, manifest: dict[str, Any], verdict: str) -> str:
    """The registered version of this model's hash, made if there is none. Raises ValueError on other weights."""
    from mlflow.exceptions import MlflowException

    name, model = manifest["registered_model"], manifest["model"]
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    found = client.search_model_versions(f"name='{name}' and tags.`lathe.model`='{model}'")
    if found:
        return str(max(int(version.version) for version in found))
    if tree_digest(MODEL) != model:
        raise ValueError(
            f"{MODEL} is not the model that reports/decision is about: run `dvc repro`, then promote again"
        )
    if base_of(MODEL) and tree_digest(BASE) != manifest["base"]:
        raise ValueError(
            f"{BASE}, on which the adapter in {MODEL} stands, is not the one that reports/decision is about: "
            "run `dvc repro`, then promote again"
        )
    source, run_id = _store(client, root, manifest)
    made = client.create_model_version(name, source, run_id=run_id, tags=_tags(manifest, verdict))
    return str(made.version)


def _tags(manifest: dict[str, Any], verdict: str) -> dict[str, str]:
    tags = {
        key: value for key, value in facts("register").items() if key.startswith(("git.", "dvc.", "params."))
    }
    hashes = {f"lathe.{key}": manifest[key] for key in ("model", "base", "prepared", "results")}
    return tags | hashes | {"lathe.verdict": verdict}


def _store(client: MlflowClient, root: Path, manifest: dict[str, Any]) -> tuple[str, str | None]:
    """Where the version's files are: a content-addressed folder here, a run's artifacts on a server."""
    if tracking_uri(root).startswith("sqlite"):
        target = root / "mlartifacts" / "versions" / manifest["model"][:16]
        if not (target / "MLmodel").is_file():
            # One draft for all, so that what a kill left of the last one, weights included, goes with the next.
            half = fresh_dir(target.parent / ".draft") / "model"
            build(half)
            shutil.rmtree(target, ignore_errors=True)
            half.rename(target)
            half.parent.rmdir()
        return target.resolve().as_uri(), None
    with tempfile.TemporaryDirectory() as draft:
        build(Path(draft) / "model")
        experiment = ensure_experiment(client, manifest["registered_model"], root)
        tags = process_tags()  # so that the next start closes it if this one is killed
        run = client.create_run(experiment, run_name=f"register-{manifest['model'][:8]}", tags=tags)
        client.log_artifacts(run.info.run_id, str(Path(draft) / "model"), "model")
        client.set_terminated(run.info.run_id)
        return f"{run.info.artifact_uri}/model", run.info.run_id


def build(target: Path) -> None:
    """Write the MLflow model folder, with an adapter its base too.

    Its weights are hard links to the workspace's where the disk allows it.
    """
    from importlib.metadata import version

    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    folders = {"model": MODEL, "base": BASE} if base_of(MODEL) else {"model": MODEL}
    served_with = (*SERVED_WITH, "peft") if "base" in folders else SERVED_WITH
    text = Schema([ColSpec(DataType.string, "input")])
    with tempfile.TemporaryDirectory() as folder:
        prompt = Path(folder) / "prompt.json"
        write_json(prompt, _prompt())
        mlflow.pyfunc.save_model(
            target,
            python_model=str(Path(__file__).with_name("assistant.py")),
            artifacts={**{name: str(path) for name, path in folders.items()}, "prompt": str(prompt)},
            signature=ModelSignature(inputs=text, outputs=Schema([ColSpec(DataType.string)])),
            pip_requirements=[f"{name}=={version(name).split('+')[0]}" for name in served_with],
        )
    _link(target / "artifacts")


def _prompt() -> dict[str, Any]:
    """What stands before a question, from params.yaml: as bench asks it."""
    import yaml

    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    asked = params["bench"]["prompt"]
    shown = [Example(**example) for example in asked["examples"][: params["bench"]["fewshot"] or 0]]
    prompt = Prompt(asked["name"], asked["system"], shown, asked["max_new_tokens"])
    return {"head": with_prompt(prompt, [], examples=True), "max_new_tokens": prompt.max_new_tokens}


def _link(copies: Path) -> None:
    """Replace the copies of MODEL and BASE by hard links; prompt.json, which lies beside them, is no copy of theirs."""
    files = [file for folder in (MODEL, BASE) for file in (copies / folder.name).rglob("*") if file.is_file()]
    for path in files:
        original = MODEL.parent / path.relative_to(copies)
        spare = path.with_name(f".{path.name}.link")
        try:
            os.link(original, spare)
        except OSError:  # another file system: the copy stays
            return
        spare.replace(path)


def open_store(root: Path) -> MlflowClient:
    """A client that fails loudly: unlike a training run, a promotion without its registry is no promotion."""
    from mlflow.exceptions import MlflowException

    try:
        client = connect(root)
        client.search_experiments(max_results=1)
    except MlflowException as error:
        uri, text = shown(tracking_uri(root)), one_line(error)
        raise ValueError(
            f"the tracking store at {uri} does not answer ({text}): nothing was changed"
        ) from error
    return client


def read_decision(folder: Path) -> tuple[str, dict[str, Any]]:
    """The gate's verdict and manifest. Raises ValueError where the pipeline has not decided yet."""
    try:
        return read_json(folder / "decision.json")["verdict"], read_json(folder / "manifest.json")
    except FileNotFoundError as error:
        raise ValueError(f"no decision in {folder}: run `dvc repro` first") from error
