"""The README's commands are run, in its order, in a clone at smoke scale; what is run elsewhere says where."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.life import Clone, Finished, copy, wait_for

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Commands that this test does not run, and what does. An entry that the README no longer has fails the test.
ELSEWHERE = {
    "make": "test_make_runs_the_pipeline, with the environment that the tests run in",
    "make test": "it is what runs this",
    "source .venv/bin/activate": "tests/life.py puts the environment first on PATH",
    "python -m ops.remote s3://bucket/prefix --endpoint https://s3.example.org": "tests/ops/test_s3.py",
    "dvc push": "tests/ops/test_s3.py",
    "dvc pull": "tests/ops/test_s3.py",
    "python -m ops.fsck --remote": "tests/ops/test_fsck.py",
    "python -m ops.data gsm8k --train ../shared/data/gsm8k/train.jsonl --test ../shared/data/gsm8k/test.jsonl": (
        "tests/ops/test_data.py"
    ),
    "dvc exp run -S experiment=dpo": "full scale: by hand, see docs/LOG.md",
    "dvc exp run -S experiment=gsm8k": "up to 20 minutes: by hand, see docs/LOG.md",
}


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def test_every_exception_is_still_in_the_readme() -> None:
    assert set(ELSEWHERE) <= set(commands())


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    assert len(README.splitlines()) <= 230
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / target).exists(), target


def test_paths_and_modules_that_the_readme_names_exist() -> None:
    for path in re.findall(r"`((?:conf|stages|ops|docs|registry)/[\w./-]*)`", README):
        assert (ROOT / path).exists() or "mine" in path, path
    for module in re.findall(r"python -m ((?:ops|stages)\.\w+)", README):
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").exists() or (
            ROOT / module.replace(".", "/") / "__main__.py"
        ).exists(), module


def test_its_python_is_python_and_names_the_registered_model() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    ast.parse(block)
    register = (ROOT / "conf/register/helpdesk.yaml").read_text(encoding="utf-8")
    (name,) = re.findall(r"registered_model: (\w+)", register)
    assert f"models:/{name}@champion" in block


@pytest.fixture(scope="module")
def clone(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A finished clone whose default is the miniature, so that the README's commands are as they stand, but small."""
    made = copy(finished.clone, tmp_path_factory.mktemp("readme") / "lathe")
    config = made.root / "conf/config.yaml"
    text = config.read_text(encoding="utf-8")
    assert "  - experiment: default" in text
    config.write_text(text.replace("  - experiment: default", "  - experiment: smoke"), encoding="utf-8")
    made.module("ops.compose")
    made.dvc("repro")
    made.commit()
    return made


@pytest.mark.slow
def test_its_commands_run(clone: Clone) -> None:
    for command in commands():
        if command in ELSEWHERE:
            continue
        done = clone.run("bash", "-c", command, ok=False)
        # The doctor's exit code speaks of this machine.
        assert done.returncode == 0 or command == "python -m ops.doctor", (
            f"{command}\n{done.stdout}{done.stderr}"
        )
        assert "Traceback" not in done.stderr, f"{command}\n{done.stderr}"
        if command.startswith("dvc queue start"):
            wait_for(
                "the queue's end",
                lambda: not re.search("Running|Queued", clone.dvc("queue", "status").stdout),
            )


@pytest.mark.slow
def test_make_runs_the_pipeline(clone: Clone) -> None:
    """The Makefile's own recipe, with the set-up it would do declared done."""
    done = clone.run("make", "-o", "setup")
    assert "Ran" in done.stdout and "Gate:" in done.stdout
    assert "summary" in clone.run("make", "help").stdout
