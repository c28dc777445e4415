"""lm-eval on our own tasks and on snapshots of its own, by one path, without the network."""

from __future__ import annotations

import contextlib
import difflib
import functools
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.bench import snapshot
from stages.bench.choices import GOLD
from stages.bench.config import Bench
from stages.bench.documents import draw_among_rows, processed_once
from stages.bench.faults import blamed, guarded
from stages.bench.programs import execute, limits_of
from stages.bench.responses import Responses
from stages.bench.sandbox import isolation
from stages.common.workers import workers

if TYPE_CHECKING:
    from stages.bench.respondent import Respondent

log = logging.getLogger("lathe")
TASKS = Path(__file__).parent / "tasks"
CLASS = "stages.bench.tasks.chat.ChatTask"
OWN = "test"  # what prepare calls the rows of test.jsonl


class AllAnswered(Exception):
    """Raised in place of scoring."""


def answer(cfg: Bench, model: Respondent) -> None:
    """Ask all that `evaluate` asks and score nothing: `model` keeps the answers. Raises ValueError as it does."""
    with contextlib.suppress(AllAnswered):
        evaluate(cfg, model, scored=False)


def evaluate(cfg: Bench, model: Respondent, *, scored: bool = True) -> dict[str, Any]:
    """lm-eval's results, with `samples`, of the section's tasks on `model`; `aggregations` has, by task and metric, the
    functions that are no mean over items, and `by_size`, by group and metric, whether a task weighs its items.

    Raises ValueError on an unknown task, a missing or changed snapshot, a task that lm-eval cannot load, ask or score
    (faults.py), our own tasks asked of a model without a chat template, and where `set_execution` does.
    """
    from lm_eval.evaluator import evaluate as run_tasks

    compile_templates_once()
    loaded = load_tasks(cfg)
    if cfg.chat_template and not model.speaks:
        log.warning(
            "%s has no chat template: in spite of bench.chat_template=true it is asked in plain text, so its "
            "scores do not compare with those of models that are asked through theirs",
            model.source,
        )
    aggregations = {name: _set_aggregation(name, task) for name, task in loaded["tasks"].items()}
    for name, task in loaded["tasks"].items():
        if name in own_tasks():
            _set_decoding(cfg, task, model)
        set_fewshot(cfg, task)
        for step in ("build_all_requests", "apply_filters", "process_results"):
            setattr(task, step, guarded(getattr(task, step), name, file_of(name)))
        if not scored:
            task.apply_filters = _stop  # what lm-eval does first when all requests are answered
    set_execution(cfg, loaded["tasks"], model.responses)
    results: dict[str, Any] = run_tasks(
        model,
        loaded,
        limit=cfg.limit or None,
        bootstrap_iters=1,  # no bootstrap of lm-eval's, see _set_aggregation: only the standard error of a mean
        system_instruction=cfg.prompt.system or None,
        apply_chat_template=cfg.chat_template and model.speaks,
        fewshot_as_multiturn=True,
        confirm_run_unsafe_code=cfg.code.run,
    )
    for name, task in loaded["tasks"].items():
        for sample in results["samples"].get(name, []) if getattr(task, "multiple_input", 0) else []:
            sample[GOLD] = task.doc_to_text(sample["doc"])
    weights = {name: _by_size(group) for name, group in loaded["groups"].items()}
    return results | {"aggregations": aggregations, "by_size": weights}


def _stop() -> None:
    raise AllAnswered


def own_tasks() -> list[str]:
    """Names of the tasks in stages/bench/tasks, one YAML file each."""
    return sorted(path.stem for path in TASKS.glob("*.yaml"))


def file_of(name: str) -> Path:
    """Where a task, or a group of them, is described."""
    folder = snapshot.SNAPSHOTS / name
    described = (path for path in (TASKS / f"{name}.yaml", folder / "task.yaml") if path.is_file())
    return next(described, folder)


def load_tasks(cfg: Bench) -> dict[str, Any]:
    """lm-eval's {tasks, groups} for the section, from our own files and verified snapshots alone.

    Raises ValueError as `evaluate` does.
    """
    from lm_eval.tasks import TaskManager

    own = own_tasks()
    lacking = [name for name in cfg.tasks if name not in own and not snapshot.there(name)]
    near = {name: found[0] for name in lacking if (found := difflib.get_close_matches(name, own, n=1))}
    if near:
        guesses = ", ".join(f"{name!r} (did you mean {guess}?)" for name, guess in near.items())
        raise ValueError(
            f"unknown task in bench.tasks: {guesses}; a task of lm-eval's needs a snapshot: "
            f"`python -m ops.snapshot --task {next(iter(near))}`, on a machine with the network"
        )
    public = [name for name in cfg.tasks if name not in own]
    _check_own([name for name in cfg.tasks if name in own])
    snapshot.verify(public)
    # lm-eval's own 14,000 files are not indexed, which takes ten seconds
    manager = TaskManager(
        include_path=[str(path) for path in (TASKS, *snapshot.folders(public))],
        include_defaults=False,
        metadata={"prompt": asdict(cfg.prompt), "fewshot": cfg.fewshot},
    )
    found = []
    for name in [*(name for name in cfg.tasks if name in own), *snapshot.untagged(public)]:
        with blamed(name, file_of(name)), processed_once(cfg.seed):
            loaded = manager.load([name])
        found.append(loaded["groups"].get(name) or loaded["tasks"][name])
    wanted = dict(manager.load(found))
    for task in wanted["tasks"].values():
        draw_among_rows(task)
    return wanted


