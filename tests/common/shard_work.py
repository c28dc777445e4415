"""Work for the tests of shards, where a worker can import it. `marks` is a folder that the work reports to."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

HEAVY = {"torch", "transformers", "datasets", "pyarrow", "pandas", "numpy", "mlflow", "ray", "pytest"}
LISTENING = "0A"
LOOPBACK = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")


class Odd(Exception):
    """An exception that pickles and does not come back."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


def write(number: int, folder: Path) -> None:
    """Files that depend on the shard alone."""
    rng = random.Random(number)
    (folder / "rows.bin").write_bytes(rng.randbytes(1000 * (number + 1)))
    (folder / "deeper").mkdir()
    (folder / "deeper/note.txt").write_text(f"{number}\n")


def counted(marks: Path, number: int, folder: Path) -> None:
    with (marks / "calls").open("a") as file:
        file.write(f"{number}\n")
    write(number, folder)


def dies_once(marks: Path, number: int, folder: Path) -> None:
    """Shard 3's first worker is killed with half of its files written."""
    if number == 3 and not (marks / "died").exists():
        (marks / "died").touch()
        (folder / "rows.bin").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    counted(marks, number, folder)


def dies(number: int, folder: Path) -> None:
    """Shard 3's worker is killed whenever it tries."""
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    write(number, folder)


def fails(number: int, folder: Path) -> None:
    """Shard 3 raises."""
    (folder / "half").touch()
    if number == 3:
        raise ValueError(f"shard {number} is not to my liking")
    write(number, folder)


def fails_oddly(number: int, folder: Path) -> None:
    raise Odd("neither", "nor")


def held(marks: Path, number: int, folder: Path) -> None:
    """Shards from 2 up stop half-way until marks/go is there."""
    if number >= 2:
        (folder / "half").touch()
        (marks / f"worker-{os.getpid()}").touch()
        wait_for(marks / "go")
        (folder / "half").unlink()
    counted(marks, number, folder)


def wait_for(path: Path) -> None:
    end = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.01)


def imports(number: int, folder: Path) -> None:
    """Which heavy modules this worker has, and that it sees the parent's directory."""
    found = sorted(HEAVY & set(sys.modules))
    (folder / "heavy").write_text(" ".join(found))
    (folder / "cwd").write_text(str(Path.cwd()))


def on_ray(marks: Path, number: int, folder: Path) -> None:
    """dies_once, and shard 0 says who listens where others can reach it."""
    if number == 0:
        (marks / "reachable").write_text("\n".join(reachable()))
    dies_once(marks, number, folder)


def reachable() -> list[str]:
    """Ray's sockets that listen on more than the loopback interface, as `address command`."""
    sockets = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING and fields[1].split(":")[0] not in LOOPBACK:
                sockets[f"socket:[{fields[9]}]"] = fields[1]
    found = []
    for handle in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            address = sockets.get(str(handle.readlink()))
            command = (handle.parents[1] / "cmdline").read_text().replace("\0", " ")
        except OSError:  # a process that ended meanwhile
            continue
        if address and "ray" in command:
            found.append(f"{address} {command[:60]}")
    return found
