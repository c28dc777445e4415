"""map_shards: the same bytes however many work on it and whoever is killed, and nothing half done passes for done."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Event

import pytest
from tqdm import tqdm

from stages.common import cluster
from stages.common.files import tree_digest
from stages.common.job import window
from stages.common.shards import map_shards
from tests.common import shard_work as work
from tests.life import wait_for

ROOT = Path(__file__).resolve().parents[2]
SHARDS = list(range(6))


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    (tmp_path / "marks").mkdir()
    return tmp_path / "marks"


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of what the shards come to, made without map_shards."""
    out = tmp_path_factory.mktemp("expected")
    for number in SHARDS:
        folder = out / f"{number:05d}"
        folder.mkdir()
        work.write(number, folder)
    return tree_digest(out)


def calls(marks: Path) -> list[int]:
    return sorted(map(int, (marks / "calls").read_text().split()))


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_same_bytes_for_any_number_of_workers(
    workers: int, tmp_path: Path, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATHE_WORKERS", str(workers))
    folders = map_shards(work.write, SHARDS, tmp_path / "out", label="test")
    assert folders == [tmp_path / f"out/{number:05d}" for number in SHARDS]
    assert tree_digest(tmp_path / "out") == expected
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [path.name for path in folders]


def test_relative_folders_and_no_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert map_shards(work.write, [], Path("none"), label="test") == []
    monkeypatch.setenv("LATHE_WORKERS", "2")
    folders = map_shards(work.imports, SHARDS, Path("out"), label="test")
    assert {(folder / "heavy").read_text() for folder in folders} == {""}
    assert {(folder / "cwd").read_text() for folder in folders} == {str(tmp_path)}


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_done_is_not_done_again(
    workers: int, tmp_path: Path, marks: Path, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A draft is not done, with whatever it holds."""
    monkeypatch.setenv("LATHE_WORKERS", str(workers))
    for number in (0, 4):
        (tmp_path / f"out/{number:05d}").mkdir(parents=True)
        work.write(number, tmp_path / f"out/{number:05d}")
    for half in (".draft-00001-7", ".draft-00002-7", ".dead/.draft-00003-7"):
        (tmp_path / "out" / half).mkdir(parents=True)
        (tmp_path / "out" / half / "rows.bin").write_bytes(b"half")
    map_shards(partial(work.counted, marks), SHARDS, tmp_path / "out", label="test")
    assert calls(marks) == [1, 2, 3, 5]
    assert tree_digest(tmp_path / "out") == expected


def test_a_killed_worker_is_replaced(
    tmp_path: Path, marks: Path, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATHE_WORKERS", "2")
    map_shards(partial(work.dies_once, marks), SHARDS, tmp_path / "out", label="test")
    assert (marks / "died").exists() and set(calls(marks)) == set(SHARDS)
    assert tree_digest(tmp_path / "out") == expected


def test_a_shard_that_always_kills_its_worker_is_named(
    tmp_path: Path, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are kept, and a run that can do it needs no more than this one."""
    monkeypatch.setenv("LATHE_WORKERS", "2")
    message = r"^measure: shard .*\b3 \(3\).*: killed, most likely out of memory: lower LATHE_WORKERS$"
    with pytest.raises(ValueError, match=message):
        map_shards(work.dies, SHARDS, tmp_path / "out", label="measure")
    done = {path.name for path in (tmp_path / "out").glob("0*")}
    assert len(done) >= 2 and "00003" not in done
    map_shards(work.write, SHARDS, tmp_path / "out", label="measure")
    assert tree_digest(tmp_path / "out") == expected


@pytest.mark.parametrize("workers", [1, 2])
def test_an_exception_comes_through_as_it_is(
    workers: int, tmp_path: Path, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATHE_WORKERS", str(workers))
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"^shard 3 is not to my liking$") as caught:
        map_shards(work.fails, SHARDS, out, label="test")
    assert type(caught.value) is ValueError
    assert (out / "00000").is_dir() and not [*out.glob(".draft-*"), *out.glob("00003")]


def test_an_exception_that_cannot_travel_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATHE_WORKERS", "2")  # where the pool would take it for a dead worker
    with pytest.raises(RuntimeError, match=r"^Odd: neither nor$"):
        map_shards(work.fails_oddly, SHARDS, tmp_path / "out", label="test")


def test_after_an_exception_nothing_begins_and_what_runs_is_waited_for() -> None:
    failed, begun, ended = Event(), list[int](), list[int]()

    def run(index: int) -> None:
        if index == 0:
            raise KeyError(index)
        assert failed.wait(60)
        time.sleep(0.01)  # who does not wait is past it
        ended.append(index)

    def outcome(future: Future[None], index: int) -> None:
        failed.set()
        future.result()

    with ThreadPoolExecutor(2) as pool:

        def submit(index: int) -> Future[None]:
            begun.append(index)
            return pool.submit(run, index)

        with pytest.raises(KeyError), tqdm(disable=True) as bar:
            window(range(9), 2, bar, submit, outcome)
        assert begun == [0, 1] and ended == [1]


def test_workers_die_with_their_parent(
    tmp_path: Path, marks: Path, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An orphan would write where the next run writes. That one goes on where this one was."""
    with run(tmp_path, "held", LATHE_WORKERS="2") as parent:
        wait_for("two workers", lambda: len(list(marks.glob("worker-*"))) == 2 or parent.poll() is not None)
        parent.kill()
    workers = [int(path.name.removeprefix("worker-")) for path in marks.glob("worker-*")]
    assert parent.returncode == -signal.SIGKILL and len(workers) == 2
    wait_for("the end of the workers", lambda: not any(map(alive, workers)))
    assert len(list((tmp_path / "out").glob(".draft-*"))) == 2

    (marks / "go").touch()
    monkeypatch.setenv("LATHE_WORKERS", "2")
    map_shards(partial(work.held, marks), SHARDS, tmp_path / "out", label="test")
    assert calls(marks) == SHARDS
    assert tree_digest(tmp_path / "out") == expected


def run(tmp_path: Path, function: str, **environment: str) -> subprocess.Popen[bytes]:
    """map_shards in a process of its own; -c has no main module that workers would run again."""
    code = (
        "from functools import partial; from pathlib import Path\n"
        "from stages.common.shards import map_shards; from tests.common import shard_work as work\n"
        f"fn = partial(work.{function}, Path({str(tmp_path / 'marks')!r}))\n"
        f"map_shards(fn, range({len(SHARDS)}), Path({str(tmp_path / 'out')!r}), label='test')\n"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LATHE_", "RAY_"))}
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=kept | environment)


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie: in a container there may be nobody to collect it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("LATHE_WORKERS", "0", "LATHE_WORKERS='0' in the environment: set it to a whole number from 1 up"),
        ("LATHE_WORKERS", "two", "LATHE_WORKERS='two' in the"),
        ("LATHE_WORKERS", "1.5", "LATHE_WORKERS='1.5' in the"),
        ("LATHE_WORKERS", "²", "LATHE_WORKERS='²' in the"),
        ("LATHE_BACKEND", "spark", "LATHE_BACKEND='spark' in the environment: set it to local or ray"),
    ],
)
def test_settings_are_checked(
    name: str, value: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"^{message}"):
        map_shards(work.write, SHARDS, tmp_path / "out", label="test")
    assert not (tmp_path / "out").exists()


def test_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"LATHE_BACKEND": "ray", "LATHE_WORKERS": "2"}
    for name, value in (cluster.QUIET | cluster.ONE_MACHINE | settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"^LATHE_BACKEND=ray needs: pip install -r requirements-ray\.txt$"):
        map_shards(work.write, SHARDS, tmp_path / "out", label="test")


needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="pip install -r requirements-ray.txt"
)


@needs_ray
def test_a_cluster_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    settings = {"LATHE_BACKEND": "ray", "LATHE_WORKERS": "2", "RAY_ADDRESS": address}
    for name, value in (cluster.QUIET | settings).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"^RAY_ADDRESS={address}: no Ray cluster answers there"):
        map_shards(work.write, SHARDS, tmp_path / "out", label="test")


@needs_ray
@pytest.mark.slow  # Ray's start takes 7 to 13 seconds
def test_two_ray_workers_one_killed_half_way(tmp_path: Path, marks: Path, expected: str) -> None:
    """Ray makes ~/.ray, so it gets another home; nothing of it listens where another machine could reach it."""
    (tmp_path / "home").mkdir()
    with run(
        tmp_path, "on_ray", LATHE_WORKERS="2", LATHE_BACKEND="ray", HOME=str(tmp_path / "home")
    ) as driver:
        assert driver.wait(300) == 0
    assert (marks / "died").exists() and calls(marks) == SHARDS
    assert (marks / "reachable").read_text() == ""
    assert tree_digest(tmp_path / "out") == expected
    assert len(list((tmp_path / "out").iterdir())) == len(SHARDS)
