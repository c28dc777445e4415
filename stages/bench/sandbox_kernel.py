"""Kernel calls that Python has no name for: new namespaces, a root of our own, no rights, fewer system calls.

Runs inside the code sandbox (see stages/bench/sandbox.py): standard library only, and of that what starts fast.
Each function raises OSError with the name of the call that the kernel refused.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

CLONE_FLAGS = 0x7E020000  # <linux/sched.h>: new mount, cgroup, uts, ipc, user, pid and net namespaces
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32  # <linux/mount.h>
MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 0x1000, 0x4000, 0x40000, 2
MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE = 442, -100, 0x8000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 24, 38
CAPABILITIES_V3 = 0x20080522
EPERM, ENOSYS, AF_UNIX = 1, 38, 1

# What a test of a function never needs, by (x86_64, aarch64) number: memory that no limit counts, other
# processes' memory, limits and priorities, mounts, namespaces, and what exploits of the kernel begin with.
DENIED = {
    "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "userfaultfd": (323, 282),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "process_madvise": (440, 440), "migrate_pages": (256, 238), "move_pages": (279, 239),
    "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119), "sched_setparam": (142, 118),
    "sched_setattr": (314, 274), "setpriority": (141, 140), "ioprio_set": (251, 30),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431),
    "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "unshare": (272, 97), "setns": (308, 268),
    "bpf": (321, 280), "perf_event_open": (298, 241), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "fanotify_init": (300, 262), "syslog": (103, 116),
}  # fmt: skip
MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_*, in DENIED's order
CLONE, CLONE3, SOCKET, SOCKETPAIR, PRLIMIT = (56, 220), (435, 435), (41, 198), (53, 199), (302, 261)
LOAD, EQUAL, ABOVE, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # <linux/bpf_common.h>, each on a constant
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000


def enter_namespaces(uid: int) -> None:
    """Leave every namespace of the host; the next child is process 1 of its own, and `uid` is known there.

    Root stays 0 until `drop_rights`, to reach its own files; anyone else is `uid` from here on.
    """
    here = os.getpid()
    waiting, ready = os.pipe()
    helper = os.fork()
    if helper == 0:
        os.close(ready)
        _map_users(here, uid, waiting)
    _call("unshare", CLONE_FLAGS)
    os.write(ready, b"x")
    os.close(ready)
    os.close(waiting)
    if os.waitpid(helper, 0)[1]:
        raise OSError(f"/proc/{here}/uid_map takes no user {uid}")


def _map_users(process: int, uid: int, waiting: int) -> NoReturn:
    """From outside of the new user namespace, as only there root may name two users: `uid`, and root itself."""
    try:
        owner, group, folder = os.geteuid(), os.getegid(), Path(f"/proc/{process}")
        if os.read(waiting, 1):
            if owner:
                (folder / "setgroups").write_text("deny")
            (folder / "uid_map").write_text(f"{uid} {owner} 1" if owner else f"0 0 1\n{uid} {uid} 1\n")
            (folder / "gid_map").write_text(f"{uid} {group} 1" if owner else f"0 0 1\n{uid} {uid} 1\n")
            os._exit(0)
    finally:
        os._exit(1)


def build_root(binds: Sequence[str], devices: Sequence[str], links: dict[str, str], tmp_bytes: int) -> None:
    """Make a read-only root of `binds` (read-only too), devices, links, a private /tmp and /proc; go there.

    The kernel must be 5.12 or newer.
    """
    _mount("none", "/", "", MS_REC | MS_PRIVATE)
    _mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")  # noqa: S108 - any folder would do
    os.chdir("/tmp")  # noqa: S108
    for name in ("old", "new"):
        Path(name).mkdir()
    _call("pivot_root", b".", b"old")
    _mount("tmpfs", "/new", "tmpfs", MS_NOSUID, "mode=755")
    os.chdir("/new")
    for path in (*binds, *devices):
        _bind(path, path in devices)
    for name, target in links.items():
        Path(f".{name}").parent.mkdir(parents=True, exist_ok=True)
        Path(f".{name}").symlink_to(target)
    for name, kind, options in (("tmp", "tmpfs", f"size={tmp_bytes},mode=1777"), ("proc", "proc", "")):
        Path(name).mkdir()
        _mount(kind, name, kind, MS_NOSUID | MS_NODEV, options)
    _mount("none", ".", "", MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
    _call("pivot_root", b".", b".")  # the new root under the old one, which is then taken off
    _call("umount2", b".", MNT_DETACH)
    os.chdir("/tmp")  # noqa: S108


def _bind(path: str, device: bool) -> None:
    source, target = Path(f"/old{path}"), Path(f".{path}")
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    _mount(str(source), str(target), "", MS_BIND | MS_REC)
    forbidden = MS_RDONLY | MS_NOSUID | (0 if device else MS_NODEV)  # MOUNT_ATTR_* are the same numbers
    attributes = struct.pack("QQQQ", forbidden, 0, 0, 0)
    _call("syscall", MOUNT_SETATTR, AT_FDCWD, bytes(target), AT_RECURSIVE, attributes, len(attributes))


def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    try:
        _call("mount", source.encode(), target.encode(), kind.encode(), flags, options.encode())
    except OSError as error:
        raise OSError(f"{error} ({kind or source} on {target})") from error


def drop_rights(uid: int) -> None:
    """Become `uid` without groups, capabilities and ways back, unseen by others of that uid, dead with the parent."""
    for number in range(64):  # past the last one the kernel says no; what is left, `_check_walls` sees
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, number, 0, 0, 0)
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    _call("capset", struct.pack("Ii", CAPABILITIES_V3, 0), bytes(24))
    for option, value in ((PR_SET_NO_NEW_PRIVS, 1), (PR_SET_DUMPABLE, 0), (PR_SET_PDEATHSIG, signal.SIGKILL)):
        _call("prctl", option, value, 0, 0, 0)


def filter_calls() -> None:
    """Refuse DENIED, sockets but those of AF_UNIX, and other processes' limits, to this process and its children."""
    code = _filter(os.uname().machine)
    content = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(content))
    _call("prctl", PR_SET_SECCOMP, 2, program, 0, 0)


