"""Many writers and as many readers who go on for ever: ``python -m benchmarks.crowd``.

`fiberq bench --producers N --consumers N` passes on a number of items, from the first to the last; here what is got in
each of some seconds is counted, after one that is not; and how much processor time a put, a get and the node take.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from multiprocessing.context import SpawnContext
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

import fiberq
from fiberq import tree

PATIENCE = 120.0
REFERENCE = "multiprocessing.SimpleQueue"


class Rates(NamedTuple):
    gets: list[float]
    """Thousands in each second."""
    puts: float
    """Thousands in a second, in all of them together."""
    put_us: float
    get_us: float
    node_us: float
    """Of processor time, for an item that is got."""


def write(queue: Any, counts: Any, mine: int, begin: Any) -> None:
    queue.put(0)
    begin.wait()
    for put in itertools.count(1):
        queue.put(7)
        counts[mine] = put


def read(queue: Any, counts: Any, mine: int) -> None:
    for got in itertools.count(1):
        queue.get()
        counts[mine] = got


def processor_us(processes: Iterable[int]) -> float:
    """What they have taken so far, on Linux."""
    ticks = 0
    for each in processes:
        with open(f"/proc/{each}/stat") as file:
            ticks += sum(map(int, file.read().rpartition(")")[2].split()[11:13]))
    return ticks * 1e6 / os.sysconf("SC_CLK_TCK")


def measure(queue: Any, context: SpawnContext, number: int, windows: int) -> Rates:
    got, put, begin = context.RawArray("q", number), context.RawArray("q", number), context.Event()
    readers = [context.Process(target=read, args=(queue, got, mine), daemon=True) for mine in range(number)]
    writers = [context.Process(target=write, args=(queue, put, mine, begin), daemon=True) for mine in range(number)]
    try:
        for each in readers + writers:
            each.start()
        deadline = time.monotonic() + PATIENCE
        while sum(got) < number:
            if time.monotonic() > deadline:
                raise TimeoutError("not all processes began")
            time.sleep(0.05)
        begin.set()
        time.sleep(1.0)
        nodes = [each.process.pid for each in tree._started.values()]
        sides = [[each.pid or 0 for each in side] for side in (writers, readers)] + [nodes]
        before, puts = [processor_us(each) for each in sides], sum(put)
        marks = [(time.monotonic(), sum(got))]
        for _ in range(windows):
            time.sleep(1.0)
            marks.append((time.monotonic(), sum(got)))
        took = [processor_us(each) - start for each, start in zip(sides, before, strict=True)]
        puts, gets, seconds = sum(put) - puts, marks[-1][1] - marks[0][1], marks[-1][0] - marks[0][0]
        spans = [(after - before) / (end - start) / 1000 for (start, before), (end, after) in itertools.pairwise(marks)]
        return Rates(spans, puts / seconds / 1000, took[0] / puts, took[1] / gets, took[2] / gets)
    finally:
        for each in readers + writers:
            if each.pid is not None:
                each.kill()
                each.join()


def found(transport: str, kind: str, number: int, windows: int) -> Rates:
    """Measured in a program of its own, with a node of its own."""
    words = ["--one", kind, "--processes", str(number), "--windows", str(windows)]
    environment = {**os.environ, "FIBERQ_TRANSPORT": transport}
    command = [sys.executable, "-m", "benchmarks.crowd", *words]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, timeout=2 * PATIENCE)
    return Rates(*json.loads(done.stdout))


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
        print(json.dumps(measure(queue, context, options.processes[0], options.windows)))
        return 0
    title = f"Python {platform.python_version()}, {options.windows} seconds; puts and gets: k items/s"
    headings = (
        "",
        "processes",
        "gets, median",
        "lowest",
        "highest",
        "puts",
        "us a put",
        "us a get",
        "us the node a get",
    )
    table = Table(*headings, title=title, title_justify="left")
    kinds = [(transport, kind) for transport in options.transports for kind in options.classes]
    for transport, kind in [(options.transports[0], REFERENCE), *kinds]:
        for number in options.processes:
            rates = found(transport, kind, number, options.windows)
            gets = [statistics.median(rates.gets), min(rates.gets), max(rates.gets), rates.puts]
            costs = [rates.put_us, rates.get_us, rates.node_us]
            name = kind if kind == REFERENCE else f"{kind} {transport}"
            table.add_row(name, str(number), *(f"{each:,.0f}" for each in gets), *(f"{each:.2f}" for each in costs))
    Console(width=140).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
