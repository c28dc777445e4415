"""Rows that lie on S3 come in by `dvc import-url`, from a real server, and are seen to change there."""

from __future__ import annotations

from pathlib import Path

import yaml

from tests.s3_server import S3
from tests.small_project import BUCKET, Project


def test_rows_on_s3_come_in_by_import_url_and_follow_an_update(project: Project, bucket: S3) -> None:
    prefix, client = f"{project.root.parent.name}/source", bucket.client()
    client.put_object(Bucket=BUCKET, Key=f"{prefix}/rows/train.jsonl", Body=b'{"a": 1}\n')
    client.put_object(Bucket=BUCKET, Key=f"{prefix}/rows/test.jsonl", Body=b'{"a": 2}\n')
    project.dvc("remote", "add", "--local", "source", f"s3://{BUCKET}/{prefix}")
    project.dvc("remote", "modify", "--local", "source", "endpointurl", bucket.endpoint)
    project.run("mkdir", "-p", "data/raw/mine")
    project.dvc("import-url", "remote://source/rows", "data/raw/mine/rows")
    rows = project.root / "data/raw/mine/rows"
    assert (rows / "train.jsonl").read_bytes() == b'{"a": 1}\n'
    before = _hash(project.root)
    client.put_object(Bucket=BUCKET, Key=f"{prefix}/rows/train.jsonl", Body=b'{"a": 1}\n{"a": 3}\n')
    project.dvc("update", "data/raw/mine/rows.dvc")
    assert (rows / "train.jsonl").read_bytes() == b'{"a": 1}\n{"a": 3}\n'
    assert _hash(project.root) != before


def _hash(root: Path) -> str:
    [out] = yaml.safe_load((root / "data/raw/mine/rows.dvc").read_text())["outs"]
    return str(out["md5"])