def _filter(machine: str) -> bytes:
    """The filter in BPF; of struct seccomp_data: the call's number at 0, the architecture at 4, arguments from 16."""
    if machine not in MACHINES:
        raise OSError(f"no list of system calls for {machine}, only for {', '.join(MACHINES)}")
    at = list(MACHINES).index(machine)
    allow, kill = (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, KILL)
    refuse, missing = (RETURN, 0, 0, ERRNO | EPERM), (RETURN, 0, 0, ERRNO | ENOSYS)
    rules = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, MACHINES[machine]), kill]
    rules += [(LOAD, 0, 0, 0), (ABOVE, 0, 1, 0x40000000), kill]  # x32, a second numbering
    for numbers in DENIED.values():
        rules += [(EQUAL, 0, 1, numbers[at]), refuse]
    rules += [(EQUAL, 0, 1, CLONE3[at]), missing]  # its flags are out of reach; libc then uses clone
    for numbers, test in (
        (CLONE, (ANY_BIT, 0, 1, CLONE_FLAGS)),
        (SOCKET, (EQUAL, 1, 0, AF_UNIX)),
        (SOCKETPAIR, (EQUAL, 1, 0, AF_UNIX)),
        (PRLIMIT, (EQUAL, 1, 0, 0)),
    ):
        rules += [(EQUAL, 0, 4, numbers[at]), (LOAD, 0, 0, 16), test, refuse, allow]
    return b"".join(struct.pack("HBBI", *rule) for rule in (*rules, allow))


def _call(name: str, *arguments: int | bytes) -> None:
    """A function of libc that answers below 0 when it fails."""
    libc = ctypes.CDLL(None, use_errno=True)
    given = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    if getattr(libc, name)(*given) < 0:
        code = ctypes.get_errno()
        raise OSError(f"{name}: {os.strerror(code)}")
