"""Set the bucket that `dvc push` and `dvc pull` use, once it is proven to take a write:

    python -m ops.remote s3://bucket/prefix [--endpoint https://minio.example:9000] [--read-only]
    python -m ops.remote                     # what is set, and whether it works now

Writes .dvc/config.local, which git ignores. Keys are never written: they come from the usual AWS places
(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, an instance role); AWS_REGION sets the region.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4

if TYPE_CHECKING:
    from dvc.config import Config
    from dvc_objects.fs.base import FileSystem

NAME = "storage"
# The bucket of .dvc/config: S3 allows no underscore, so nobody can own it.
PLACEHOLDER = "lathe_storage_not_set"
COMMAND = "python -m ops.remote s3://bucket/prefix [--endpoint URL]"
CONNECT_SECONDS, READ_SECONDS, DEADLINE_SECONDS = 5, 10, 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; exit status 0 where the remote works, 1 where not (then nothing is written)."""
    from dvc.config import Config

    options = _parse(arguments)
    config = Config(_dvc_dir())
    try:
        if options.url:
            set_remote(config, options.url, options.endpoint, writable=not options.read_only)
        else:
            probe(config, writable=not options.read_only)
    except ValueError as error:
        print(f"ops.remote: {error}", file=sys.stderr)
        return 1
    done = "read" if options.read_only else "wrote, read back and removed a probe object"
    print(f"remote '{NAME}' is {describe(config)}: {done}")
    return 0


def set_remote(config: Config, url: str, endpoint: str | None, *, writable: bool = True) -> None:
    """Probe `url` at `endpoint` (None: AWS itself), then store both in .dvc/config.local.

    Raises ValueError, with nothing written, for a URL that is not s3://bucket[/prefix] and a failed probe.
    """
    _check_url(url, endpoint)
    candidate = copy.deepcopy(dict(config))
    _apply(candidate, url, endpoint)
    probe(candidate, writable=writable)
    with config.edit("local") as local:
        _apply(local, url, endpoint)


def is_set(config: Any) -> bool:
    """Whether the default remote is someone's own, not the placeholder of .dvc/config."""
    return PLACEHOLDER not in str(_section(config).get("url", PLACEHOLDER))


def describe(config: Any) -> str:
    """URL and endpoint of the default remote in words."""
    section = _section(config)
    endpoint = section.get("endpointurl")
    return f"{section.get('url')}" + (f" at {endpoint}" if endpoint else "")


def probe(config: Any, *, writable: bool = True) -> None:
    """Write, read back and remove a small object in the default remote; only reach it if not `writable`.

    One attempt with a deadline. Raises ValueError: what failed and what to do.
    """
    if not is_set(config):
        raise ValueError(f"no bucket is set: run `{COMMAND}`")
    try:
        fs, path = connect(config)
        _within(DEADLINE_SECONDS, lambda: _round_trip(fs, path) if writable else _reach(fs, path))
    except failures() as error:
        raise ValueError(f"{describe(config)}: {explain(error)}") from error


def connect(config: Any) -> tuple[FileSystem, str]:
    """The remote's file system, as DVC builds it but impatient (one attempt), and the path of its root."""
    from dvc.fs import get_cloud_fs

    cls, settings, path = get_cloud_fs(config, name=_name(config))
    if cls.protocol != "s3":
        return cls(**settings), path
    fs = cls(**{**settings, "connect_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS})
    fs.fs_args.setdefault("config_kwargs", {})["retries"] = {"total_max_attempts": 1}
    fs.fs.retries = 1
    return fs, path


def failures() -> tuple[type[Exception], ...]:
    """What talking to a remote raises: botocore, aiohttp, s3fs and DVC share no narrower base class."""
    from aiohttp import ClientError as HttpError
    from botocore.exceptions import BotoCoreError, ClientError
    from dvc.exceptions import DvcException

    return (OSError, ValueError, BotoCoreError, ClientError, HttpError, DvcException)


def explain(error: BaseException) -> str:
    """One line for an error of botocore, s3fs or DVC, with the remedy where it is known."""
    message = " ".join(str(error).split()) or type(error).__name__
    remedies = {
        "PermissionError": "check the keys (AWS_ACCESS_KEY_ID, ..., or AWS_PROFILE) and the bucket's policy",
        "NoCredentialsError": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
        "FileNotFoundError": "create the bucket, or correct its name or the endpoint",
        "EndpointConnectionError": "check --endpoint and the network",
        "TimeoutError": "check --endpoint and the network",
        "ConnectTimeoutError": "check --endpoint and the network",
    }
    remedy = remedies.get(type(error).__name__)
    return f"{message.rstrip('.')}; {remedy}" if remedy else message


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ops.remote", description="set and check the S3 remote")
    parser.add_argument("url", nargs="?", help="s3://bucket/prefix; without it the present remote is checked")
    parser.add_argument("--endpoint", metavar="URL", help="S3 endpoint; without it AWS itself")
    parser.add_argument("--read-only", action="store_true", help="for credentials that may only pull")
    return parser.parse_args(arguments)


def _dvc_dir() -> str:
    from dvc.repo import Repo

    return f"{Repo.find_root()}/.dvc"


def _check_url(url: str, endpoint: str | None) -> None:
    parts = urlsplit(url)
    if parts.scheme != "s3" or not parts.hostname:
        raise ValueError(
            f"{url!r} is not s3://bucket/prefix (another kind of storage: `dvc remote modify --local`)"
        )
    if "@" in parts.netloc or PLACEHOLDER in url:
        raise ValueError(f"{url!r} is no bucket: give s3://bucket/prefix, keys belong in the AWS environment")
    if endpoint and urlsplit(endpoint).scheme not in ("http", "https"):
        raise ValueError(f"endpoint {endpoint!r} has no scheme: give http://host:port or https://host")


def _apply(config: Any, url: str, endpoint: str | None) -> None:
    section = config["remote"].setdefault(NAME, {})
    section["url"] = url
    section.pop("endpointurl", None)
    if endpoint:
        section["endpointurl"] = endpoint


def _name(config: Any) -> str:
    return str(config["core"].get("remote", NAME))


def _section(config: Any) -> dict[str, Any]:
    section: dict[str, Any] = config["remote"].get(_name(config), {})
    return section


def _within(seconds: float, work: Callable[[], None]) -> None:
    # The client's own timeouts do not cover a server that takes a connection and never answers. A thread that
    # is still waiting must not keep the process alive, so no executor, whose threads are joined at exit.
    done: Future[None] = Future()

    def run() -> None:
        try:
            work()
            done.set_result(None)
        except failures() as error:
            done.set_exception(error)

    Thread(target=run, daemon=True).start()
    try:
        done.result(timeout=seconds)
    except TimeoutError as error:
        raise TimeoutError(f"no answer within {seconds} s") from error


def _reach(fs: FileSystem, root: str) -> None:
    if fs.protocol == "s3":
        fs.fs.call_s3("head_bucket", Bucket=root.split("/", maxsplit=1)[0])
    else:
        fs.info(root)


def _round_trip(fs: FileSystem, root: str) -> None:
    path = f"{root.rstrip('/')}/.lathe-probe-{uuid4().hex}"
    content = uuid4().bytes
    fs.pipe_file(path, content)
    try:
        if fs.cat_file(path) != content:
            raise OSError("what was read back is not what was written")
    finally:
        fs.rm_file(path)


if __name__ == "__main__":
    sys.exit(main())
