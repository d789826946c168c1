"""What it brings, and costs, that a busy node polls before it blocks (`config.spin_us`): ``python -m benchmarks.spin``.

A lone item's round trip; and how long two workers take for tasks that each need 1 ms of processor time, against what
two cores take for them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time

from rich.console import Console
from rich.table import Table

import fiberq

TASK = 0.001
TASKS = 1000
WORKERS = 2


def work(tasks: fiberq.SimpleQueuePull[int], results: fiberq.SimpleQueuePull[int]) -> None:
    while tasks.get():
        end = time.thread_time() + TASK
        while time.thread_time() < end:
            pass
        results.put(1)


def busy() -> float:
    """How many times as long the tasks take as two cores would."""
    tasks: fiberq.SimpleQueuePull[int] = fiberq.SimpleQueuePull()
    results: fiberq.SimpleQueuePull[int] = fiberq.SimpleQueuePull()
    context = fiberq.get_context("spawn")
    workers = [context.Process(target=work, args=(tasks, results), daemon=True) for _ in range(WORKERS)]
    for each in workers:
        each.start()
    for count in (3 * WORKERS, TASKS):  # the first are to get all at work
        start = time.monotonic()
        for _ in range(count):
            tasks.put(1)
        for _ in range(count):
            results.get(timeout=60)
    took = time.monotonic() - start
    for _ in workers:
        tasks.put(0)
    for each in workers:
        each.join(10)
    return took * WORKERS / (TASK * TASKS)


def run(*command: str, **settings: str) -> str:
    environment = {**os.environ, **settings}
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True, timeout=120).stdout


def measure(transport: str, spin: int) -> tuple[float, float]:
    """A lone item's round trip, in us, and what `busy` says."""
    settings = {"FIBERQ_TRANSPORT": transport, "FIBERQ_SPIN_US": str(spin)}
    words = ["--work", "ping-pong", "--transports", transport, "--classes", "SimpleQueuePull"]
    words += ["--repetitions", "1", "--json", "-"]
    results = json.loads(run(sys.executable, "-m", "fiberq", "bench", *words, **settings))["results"]
    (trip,) = [each["median"] for each in results if each["contender"].startswith("SimpleQueuePull")]
    return trip, float(run(sys.executable, "-m", "benchmarks.spin", "--busy", **settings))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transports", nargs="+", default=["zmq", "nng", "stream"])
    parser.add_argument("--spins", nargs="+", type=int, default=[0, 100, 400], help="us")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--busy", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.busy:
        print(busy())
        return
    table = Table(
        "",
        "config.spin_us",
        "round trip, us",
        "two busy workers, of two cores",
        title=f"Python {platform.python_version()}; medians of {options.repetitions}",
    )
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for _ in range(options.repetitions):  # in turn, for the machine has fast and slow minutes
        for transport in options.transports:
            for spin in options.spins:
                found.setdefault((transport, spin), []).append(measure(transport, spin))
    for (transport, spin), pairs in found.items():
        trips, shares = zip(*pairs, strict=True)
        table.add_row(transport, str(spin), f"{statistics.median(trips):.0f}", f"{statistics.median(shares):.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
