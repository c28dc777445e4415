"""The house rules hold here, and breaking one on a copy names the file."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ops.compose import composed
from ops.environment import text as environment_text
from tests import house

ROOT = Path(__file__).resolve().parent.parent
RULES = [
    house.deps_equal_imports,
    house.stages_keep_apart,
    house.one_name_in_six_places,
    house.heavy_imports_are_late,
    house.files_are_rooms,
    house.dependencies_are_pinned,
    house.conf_files_name_themselves,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_rule_holds(rule: Callable[[Path], list[str]]) -> None:
    assert rule(ROOT) == []


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("stages", "ops", "conf", "hydra_plugins", "metrics"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests" / "stages", tmp_path / "tests" / "stages")
    for name in ("dvc.yaml", "params.yaml", "requirements.txt", "requirements-dev.txt", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text, f"{path} no longer holds {old!r}: mend this test"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def append(path: Path, line: str) -> None:
    path.write_text(path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")


BREAKS: list[tuple[Callable[[Path], list[str]], Callable[[Path], None], str]] = [
    (
        house.deps_equal_imports,
        lambda root: append(root / "stages/register/card.py", "import stages.common.prompt"),
        "stages/common/prompt.py",
    ),
    (
        house.deps_equal_imports,
        lambda root: append(root / "stages/common/files.py", "from stages.common import prompt"),
        "stage finetune does not depend on stages/common/prompt.py",
    ),
    (
        house.deps_equal_imports,
        lambda root: replace(
            root / "dvc.yaml", "      - stages/judge\n", "      - stages/judge\n      - stages/drift\n"
        ),
        "stage judge depends on stages/drift",
    ),
    (
        house.stages_keep_apart,
        lambda root: append(root / "stages/judge/config.py", "from stages.bench.config import Bench"),
        "stages/judge/config.py imports stages.bench.config",
    ),
    (
        house.one_name_in_six_places,
        lambda root: replace(root / "stages/drift/config.py", "class Drift", "class Drifting"),
        "stages/drift/config.py class Drift",
    ),
    (
        house.one_name_in_six_places,
        lambda root: (root / "tests/stages/test_judge.py").unlink(),
        "tests/stages/test_judge.py",
    ),
    (
        house.one_name_in_six_places,
        lambda root: replace(root / "params.yaml", "\nregister:", "\nregistrar:"),
        "params.yaml section register",
    ),
    (
        house.heavy_imports_are_late,
        lambda root: append(root / "stages/drift/config.py", "import torch"),
        "stages/drift/config.py",
    ),
    (
        house.files_are_rooms,
        lambda root: append(root / "stages/judge/config.py", "\n" * 300),
        "stages/judge/config.py",
    ),
    (
        house.dependencies_are_pinned,
        lambda root: append(root / "requirements.txt", "left-pad>=1  # why not"),
        "left-pad",
    ),
    (
        house.conf_files_name_themselves,
        lambda root: replace(root / "conf/method/lora.yaml", "name: lora", "name: full"),
        "conf/method/lora.yaml",
    ),
]


@pytest.mark.parametrize(
    ("rule", "break_it", "named"), BREAKS, ids=[f"{b[0].__name__}-{b[2][-30:]}" for b in BREAKS]
)
def test_breaking_the_rule_names_the_file(
    rule: Callable[[Path], list[str]], break_it: Callable[[Path], None], named: str, copy: Path
) -> None:
    assert rule(copy) == []
    break_it(copy)
    assert any(named in line for line in rule(copy)), rule(copy)


def test_params_are_what_conf_composes_to() -> None:
    committed = (ROOT / "params.yaml").read_text(encoding="utf-8")
    assert committed == composed([]), "run `python -m ops.compose` and commit params.yaml"


def test_environment_yml_has_the_pins_of_requirements_txt() -> None:
    assert (ROOT / "environment.yml").read_text(encoding="utf-8") == environment_text()


def test_no_committed_file_names_a_package_registry(tmp_path: Path) -> None:
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    assert house.no_index_hosts(ROOT, files) == []
    (tmp_path / "notes").write_text("pip install --index-url https://" + "py" + "pi.org/simple")
    assert house.no_index_hosts(tmp_path, ["notes"])


def test_a_stages_import_is_light() -> None:
    """What `python -m stages.<name>` and the guard import before any work has begun."""
    code = (
        "import sys, ops.guard, ops.schema\n"
        + "".join(f"import stages.{stage}.__main__\n" for stage in house.STAGES)
        + f"print(sorted(set(sys.modules) & {house.HEAVY!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_functions_are_short() -> None:
    """DESIGN.md 10: the median function of stages/ and ops/ has at most 15 lines."""
    lengths = []
    for path in [*ROOT.glob("stages/**/*.py"), *ROOT.glob("ops/**/*.py")]:
        starts = [match.start() for match in re.finditer(r"^\s*(?:async )?def ", path.read_text(), re.M)]
        tree = house.ast.parse(path.read_text(encoding="utf-8"))
        nodes = [n for n in house.ast.walk(tree) if isinstance(n, house.ast.FunctionDef)]
        assert len(nodes) <= len(starts)
        lengths += [(node.end_lineno or 0) - node.lineno + 1 for node in nodes]
    assert sorted(lengths)[len(lengths) // 2] <= 15
