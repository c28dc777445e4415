"""Where generated code is executed: each program alone, without network, host files, environment or rights.

The walls are namespaces (user, mount, pid, net, ipc, uts), a read-only root that holds /usr and this Python, a
private /tmp, no capabilities, a filter of system calls, and limits. bubblewrap builds them where it is installed
and works, and otherwise `sandbox_inside` does; without either nothing is executed. What they do not cover: holes in
the kernel, and code that searches its own interpreter's memory (ctypes) to forge the proof that it came to its end.

Memory is address space: the kernel holds each process to the limit, and a look every 20 ms all of them together, so
for that long they could hold limit times processes. The CPU limit is each process's, the wall limit everyone's.
Before Linux 5.14 the limit on processes counts all of the user's on this machine, for any user but root.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from stages.bench.sandbox_inside import READY
from stages.bench.sandbox_walls import DEVICES, HOME, ROOT, bubblewrap, interpreter, libraries, view

WAYS = BUBBLEWRAP, OWN = "bubblewrap", "user namespaces"
START = ["-P", "-s", "-S", "-B", "-c", "from stages.bench.sandbox_inside import main; main()"]
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/tmp",  # noqa: S108 - the sandbox's own
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",  # sets in one order: the same verdict every time
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
NAMESPACES = ("mnt", "pid", "net", "ipc", "uts")  # and user, which bubblewrap leaves out for root
# systemd's for services that own nothing; inside the 16 bits that some containers have.
USERS = range(61184, 65520)
GRACE = 10.0  # seconds on top of the wall limit, for the start and the end
REASON = 200  # characters
PROBE = "import math\nassert math.isqrt(16) == 4\n"
_runs = itertools.count(os.getpid())


class Outcome(Enum):
    """How a program ended; all but `passed` are failures."""

    passed = "passed"
    failed = "failed"
    timed_out = "timed out"
    out_of_memory = "out of memory"
    refused = "refused"


@dataclass(frozen=True)
class Limits:
    """What one program may use: seconds, whole CPU seconds, bytes, processes and threads, bytes in /tmp."""

    wall: float
    cpu: int
    memory: int
    processes: int
    file_bytes: int


@dataclass(frozen=True)
class Verdict:
    """How a program ended and, unless it passed, why, in one line."""

    outcome: Outcome
    reason: str

    def __str__(self) -> str:
        """Both, as a person reads them."""
        return f"{self.outcome.value}: {self.reason}" if self.reason else self.outcome.value


def run_programs(programs: Sequence[str], limits: Limits, workers: int) -> list[Verdict]:
    """`run_program` on each, `workers` at a time, with a progress bar. Raises ValueError as it does."""
    from tqdm import tqdm

    isolation(limits)  # once, before the threads
    with ThreadPoolExecutor(workers) as pool:
        verdicts = pool.map(functools.partial(run_program, limits=limits), programs)
        return list(tqdm(verdicts, desc="sandbox", total=len(programs), unit="program", mininterval=1))


def run_program(program: str, limits: Limits) -> Verdict:
    """Execute Python source that nobody has read; it passes if it runs to its last line without an exception.

    Raises ValueError where no sandbox can be had: nothing is executed without one.
    """
    way = isolation(limits)
    try:
        source = program.encode()
    except UnicodeEncodeError as error:
        return Verdict(Outcome.refused, f"not text: {error.reason} at character {error.start}")
    if len(source) > limits.file_bytes:
        return Verdict(Outcome.refused, f"{len(source)} bytes of source, over {limits.file_bytes}")
    return _execute(way, source, limits)


@functools.cache
def isolation(limits: Limits) -> str:
    """The first of WAYS that runs a harmless program within these limits. Raises ValueError if none does."""
    problems = []
    for way in WAYS:
        try:
            verdict = _execute(way, PROBE.encode(), limits)
        except ValueError as error:
            problems.append(f"{way}: {error}")
            continue
        if verdict.outcome is Outcome.passed:
            return way
        problems.append(f"{way}: {verdict.outcome.value}, {verdict.reason}")
    raise ValueError(
        f"no sandbox for generated code here ({'; '.join(problems)}): install bubblewrap, allow user namespaces, "
        f"raise the limits if they are too low ({limits}), or leave the code benchmarks out"
    )


def _execute(way: str, source: bytes, limits: Limits) -> Verdict:
    """One program in a sandbox of its own. Raises ValueError if that does not start."""
    uid = USERS[next(_runs) % len(USERS)]  # each its own: the kernel counts processes by user
    prefix, modules = (bubblewrap(uid, limits.file_bytes), HOME) if way == BUBBLEWRAP else ([], str(ROOT))
    with subprocess.Popen(
        [*prefix, interpreter(), *START],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd="/",
        env=ENVIRONMENT | {"PYTHONPATH": modules},
        start_new_session=True,
    ) as process:
        try:
            said = _converse(process, _job(way, uid, source, limits) + source, limits.wall + GRACE)
        finally:
            if process.poll() is None:  # then its group is still its own
                os.killpg(process.pid, signal.SIGKILL)  # process 1 is in it, and all inside die with that
    lines = said.decode(errors="replace").splitlines()
    if READY not in lines:
        raise ValueError(f"it does not start: {_reason(lines) or 'no word from it'}")
    if lines[-1] == READY:
        return Verdict(Outcome.failed, "the sandbox was killed under it: the machine's memory was at its end")
    return _verdict(json.loads(lines[-1]), limits)


def _job(way: str, uid: int, source: bytes, limits: Limits) -> bytes:
    """The line that `sandbox_inside` reads first."""
    binds, links = view()
    build = {"build": way == OWN, "binds": binds, "devices": DEVICES, "links": links}
    hosts = {name: str(Path(f"/proc/self/ns/{name}").readlink()) for name in NAMESPACES}
    job = build | {"uid": uid, "namespaces": hosts, "libraries": libraries(), "bytes": len(source)}
    return json.dumps(job | asdict(limits)).encode() + b"\n"


def _converse(process: subprocess.Popen[bytes], message: bytes, seconds: float) -> bytes:
    """Write the message, keep the pipe open as a sign of life, and read to the end, or for so many seconds."""
    assert process.stdin and process.stdout
    into, out, said, deadline = (
        process.stdin.fileno(),
        process.stdout.fileno(),
        b"",
        time.monotonic() + seconds,
    )
    os.set_blocking(into, False)
    poller = select.poll()
    poller.register(into, select.POLLOUT)
    poller.register(out, select.POLLIN)
    while (left := deadline - time.monotonic()) > 0:
        for descriptor, _ in poller.poll(left * 1000):
            if descriptor == into:
                message = _push(into, message)
                if not message:
                    poller.unregister(into)
            elif chunk := os.read(out, 1 << 16):
                said += chunk
            else:
                return said
    return said


def _push(pipe: int, message: bytes) -> bytes:
    """What of the message is still to be written; nothing once nobody reads, who has then said why."""
    try:
        return message[os.write(pipe, message) :]
    except BrokenPipeError:
        return b""


def _verdict(report: dict[str, Any], limits: Limits) -> Verdict:
    code, reason = report["code"], _reason(report["stderr"].splitlines())
    stopped = {
        "wall": Verdict(Outcome.timed_out, f"over {limits.wall:g} s"),
        "memory": Verdict(Outcome.out_of_memory, f"over {limits.memory} bytes in all its processes"),
        "errors": Verdict(Outcome.failed, f"over {limits.file_bytes} bytes on stderr"),
        "files": Verdict(Outcome.failed, "too many files"),
    }
    if report["stopped"]:
        return stopped[report["stopped"]]
    if code == 0:
        ended = report["ended"]
        return (
            Verdict(Outcome.passed, "") if ended else Verdict(Outcome.failed, "it ended before its last line")
        )
    if code == -signal.SIGXCPU:
        return Verdict(Outcome.timed_out, f"over {limits.cpu} s of CPU")
    if code < 0:
        return Verdict(Outcome.failed, f"killed by signal {-code}")
    memory = "MemoryError" in reason.split(":")[0] or "[Errno 12]" in reason
    return Verdict(Outcome.out_of_memory if memory else Outcome.failed, reason or f"exit code {code}")


def _reason(lines: Sequence[str]) -> str:
    """The last line that says something, printable, short, and without the addresses that differ every time."""
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    shown = "".join(letter if letter.isprintable() else "?" for letter in last)
    return re.sub(r"0x[0-9a-f]+", "0x...", shown)[:REASON]
