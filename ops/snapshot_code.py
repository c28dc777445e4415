"""Code benchmarks as snapshots: lm-eval's task with functions of ours where its own would execute programs here.

Prompts, few-shot examples, stop strings and what of an answer counts stay lm-eval's. Its modules are read and never
imported: when they are, they download the metric `code_eval` and run it.
"""

from __future__ import annotations

import ast
from typing import Any

from ops.snapshot_functions import functions, rename
from stages.bench.modules import executes, module_file, module_hash
from stages.bench.snapshot import CODE_TASK, Function

OURS = CODE_TASK.rpartition(".")[0]
HUMANEVAL, MBPP = "lm_eval.tasks.humaneval.utils", "lm_eval.tasks.mbpp.utils"
# The versions of lm-eval's modules that ours were written after; tests/stages/test_bench_code.py compares the two.
KNOWN = {
    HUMANEVAL: "5f77adbf75b4342a6113fea30168ea57b4e5c3877ffd3b4942cb338b3edb2c95",
    MBPP: "eecfcc264a63801d4ac478fac80b0f18c3faf16a107baf641a4fd498e81de7df",
}
FILTERS = {
    f"{HUMANEVAL}.build_predictions": "completions",
    f"{HUMANEVAL}.build_predictions_instruct": "fenced_completions",
    f"{MBPP}.build_predictions": "fenced_blocks",
}
EXAMPLES = f"{MBPP}.list_fewshot_samples"


def sandboxed(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a task; where it executes code, with ours in the place of what would do so elsewhere.

    Raises ValueError for a task that executes code and is none that we know, or not in the installed version.
    """
    used = {function.rpartition(".")[0] for function in functions(config)}
    theirs = [module for module in sorted(used) if module.startswith("lm_eval.")]
    if not config.get("unsafe_code") and not any(executes(module) for module in theirs):
        return config
    _check_known(name, theirs)
    config = config | {"metric_list": [_metric(metric) for metric in config["metric_list"]]}
    if "filter_list" in config:
        # lm-eval's name for an answer's only reading: it is then no part of a score's name
        config["filter_list"] = [reading | {"name": "none"} for reading in config["filter_list"]]
    changed: dict[str, Any] = rename(config, lambda function: _ours(name, function))
    return changed | {"class": Function(CODE_TASK), "unsafe_code": True}


def _check_known(name: str, modules: list[str]) -> None:
    if not modules or not set(modules) <= KNOWN.keys():
        raise ValueError(
            f"{name}: it executes what a model writes outside of a sandbox, which is refused; HumanEval and MBPP are "
            "executed inside (humaneval, mbpp, with _instruct, _plus, _64)"
        )
    for module in modules:
        if module_hash(module) != KNOWN[module]:
            raise ValueError(
                f"{name}: {module} of the installed lm-eval is not the one that {OURS} was written after: compare "
                "the two, then put its hash into ops/snapshot_code.py"
            )


def _metric(metric: dict[str, Any]) -> dict[str, Any]:
    ours = {"metric": Function(f"{OURS}.pass_at_k"), "aggregation": "mean", "higher_is_better": True}
    return ours | {"k": metric.get("k", [1])}


def _ours(name: str, function: Function) -> Any:
    if function.startswith(OURS):
        return function
    if function == EXAMPLES:
        return _returned(MBPP, EXAMPLES.rpartition(".")[2])
    if function not in FILTERS:
        raise ValueError(
            f"{name}: {function} executes what a model writes outside of a sandbox, which is refused"
        )
    return Function(f"{OURS}.{FILTERS[function]}")


def _returned(module: str, name: str) -> Any:
    """What a function that returns a literal would return."""
    tree = ast.parse(module_file(module).read_text(encoding="utf-8"))
    [body] = [node.body for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    [last] = body
    assert isinstance(last, ast.Return) and last.value
    return ast.literal_eval(last.value)
