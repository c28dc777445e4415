"""A small real git and DVC repository, with this repository's .dvc/config and two stages of plain python."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

from tests.s3_server import S3

BUCKET = "lathe-test"
HOUSE = Path(__file__).resolve().parent.parent
FILES = {
    "one.py": """
import pathlib
models = pathlib.Path("models")
models.mkdir(exist_ok=True)
(models / "weights.bin").write_bytes(bytes(range(256)) * 400)
(models / "config.json").write_text('{"a": 1}')
""",
    "two.py": """
import pathlib
pathlib.Path("out.txt").write_bytes(pathlib.Path("models/weights.bin").read_bytes()[::-1])
pathlib.Path("metrics.json").write_text('{"n": 1}')
""",
    "dvc.yaml": """
stages:
  one: {cmd: python one.py, deps: [one.py], outs: [models]}
  two:
    cmd: python two.py
    deps: [two.py, models]
    outs: [out.txt]
    metrics: [metrics.json: {cache: false}]
""",
}
IDENTITY = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "test"), ("EMAIL", "test@example.com"))
}


@dataclass
class Project:
    """A repository at `root`; `env` is added to the environment of what runs in it."""

    root: Path
    env: dict[str, str] = field(default_factory=dict)

    def run(self, *command: str, ok: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the repository; with `ok`, a failure fails the test with its output."""
        path = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"
        home = {"HOME": str(self.root.parent), "AWS_EC2_METADATA_DISABLED": "true"}
        environment = {**os.environ, **IDENTITY, **home, "PATH": path, "PYTHONPATH": str(HOUSE)}
        done = subprocess.run(
            command,
            cwd=self.root,
            env={**environment, **self.env, **env},
            capture_output=True,
            text=True,
            check=False,
        )
        assert not ok or done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
        return done

    def dvc(self, *arguments: str, ok: bool = True) -> str:
        """Output of a DVC command."""
        done = self.run(sys.executable, "-m", "dvc", *arguments, ok=ok)
        return done.stdout + done.stderr

    def ops(self, name: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run `python -m ops.<name>`."""
        return self.run(sys.executable, "-m", f"ops.{name}", *arguments, ok=False, **env)

    def cached(self, path: str) -> Path:
        """The cache object that a workspace file is a hard link to."""
        inode = (self.root / path).stat().st_ino
        [found] = [
            each for each in (self.root / ".dvc/cache/files").rglob("*") if each.stat().st_ino == inode
        ]
        return found

    def folder_list(self) -> Path:
        """The cache object that lists the files of models/."""
        [found] = (self.root / ".dvc/cache/files").rglob("*.dir")
        return found

    def set_remote(self, s3: S3) -> None:
        """Point the remote at this test's own prefix of the bucket."""
        done = self.ops("remote", f"s3://{BUCKET}/{self._prefix}", "--endpoint", s3.endpoint)
        assert done.returncode == 0, done.stderr

    def truncate(self, s3: S3, cached: Path) -> None:
        """Cut the remote's copy of a cache object to half."""
        key = self._key(cached)
        content = s3.client().get_object(Bucket=BUCKET, Key=key)["Body"].read()
        s3.client().put_object(Bucket=BUCKET, Key=key, Body=content[: len(content) // 2])

    def remove(self, s3: S3, cached: Path) -> None:
        """Remove the remote's copy of a cache object."""
        s3.client().delete_object(Bucket=BUCKET, Key=self._key(cached))

    @property
    def _prefix(self) -> str:
        return self.root.parent.name

    def _key(self, cached: Path) -> str:
        return f"{self._prefix}/files/md5/{cached.parent.name}/{cached.name}"

    def clone(self, name: str) -> Project:
        """A clone beside this repository, with its remote."""
        root = self.root.parent / name
        self.run("git", "clone", "-q", str(self.root), str(root))
        local = self.root / ".dvc/config.local"
        if local.is_file():
            shutil.copy(local, root / ".dvc/config.local")
        return Project(root, self.env)


def make_project(root: Path, env: dict[str, str] | None = None) -> Project:
    """Make, run and commit the repository."""
    (root / ".dvc").mkdir(parents=True)
    for name in (".dvc/config", ".dvc/.gitignore", ".dvcignore"):
        shutil.copy(HOUSE / name, root / name)
    for name, text in FILES.items():
        (root / name).write_text(text)
    project = Project(root, env or {})
    project.run("git", "init", "-q", "-b", "main")
    project.dvc("repro", "-q")
    project.run("git", "add", "-A")
    project.run("git", "commit", "-q", "-m", "all")
    return project


def flip_bit(path: Path) -> None:
    """Change one bit as a bad disk does: size and modification time stay."""
    before = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(50)
        byte = file.read(1)[0]
        file.seek(50)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    path.chmod(0o444)
