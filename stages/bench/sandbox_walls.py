"""What the code sandbox sees of this machine, and the command by which bubblewrap builds it."""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOME = "/sandbox"  # where bubblewrap puts the modules
MODULES = [f"stages/bench/{name}.py" for name in ("sandbox_inside", "sandbox_kernel")]
SYSTEM = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64"]
SYSTEM += ["/etc/alternatives", "/etc/ld.so.cache", "/etc/localtime"]
DEVICES = [f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom")]
RIGHTS = ["SETUID", "SETGID", "SETPCAP"]  # to become somebody else, and to give up the rest for good


def bubblewrap(uid: int, tmp_bytes: int) -> list[str]:
    """The command that runs what follows it as process 1 of a sandbox. Raises ValueError without bubblewrap."""
    program = shutil.which("bwrap")
    if not program:
        raise ValueError("no bwrap on PATH")
    namespaces = [f"--unshare-{name}" for name in ("ipc", "pid", "net", "uts", "cgroup-try")]
    user = ["--unshare-user", "--uid", str(uid), "--gid", str(uid)]
    if os.geteuid() == 0:  # stays root, to reach its own files, until the process inside becomes `uid`
        user = ["--cap-drop", "ALL", *itertools.chain(*(("--cap-add", f"CAP_{name}") for name in RIGHTS))]
    binds, links = view()
    pairs = [("--ro-bind", path, path) for path in binds]
    pairs += [("--ro-bind", f"{ROOT}/{name}", f"{HOME}/{name}") for name in MODULES]
    pairs += [("--dev-bind", path, path) for path in DEVICES]
    pairs += [("--symlink", target, name) for name, target in links.items()]
    parents = {parent for _, _, path in pairs for parent in Path(path).parents} - {Path("/")}
    folders = [
        ("--perms", "0755", "--dir", str(path)) for path in sorted(parents)
    ]  # 0700 if left to bubblewrap
    mounts = f"--perms 1777 --size {tmp_bytes} --tmpfs /tmp --proc /proc --remount-ro / --chdir /tmp --"
    life = ["--die-with-parent", "--as-pid-1"]
    return [program, *life, *namespaces, *user, *itertools.chain(*folders, *pairs), *mounts.split()]


@functools.cache
def view() -> tuple[list[str], dict[str, str]]:
    """What of this machine is seen inside, read-only and at the same place; and symbolic links, target by name."""
    found = [Path(name) for name in SYSTEM if Path(name).exists()]
    links = {str(path): str(path.readlink()) for path in found if path.is_symlink()}
    python_paths = [interpreter(), f"{sys.base_prefix}/lib", sysconfig.get_path("stdlib"), *libraries()]
    wanted = [path for path in found if not path.is_symlink()]
    wanted += sorted(Path(name).resolve() for name in python_paths)
    binds: list[Path] = []
    for path in wanted:
        if path.exists() and not any(path.is_relative_to(other) for other in binds):
            binds.append(path)
    return [str(path) for path in binds], links | {"/dev/shm": "/tmp"}  # noqa: S108 - the sandbox's own


def interpreter() -> str:
    """The Python itself, not a virtual environment's link to it."""
    return str(Path(sys.executable).resolve())


def libraries() -> list[str]:
    """Where the installed packages are, numpy among them."""
    found = (Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib"))
    return sorted({str(path) for path in found})
