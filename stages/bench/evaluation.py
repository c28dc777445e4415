"""lm-eval on our own tasks and on its own, by one path; the network is for those who name one of its own."""

from __future__ import annotations

import difflib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.bench.config import Bench

if TYPE_CHECKING:
    from stages.bench.model import Scorer

TASKS = Path(__file__).parent / "tasks"
RESAMPLES = 1000


def evaluate(cfg: Bench, model: Scorer) -> dict[str, Any]:
    """lm-eval's results, with `samples`, of the section's tasks on `model`.

    Raises ValueError on an unknown task, on data that cannot be loaded, and on our own tasks asked of a model
    without a chat template.
    """
    from lm_eval.evaluator import evaluate as run_tasks

    loaded = load_tasks(cfg)
    templated = bool(model.tokenizer.chat_template)
    for name, task in loaded["tasks"].items():
        if name in own_tasks():
            _set_decoding(cfg, task, model, templated)
        _set_fewshot(cfg, task)
    results: dict[str, Any] = run_tasks(
        model,
        loaded,
        limit=cfg.limit or None,
        bootstrap_iters=RESAMPLES,
        system_instruction=cfg.prompt.system or None,
        apply_chat_template=templated,
        fewshot_as_multiturn=True,
    )
    return results


def own_tasks() -> list[str]:
    """Names of the tasks in stages/bench/tasks, one YAML file each."""
    return sorted(path.stem for path in TASKS.glob("*.yaml"))


def load_tasks(cfg: Bench) -> dict[str, Any]:
    """lm-eval's {tasks, groups} for the section. Raises ValueError as `evaluate` does."""
    from lm_eval.tasks import TaskManager

    own = own_tasks()
    # Indexing lm-eval's own 14,000 files takes ten seconds: only when one of them is asked for.
    manager = TaskManager(
        include_path=str(TASKS),
        include_defaults=not set(cfg.tasks) <= set(own),
        metadata={"prompt": asdict(cfg.prompt), "fewshot": cfg.fewshot},
    )
    for name in cfg.tasks:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, n=3) or own
            raise ValueError(f"unknown task {name!r} in bench.tasks; near it: {', '.join(near)}")
    try:
        loaded: dict[str, Any] = dict(manager.load(list(cfg.tasks)))
    except OSError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"bench.tasks {cfg.tasks}: data not found, is the network there? ({reason})"
        ) from error
    return loaded


def _set_decoding(cfg: Bench, task: Any, model: Scorer, templated: bool) -> None:
    if not templated:
        raise ValueError(
            f"{model.source} has no chat template, and {task.task_name} asks through it: "
            "use a chat model, or lm-eval's own tasks"
        )
    if task.get_config("output_type") == "generate_until":
        decoding = {"until": [model.end], "max_gen_toks": cfg.prompt.max_new_tokens}
        task.set_config("generation_kwargs", decoding, update=True)


def _set_fewshot(cfg: Bench, task: Any) -> None:
    # As lm-eval's own command does: a task that fixes zero examples keeps zero.
    if task.get_config("num_fewshot") != 0:
        task.set_config("num_fewshot", cfg.fewshot)
    task.set_fewshot_seed(cfg.seed)
