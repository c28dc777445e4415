"""The rules of the house, each a function of a repository's root that returns what is wrong, by file.

tests/test_house.py holds this repository to them, and breaks each on a copy to see that it is noticed.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import yaml

STAGES = ("base", "prepare", "finetune", "bench", "judge", "drift", "register")
HEAVY = {
    "torch",
    "transformers",
    "mlflow",
    "evidently",
    "lm_eval",
    "trl",
    "peft",
    "datasets",
    "pyarrow",
    "pandas",
}
# Subclasses of a heavy library's classes: imported late as whole modules, by functions only (which
# test_a_stages_import_is_light holds them to); and the file that MLflow runs as a model's code.
WHOLE_MODULES = {
    "stages/bench/cache.py", "stages/bench/encoding.py", "stages/bench/foreign.py", "stages/bench/generation.py",
    "stages/bench/likelihood.py", "stages/bench/load.py", "stages/bench/model.py", "stages/bench/processes.py",
    "stages/bench/respondent.py", "stages/bench/tasks/chat.py", "stages/bench/tasks/code.py", "ops/assistant.py",
    "stages/finetune/attention.py", "stages/finetune/log_probabilities.py", "stages/finetune/saving.py",
    "stages/finetune/trainers.py",
}  # fmt: skip


def stage_of(name: str) -> str:
    return name.split("@", maxsplit=1)[0]


def modules(path: Path) -> set[str]:
    """Dotted names that a file imports, `from a import b` as both a and a.b."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def local_files(root: Path, path: Path) -> set[Path]:
    """Files of this repository that a file imports directly."""
    candidates = (root.joinpath(*name.split(".")).with_suffix(".py") for name in modules(path))
    return {file for file in candidates if file.is_file()}


def shared_code(root: Path, stage: str) -> set[str]:
    """The stages/common modules that a stage reaches, however far."""
    todo, seen = list((root / "stages" / stage).rglob("*.py")), set()
    while todo:
        for file in local_files(root, todo.pop()) - seen:
            seen.add(file)
            todo.append(file)
    names = {file.relative_to(root).as_posix() for file in seen}
    return {name for name in names if name.startswith("stages/common/")}


def deps_equal_imports(root: Path) -> list[str]:
    """A stage's code dependencies in dvc.yaml are its folder and the common modules that it imports."""
    stages = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    problems = []
    for stage in STAGES:
        entry = stages[stage].get("do", stages[stage])
        declared = {dep for dep in entry["deps"] if dep.startswith("stages/")}
        wanted = shared_code(root, stage) | {f"stages/{stage}"}
        problems += [
            f"dvc.yaml: stage {stage} does not depend on {dep}, which it imports" for dep in wanted - declared
        ]
        problems += [
            f"dvc.yaml: stage {stage} depends on {dep}, which it never imports" for dep in declared - wanted
        ]
    return sorted(problems)


def stages_keep_apart(root: Path) -> list[str]:
    """A stage imports neither another stage nor ops."""
    problems = []
    for stage in (*STAGES, "common"):
        for path in (root / "stages" / stage).rglob("*.py"):
            for name in modules(path):
                parts = name.split(".")
                foreign = parts[0] == "ops" or (
                    parts[0] == "stages" and parts[1:2] not in ([], [stage], ["common"])
                )
                if foreign:
                    problems.append(f"{path.relative_to(root)} imports {name}")
    return sorted(problems)


