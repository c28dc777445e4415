"""What runs inside the code sandbox, as process 1 of it: starts one program, watches it, reports how it ended.

`stages/bench/sandbox.py` starts it: `python -c "from stages.bench.sandbox_inside import main; main()"`. On stdin come
one line of JSON (the job), the program, and then nothing, until whoever asked is gone. Standard library only.
"""

from __future__ import annotations

import builtins
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from stages.bench import sandbox_kernel as kernel

READY = "sandbox ready"
FILE = "/tmp/program.py"  # noqa: S108 - the sandbox's own
POLL = 20  # milliseconds; a core writes to some 100 MB of new pages in that time
KEPT = 4096  # bytes of stderr, from its end
FILES = 10_000  # in /tmp: even an empty one takes a kilobyte of the kernel's memory, which no limit counts
OPEN = 64  # files and sockets of one process
NONCE = 16  # bytes


def main() -> None:
    """Wall this process in, run the job's program, print READY and one line of JSON: how it went."""
    os.umask(0o022)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # process 1 gets from inside only what it handles
    job = json.loads(sys.stdin.buffer.readline())
    program = sys.stdin.buffer.read(job["bytes"])
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:  # noqa: PTH123 - on every start
            file.write("1000")  # the first to die where the machine's memory ends
        if job["build"]:
            kernel.enter_namespaces(job["uid"])
            if process := os.fork():
                sys.exit(os.waitpid(process, 0)[1] != 0)
            kernel.build_root(job["binds"], job["devices"], job["links"], job["file_bytes"])
        kernel.drop_rights(job["uid"])
        kernel.filter_calls()
        _check_walls(job["namespaces"])
    except OSError as error:
        sys.exit(f"{error}")
    print(READY, flush=True)
    print(json.dumps(_watch(job, program)), flush=True)
    os._exit(0)


def _check_walls(namespaces: dict[str, str]) -> None:
    """Raise OSError unless this process is in none of the host's `namespaces`, has no rights and gets none."""
    for name, theirs in namespaces.items():
        if str(Path(f"/proc/self/ns/{name}").readlink()) == theirs:
            raise OSError(f"still in the host's {name} namespace")
    with open("/proc/self/status", encoding="ascii") as file:  # noqa: PTH123 - on every start
        status = dict(line.split(":", 1) for line in file)
    rights = [status[f"Cap{which}"] for which in ("Inh", "Prm", "Eff", "Bnd", "Amb")]
    ids = {*status["Uid"].split(), *status["Gid"].split()}
    if any(int(right, 16) for right in rights) or "0" in ids or os.getpid() != 1:
        raise OSError(f"process {os.getpid()}, users and groups {sorted(ids)}, capabilities {rights}")
    if (int(status["NoNewPrivs"]), int(status["Seccomp"])) != (1, 2):
        raise OSError("new rights can be had, or every system call made")


def _watch(job: dict[str, Any], program: bytes) -> dict[str, Any]:
    """Run the program to its end or to a limit. All that it has started dies with this process, the first one."""
    ours, theirs = socket.socketpair()  # a pipe could be opened once more, to read, by way of /proc/self/fd
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        _run(job, program, theirs, writing)
    os.close(writing)
    code, stopped, told = _follow(job, process, reading)
    os.set_blocking(reading, False)
    ours.setblocking(False)
    told += _what_is_left(lambda: os.read(reading, 1 << 16))
    said = _what_is_left(lambda: ours.recv(4 * NONCE))
    ended = len(said) == 2 * NONCE and said[:NONCE] == said[NONCE:]
    return {
        "code": code,
        "stopped": stopped,
        "ended": ended,
        "stderr": told[-KEPT:].decode(errors="replace"),
    }


def _follow(job: dict[str, Any], process: int, reading: int) -> tuple[int, str, bytes]:
    """Exit code (minus the signal), the limit that ended it or "", and the end of stderr so far."""
    deadline, told, stopped, written = time.monotonic() + job["wall"], b"", "", 0
    poller = select.poll()
    poller.register(0, 0)
    for descriptor in (reading, os.pidfd_open(process)):
        poller.register(descriptor, select.POLLIN)
    while not stopped:
        ready = {descriptor for descriptor, _ in poller.poll(POLL)}
        if 0 in ready:
            os._exit(1)
        if reading in ready:
            chunk = os.read(reading, 1 << 16)
            told, written = (told + chunk)[-KEPT:], written + len(chunk)
            if not chunk:
                poller.unregister(reading)
        if (status := _reap(process)) is not None:
            return os.waitstatus_to_exitcode(status), "", told
        if time.monotonic() > deadline:
            stopped = "wall"
        else:
            stopped = "errors" if written > job["file_bytes"] else _excess(job["memory"])
    return 0, stopped, told


