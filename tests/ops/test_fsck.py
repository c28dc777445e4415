"""`ops.fsck` finds what DVC does not look for, and repairs it from whichever copy is good."""

from __future__ import annotations

from tests.s3_server import S3
from tests.small_project import Project, flip_bit

SILENT = "Data and pipelines are up to date."


def fsck(project: Project, *arguments: str) -> tuple[int, str]:
    done = project.ops("fsck", *arguments)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout + done.stderr


def test_a_flipped_bit_in_the_cache_is_repaired_from_the_remote(pushed: Project) -> None:
    weights = pushed.root / "models/weights.bin"
    good, cached = weights.read_bytes(), pushed.cached("models/weights.bin")
    flip_bit(cached)
    assert weights.read_bytes() != good, "cache and workspace are one file"
    assert SILENT in pushed.dvc("status"), "DVC sees nothing: this is why fsck exists"
    code, report = fsck(pushed)
    assert code == 0, report
    assert "BAD      local cache: one: models/weights.bin" in report
    assert "repaired from the remote" in report
    assert cached.read_bytes() == weights.read_bytes() == good
    assert cached.samefile(weights), "linked again"
    assert SILENT in pushed.dvc("status")
    assert fsck(pushed) == (0, "fsck of local cache: 5 objects, 0 repaired, 0 not good\n")


def test_bad_and_missing_remote_objects_are_replaced_from_the_cache(pushed: Project, bucket: S3) -> None:
    pushed.truncate(bucket, pushed.cached("models/weights.bin"))
    pushed.remove(bucket, pushed.cached("models/config.json"))
    assert "Everything is up to date" in pushed.dvc("push"), "DVC's index of the remote hides the loss"
    pushed.truncate(bucket, pushed.folder_list())
    assert fsck(pushed)[0] == 0, "without --remote the remote is not looked at"
    code, report = fsck(pushed, "--remote", "--dry-run")
    assert code == 1
    assert report.count("NOT repaired: --dry-run") == 3
    code, report = fsck(pushed, "--remote")
    assert code == 0, report
    assert report.count("repaired from the local cache") == 3
    clone = pushed.clone("second")
    clone.dvc("pull")
    assert (clone.root / "models/weights.bin").read_bytes() == (
        pushed.root / "models/weights.bin"
    ).read_bytes()


def test_without_any_good_copy_the_stage_is_named_and_its_remedy_works(pushed: Project, bucket: S3) -> None:
    good = (pushed.root / "models/weights.bin").read_bytes()
    cached = pushed.cached("models/weights.bin")
    flip_bit(cached)
    pushed.truncate(bucket, cached)
    code, report = fsck(pushed, "--remote")
    assert code == 1
    assert "NOT repaired: no good copy (the remote's copy is bad): `dvc repro one`" in report
    assert not cached.exists(), "a bad object that stays would be trusted, even by `dvc repro --force`"
    assert "Running stage 'one'" in pushed.dvc("repro", "one")
    assert (pushed.root / "models/weights.bin").read_bytes() == good
    assert "repaired from the local cache" in fsck(pushed, "--remote")[1]
    assert fsck(pushed, "--remote")[0] == 0


def test_a_bad_folder_list_is_made_from_the_workspace_without_a_remote(project: Project) -> None:
    good = project.folder_list().read_bytes()
    flip_bit(project.folder_list())
    code, report = fsck(project)
    assert code == 0, report
    assert "repaired from the files of models" in report
    assert project.folder_list().read_bytes() == good


def test_an_object_missing_from_the_cache_is_made_from_the_workspace(project: Project) -> None:
    cached = project.cached("out.txt")
    cached.unlink()
    assert fsck(project, "--dry-run")[0] == 1
    assert not cached.exists()
    assert "repaired from out.txt" in fsck(project)[1]
    assert cached.read_bytes() == (project.root / "out.txt").read_bytes()


def test_workspace_rot_is_repaired_and_a_persons_change_is_left_alone(project: Project) -> None:
    weights, out = project.root / "models/weights.bin", project.root / "out.txt"
    good = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(good)  # a copy, as with cache.type copy
    project.dvc("status")  # DVC remembers its hash by inode, size and time
    flip_bit(weights)
    out.unlink()
    out.write_text("mine")
    assert "models" not in project.dvc("status")
    code, report = fsck(project)
    assert code == 0, report
    assert "models/weights.bin has other bytes, but DVC takes it for unchanged" in report
    assert weights.read_bytes() == good
    assert out.read_text() == "mine"


def test_an_unusable_remote_is_one_line(pushed: Project) -> None:
    done = pushed.ops("fsck", "--remote", AWS_SECRET_ACCESS_KEY="wrong")
    assert done.returncode == 2
    assert done.stderr.startswith("ops.fsck: s3://")
    assert done.stderr.count("\n") == 1
