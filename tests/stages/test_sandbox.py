"""The code sandbox under attack: each way out is tried for real, by both ways of building it, and the next one runs.

A program under attack is right only if the attack worked, so that `passed` is an escape; those whose calls go
unanswered (kill) are wrong in any case, and what they would have hit is looked at.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.bench import sandbox
from stages.bench.sandbox import Limits, Outcome, Verdict, isolation, run_program, run_programs

ROOT = Path(__file__).resolve().parents[2]
LIMITS = Limits(wall=30, cpu=10, memory=1 << 30, processes=8, file_bytes=8 << 20)
TEST = "\ndef add(a, b):\n    return a + b if won else None\n\nassert add(1, 2) == 3, 'walled in'\n"
GOOD = "def add(a, b):\n    return a + b\n\nassert add(1, 2) == 3\n"
SECRET = "s3cr3t-of-the-stage"


@pytest.fixture(scope="module", params=sandbox.WAYS)
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """One of the two ways, and only it."""
    if request.param == sandbox.BUBBLEWRAP and not shutil.which("bwrap"):
        pytest.skip("bubblewrap is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sandbox, "WAYS", (request.param,))
        isolation.cache_clear()
        assert isolation(LIMITS) == request.param
        yield request.param
    isolation.cache_clear()


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """What there is to reach: a server, an abstract socket, secrets in the environment and in a file, this process."""
    (tmp_path / "home").mkdir(mode=0o755)
    (tmp_path / "home" / ".env").write_text(SECRET)
    for name in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "HF_TOKEN"):
        monkeypatch.setenv(name, SECRET)
    abstract = f"lathe-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind(f"\0{abstract}")
        local.listen()
        yield {
            "PORT": str(server.getsockname()[1]),
            "ABSTRACT": abstract,
            "SECRET": SECRET,
            "FILE": str(tmp_path / "home" / ".env"),
            "FOLDER": str(tmp_path),
            "REPOSITORY": str(ROOT),
            "PARENT": str(os.getpid()),
        }


# Each works outside of the sandbox, as test_these_ways_out_are_open_outside shows; won says whether it did here.
OPEN_OUTSIDE = {
    "network": "import socket\nsocket.create_connection(('127.0.0.1', PORT), 5)\nwon = True",
    "abstract socket": "import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect('\\0ABSTRACT')\nwon = True",
    "another family of sockets": "import socket\nsocket.socket(16, socket.SOCK_RAW, 0)\nwon = True",  # netlink
    "the repository": "won = 'lathe' in open('REPOSITORY/pyproject.toml').read()",
    "the host's files": "won = open('FILE').read() == 'SECRET'",
    "the host's users": "won = 'root' in open('/etc/passwd').read()",
    "the environment": "import os\nwon = 'SECRET' in os.environ.values()",
    "every process's environment": (
        "import glob\nwon = False\nfor name in glob.glob('/proc/[0-9]*/environ'):\n"
        "    try:\n        won |= 'SECRET' in open(name).read()\n    except OSError:\n        pass"
    ),
    "writing beside the harness": "open('FOLDER/written', 'w').write('x')\nwon = True",
    "other processes": "import os\nos.kill(PARENT, 0)\nwon = True",
    "the parent's files": "import os\nos.listdir(f'/proc/{os.getppid()}/fd')\nwon = True",
    "the parent's root": "import os\nos.listdir(f'/proc/{os.getppid()}/root/')\nwon = True",
    "memory no limit counts": "import os\nos.memfd_create('x')\nwon = True",
    "the parent's limits": (
        "import os, resource\nlimit = resource.prlimit(os.getppid(), resource.RLIMIT_CORE)\n"
        "resource.prlimit(os.getppid(), resource.RLIMIT_CORE, limit)\nwon = True"
    ),
}
ONLY_INSIDE = {
    "a second writable root": "open('/written', 'w')\nwon = True",
    "system files": "open('/etc/written', 'w')\nwon = True",
    "libraries": "import os\nopen(os.__file__, 'a')\nwon = True",
    "devices": "open('/dev/written', 'w')\nwon = True",
    "kernel settings": "open('/proc/sys/kernel/hostname', 'w').write('x')\nwon = True",
    "the root's parent": "import os\nwon = os.listdir('/..') != os.listdir('/')",
    "a link to the host's file": "import os\nos.symlink('FILE', 'x')\nwon = open('x').read() == 'SECRET'",
    "a link up": "import os\nos.symlink('../../..' + 'FILE', 'x')\nwon = open('x').read() == 'SECRET'",
    "the harness's environment": "open('/proc/1/environ').read()\nwon = True",
    "the harness's memory": "open('/proc/1/mem', 'rb')\nwon = True",
    "the harness's report": "open('/proc/1/fd/1', 'w').write('{}')\nwon = True",
    "its own memory": "open('/proc/self/mem', 'rb')\nwon = True",
    "ptrace": "import ctypes\nwon = ctypes.CDLL(None).ptrace(16, 1, 0, 0) == 0",
    "mount": "import ctypes\nwon = ctypes.CDLL(None).mount(b'x', b'/tmp', b'tmpfs', 0, b'') == 0",
    "umount": "import ctypes\nwon = any(ctypes.CDLL(None).umount2(p, 2) == 0 for p in (b'/usr', b'/tmp', b'/'))",
    "a user namespace": "import ctypes\nwon = ctypes.CDLL(None).unshare(0x10000000) == 0",
    "a user namespace by clone": (
        "import ctypes, os\nmine = os.getpid()\n"
        "won = ctypes.CDLL(None).syscall(56 if os.uname().machine == 'x86_64' else 220, 0x10000011, 0, 0, 0, 0) >= 0\n"
        "os.getpid() == mine or os._exit(0)"
    ),
    "root": "import os\nos.setuid(0)\nwon = True",
    "root by a program": "import subprocess\nwon = subprocess.run(['su', '-c', 'true'], stdin=-3).returncode == 0",
    "the hypervisor": "import socket\nsocket.socket(40, socket.SOCK_STREAM)\nwon = True",  # vsock has no namespaces
    "shared memory no limit counts": "import ctypes\nwon = ctypes.CDLL(None).shmget(0, 1 << 30, 0o1600) >= 0",
    "a file too large": "open('x', 'wb').write(bytes(16 << 20))\nwon = True",
    "files that fill /tmp": "for n in range(4):\n    open(str(n), 'wb').write(bytes(4 << 20))\nwon = True",
    "files that fill /dev/shm": "for n in range(4):\n    open(f'/dev/shm/{n}', 'wb').write(bytes(4 << 20))\nwon = True",
    "the harness's priority": "import os\nos.setpriority(os.PRIO_PROCESS, 1, 19)\nwon = True",
    "a processor of its own": "import os\nos.sched_setscheduler(1, os.SCHED_BATCH, os.sched_param(0))\nwon = True",
}


def filled(code: str, target: dict[str, str]) -> str:
    for name, value in target.items():
        code = code.replace(name, value)
    return code


@pytest.mark.parametrize("name", [*OPEN_OUTSIDE, *ONLY_INSIDE])
def test_no_way_out_is_open(name: str, way: str, target: dict[str, str]) -> None:
    verdict = run_program(filled((OPEN_OUTSIDE | ONLY_INSIDE)[name], target) + TEST, LIMITS)
    assert verdict.outcome is Outcome.failed and "SECRET" not in verdict.reason, verdict
    assert not any(word in verdict.reason for word in ("NameError", "SyntaxError", "TypeError")), verdict
    assert not Path(target["FOLDER"], "written").exists()


@pytest.mark.parametrize("name", OPEN_OUTSIDE)
def test_these_ways_out_are_open_outside(name: str, target: dict[str, str]) -> None:
    subprocess.run([sys.executable, "-c", filled(OPEN_OUTSIDE[name], target) + TEST], check=True)


# --- taking too much

TWO = replace(LIMITS, wall=2, cpu=60)
ONE_CPU = replace(LIMITS, cpu=1)
TOO_MUCH = {
    "an endless loop": ("while True:\n    pass", ONE_CPU, Outcome.timed_out),
    "an endless loop that hears no signal": (
        "import signal\nfor n in range(1, 65):\n    try:\n        signal.signal(n, signal.SIG_IGN)\n"
        "    except (OSError, ValueError):\n        pass\nwhile True:\n    pass",
        ONE_CPU,
        Outcome.failed,
    ),
    "sleep": ("import time\ntime.sleep(1e6)", TWO, Outcome.timed_out),
    "a question": ("input()", LIMITS, Outcome.failed),
    "a thread that never ends": (
        "import threading, time\nthreading.Thread(target=time.sleep, args=[1e6]).start()\nassert False",
        LIMITS,
        Outcome.failed,
    ),
    "a fork bomb": ("import os\nwhile True:\n    os.fork()", LIMITS, Outcome.failed),
    "a fork bomb that tries again": (
        "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass",
        TWO,
        Outcome.timed_out,
    ),
    "threads": (
        "import threading, time\nwhile True:\n    threading.Thread(target=time.sleep, args=[1e6]).start()",
        LIMITS,
        Outcome.failed,
    ),
    "8 GB": ("x = bytearray(8 << 30)", LIMITS, Outcome.out_of_memory),
    "8 GB in pieces": (
        "x = []\nwhile True:\n    x.append(bytearray(1 << 20))",
        LIMITS,
        Outcome.out_of_memory,
    ),
    "8 GB in processes": (
        "import mmap, os, time\nfor _ in range(7):\n    if not os.fork():\n        break\n"
        "x = mmap.mmap(-1, 600 << 20)\ntime.sleep(1e6)",
        LIMITS,
        Outcome.out_of_memory,
    ),
    "8 GB out of sight": (  # written, then unmapped: they stay in the shared mapping, and in nobody's resident memory
        "import mmap, os, time\nfor _ in range(7):\n    if not os.fork():\n        break\n"
        "x = mmap.mmap(-1, 300 << 20)\nfor at in range(0, 300 << 20, 4096):\n    x[at] = 1\n"
        "    x.madvise(mmap.MADV_DONTNEED, at, 4096)\ntime.sleep(1e6)",
        LIMITS,
        Outcome.out_of_memory,
    ),
    "output": ("while True:\n    print('x' * 100_000)", ONE_CPU, Outcome.timed_out),
    "errors": (
        "import sys\nwhile True:\n    print('x' * 100_000, file=sys.stderr)",
        LIMITS,
        Outcome.failed,
    ),
    "one long error": ("raise ValueError('x' * 10_000_000)", LIMITS, Outcome.failed),
    "empty files": ("n = 0\nwhile True:\n    open(str(n), 'w').close()\n    n += 1", LIMITS, Outcome.failed),
    "recursion": ("import sys\nsys.setrecursionlimit(10**9)\ndef f():\n    f()\nf()", ONE_CPU, None),
    "nested source": ("x = " + "(" * 10_000, LIMITS, Outcome.failed),
}


@pytest.mark.parametrize("name", TOO_MUCH)
def test_what_takes_too_much_is_stopped(name: str, way: str) -> None:
    code, limits, outcome = TOO_MUCH[name]
    verdict = run_program(f"{code}\nassert False\n", limits)
    assert verdict.outcome is (outcome or verdict.outcome) is not Outcome.passed, verdict
    assert 0 < len(verdict.reason) <= sandbox.REASON and verdict.reason.isprintable()
    assert run_program(GOOD, LIMITS) == Verdict(Outcome.passed, "")


def test_a_fork_bomb_is_as_large_as_its_limit(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uid = fix_user(monkeypatch)
    code, limits, _ = TOO_MUCH["a fork bomb that tries again"]
    thread = threading.Thread(target=run_program, args=(code, limits))
    thread.start()
    most = 0
    while thread.is_alive():
        most = max(most, len(processes_of(uid)))
    hosts = 1 + (way == sandbox.OWN)  # process 1; and room for the one outside, which is not counted for root
    assert 2 < most <= limits.processes + hosts
    assert not processes_of(uid)


# --- processes


def fix_user(monkeypatch: pytest.MonkeyPatch) -> int:
    """The next run's user, for this test alone."""
    number = int.from_bytes(os.urandom(4))
    monkeypatch.setattr(sandbox, "_runs", itertools.repeat(number))
    return sandbox.USERS[number % len(sandbox.USERS)] if os.geteuid() == 0 else os.geteuid()


