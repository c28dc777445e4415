"""Shards on Ray: on the cluster at RAY_ADDRESS, or on one of this machine for as long as the job takes."""

from __future__ import annotations

import logging
import os
import socket
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.common.job import Job, run_parcel, window

if TYPE_CHECKING:
    from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
RETRIES = 3
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_task_oom_retries": str(RETRIES)}
# A cluster of one machine stays on its loopback interface. Without this Ray listens on every interface, and turns
# even `_node_ip_address="127.0.0.1"` back into the machine's own address (ray/_private/services.py).
ONE_MACHINE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def on_ray(job: Job[Any], workers: int, bar: tqdm[Any]) -> None:
    """Run what is left of the job; Ray itself tries a killed worker's shard again, RETRIES times.

    Raises what a shard raised, and ValueError without Ray, without the cluster, or for a shard killed each time.
    """
    ray, started = _connect(workers)
    try:
        here, remote = Path.cwd(), ray.remote(max_retries=RETRIES)(_run)

        def submit(index: int) -> Future[None]:
            future: Future[None] = remote.remote(here, *job.parcel(index)).future()
            return future

        def outcome(future: Future[None], index: int) -> None:
            try:
                future.result()
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            except ray.exceptions.RayError as error:
                raise ValueError(job.killed([index])) from error

        window(job.todo(), workers, bar, submit, outcome)
    finally:
        if started:
            ray.shutdown()


def _connect(workers: int) -> tuple[Any, bool]:
    """The module ray, connected, and whether it was this that connected it."""
    address = os.environ.get("RAY_ADDRESS") or "local"
    quiet = QUIET | ONE_MACHINE if address == "local" else QUIET
    os.environ.update({name: value for name, value in quiet.items() if name not in os.environ})
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ValueError("LATHE_BACKEND=ray needs: pip install -r requirements-ray.txt") from error
    if ray.is_initialized():
        return ray, False
    options: dict[str, Any] = {"runtime_env": {"env_vars": {"PYTHONPATH": _python_path()}}}
    if address == "local":
        # The object store holds no more than the shards' descriptions: what they write are files
        options |= {"num_cpus": workers, "include_dashboard": False, "object_store_memory": 2**27}
    try:
        _knock(address)
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except OSError as error:
        raise ValueError(f"RAY_ADDRESS={address}: no Ray cluster answers there ({error})") from error
    return ray, True


def _knock(address: str) -> None:
    """Raises OSError where nobody listens: Ray itself goes on trying for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _python_path() -> str:
    """Where workers find `stages`."""
    return os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))


def _run(directory: Path, content: bytes, out_dir: Path, index: int) -> None:
    os.chdir(directory)  # a shard's relative paths
    run_parcel(content, out_dir, index)
