"""ops.variant: a name that can move becomes a folder named by its content, under DVC, its weights once on the disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ops import promote, variant
from ops.digest import values_digest
from ops.guard import problems
from ops.variant import write_entry
from stages.common.adapter import base_of
from stages.common.files import tree_digest
from stages.common.store import connect
from tests.ops.decided import NAME, Decided, make_decided
from tests.ops.local_hub import serve
from tests.small_project import HOUSE, Project

CONF = """seed: 17
variants:                   # what bench scores
  base: {path: models/base, revision: "", precision: fp32, backend: own, model_args: {}}
  tuned: {path: models/tuned, revision: "", precision: fp32, backend: own, model_args: {}}

digest: 1
"""
DVC_YAML = """
stages:
  tuned: {cmd: python put.py, deps: [made, put.py], outs: [models/tuned]}
"""
PUT = "import shutil; shutil.copytree('made', 'models/tuned')"


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Project:
    """A repository with two commits of models/tuned, tagged `first` and `second`. Never write to it."""
    root = tmp_path_factory.mktemp("history") / "first"
    (root / ".dvc").mkdir(parents=True)
    for name in (".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore"):
        shutil.copy(HOUSE / name, root / name)
    (root / "conf").mkdir()
    for name, text in {"conf/config.yaml": CONF, "dvc.yaml": DVC_YAML, "put.py": PUT}.items():
        (root / name).write_text(text)
    shutil.copytree(tiny_model, root / "made")
    project = Project(root)
    project.run("git", "init", "-q", "-b", "main")
    for tag in ("first", "second"):
        (root / "made/note.json").write_text(f'"{tag}"')
        project.dvc("repro", "-q")
        project.run("git", "add", "-A")
        project.run("git", "commit", "-q", "-m", tag)
        project.run("git", "tag", tag)
    return project


@pytest.fixture
def project(history: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A copy of `history`, links between outs and cache kept: the current directory."""
    root = tmp_path / "work"
    subprocess.run(["cp", "-a", str(history.root), str(root)], check=True)
    monkeypatch.chdir(root)
    for key, value in {"GIT_AUTHOR_NAME": "t", "GIT_COMMITTER_NAME": "t"}.items():
        monkeypatch.setenv(key, value)
    return Project(root)


def line(name: str) -> dict[str, str]:
    """The variant as conf/config.yaml has it."""
    found: dict[str, str] = yaml.safe_load(Path("conf/config.yaml").read_text())["variants"][name]
    return found


