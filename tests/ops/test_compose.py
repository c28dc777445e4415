"""ops.compose and ops.guard: every choice of conf/ composes, and what params.yaml was not made from is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from ops.compose import composed
from ops.digest import CHOICES, conf_files, values_digest
from ops.guard import problems
from ops.schema import foreign_tasks
from stages.base.config import Base
from stages.bench.config import Bench, Variant
from stages.common.run import load
from stages.drift.config import Drift
from stages.finetune.config import Finetune
from stages.judge.config import Judge
from stages.prepare.config import Prepare
from stages.register.config import Register
from tests.life import Clone, fresh
from tests.small_project import HOUSE

SECTIONS = (Base, Prepare, Finetune, Bench, Judge, Drift, Register)
# "group=file" for every file of conf/; a judge's prompt is chosen through `prompt/judge@...`, so not by this.
EVERY = sorted(
    f"{group}={path.stem}"
    for group in CHOICES
    if group != "prompt/judge"
    for path in (HOUSE / "conf" / group).glob("*.yaml")
)


@pytest.mark.parametrize("choice", EVERY)
def test_every_choice_composes_to_sections_that_load(
    choice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading runs what composition does not: a missing value, or a dataclass that checks itself."""
    text = composed([choice])
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for section in SECTIONS:
        stage = section.__name__.lower()
        arguments = ["tuned"] if section is Bench else []
        loaded = load(stage, section, arguments, Variant if section is Bench else None)
        assert isinstance(loaded.section, section)
    group, name = choice.split("=")
    assert f"{group}/{name}.yaml" in yaml.safe_load(text)["digest"]["files"]


def test_an_override_lands_in_its_section_and_in_the_digest() -> None:
    one, other = (yaml.safe_load(composed(overrides)) for overrides in ([], ["finetune.learning_rate=0.002"]))
    assert other["finetune"]["learning_rate"] == 0.002
    assert one["digest"]["files"] == other["digest"]["files"]
    assert one["digest"]["values"] != other["digest"]["values"] == values_digest(other)


def test_one_choice_reaches_every_section_that_uses_it() -> None:
    params = yaml.safe_load(composed(["seed=3", "threads=1", "prompt.max_new_tokens=7"]))
    assert {params[name]["seed"] for name in ("base", "prepare", "finetune", "bench", "judge")} == {3}
    assert {params[name]["threads"] for name in ("base", "finetune", "bench")} == {1}
    assert params["prepare"]["prompt"] == params["bench"]["prompt"] == params["prompt"]


REFUSED = {
    "finetune.learning_rate=abc": ["finetune.learning_rate", "'abc'", "Float"],
    "finetune.lr=3": ["finetune.lr", "Key 'lr' not in 'Finetune'"],
    "model=nope": ["model/nope", "tiny", "qwen2.5-0.5b"],
    "finetune.init=foo": ["finetune.init", "'foo'", "[base, random]"],
    "finetune.learning_rate=": ["finetune.learning_rate"],
    "finetune": ["'finetune'", "missing EQUAL"],
}


@pytest.mark.parametrize(("override", "named"), REFUSED.items(), ids=REFUSED)
def test_a_wrong_override_is_one_line_that_names_it(override: str, named: list[str]) -> None:
    with pytest.raises(ValueError, match=r".") as refusal:
        composed([override])
    assert [word for word in named if word not in str(refusal.value)] == []
    assert "\n" not in str(refusal.value)


@pytest.fixture
def clone(source: Clone, tmp_path: Path) -> Clone:
    return fresh(source, tmp_path / "lathe")


def test_the_command_writes_params_and_says_whether_they_changed(clone: Clone) -> None:
    clone.module("ops.compose")
    default = (clone.root / "params.yaml").read_bytes()
    assert "written" in clone.module("ops.compose", "seed=3").stdout
    assert yaml.safe_load((clone.root / "params.yaml").read_text())["register"]["seed"] == 3
    assert "unchanged" in clone.module("ops.compose", "seed=3").stdout
    clone.module("ops.compose")
    assert (clone.root / "params.yaml").read_bytes() == default


def test_a_refused_command_leaves_params_as_they_were(clone: Clone) -> None:
    before = (clone.root / "params.yaml").read_bytes()
    done = clone.module("ops.compose", "finetune.learning_rate=abc", ok=False)
    assert done.returncode == 1
    assert done.stderr.startswith("compose: ")
    assert done.stderr.count("\n") == 1
    assert (clone.root / "params.yaml").read_bytes() == before


def test_it_writes_what_dvc_exp_run_writes(clone: Clone) -> None:
    """Stage conf alone runs: it accepts what DVC composed."""
    overrides = ["experiment=smoke", "finetune.learning_rate=0.002"]
    clone.dvc("exp", "run", "conf", *(part for each in overrides for part in ("-S", each)))
    by_dvc = (clone.root / "params.yaml").read_bytes()
    clone.git("checkout", "-q", "params.yaml")
    clone.module("ops.compose", *overrides)
    assert (clone.root / "params.yaml").read_bytes() == by_dvc


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """conf/ and the params.yaml composed from it, to break."""
    shutil.copytree(HOUSE / "conf", tmp_path / "conf")
    (tmp_path / "params.yaml").write_text(composed([]), encoding="utf-8")
    return tmp_path


def test_the_guard_lets_pass_what_belongs_together(root: Path) -> None:
    assert problems(root) == []


@pytest.mark.parametrize("name", sorted(conf_files(HOUSE / "conf", yaml.safe_load(composed([])))))
def test_an_edit_of_any_file_that_took_part_is_named(root: Path, name: str) -> None:
    path = root / "conf" / name
    path.write_text(path.read_text(encoding="utf-8") + "# edited\n", encoding="utf-8")
    [line] = problems(root)
    assert f"conf/{name} is not the file" in line
    assert "python -m ops.compose" in line


def test_a_file_that_is_gone_is_named(root: Path) -> None:
    (root / "conf/drift/default.yaml").unlink()
    [line] = problems(root)
    assert "conf/drift/default.yaml is missing" in line


def test_an_edit_of_params_is_noticed(root: Path) -> None:
    path = root / "params.yaml"
    params = yaml.safe_load(path.read_text())
    params["finetune"]["max_steps"] += 1
    path.write_text(yaml.safe_dump(params))
    [line] = problems(root)
    assert "params.yaml was edited by hand" in line
    assert "python -m ops.compose" in line


@pytest.mark.parametrize("text", ["", "[]", "a: [", "digest: {}", "digest: 3"])
def test_params_that_were_never_composed_are_refused(root: Path, text: str) -> None:
    (root / "params.yaml").write_text(text)
    [line] = problems(root)
    assert "params.yaml is not a composed file" in line
    assert "python -m ops.compose" in line
    assert "\n" not in line


def test_no_params_at_all_is_refused(root: Path) -> None:
    (root / "params.yaml").unlink()
    assert problems(root) == ["params.yaml is missing: run `python -m ops.compose`"]


def test_only_tasks_with_items_of_their_own_are_compared_with_training_rows() -> None:
    assert foreign_tasks(["helpdesk_triage", "mmlu", "gsm8k_match"]) == ["mmlu"]
