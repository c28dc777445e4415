"""Checks of `ops.doctor` that look at this machine: interpreter, packages, processor, memory, GPU, disk."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from uuid import uuid4

from ops.finding import FAIL, OK, WARN, Finding
from stages.common.provenance import cpu_model, instruction_class

PYTHON = (3, 11)  # what requirements.lock was resolved and the README's figures were measured with
GIB = 1 << 30
MEMORY_GIB, DISK_GIB = 4, 5  # below: the embedded default may not fit


def python_version() -> Finding:
    """The running interpreter against the one that the pins were resolved for."""
    found = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info[:2] == PYTHON:
        return Finding("python", OK, found)
    want = ".".join(map(str, PYTHON))
    return Finding("python", WARN, found, f"the pins are tested with {want}: make .venv with python{want}")


def python_on_path() -> Finding:
    """Whether `python`, which DVC's stage commands start, is this environment's."""
    command = shutil.which("python")
    if command is None:
        return Finding("python on PATH", FAIL, "none", f"put {sys.prefix}/bin first on PATH")
    prefix = _output(command, "-c", "import sys; print(sys.prefix)")
    if prefix and os.path.realpath(prefix) == os.path.realpath(sys.prefix):
        return Finding("python on PATH", OK, command)
    todo = f"DVC starts stages with it: `export PATH={sys.prefix}/bin:$PATH` (make does)"
    return Finding("python on PATH", FAIL, f"{command} is not of {sys.prefix}", todo)


def packages(root: Path) -> Finding:
    """Installed versions against requirements.txt."""
    path = root / "requirements.txt"
    if not path.is_file():
        return Finding("packages", WARN, "no requirements.txt", "restore it from git")
    lines = [line.split(" #")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    wanted = [line for line in lines if line and not line.startswith(("#", "-"))]
    wrong = [fault for line in wanted if (fault := _mismatch(line))]
    if wrong:
        return Finding("packages", FAIL, "; ".join(wrong), "`make` (or pip install -r requirements.txt)")
    return Finding("packages", OK, f"{len(wanted)} as in requirements.txt")


def processor() -> Finding:
    """Model, usable cores and instruction class; the class is part of what a bit-for-bit audit compares."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = f"{cpu_model()}, {cores} cores, {instruction_class()}"
    return Finding(
        "processor", OK if cores > 1 else WARN, found, "" if cores > 1 else "expect twice the time"
    )


def memory() -> Finding:
    """Physical memory, or the container's limit where that is less, in GiB."""
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        size = min(size, int(text))
    found = f"{size / GIB:.1f} GiB"
    if size >= MEMORY_GIB * GIB:
        return Finding("memory", OK, found)
    return Finding(
        "memory", WARN, found, f"the embedded default wants {MEMORY_GIB} GiB: lower finetune.batch_size"
    )


def gpu() -> Finding:
    """GPUs that the driver shows, and whether torch sees them (torch is imported only where there is one)."""
    driver = _output("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    if not driver:
        return Finding("gpu", OK, f"none; torch {_version('torch')} runs on the processor")
    import torch

    found = f"{'; '.join(driver.splitlines())}; torch {torch.__version__}"
    if torch.cuda.is_available():
        return Finding("gpu", OK, f"{found}, CUDA {torch.version.cuda}")
    return Finding("gpu", WARN, f"{found} does not see it", "install torch's CUDA build, or a newer driver")


def disk(root: Path) -> Finding:
    """Free space where the repository is, in GiB."""
    free = shutil.disk_usage(root).free / GIB
    found, todo = f"{free:.1f} GiB free", "free some space; `dvc gc --workspace` drops cached outs not in use"
    if free >= DISK_GIB:
        return Finding("disk", OK, found)
    return Finding("disk", FAIL if free < 1 else WARN, found, todo)


def hard_links(root: Path, cache: Path) -> Finding:
    """Whether DVC can hard-link its cache into the workspace, instead of keeping each out twice."""
    name = f".lathe-link-{uuid4().hex}"
    cache.mkdir(parents=True, exist_ok=True)
    source, target = cache / name, root / name
    try:
        source.touch()
        os.link(source, target)
    except OSError as error:
        todo = "put cache and workspace on one file system; until then DVC falls back to symlinks or copies"
        return Finding("hard links", WARN, f"{cache} to {root}: {error.strerror}", todo)
    finally:
        source.unlink(missing_ok=True)
        target.unlink(missing_ok=True)
    return Finding("hard links", OK, f"from {cache} into the workspace")


def _mismatch(line: str) -> str:
    from packaging.requirements import Requirement

    want = Requirement(line)
    if want.marker and not want.marker.evaluate():
        return ""
    have = _version(want.name)
    if have and want.specifier.contains(have, prereleases=True):
        return ""
    return f"{want.name} {have or 'missing'} (want {want.specifier or 'any'})"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