def _reap(process: int) -> int | None:
    """Bury all that has ended, as process 1 must; the status of `process` if it is among them."""
    while True:
        found, status = os.waitpid(-1, os.WNOHANG)
        if found == process:
            return status
        if found == 0:
            return None


def _excess(memory: int) -> str:
    """The limit on everything inside together that is exceeded, or "".

    Memory is address space, as in RLIMIT_AS: resident memory misses pages of a shared mapping that were given back.
    """
    pages = 0
    for folder in os.scandir("/proc"):
        if folder.name.isdigit() and folder.name != "1":
            try:
                with open(f"{folder.path}/statm", encoding="ascii") as file:  # noqa: PTH123 - fifty times a second
                    pages += int(file.read().split()[0])
            except (FileNotFoundError, ProcessLookupError):
                continue
    if pages * resource.getpagesize() > memory:
        return "memory"
    disk = os.statvfs("/tmp")  # noqa: S108
    return "files" if disk.f_files - disk.f_ffree > FILES else ""


def _what_is_left(read: Callable[[], bytes]) -> bytes:
    try:
        return read()
    except BlockingIOError:
        return b""


def _run(job: dict[str, Any], program: bytes, channel: socket.socket, stderr: int) -> NoReturn:
    """Execute the program as a module of its own; exit code 0, and the nonce told twice, if it reaches its end.

    As in the reference harnesses of HumanEval and MBPP its `__name__` is not `__main__`. Between the two tellings
    the nonce is on this frame's value stack only, which nothing in Python shows, neither f_locals nor gc.
    """
    leave = os._exit
    try:
        _enter(job, channel.fileno(), stderr)
        with open(FILE, "wb") as file:  # noqa: PTH123 - on every start
            file.write(program)
        module = sys.modules["program"] = ModuleType("program")
        module.__file__ = FILE
        sys.addaudithook(_refuse)
        execute: Callable[..., object] = exec  # what all the walls are for
        _tell(channel, _pledge(channel), execute(compile(program, FILE, "exec"), vars(module)))
        leave(0)
    except BaseException:  # noqa: BLE001 - SystemExit too: whatever ends it early is a failure
        sys.__excepthook__(*sys.exc_info())
    finally:
        leave(1)


def _enter(job: dict[str, Any], channel: int, stderr: int) -> None:
    """Own session, no files but stderr and the channel, no way to the harness's modules, and the limits."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor, target in ((null, 0), (null, 1), (stderr, 2)):
        os.dup2(descriptor, target)
    os.closerange(3, channel)
    os.closerange(channel + 1, 1024)
    sys.path.remove(os.environ.pop("PYTHONPATH"))
    sys.path += job["libraries"]
    sys.argv = [FILE]
    vars(builtins).update(exit=sys.exit, quit=sys.exit)  # as the slow `site` module does
    hosts = 1 + job["build"]  # this user's others: process 1, and what waits for it outside
    limits = {"AS": job["memory"], "NPROC": job["processes"] + hosts, "FSIZE": job["file_bytes"]}
    limits |= {"CPU": job["cpu"], "NOFILE": OPEN, "CORE": 0, "MSGQUEUE": 0, "MEMLOCK": 0}
    for name, value in limits.items():
        which = getattr(resource, f"RLIMIT_{name}")
        hard, grace = resource.getrlimit(which)[1], name == "CPU"  # a second from the signal to the kill
        least = value if hard == resource.RLIM_INFINITY else min(value, hard - grace)
        resource.setrlimit(which, (least, least + grace))


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """Audit hook: no trace function, which could jump over the tests, and no other code in this function's place.

    It decides by constants in its code alone: a global name is the program's to change, as all of this module is.
    It knows itself by its code's name, which nothing changes; asyncio gives other functions other code.
    """
    if event in ("sys.settrace", "sys.setprofile", "sys.monitoring.register_callback") or (
        event == "object.__setattr__"
        and arguments[1] == "__code__"
        and arguments[0].__code__.co_name == "_refuse"
    ):
        raise RuntimeError(f"{event} is not for programs under test")


def _pledge(channel: socket.socket) -> bytes:
    nonce = os.urandom(NONCE)
    channel.sendall(nonce)
    return nonce


def _tell(channel: socket.socket, nonce: bytes, _: object) -> None:
    channel.sendall(nonce)
