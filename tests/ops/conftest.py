"""Fixtures of the tests that need DVC repositories and an S3 server."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.s3_server import S3, serve
from tests.small_project import BUCKET, Project, make_project


@pytest.fixture(scope="session")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """A real S3 server with an empty bucket, one for the test session."""
    if importlib.util.find_spec("swift") is None or importlib.util.find_spec("pyeclib") is None:
        pytest.skip("no S3 server: pip install swift pyeclib (requirements-dev.txt)")
    with serve(tmp_path_factory.mktemp("swift")) as server:
        server.client().create_bucket(Bucket=BUCKET)
        yield server


@pytest.fixture
def project(bucket: S3, tmp_path: Path) -> Project:
    """A repository that has run, with keys for the server but no remote set."""
    return make_project(tmp_path / "first", bucket.env)


@pytest.fixture
def pushed(project: Project, bucket: S3) -> Project:
    """A repository whose objects are in the bucket, under the test's own prefix."""
    project.set_remote(bucket)
    project.dvc("push")
    return project
