"""`ops.doctor`: each check says what it found and what to do, on a good and on a broken set-up."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from ops import doctor, machine, tracker
from ops.finding import FAIL, OK, WARN
from tests.small_project import Project, make_project


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("doctor") / "small")


def test_every_finding_that_is_not_ok_says_what_to_do(small: Project) -> None:
    findings = doctor.examine(small.root)
    assert len({each.name for each in findings}) == len(findings) >= 14
    for each in findings:
        assert each.found
        assert bool(each.todo) == (each.status != OK), each


def test_json_and_exit_status(small: Project) -> None:
    done = small.ops("doctor", "--json")
    found = {each["name"]: each for each in json.loads(done.stdout)}
    assert found["params"]["status"] == FAIL, "it has no params.yaml"
    assert done.returncode == 1
    assert found["remote"] == {
        "name": "remote",
        "status": WARN,
        "found": "not configured: data and models stay on this machine",
        "todo": "`python -m ops.remote s3://bucket/prefix [--endpoint URL]`",
    }
    assert found["dvc"]["status"] == OK
    assert found["hard links"]["status"] == OK
    assert not (small.root / "mlflow.db").exists(), "looking makes no store"
    assert "Traceback" not in done.stderr
    assert small.run("git", "status", "--porcelain").stdout == ""
    assert "to do" in small.ops("doctor").stdout


def test_packages_name_each_mismatch(tmp_path: Path) -> None:
    assert machine.packages(tmp_path).status == WARN
    wanted = tmp_path / "requirements.txt"
    wanted.write_text(
        "# why\npytest>=1  # tests\n-r other.txt\nno-such-package==1\npytest==0.1\nx; python_version<'3'\n"
    )
    found = machine.packages(tmp_path)
    assert found.status == FAIL
    assert "no-such-package missing (want ==1)" in found.found
    assert "(want ==0.1)" in found.found
    wanted.write_text("pytest>=1\n")
    assert machine.packages(tmp_path).status == OK


def test_another_python_on_path_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho /elsewhere\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = machine.python_on_path()
    assert found.status == FAIL
    assert str(fake) in found.found
    monkeypatch.setenv("PATH", "/nowhere")
    assert machine.python_on_path().found == "none"


def test_hard_links_across_file_systems_are_a_warning(tmp_path: Path) -> None:
    assert machine.hard_links(tmp_path, tmp_path / "cache").status == OK
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system here")
    found = machine.hard_links(other, tmp_path / "cache")
    assert found.status == WARN
    assert "cross-device" in found.found
    assert list((tmp_path / "cache").iterdir()) == []


def test_git_outside_a_repository_and_with_changes(tmp_path: Path, small: Project) -> None:
    assert doctor.git(tmp_path).status == FAIL
    (small.root / "new.txt").write_text("x")
    found = doctor.git(small.root)
    (small.root / "new.txt").unlink()
    assert found.status == WARN
    assert "main, 1 uncommitted changes" in found.found


def test_dvc_settings_that_lathe_needs(small: Project) -> None:
    small.dvc("config", "--local", "cache.type", "copy")
    small.dvc("remote", "modify", "--local", "storage", "verify", "false")
    found = doctor.dvc(small.root)
    (small.root / ".dvc/config.local").unlink()
    assert found.status == WARN
    assert found.found == "cache.type does not start with hardlink; the remote's verify is off"


def test_tracking_stores(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    assert tracker.tracking(f"sqlite:///{path}").status == OK
    assert not path.exists()
    with sqlite3.connect(path) as store:
        store.execute("create table experiments (lifecycle_stage text)")
        store.execute("create table runs (lifecycle_stage text)")
        store.execute("insert into experiments values ('active'), ('deleted')")
    assert "1 experiments, 0 runs" in tracker.tracking(f"sqlite:///{path}").found
    path.write_text("no database")
    assert tracker.tracking(f"sqlite:///{path}").status == FAIL
    refused = tracker.tracking("http://user:hunter2@127.0.0.1:9")
    assert refused.status == FAIL
    assert "hunter2" not in refused.found
    assert tracker.tracking("postgresql://db").status == WARN


def test_telemetry_needs_the_word_true() -> None:
    assert doctor.telemetry({"DO_NOT_TRACK": "1"}).status == WARN, "MLflow ignores 1"
    assert doctor.telemetry({"DO_NOT_TRACK": "true"}).status == OK
    assert doctor.telemetry({"MLFLOW_DISABLE_TELEMETRY": "true"}).status == OK
