"""What tracking costs a training run, whatever the server does: `python -m benchmarks.tracking [ROUNDS] [STEPS]`.

The same work, a PyTorch loop on two threads with three points logged a step, in fresh processes: without tracking,
with a healthy `mlflow server`, and with one that is down, lost for good, lost and back, or slow to answer. Rounds go
through all of them in turn. The server runs on this machine too, so what it computes is part of what is measured.

Of each run: seconds of the loop; of them, those that it stood in the calls that log; seconds to open and to close the
run; CPU seconds of the mirror, the process beside it, which takes them from the loop where no core is idle. A machine
with a few per cent of noise cannot tell one per cent by the loop alone; the parts it can.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import astuple, dataclass
from pathlib import Path

from stages.common.tracking import RunName, Track
from tests.common.tracking_servers import Proxy, Server, free_port

ROOT = Path(__file__).resolve().parents[1]
ARMS = ("off", "healthy", "down", "lost", "back", "slow")
DELAY = 2.0  # seconds before each answer of the slow server
THREADS, WIDTH, BATCH = 2, 1024, 256


@dataclass(frozen=True)
class Cost:
    """Seconds of one run; `mirror` is CPU time of processes that the run started and that ended with it."""

    loop: float
    calls: float
    start: float
    close: float
    mirror: float


def main(rounds: int, steps: int) -> None:
    """Print the seconds of each round, then each arm's ratio to the run without tracking in the same round."""
    found: list[dict[str, Cost]] = []
    for number in range(rounds):
        arms = (
            ARMS[number % len(ARMS) :] + ARMS[: number % len(ARMS)]
        )  # none is always the first, or the warm one
        found.append({arm: measure(arm, steps) for arm in arms})
        for arm in ARMS:
            cost = found[-1][arm]
            print(
                f"round {number + 1}: {arm:8} loop {cost.loop:.2f} s, in calls {cost.calls:.3f}, "
                f"start {cost.start:.3f}, close {cost.close:.2f}, mirror's CPU {cost.mirror:.2f}",
                flush=True,
            )
    for arm in ARMS[1:]:
        tell(
            f"{arm:8} loop, of the time without tracking",
            [each[arm].loop / each["off"].loop for each in found],
        )
        tell(f"{arm:8} calls, of the loop", [each[arm].calls / each[arm].loop for each in found])
        tell(f"{arm:8} mirror's CPU s", [each[arm].mirror for each in found])


def measure(arm: str, steps: int) -> Cost:
    """One run in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), f"sqlite:///{folder}/server.db")
        if arm not in ("off", "down"):
            server.up()
        proxy = Proxy(server.port)
        proxy.delay = DELAY
        uri = {"slow": proxy.uri, "down": f"http://127.0.0.1:{free_port()}"}.get(arm, server.uri)
        command = [sys.executable, "-m", "benchmarks.tracking", "work", arm, str(steps), folder]
        env = os.environ | {"MLFLOW_TRACKING_URI": uri, "OMP_NUM_THREADS": str(THREADS)}
        try:
            with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as process:
                return follow(process, server, arm)
        finally:
            server.kill()


def follow(process: subprocess.Popen[str], server: Server, arm: str) -> Cost:
    """Take the server away at a third of the work, and bring it back at two."""
    assert process.stdout is not None
    for line in process.stdout:
        if line == "1/3\n" and arm in ("lost", "back"):
            server.kill()
        elif line == "2/3\n" and arm == "back":
            server.up()
        elif line.startswith("["):
            return Cost(*json.loads(line))
    raise RuntimeError(f"the run {arm} ended without a result")


def work(arm: str, steps: int, folder: Path) -> None:
    """Train; print how far it is, and at the end the seconds."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(THREADS)
    model = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.GELU(), torch.nn.Linear(WIDTH, WIDTH))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    rows = torch.randn(BATCH, WIDTH)
    track = Track()
    began = time.perf_counter()
    if arm != "off":
        track.start(folder, RunName("Benchmark-Tiny", arm), {}, {})
    started, calls = time.perf_counter(), 0.0
    for step in range(steps):
        loss = (model(rows) - rows).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        value, before = loss.item(), time.perf_counter()
        for name in ("loss", "loss/again", "loss/and/again"):
            track.metric(name, value, step)
        calls += time.perf_counter() - before
        if step in (steps // 3, 2 * steps // 3):
            print("1/3" if step == steps // 3 else "2/3", flush=True)
    ended = time.perf_counter()
    track.close("FINISHED")
    closed, children = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    cost = Cost(
        ended - started, calls, started - began, closed - ended, children.ru_utime + children.ru_stime
    )
    print(json.dumps(astuple(cost)), flush=True)


def tell(name: str, ratios: list[float]) -> None:
    """Median and range."""
    low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
    print(f"{name}: {middle:.4f} ({low:.4f} to {high:.4f}, n={len(ratios)})")


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        work(sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
    else:
        numbers = [int(each) for each in sys.argv[1:]]
        main(*[*numbers, *[5, 3000][len(numbers) :]])