def processes_of(uid: int) -> list[int]:
    """Of that user, in another process namespace than this one's."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "status").read_text()
        except OSError:
            continue
        if f"\nUid:\t{uid}\t" in status and len(status.split("\nNSpid:")[1].split("\n")[0].split()) > 1:
            found.append(int(folder.name))
    return found


DAEMON = (
    "import os, signal, time\nif not os.fork():\n    os.setsid()\n    for n in (1, 2, 15):\n"
    "        signal.signal(n, signal.SIG_IGN)\n    if not os.fork():\n        time.sleep(1e6)\n    os._exit(0)\n"
)


@pytest.mark.parametrize(
    "end", ["assert False", "pass", "os._exit(0)", "os.kill(os.getpid(), 9)", "time.sleep(1e6)"]
)
def test_nothing_is_left_behind(end: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uid = fix_user(monkeypatch)
    verdict = run_program(DAEMON + end, TWO)
    assert (verdict.outcome is Outcome.passed) == (end == "pass")
    assert not processes_of(uid)


@pytest.mark.parametrize(
    "hit", ["os.kill(os.getppid(), n)", "os.kill(-1, n)", "os.kill(PARENT, n)", "os.killpg(1, n)"]
)
def test_signals_hit_nobody_outside(hit: str, way: str, target: dict[str, str]) -> None:
    shoot = (
        f"import os\nfor n in (2, 9, 15, 19):\n    try:\n        {hit}\n    except OSError:\n        pass\n"
    )
    with subprocess.Popen(["/usr/bin/sleep", "1000"]) as bystander:
        verdict = run_program(filled(shoot, target) + "assert False, 'and on'", LIMITS)
        assert verdict == Verdict(Outcome.failed, "AssertionError: and on") and bystander.poll() is None
        bystander.kill()


def test_the_sandbox_dies_with_the_stage(way: str) -> None:
    number = int.from_bytes(os.urandom(4))
    script = (
        f"import itertools\nfrom stages.bench import sandbox\nsandbox._runs = itertools.repeat({number})\n"
        f"sandbox.WAYS, limits = ({way!r},), sandbox.{LIMITS}\nsandbox.isolation(limits)\nprint('on', flush=True)\n"
        f"sandbox.run_program({DAEMON + 'time.sleep(1e6)'!r}, limits)"
    )
    uid = sandbox.USERS[number % len(sandbox.USERS)] if os.geteuid() == 0 else os.geteuid()
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE) as stage:
        assert stage.stdout and stage.stdout.readline() == b"on\n"
        assert reached(lambda: len(processes_of(uid)) >= 3)  # process 1, the program and its daemon
        stage.kill()
    assert reached(lambda: not processes_of(uid))


def reached(condition: Callable[[], bool]) -> bool:
    """Whether it comes true within what any machine needs for it."""
    deadline = time.monotonic() + LIMITS.wall - 5
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


# --- the proof of the end

JUMP = (
    "import linecache, sys\ndef skip(frame, event, _):\n"
    "    if event == 'line' and linecache.getline('/tmp/program.py', frame.f_lineno).startswith('assert'):\n"
    "        frame.f_lineno += 1\n    return skip\nsys._getframe().f_trace = skip\nsys.settrace(skip)"
)
HOOK = "import gc, sys\nhook = sys.modules['stages.bench.sandbox_inside']._refuse\n"
EARLY = {
    "os._exit": "import os\nos._exit(0)",
    "sys.exit": "import sys\nsys.exit(0)",
    "exit": "exit()",
    "another program": "import os\nos.execv('/usr/bin/true', ['true'])",
    "a child": "import os\nif os.fork():\n    os._exit(0)\nwhile True:\n    pass",
    "at exit": "import atexit, os, sys\natexit.register(os._exit, 0)\nsys.exit(1)",
    "a hook": "import os, sys\nsys.excepthook = sys.__excepthook__ = lambda *_: os._exit(0)",
    "magic words": "import os, sys\nprint('sandbox ready', '{\"code\": 0}', 'passed', file=sys.stderr)\nos._exit(0)",
    "any descriptor": (
        "import os\nfor n in range(1, 64):\n    try:\n        os.write(n, bytes(16))\n        os.write(n, bytes(16))\n"
        "    except OSError:\n        pass\nos._exit(0)"
    ),
    "what can be read again": (
        "import os\nfor n in range(3, 64):\n    try:\n        again = os.open(f'/proc/self/fd/{n}', os.O_RDONLY)\n"
        "        os.set_blocking(again, False)\n        os.write(n, 2 * os.read(again, 16))\n"
        "    except OSError:\n        pass\nos._exit(0)"
    ),
    "what it can read": (
        "import os\nfor n in range(3, 64):\n    try:\n        os.set_blocking(n, False)\n"
        "        os.write(n, os.read(n, 16))\n    except OSError:\n        pass\nos._exit(0)"
    ),
    "a jump over the tests": JUMP,
    "a jump, the list of what is refused emptied": (
        "import sys\nsys.modules['stages.bench.sandbox_inside'].REFUSED = ()\n" + JUMP
    ),
    "a jump, that list emptied by way of the caller": (
        "import sys\nsys._getframe(1).f_globals['REFUSED'] = ()\n" + JUMP
    ),
    "a jump, all that its hook looks up changed": (
        HOOK + "hook.__builtins__.update(RuntimeError=None)\nhook.__cantrace__ = True\n"
        "hook.__defaults__ = hook.__kwdefaults__ = None\nhook.__globals__.clear()\n" + JUMP
    ),
    "a jump, its hook with other code": HOOK + "hook.__code__ = (lambda e, a: None).__code__\n" + JUMP,
    "a jump, its hook with other code by the type": (
        HOOK + "type(hook).__code__.__set__(hook, (lambda e, a: None).__code__)\n" + JUMP
    ),
    "a jump, its hook off the list": (
        HOOK + "for held in [*gc.get_objects(), *gc.get_referrers(hook)]:\n"
        "    if type(held) is list and any(one is hook for one in held):\n        held.clear()\n" + JUMP
    ),
    "a jump by the monitor of Python 3.12": (
        JUMP.rpartition("\n")[0] + "\nsys.monitoring.use_tool_id(0, 'jump')\n"
        "line = sys.monitoring.events.LINE\n"
        "sys.monitoring.register_callback(0, line, lambda *_: skip(sys._getframe(1), 'line', 0) and None)\n"
        "sys.monitoring.set_events(0, line)"
    ),
    "what its callers hold": (
        "import gc, os, sys\nframe, found, sockets = sys._getframe().f_back, [], []\nwhile frame:\n"
        "    held = [*frame.f_locals.values(), *frame.f_code.co_consts, *gc.get_referents(frame), *gc.get_objects()]\n"
        "    found += [x for x in held if isinstance(x, bytes) and len(x) == 16]\n"
        "    sockets += [x for x in held if type(x).__name__ == 'socket']\n    frame = frame.f_back\n"
        "assert sockets, 'nothing to write to'\nfor nonce in found[:1]:\n    sockets[0].sendall(nonce)\nos._exit(0)"
    ),
}


@pytest.mark.parametrize("name", EARLY)
def test_to_end_early_is_to_fail(name: str, way: str) -> None:
    verdict = run_program(f"{EARLY[name]}\nassert len('') == 1\nend = 0\n", LIMITS)
    assert verdict.outcome is Outcome.failed, verdict
    assert "NameError" not in verdict.reason or name == "exit"
    assert "nothing to write to" not in verdict.reason


# --- programs that mean well

FINE = {
    "nothing": "",
    "a function": GOOD,
    "other letters": "é = 'ü😀'\nassert len(é) == 2",
    "a main that is not for tests": "if __name__ == '__main__':\n    1 / 0",
    "its own types": "import dataclasses, pickle, typing\n@dataclasses.dataclass\nclass P:\n    x: 'typing.List[int]'\n"
    "assert pickle.loads(pickle.dumps(P([1]))) == P([1]) and typing.get_type_hints(P)['x'] == typing.List[int]",
    "its own source": "import inspect\ndef f():\n    return 1\nassert inspect.getsource(f).startswith('def f')",
    "a caught error": "try:\n    bytearray(8 << 30)\nexcept MemoryError:\n    pass",
    "files": "import tempfile\nwith tempfile.TemporaryFile() as f:\n    f.write(bytes(1 << 20))",
    "numpy": "import numpy\nassert numpy.linalg.inv(numpy.eye(3)).sum() == 3",
    "threads": "from concurrent.futures import ThreadPoolExecutor as P\n"
    "with P(2) as p:\n    assert list(p.map(abs, [-1])) == [1]",
    "processes": "import multiprocessing\nwith multiprocessing.get_context('fork').Pool(2) as p:\n"
    "    assert p.map(abs, [-1, 2]) == [1, 2]",
    "another Python": "import subprocess, sys\n"
    "assert subprocess.check_output([sys.executable, '-c', 'print(6 * 7)']) == b'42\\n'",
    "a loop of events": "import asyncio\nasync def f():\n    return 1\nassert asyncio.run(f()) == 1",
    "much output": "print('x' * 1_000_000)",
    "the same order every time": "assert list({'a', 'b', 'c', 'd'}) == ORDER",
}


@pytest.mark.parametrize("name", FINE)
def test_good_programs_pass(name: str, way: str) -> None:
    hashed = [sys.executable, "-c", "print(list({'a', 'b', 'c', 'd'}))"]
    order = subprocess.run(
        hashed, env={"PYTHONHASHSEED": "0"}, capture_output=True, text=True, check=True
    ).stdout
    assert run_program(FINE[name].replace("ORDER", order), LIMITS) == Verdict(Outcome.passed, "")


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("assert 1 == 2, 'wrong'", "AssertionError: wrong"),
        ("assert 1 == 2", "AssertionError"),
        ("def f(:", "SyntaxError: invalid syntax"),
        ("raise ValueError(object())", "ValueError: <object object at 0x...>"),
        ("raise ValueError('\\x1b[31mred\\x07')", "ValueError: ?[31mred?"),
        ("import os\nos.kill(os.getpid(), 11)", "killed by signal 11"),
        ("import os\nos._exit(7)", "exit code 7"),
        ("open('x', 'wb').truncate(16 << 20)", "OSError: [Errno 27] File too large"),
        ("x = 1\0", "SyntaxError: source code string cannot contain null bytes"),
    ],
)
def test_a_failure_has_its_reason(program: str, reason: str, way: str) -> None:
    assert run_program(program, LIMITS) == Verdict(Outcome.failed, reason)


def test_what_is_no_program_is_refused(way: str) -> None:
    assert run_program("x = '\ud800'", LIMITS) == Verdict(
        Outcome.refused, "not text: surrogates not allowed at character 5"
    )
    assert run_program("#" * (9 << 20), LIMITS).outcome is Outcome.refused


def test_many_keep_their_order(way: str) -> None:
    programs = [GOOD, "assert False", GOOD, "while True:\n    pass", "import os\nos._exit(0)", GOOD]
    found = [verdict.outcome.value for verdict in run_programs(programs, ONE_CPU, 3)]
    assert found == ["passed", "failed", "passed", "timed out", "failed", "passed"]


@given(st.lists(st.text()))
def test_a_reason_is_one_short_printable_line(lines: list[str]) -> None:
    reason = sandbox._reason(lines)
    assert len(reason) <= sandbox.REASON and (reason.isprintable() or not reason)
    assert bool(reason) == any(line.strip() for line in lines)


# --- no sandbox, no execution


def test_without_walls_nothing_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text(f'#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\nshift\nPYTHONPATH={ROOT} exec "$@"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sandbox, "HOME", str(ROOT))
    with pytest.raises(ValueError, match="still in the host's mnt namespace"):
        sandbox._execute(sandbox.BUBBLEWRAP, f"open('{tmp_path}/written', 'w')".encode(), LIMITS)
    assert not (tmp_path / "written").exists()


def test_a_sandbox_that_says_nothing_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\nexec /bin/sleep 1000\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sandbox, "GRACE", 0.1)
    with pytest.raises(ValueError, match="no word from it"):
        sandbox._execute(sandbox.BUBBLEWRAP, bytes(1 << 20), replace(LIMITS, wall=0.1))


def test_a_machine_without_namespaces_is_refused_in_one_line() -> None:
    script = (
        f"from stages.bench import sandbox\ntry:\n    sandbox.run_program('1', sandbox.{LIMITS})\n"
        "except ValueError as error:\n    print(error)"
    )
    none = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$0" -c "$1"'
    command = ["unshare", "--user", "--map-root-user", "sh", "-c", none, sys.executable, script]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert told.startswith("no sandbox for generated code here (bubblewrap: ") and told.count("\n") == 1
    assert "user namespaces: it does not start: unshare: No space left on device" in told


SYSTEM_PYTHON = Path("/usr/bin/python3.11")


@pytest.mark.skipif(
    os.geteuid() != 0 or not SYSTEM_PYTHON.exists(), reason="is a normal user, or no Python for one"
)
def test_a_normal_user_has_the_same_walls(way: str, target: dict[str, str]) -> None:
    programs = {name: filled(code, target) + TEST for name, code in (OPEN_OUTSIDE | ONLY_INSIDE).items()}
    programs |= {
        "good": GOOD,
        "fork bomb": TOO_MUCH["a fork bomb"][0],
        "8 GB": TOO_MUCH["8 GB in processes"][0],
    }
    script = (
        f"import json, sys\nfrom stages.bench import sandbox\nsandbox.WAYS = ({way!r},)\n"
        "for name, program in json.load(sys.stdin).items():\n"
        f"    print(name, sandbox.run_program(program, sandbox.{LIMITS}).outcome.value, sep=': ')\n"
    )
    user = ["/usr/bin/setpriv", "--reuid", "4242", "--regid", "4242", "--clear-groups"]
    command = [*user, str(SYSTEM_PYTHON), "-c", script]
    ran = subprocess.run(
        command, cwd=ROOT, input=json.dumps(programs), capture_output=True, text=True, check=True
    )
    found = dict(line.split(": ") for line in ran.stdout.splitlines())
    assert found.pop("good") == "passed" and found.pop("8 GB") == "out of memory"
    assert set(found.values()) == {"failed"}
