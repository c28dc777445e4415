"""What every stage does besides its work: read its section, seed, track, run, write metrics atomically.

A stage ends with `run(Section, main)`, and `python -m stages.<name> [variant] [key=value ...]` starts it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from stages.common import provenance
from stages.common.files import write_json
from stages.common.process import die_with_parent, importing, keep_freed_memory
from stages.common.statistics import Metrics
from stages.common.tracking import IDENTITY, Mirror, RunName, track

log = logging.getLogger("lathe")
RESULT = "lathe.result"
Section = TypeVar("Section")

# Telemetry of the tools we compose, and every network probe a stage does not need: off, here and nowhere else.
QUIET = {
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "WANDB_MODE": "disabled",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "GIT_PYTHON_REFRESH": "quiet",
}
# What these say below the level is progress that we show ourselves, or a notice about an option not in use.
QUIETER = dict.fromkeys(("httpx", "urllib3", "datasets", "absl", "fsspec", "filelock"), logging.WARNING)
QUIETER |= dict.fromkeys(
    ("lm_eval.api.task", "lm_eval.evaluator", "lm_eval.models.huggingface"), logging.ERROR
)


@dataclass
class Loaded:
    """A stage's typed section, the whole parameters (for names in tracking) and the variant, if any."""

    stage: str
    section: Any
    params: dict[str, Any]
    variant: str
    target: Any


def run(section: type[Section], main: Callable[..., Metrics], variant: type[Any] | None = None) -> None:
    """Run a stage from the command line; its name is its section's, in lower case.

    With `variant` given, the first argument names an entry of `variants` in params.yaml, and main gets
    (section, name, entry) instead of (section).
    """
    stage = section.__name__.lower()
    if "DVC_ROOT" in os.environ:
        die_with_parent()
    hush()
    log_file = Path(tempfile.mkstemp(prefix=f"lathe-{stage}-", suffix=".log")[1])
    logging.basicConfig(
        level=os.environ.get("LATHE_LOG_LEVEL", "INFO"),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        handlers=[logging.StreamHandler(), logging.FileHandler(log_file)],
        force=True,
    )
    try:
        execute(load(stage, section, sys.argv[1:], variant), main, log_file)
    except ValueError as error:
        log.debug("%s", traceback.format_exc())
        sys.exit(f"{stage}: {error}")
    finally:
        log_file.unlink(missing_ok=True)


def hush() -> None:
    """No telemetry, no network probes, and of the libraries' messages those that matter."""
    os.environ.update({key: value for key, value in QUIET.items() if key not in os.environ})
    for name, level in QUIETER.items():
        logging.getLogger(name).setLevel(level)


