"""The S3 remote on a real server: push, clone, pull; damage is loud; `ops.remote` sets it or says why not."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from ops import remote
from tests.s3_server import S3, SECRET
from tests.small_project import BUCKET, Project, make_project


def test_push_clone_pull_and_nothing_is_left_to_run(pushed: Project) -> None:
    clone = pushed.clone("second")
    clone.dvc("pull")
    assert "Running stage" not in clone.dvc("repro")
    assert (clone.root / "out.txt").read_bytes() == (pushed.root / "out.txt").read_bytes()
    assert clone.run("git", "status", "--porcelain").stdout == ""
    assert (clone.root / "out.txt").stat().st_nlink == 2, "the cache is hard-linked, not copied"


def test_a_truncated_object_fails_the_pull_and_stays_out_of_the_workspace(
    pushed: Project, bucket: S3
) -> None:
    pushed.truncate(bucket, pushed.cached("models/weights.bin"))
    clone = pushed.clone("second")
    for _ in range(2):  # the second pull once said "up to date"
        assert clone.run("python", "-m", "dvc", "pull", ok=False).returncode != 0
        assert not (clone.root / "models/weights.bin").exists()
    assert not (clone.root / pushed.cached("models/weights.bin").relative_to(pushed.root)).exists()


def test_a_truncated_folder_list_fails_the_pull(pushed: Project, bucket: S3) -> None:
    pushed.truncate(bucket, pushed.folder_list())
    clone = pushed.clone("second")
    assert clone.run("python", "-m", "dvc", "pull", ok=False).returncode != 0
    assert not (clone.root / "models").exists()


def test_remote_is_set_outside_git_and_leaves_no_probe(project: Project, bucket: S3) -> None:
    project.set_remote(bucket)
    assert project.run("git", "status", "--porcelain").stdout == ""
    local = (project.root / ".dvc/config.local").read_text()
    assert bucket.endpoint in local
    assert SECRET not in local
    assert "Contents" not in bucket.client().list_objects_v2(Bucket=BUCKET, Prefix=project.root.parent.name)
    assert project.ops("remote").returncode == 0
    assert project.ops("remote", "--read-only").returncode == 0


def test_a_wrong_secret_is_one_clear_line_and_sets_nothing(project: Project, bucket: S3) -> None:
    wrong = project.ops(
        "remote", f"s3://{BUCKET}", "--endpoint", bucket.endpoint, AWS_SECRET_ACCESS_KEY="hunter2"
    )
    assert wrong.returncode == 1
    assert wrong.stderr.count("\n") == 1
    assert "signature" in wrong.stderr
    assert "hunter2" not in wrong.stderr
    assert not (project.root / ".dvc/config.local").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no bucket is set"),
        (["s3://no-such-bucket", "--endpoint", "ENDPOINT"], "bucket does not exist"),
        (["s3://a-bucket", "--endpoint", "http://127.0.0.1:9"], "Could not connect"),
        (["s3://a-bucket", "--endpoint", "127.0.0.1:9"], "has no scheme"),
        (["s3://key:secret@a-bucket"], "AWS environment"),
        (["/mnt/nas"], "not s3://bucket/prefix"),
    ],
)
def test_a_remote_that_cannot_work_is_refused(
    arguments: list[str], says: str, bucket: S3, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.getbasetemp() / "bare"
    if not root.exists():
        make_project(root)
    given = [argument.replace("ENDPOINT", bucket.endpoint) for argument in arguments]
    done = Project(root, bucket.env).ops("remote", *given)
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not (root / ".dvc/config.local").exists()


def test_a_server_that_never_answers_is_given_up(
    bucket: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in bucket.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote, "DEADLINE_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        config = {
            "core": {"remote": "storage"},
            "remote": {"storage": {"url": "s3://a/b", "endpointurl": url}},
        }
        with pytest.raises(ValueError, match=r"no answer within 1 s; check --endpoint"):
            remote.probe(config)
