"""Give MLflow the runs it never saw: `python -m ops.backfill`. Idempotent; `make` does it after the pipeline.

A stage that DVC restores from its run cache, or that came by `dvc pull`, executes nothing and so logs nothing.
Its section and its metrics file say what was asked and what came out; a run that lacks is made from them. What
somebody deleted, the run of a result or its experiment, does not lack.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ops import sync
from stages.common import journal as journals
from stages.common import mark as marks
from stages.common.files import read_json
from stages.common.run import RESULT, flat, result_key, run_name
from stages.common.statistics import Metrics
from stages.common.store import DELETED, connect, one_line, shown, tracking_uri
from stages.common.tracking import track

if TYPE_CHECKING:
    from mlflow.entities import Experiment
    from mlflow.tracking import MlflowClient


def main(root: Path) -> list[str]:
    """Log each result of the workspace that no run holds yet, and none that was deleted; returns their files' names.

    Raises ValueError where the server does not answer.
    """
    import yaml

    sync.main(root)  # a run that waits in its journal is no run that lacks
    params = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    client, experiments = _store(root)
    left, filled = _left(root), []
    for path in sorted((root / "metrics").rglob("*.json")):
        stage, variant = _stage(path.relative_to(root / "metrics"))
        if stage not in params:
            continue
        metrics: Metrics = read_json(path)
        key = result_key(params[stage], metrics)
        experiment = experiments.get(run_name(params, stage, variant).experiment)
        if (
            key in left
            or (experiment and experiment.lifecycle_stage == DELETED)
            or _held(client, experiments, key)
        ):
            continue
        _log(root, params, stage, variant, metrics, key)
        filled.append(path.relative_to(root).as_posix())
    if filled:
        sync.main(root)
        print(f"back-filled {len(filled)} runs in {shown(tracking_uri(root))}: {', '.join(filled)}")
    return filled


def _left(root: Path) -> set[str]:
    """The results whose runs somebody deleted before their journals were sent: no server knows them."""
    return {
        event["value"]
        for journal in journals.folder(root).glob("[0-9]*")
        if marks.deleted(journal)
        for event, _ in journals.read(journal / journals.RUN)
        if event and event["kind"] == "tag" and event["name"] == RESULT
    }


def _held(client: MlflowClient, experiments: dict[str, Experiment], key: str) -> bool:
    """Whether a run has this result, one that was deleted included."""
    from mlflow.entities import ViewType

    every = [experiment.experiment_id for experiment in experiments.values()]
    query = f"tags.`{RESULT}` = '{key}'"
    return bool(client.search_runs(every, query, run_view_type=ViewType.ALL, max_results=1))


def _store(root: Path) -> tuple[MlflowClient, dict[str, Experiment]]:
    from mlflow.entities import ViewType
    from mlflow.exceptions import MlflowException

    try:
        client = connect(root)
        return client, {experiment.name: experiment for experiment in client.search_experiments(ViewType.ALL)}
    except MlflowException as error:
        raise ValueError(
            f"{shown(tracking_uri(root))}: {one_line(error)}; run it again when it answers"
        ) from error


def _stage(path: Path) -> tuple[str, str]:
    return (path.stem, "") if len(path.parts) == 1 else (path.parts[0], path.stem)


def _log(root: Path, params: dict[str, Any], stage: str, variant: str, metrics: Metrics, key: str) -> None:
    tags = {
        RESULT: key,
        "lathe.stage": stage,
        "dvc.stage": f"{stage}@{variant}" if variant else stage,
        "backfilled": "true",
        "experiment": str(params["experiment"]),
    }
    track.start(root, run_name(params, stage, variant), tags, flat(params[stage]), follow=False)
    track.metrics(metrics)
    track.close("FINISHED")


if __name__ == "__main__":
    try:
        main(Path.cwd())
    except ValueError as problem:
        sys.exit(f"backfill: {problem}")
