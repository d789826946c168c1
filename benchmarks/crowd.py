"""Many writers and as many readers who go on for ever: ``python -m benchmarks.crowd``.

`fiberq bench --producers N --consumers N` passes on a number of items, from the first to the last; here what is got in
each of some seconds is counted, after one that is not.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from multiprocessing.context import SpawnContext
from typing import Any

from rich.console import Console
from rich.table import Table

import fiberq

PATIENCE = 120.0
REFERENCE = "multiprocessing.SimpleQueue"


def write(queue: Any, begin: Any) -> None:
    queue.put(0)
    begin.wait()
    while True:
        queue.put(7)


def read(queue: Any, counts: Any, mine: int) -> None:
    got = 0
    while True:
        queue.get()
        got += 1
        counts[mine] = got


def measure(queue: Any, context: SpawnContext, number: int, windows: int) -> list[float]:
    """Thousands of items in each of so many seconds."""
    counts, begin = context.RawArray("q", number), context.Event()
    crew = [context.Process(target=read, args=(queue, counts, mine), daemon=True) for mine in range(number)]
    crew += [context.Process(target=write, args=(queue, begin), daemon=True) for _ in range(number)]
    try:
        for each in crew:
            each.start()
        deadline = time.monotonic() + PATIENCE
        while sum(counts) < number:
            if time.monotonic() > deadline:
                raise TimeoutError("not all processes began")
            time.sleep(0.05)
        begin.set()
        marks = []
        for _ in range(windows + 2):
            marks.append((time.monotonic(), sum(counts)))
            time.sleep(1.0)
        spans = pairwise(marks[1:])
        return [(after - before) / (end - start) / 1000 for (start, before), (end, after) in spans]
    finally:
        for each in crew:
            if each.pid is not None:
                each.kill()
                each.join()


def found(transport: str, kind: str, number: int, windows: int) -> list[float]:
    """Measured in a program of its own, with a node of its own."""
    words = ["--one", kind, "--processes", str(number), "--windows", str(windows)]
    environment = {**os.environ, "FIBERQ_TRANSPORT": transport}
    command = [sys.executable, "-m", "benchmarks.crowd", *words]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, timeout=2 * PATIENCE)
    return [float(each) for each in done.stdout.split()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transports", nargs="+", default=["zmq", "nng", "stream"])
    parser.add_argument("--classes", nargs="+", default=["SimpleQueuePull", "SimpleQueuePush"])
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 8, 64], help="writers, and as many readers")
    parser.add_argument("--windows", type=int, default=5, help="of one second")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        context = multiprocessing.get_context("spawn")
        queue = context.SimpleQueue() if options.one == REFERENCE else getattr(fiberq, options.one)()
        print(*measure(queue, context, options.processes[0], options.windows))
        return 0
    title = f"Python {platform.python_version()}, k items/s: median (lowest to highest) of {options.windows} seconds"
    table = Table("", *map(str, options.processes), title=title, title_justify="left")
    kinds = [(transport, kind) for transport in options.transports for kind in options.classes]
    for transport, kind in [(options.transports[0], REFERENCE), *kinds]:
        rates = [found(transport, kind, number, options.windows) for number in options.processes]
        cells = [f"{statistics.median(each):,.0f} ({min(each):,.0f} to {max(each):,.0f})" for each in rates]
        table.add_row(kind if kind == REFERENCE else f"{kind} {transport}", *cells)
    Console(width=140).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