def load(
    stage: str, section: type[Section], arguments: list[str], variant: type[Any] | None = None
) -> Loaded:
    """Parse params.yaml with Hydra's override grammar and check the section against its dataclass.

    Raises ValueError with one line that names key, value and remedy.
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not Path("params.yaml").is_file():
        raise ValueError(
            f"no params.yaml in {Path.cwd()}: run `python -m ops.compose` in the repository's root"
        )
    names = [argument for argument in arguments if "=" not in argument]
    try:
        with initialize_config_dir(str(Path.cwd()), version_base=None, job_name=stage):
            params = compose("params", [argument for argument in arguments if "=" in argument])
        typed = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(section), params[stage]))
        values: Any = OmegaConf.to_container(params, resolve=True)
        name = names[0] if names else ""
        target = _target(variant, values, name)
    except (HydraException, OmegaConfBaseException) as error:
        text = " ".join(f"{error} {error.__cause__ or ''}".split())
        raise ValueError(f"section `{stage}` of params.yaml: {text}") from error
    return Loaded(stage, typed, values, name, target)


def execute(loaded: Loaded, main: Callable[..., Metrics], log_file: Path) -> Metrics:
    """Seed, open the run, call main, write metrics; a failure is logged, tagged and raised again."""
    seed_everything(loaded.section)
    began = time.monotonic()
    track.start(
        provenance.root(),
        run_name(loaded.params, loaded.stage, loaded.variant),
        _tags(loaded),
        flat(loaded.params[loaded.stage]),
        [Mirror[name] for name in loaded.params["tracking"]["mirrors"]],
    )
    if change := provenance.diff():
        track.text("git.diff", change)
    track.text("environment.txt", provenance.packages())
    track.text("section.json", json.dumps(loaded.params[loaded.stage], indent=2, sort_keys=True))
    try:
        arguments = (loaded.variant, loaded.target) if loaded.target is not None else ()
        metrics = main(loaded.section, *arguments)
        write_json(metrics_path(loaded.stage, loaded.variant), metrics)
        track.metrics(metrics)
        track.tag(RESULT, result_key(loaded.params[loaded.stage], metrics))
    except BaseException as error:
        _finish(log_file, began, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED", error)
        raise
    _finish(log_file, began, "FINISHED", None)
    return metrics


def result_key(section: Mapping[str, Any], metrics: Metrics) -> str:
    """What a stage was asked and what came out, as a digest: ops/backfill.py finds a run again by it."""
    return hashlib.sha256(json.dumps([section, metrics], sort_keys=True).encode()).hexdigest()


def metrics_path(stage: str, variant: str) -> Path:
    """metrics/<stage>.json, or metrics/<stage>/<variant>.json for a stage that runs once per variant."""
    return Path("metrics") / stage / f"{variant}.json" if variant else Path("metrics") / f"{stage}.json"


def seed_everything(section: Any) -> None:
    """Seed Python and NumPy; for a section with `threads`, one that computes with torch, torch as well.

    The number of threads is pinned because sums depend on their order, and an operation without a
    deterministic implementation is refused.
    """
    import numpy as np

    seed = int(section.seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if not hasattr(section, "threads"):
        return
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(section.threads)
    # Threads that spin for long while they wait stop each other as soon as anything else runs on the machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    keep_freed_memory()
    with importing():
        import torch

    torch.manual_seed(seed)
    torch.set_num_threads(section.threads)
    torch.use_deterministic_algorithms(True)
    # A debugging aid that costs every allocation
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # set by name there


def _finish(log_file: Path, began: float, status: str, error: BaseException | None) -> None:
    track.metric("system/duration_seconds", time.monotonic() - began)
    track.metric("system/peak_memory_mib", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    if error is not None:
        track.tag("failed", "true")
        track.tag("error", f"{type(error).__name__}: {error}")
        with log_file.open("a", encoding="utf-8") as file:  # the terminal has it from whoever catches it
            file.write("".join(traceback.format_exception(error)))
    for handler in logging.getLogger().handlers:
        handler.flush()
    track.text("stage.log", log_file.read_text(encoding="utf-8", errors="replace"))
    track.close(status)


def _target(variant: type[Any] | None, params: Mapping[str, Any], name: str) -> Any:
    """The typed entry of `variants` that a stage runs for, None for a stage that has none."""
    from omegaconf import OmegaConf

    if variant is None:
        if name:
            raise ValueError(f"unexpected argument {name!r}: overrides look like key=value")
        return None
    known = params.get("variants", {})
    if name not in known:
        raise ValueError(
            f"variant {name!r} is not under `variants` of params.yaml; known: {', '.join(known)}"
        )
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(variant), known[name]))


def run_name(params: Mapping[str, Any], stage: str, variant: str) -> RunName:
    """Experiment `{Task}-{ModelFamily}`, run `{model}-{stage}` or `{model}-{stage}-{variant}`."""
    model, tracking = params["model"], params["tracking"]
    part = f"{stage}-{variant}" if variant else stage
    return RunName(f"{tracking['task']}-{model['family']}", f"{model['name']}-{part}")


def _tags(loaded: Loaded) -> dict[str, str]:
    tracking, tags = loaded.params["tracking"], provenance.facts(loaded.stage)
    tags["dvc.stage"] = f"{loaded.stage}@{loaded.variant}" if loaded.variant else loaded.stage
    tags["experiment"] = str(loaded.params["experiment"])
    tags["data.name"] = str(loaded.params["data"]["name"])
    tags |= provenance.prepared()
    for variable in IDENTITY:
        key = variable.removeprefix("LATHE_").lower()
        tags[key] = os.environ.get(variable) or str(tracking[key])
    if empty := [name for name in IDENTITY if not tags[name.removeprefix("LATHE_").lower()]]:
        log.warning("tracking: empty tags, set %s, or conf/tracking", ", ".join(empty))
    return tags


def flat(section: Any, prefix: str = "") -> dict[str, str]:
    """A nested section as dotted names, for MLflow's parameters."""
    if isinstance(section, Mapping):
        items = [flat(value, f"{prefix}{key}.") for key, value in section.items()]
        return {key: value for item in items for key, value in item.items()}
    return {prefix.rstrip("."): str(section)}
