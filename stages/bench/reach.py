"""What a function of lm-eval's tasks comes to when it is called, by reading: code from the network, or texts as code.

A module that names such a thing is no reason to refuse every task that uses the module: what importing it runs counts,
and the functions that the asked one refers to, and theirs. What is reached by other means (getattr, the inside of
another library) is not seen.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from stages.bench.modules import module_file

LM_EVAL = "lm_eval.tasks"
FUNCTION = re.compile(r"(?P<module>(?P<of>lm_eval\.tasks|stages\.bench)(\.[\w-]+)+)\.\w+")
DOWNLOADS = "downloads code and runs it"
EXECUTES = "executes what a model writes outside of the sandbox"
FORBIDDEN = {
    "evaluate.load": DOWNLOADS,
    "datasets.load_metric": DOWNLOADS,
    "eval": EXECUTES,
    "exec": EXECUTES,
    "os.system": EXECUTES,
    "os.popen": EXECUTES,
    "subprocess": EXECUTES,
    "sympy.sympify": EXECUTES,  # an eval
    "sympy.parsing.sympy_parser": EXECUTES,
}


def refused(function: str, hashed: Mapping[str, Any]) -> str:
    """Why a YAML's `!function` must not be imported, "" where nothing speaks against it; `hashed`: known modules."""
    found = FUNCTION.fullmatch(function)
    theirs = found is not None and found["of"] == LM_EVAL
    if not found or (theirs and found["module"] not in hashed):
        return (
            f"!function {function!r} is from no module of {LM_EVAL} that card.json has the hash of, "
            "nor from stages.bench"
        )
    return forbidden(function) if theirs else ""


def forbidden(function: str) -> str:
    """Why a function of lm_eval.tasks, by its full name, must not be imported; "" where nothing speaks against it."""
    todo, seen = [function], set[str]()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        for found in _referred(name):
            if thing := next((each for each in FORBIDDEN if f"{found}.".startswith(f"{each}.")), ""):
                return f"{name} {FORBIDDEN[thing]} ({thing})"
            if found.startswith(f"{LM_EVAL}."):
                todo.append(found)
    return ""


def _referred(name: str) -> Iterator[str]:
    """Full names that a module, when it is imported, or a function in one refers to; packages and modules before it."""
    module, _, inner = name.rpartition(".")
    if module != LM_EVAL:
        yield module
    if module_file(name).is_file():
        module, inner = name, ""
    if not module_file(module).is_file():
        return
    defined, rest, imported = _read(module)
    for tree in [defined[inner]] if inner in defined else [] if inner else rest:
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                yield from (each for each in imports(module, node).values() if each.startswith(LM_EVAL))
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                yield node.func.id
            if isinstance(node, ast.Attribute | ast.Name):
                first, *others = _dotted(node)
                known = imported.get(first) or (f"{module}.{first}" if first in defined else "")
                if known:
                    yield ".".join([known, *others])


@cache
def _read(module: str) -> tuple[dict[str, ast.stmt], list[ast.stmt], dict[str, str]]:
    """Its functions and classes by name, its other statements, and full names of what it imports anywhere."""
    tree = ast.parse(module_file(module).read_text(encoding="utf-8"))
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    defined: dict[str, ast.stmt] = {node.name: node for node in tree.body if isinstance(node, kinds)}
    rest = [node for node in tree.body if not isinstance(node, kinds)]
    imported: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            imported |= imports(module, node)
    return defined, rest, imported


def imports(module: str, node: ast.Import | ast.ImportFrom) -> dict[str, str]:
    """Full names by what the importing module calls them; of `import a.b`, which binds a, a.b beside it."""
    if isinstance(node, ast.Import):
        first = [alias.name.partition(".")[0] for alias in node.names if not alias.asname]
        return {alias.asname or alias.name: alias.name for alias in node.names} | dict(
            zip(first, first, strict=True)
        )
    parts = module.split(".")
    package = parts if module_file(module).name == "__init__.py" else parts[:-1]
    up = package[: len(package) - node.level + 1] if node.level else []
    start = ".".join([*up, *filter(None, [node.module])])
    return {alias.asname or alias.name: f"{start}.{alias.name}" for alias in node.names}


def _dotted(node: ast.Attribute | ast.Name) -> list[str]:
    """["a", "b"] of a.b; [""] of what does not begin with a name."""
    if isinstance(node, ast.Name):
        return [node.id]
    inner = _dotted(node.value) if isinstance(node.value, ast.Attribute | ast.Name) else [""]
    return [*inner, node.attr]