def one_name_in_six_places(root: Path) -> list[str]:
    """Stage x: stages/x, dvc.yaml, params.yaml, dataclass X, metrics/x.json (or metrics/x/), tests/stages/test_x.py."""
    stages = set(yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]) - {"conf"}
    params = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    folders = {path.parent.name for path in (root / "stages").glob("*/__main__.py")}
    problems = []
    for stage in sorted(stages | folders | set(STAGES)):
        config = root / "stages" / stage / "config.py"
        has_class = config.is_file() and re.search(
            rf"^class {stage.capitalize()}\b", config.read_text(), re.M
        )
        metrics = root / "metrics"
        places = {
            f"stages/{stage}/__main__.py": stage in folders,
            f"dvc.yaml stage {stage}": stage in stages,
            f"params.yaml section {stage}": stage in params,
            f"stages/{stage}/config.py class {stage.capitalize()}": bool(has_class),
            f"metrics/{stage}.json": (metrics / f"{stage}.json").is_file() or (metrics / stage).is_dir(),
            f"tests/stages/test_{stage}.py": (root / "tests" / "stages" / f"test_{stage}.py").is_file(),
        }
        problems += [f"{place} is missing" for place, there in places.items() if not there]
    return problems


def heavy_imports_are_late(root: Path) -> list[str]:
    """torch and its kin are imported inside the functions that need them."""
    problems = []
    for path in sorted(
        [*root.glob("stages/**/*.py"), *root.glob("ops/**/*.py"), *root.glob("hydra_plugins/*.py")]
    ):
        name = path.relative_to(root).as_posix()
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            heavy = {module.split(".")[0] for module in names} & HEAVY
            if heavy and name not in WHOLE_MODULES:
                problems.append(f"{name}:{node.lineno} imports {', '.join(sorted(heavy))} at module level")
    return problems


def files_are_rooms(root: Path) -> list[str]:
    """`__main__.py` of a stage at most 120 lines, other files of stages/ and ops/ at most 250; no utils.py."""
    problems = []
    for path in sorted([*root.glob("stages/**/*.py"), *root.glob("ops/**/*.py")]):
        name, lines = path.relative_to(root).as_posix(), len(path.read_text(encoding="utf-8").splitlines())
        limit = 120 if path.name == "__main__.py" and name.startswith("stages/") else 250
        if lines > limit:
            problems.append(f"{name} has {lines} lines, over {limit}")
        if path.stem in ("utils", "helpers"):
            problems.append(f"{name}: a module is named for what it is about")
    return problems


def dependencies_are_pinned(root: Path) -> list[str]:
    """Every direct dependency is pinned, says why, and the lock holds the same version, without local suffixes."""
    lock = _pins(root / "requirements.lock")
    problems = [
        f"requirements.lock: {n}=={v} cannot be installed from a public index"
        for n, v in lock.items()
        if "+" in v
    ]
    for file in ("requirements.txt", "requirements-dev.txt"):
        for number, line in enumerate((root / file).read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip() or line.startswith("#"):
                continue
            pin = re.fullmatch(r"([A-Za-z0-9_.-]+)==(\S+)\s+# \S.*", line)
            if not pin:
                problems.append(f"{file}:{number}: not `name==version  # why`: {line}")
            elif lock.get(_canonical(pin[1])) != pin[2]:
                problems.append(f"{file}:{number}: {pin[1]}=={pin[2]} is not what requirements.lock says")
    return problems


def conf_files_name_themselves(root: Path) -> list[str]:
    """A file of a conf/ group carries its own name, by which the guard finds it again."""
    problems = []
    for path in sorted((root / "conf").rglob("*.yaml")):
        if path.parent == root / "conf":
            continue
        key = "experiment" if path.parent.name == "experiment" else "name"
        if yaml.safe_load(path.read_text(encoding="utf-8")).get(key) != path.stem:
            problems.append(f"{path.relative_to(root)}: {key} is not {path.stem}")
    return problems


def no_index_hosts(root: Path, files: list[str]) -> list[str]:
    """No committed file names a package registry's host."""
    hosts = re.compile(
        "|".join((r"py" + r"pi\.org", r"pythonho" + r"sted", r"npm" + r"js\.(org|com)", "whl" + r"/cpu"))
    )
    problems = []
    for name in files:
        path = root / name
        if path.is_file() and hosts.search(path.read_text(encoding="utf-8", errors="ignore")):
            problems.append(f"{name} names a package registry's host")
    return problems


def _pins(path: Path) -> dict[str, str]:
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return {_canonical(line.split("==")[0]): line.split("==")[1] for line in lines if "==" in line}


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