def test_a_git_revision_is_a_folder_of_links_that_dvc_tracks(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    commit = project.run("git", "rev-parse", "first").stdout.strip()
    variant.main(["before", "git:first", "--precision", "bf16"])
    found = line("before")
    folder = Path(found["path"])
    assert folder.parent == Path("models/variants") and tree_digest(folder).startswith(folder.name)
    assert (folder / "note.json").read_text() == '"first"'
    assert found["revision"] == f"git:{commit}:models/tuned" and found["precision"] == "bf16"
    assert project.cached(f"{folder}/model.safetensors").samefile("models/tuned/model.safetensors")
    assert "python -m ops.compose" in capsys.readouterr().out
    assert f"{folder}.dvc" in project.run("git", "status", "--porcelain").stdout
    assert Path("conf/config.yaml").read_text().count("\n") == CONF.count("\n") + 1

    variant.main(["before", f"git:{commit}"])  # the same by another name
    assert line("before") == found
    assert "the same weights as before" in capsys.readouterr().out

    variant.main(["before", "git:main"])  # it has moved
    moved = line("before")
    assert moved["path"] != found["path"] and moved["precision"] == "bf16"
    assert f"`dvc remove {folder}.dvc`" in capsys.readouterr().out
    assert "up to date" in project.dvc("status")

    shutil.rmtree(moved["path"])
    project.dvc("checkout", f"{moved['path']}.dvc")
    assert tree_digest(Path(moved["path"])).startswith(Path(moved["path"]).name)


@pytest.mark.parametrize("tracked", [True, False])
def test_a_folder_that_is_not_what_its_name_says_is_made_again(project: Project, tracked: bool) -> None:
    variant.main(["before", "git:first"])
    folder, pointer = Path(line("before")["path"]), Path(f"{line('before')['path']}.dvc")
    said = pointer.read_text()
    (folder / "note.json").unlink()
    (folder / "left.txt").write_text("half of something")
    if not tracked:
        pointer.unlink()
    variant.main(["before", "git:first"])
    assert tree_digest(folder).startswith(folder.name) and pointer.read_text() == said


def refused(project: Project, arguments: list[str], match: str) -> None:
    before = Path("conf/config.yaml").read_text(), project.run("git", "status", "--porcelain").stdout
    with pytest.raises(ValueError, match=match) as no:
        variant.main(arguments)
    assert "\n" not in str(no.value)
    assert before == (
        Path("conf/config.yaml").read_text(),
        project.run("git", "status", "--porcelain").stdout,
    )
    assert not Path(".lathe/variant").exists()


def test_what_is_not_there_is_one_clear_line_and_changes_nothing(project: Project) -> None:
    refused(project, ["a", "git:nowhere"], "'nowhere' is no revision and no experiment here")
    refused(
        project, ["a", "git:first:models/base"], r"dvc.lock at \w+ has no models/base \(there: models/tuned\)"
    )
    refused(project, ["a", "models:/Name"], "neither models:/Name@alias nor models:/Name/3")
    refused(
        project,
        ["a", "models:/Name@champion"],
        r"not in the store at sqlite.*`python -m ops.promote` registers",
    )
    refused(
        project, ["a", "nowhere"], "'nowhere' is no folder: name one, or models:/Name@alias, git:REVISION"
    )
    refused(project, ["a", "conf"], r"conf has no \*.safetensors: Lathe needs weights in that form")
    refused(project, ["tuned", "git:first"], "tuned is the pipeline's own model")
    for name in ("A b", "no", "on"):
        refused(project, [name, "git:first"], "is no name for a variant")


def test_an_object_that_the_cache_lost_comes_from_the_remote_or_is_named(
    project: Project, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    project.dvc("remote", "add", "--local", "-d", "near", str(store))
    project.run("git", "checkout", "-q", "first")
    project.dvc("checkout")
    lost = project.cached("models/tuned/note.json")
    project.dvc("push")
    project.run("git", "checkout", "-q", "main")
    lost.unlink()
    variant.main(["before", "git:first"])
    assert Path(line("before")["path"], "note.json").read_text() == '"first"'
    shutil.rmtree(line("before")["path"])
    lost.unlink()
    shutil.rmtree(store)
    project.run("git", "checkout", "-q", "--", "conf/config.yaml")
    refused(
        project,
        ["again", "git:first"],
        r"models/tuned of \w+ is not in the cache and does not come from the remote",
    )


def test_a_folder_is_copied_since_others_may_write_into_it(project: Project) -> None:
    variant.main(["theirs", "made"])
    folder = Path(line("theirs")["path"])
    assert line("theirs")["revision"] == "" and (folder / "note.json").read_text() == '"second"'
    assert not (folder / "model.safetensors").samefile("made/model.safetensors")
    assert os.access("made/model.safetensors", os.W_OK) and Path("made/note.json").stat().st_mode & 0o200
    # Not by a write into it either: DVC sees a changed variant, not a changed cache
    Path("made/note.json").write_text('"third"')
    variant.main(["theirs", "made"])
    assert Path(line("theirs")["path"]) != folder and (folder / "note.json").read_text() == '"second"'


def test_a_line_by_hand_in_another_form_is_left_to_the_hand(project: Project) -> None:
    config = Path("conf/config.yaml")
    config.write_text(CONF.replace("  tuned: {", "  mine:\n    path: models/mine\n  tuned: {"))
    refused(project, ["mine", "made"], "the entry of mine under `variants` is not on one line")
    old = write_entry(config, "tuned", {"path": "x", "model_args": {"base_url": "http://a/b", "n": 1}})
    assert old == "models/tuned"
    assert line("tuned")["model_args"] == {"base_url": "http://a/b", "n": 1}


def test_a_hub_id_by_hand_is_no_path_and_the_guard_says_what_is(project: Project) -> None:
    values = {
        "variants": {"a": {"path": "models/tuned"}, "b": {"path": "made"}, "c": {"path": "Qwen/Qwen2.5-0.5B"}}
    }
    digest = {"files": {}, "values": values_digest(values)}
    Path("params.yaml").write_text(yaml.safe_dump(values | {"digest": digest}))
    [problem] = problems(project.root)
    assert problem.startswith(
        "variants.c.path=Qwen/Qwen2.5-0.5B is no folder here: `python -m ops.variant c hub:Qwen/Qwen"
    )


@pytest.fixture
def decided(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Decided:
    """A workspace, the current directory, under DVC, with a candidate whose files are read-only, as DVC's are."""
    root = tmp_path / "work"
    made = make_decided(root, tiny_model, f"sqlite:///{root / 'mlflow.db'}")
    (root / "conf").mkdir()
    (root / "conf/config.yaml").write_text(CONF)
    monkeypatch.chdir(root)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for file in made.tuned.iterdir():
        file.chmod(0o444)
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], check=True)
    for name in (".dvc/config", ".gitignore"):
        shutil.copy(HOUSE / name, root / name)
    connect(root)
    return made


def test_the_champion_is_the_registered_model_by_its_hash(decided: Decided) -> None:
    promote.main(decided.root, confirmed=False)
    variant.main(["champion", f"models:/{NAME}@champion"])
    found = line("champion")
    assert (
        found["path"] == f"models/variants/{decided.model[:16]}" and found["revision"] == f"models:/{NAME}/1"
    )
    assert Path(found["path"], "model.safetensors").samefile(decided.tuned / "model.safetensors")
    variant.main(["first", f"models:/{NAME}/1"])
    assert line("first") == found  # two names, one folder
    with pytest.raises(ValueError, match=r"models:/HelpdeskAssistant@other is not in the store at sqlite"):
        variant.main(["other", f"models:/{NAME}@other"])
    stored = decided.root / "mlartifacts/versions" / decided.model[:16] / "artifacts/tuned/config.json"
    stored.unlink()
    stored.write_text("{}")
    with pytest.raises(ValueError, match="is not the model that was registered, by its hash"):
        variant.main(["champion", f"models:/{NAME}@champion"])
    assert line("champion") == found


HUB = """
import sys
from ops.variant_sources import fetch
from pathlib import Path
for number, source in enumerate(sys.argv[1:]):
    Path(str(number)).mkdir()
    try:
        print(fetch(source, Path(str(number)), Path(".")))
    except ValueError as problem:
        print(f"refused: {problem}")
"""


def test_a_hub_model_is_the_commit_that_its_branch_is_now_and_an_adapter_brings_its_base(
    tiny_model: Path, tmp_path: Path
) -> None:
    whole = {file.name: file.read_bytes() for file in tiny_model.iterdir()}
    adapter = {
        "adapter_config.json": b'{"base_model_name_or_path": "their/base", "revision": null}',
        "adapter_model.safetensors": whole["model.safetensors"],
        "tokenizer.json": whole["tokenizer.json"],
    }
    with serve() as hub:
        old = hub.commit("their/base", whole | {"notes.json": b"1", "modeling_x.py": b"raise SystemExit"})
        new = hub.commit("their/base", whole)
        laid = hub.commit("their/adapter", adapter)
        env = os.environ | {
            "PYTHONPATH": str(HOUSE),
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
        }
        env.pop("HF_HUB_OFFLINE", None)
        asked = ["hub:their/base", f"hub:their/base@{old}", "hub:their/adapter@main", "hub:their/none"]
        done = subprocess.run(
            [sys.executable, "-c", HUB, *asked],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            check=True,
        )
    told = done.stdout.splitlines()
    assert told[:3] == [f"hub:their/base@{new}", f"hub:their/base@{old}", f"hub:their/adapter@{laid}"]
    assert told[3].startswith("refused: hub:their/none did not come from the hub (RepositoryNotFoundError")
    assert {file.name for file in (tmp_path / "0").iterdir()} == set(whole)
    assert (tmp_path / "1/notes.json").is_file() and not (tmp_path / "1/modeling_x.py").exists()
    assert base_of(tmp_path / "2") == tmp_path / "2/base"
    assert tree_digest(tmp_path / "2/base") == tree_digest(tmp_path / "0")