def set_execution(cfg: Bench, tasks: dict[str, Any], kept: Responses) -> None:
    """Let the tasks whose answers are programs execute them, in the sandbox.

    Raises ValueError, before anything is generated, where the section does not allow it, where there is no sandbox, and
    for a task that would do without.
    """
    from stages.bench.tasks.code import CodeTask

    code = {name: task for name, task in tasks.items() if isinstance(task, CodeTask)}
    marked = [name for name, task in tasks.items() if getattr(task, "UNSAFE_CODE", False)]
    if foreign := [name for name in marked if name not in code]:
        raise ValueError(
            f"{', '.join(foreign)} would execute what the model writes in this process, outside of the sandbox, and is "
            f"refused: `class: !function {snapshot.CODE_TASK}` in its YAML executes it inside"
        )
    if code and not cfg.code.run:
        raise ValueError(
            f"{', '.join(code)} of bench.tasks executes programs that the model writes, and bench.code.run is false: "
            "`python -m ops.compose bench.code.run=true` (or `dvc exp run -S bench.code.run=true`) lets it, in a "
            "sandbox"
        )
    if not code:
        return
    limits, count = limits_of(cfg.code), workers()
    isolation(limits)
    for name, task in code.items():
        task.execute = functools.partial(execute, limits=limits, count=count, task=name, kept=kept)


def _by_size(group: Any) -> dict[str, bool]:
    return {each.metric: bool(each.weight_by_size) for each in group.aggregate_metric_list or []}


def set_fewshot(cfg: Bench, task: Any) -> None:
    """How many examples stand before an item of the task, and by which seed they are drawn."""
    # As lm-eval's own command does: a task that fixes zero examples keeps zero, and one that says nothing has none.
    own = task.get_config("num_fewshot")
    if own != 0:
        task.set_config("num_fewshot", (own or 0) if cfg.fewshot is None else cfg.fewshot)
    task.set_fewshot_seed(cfg.seed)


def benchmarks(results: dict[str, Any]) -> dict[str, str]:
    """What prepare calls the items of each task: the folder under data/benchmarks, or test for data/prepared's."""
    own, found = own_tasks(), {}
    for task in results["samples"]:
        data = Path(results["configs"][task]["dataset_kwargs"]["path"]) if task in own else None
        inside = data is not None and data.is_relative_to(snapshot.SNAPSHOTS)
        found[task] = task if data is None else data.parts[len(snapshot.SNAPSHOTS.parts)] if inside else OWN
    return found


def compile_templates_once() -> None:
    """Have lm-eval keep compiled templates: it compiles each anew for every document, most of its work there.

    They read the environment's own globals: through the ChainMap that `from_string` lays over them a rendering takes
    over three times as long.
    """
    from lm_eval import utils

    if not hasattr(utils.env.from_string, "cache_info"):
        env = utils.env

        @functools.cache
        def compiled(source: str) -> Any:
            return env.template_class.from_code(env, env.compile(source), env.globals)

        env.from_string = compiled


def _check_own(names: list[str]) -> None:
    """Only ChatTask knows our scorers: lm-eval's own class would take an unknown one from the network."""
    for name in names:
        path = TASKS / f"{name}.yaml"
        config, _ = snapshot.parse(path)
        if config.get("task") != name or config.get("class") != CLASS:
            raise ValueError(f"{path}: it has to say `task: {name}` and `class: !function {CLASS}`")
        if "output_type" not in config:
            raise ValueError(
                f"{path}: it has to say `output_type`, generate_until or another of docs/task.yaml's"
            )


def _set_decoding(cfg: Bench, task: Any, model: Respondent) -> None:
    from lm_eval.models.utils import normalize_gen_kwargs

    if not model.speaks:
        raise ValueError(
            f"{model.source} has no chat template, and {task.task_name} asks through it: "
            "use a chat model, or lm-eval's own tasks"
        )
    task.speak(model.template, model.end)
    model.rendered.add(str(task.task_name))
    if task.get_config("output_type") == "generate_until":
        # It knows all names of the length, and one stop string in place of a list
        own = normalize_gen_kwargs(task.get_config("generation_kwargs"), cfg.prompt.max_new_tokens)
        stops = [stop for stop in own["until"] if stop]
        task.set_config("generation_kwargs", {**own, "until": [model.end, *stops]})


def _set_aggregation(name: str, task: Any) -> dict[str, Callable[[list[Any]], float]]:
    """What is no mean over items, which lm-eval would bootstrap in a pool of processes; it computes the value only."""
    from lm_eval.api.metrics import bypass_agg, mean

    found = {metric: how for metric, how in task.aggregation().items() if how not in (mean, bypass_agg, None)}
    for metric, how in found.items():
        # A function of our own: by their identity lm-eval knows those that it bootstraps
        task._aggregation_list[metric] = guarded(how, name, file_of(name))
    return found
