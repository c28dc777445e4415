"""Facts about where a run happened: git, DVC, packages, hardware. They go to MLflow, never into an out."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "lm_eval",
    "evidently",
    "mlflow",
    "dvc",
    "numpy",
)


def root() -> Path:
    """The repository that owns the tracking store: DVC's parent repository even in a temp workspace."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd())


def facts(stage: str) -> dict[str, str]:
    """Tags that say which code, which state, which machine. Absent facts are absent keys."""
    found = {
        "lathe.stage": stage,
        "git.commit": _git("rev-parse", "HEAD"),
        "git.branch": _git("rev-parse", "--abbrev-ref", "HEAD"),
        "git.dirty": str(bool(_git("status", "--porcelain", "--untracked-files=no"))).lower(),
        "dvc.experiment": os.environ.get("DVC_EXP_NAME", ""),
        "dvc.lock": _digest(Path("dvc.lock")),
        "params.digest": _digest(Path("params.yaml")),
        "hardware.cpu": cpu_model(),
        "hardware.isa": instruction_class(),
        "hardware.cores": str(os.cpu_count()),
        "hardware.gpu": _command("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "container.digest": os.environ.get("LATHE_IMAGE_DIGEST", ""),
    }
    found |= {f"version.{name}": version for name in PACKAGES if (version := _version(name))}
    return {key: value for key, value in found.items() if value}


def diff() -> str:
    """The uncommitted change against HEAD, "" if there is none."""
    return _git("diff", "HEAD", "--", ".", ":(exclude)dvc.lock")


def packages() -> str:
    """Every installed package as name==version, one a line: what the run's environment was."""
    found = {(each.name.lower(), each.version) for each in metadata.distributions() if each.name}
    return "".join(f"{name}=={version}\n" for name, version in sorted(found))


def prepared() -> dict[str, str]:
    """Hash, size and files of data/prepared, as dvc.lock has them; empty before prepare has run."""
    import yaml

    path = Path("dvc.lock")
    stages = (
        (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("stages", {}) if path.is_file() else {}
    )
    for out in stages.get("prepare", {}).get("outs", []):
        if out["path"] == "data/prepared":
            return {
                "data.md5": str(out.get("md5")),
                "data.bytes": str(out.get("size")),
                "data.files": str(out.get("nfiles")),
            }
    return {}


def cpu_model() -> str:
    """The processor's own name, from /proc/cpuinfo where there is one."""
    return _cpuinfo("model name") or platform.processor()


def instruction_class() -> str:
    """The widest matrix-relevant instruction set: amx, avx512, avx2 or other. fp32 results depend on it."""
    flags = _cpuinfo("flags").split()
    for flag, name in (("amx_tile", "amx"), ("avx512f", "avx512"), ("avx2", "avx2")):
        if flag in flags:
            return name
    return "other"


def _cpuinfo(key: str) -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else ""


def _git(*arguments: str) -> str:
    return _command("git", *arguments)


def _command(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
