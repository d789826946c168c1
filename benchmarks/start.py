"""What starting and ending costs, in ms, as medians of fresh processes: ``python -m benchmarks.start``."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

IMPORT = "import fiberq"
FIRST = "import time, fiberq; start = time.perf_counter(); fiberq.SimpleQueue(); print(time.perf_counter() - start)"
EXIT = """
import os, sys, time, fiberq
if {used}:
    fiberq.SimpleQueue().put(1, sync=True)
sys.stdout.write(str(time.monotonic())); sys.stdout.flush()
"""

WORKER = """
import multiprocessing, sys, time, fiberq

def work(queue, told):
    told.send(queue.get())

def seconds(queue):
    queue.put(7)
    here, there = multiprocessing.get_context("spawn").Pipe(duplex=False)
    start = time.perf_counter()
    process = multiprocessing.get_context("spawn").Process(target=work, args=(queue, there))
    process.start()
    here.recv()
    took = time.perf_counter() - start
    process.join()
    return took

if __name__ == "__main__":
    other = seconds(multiprocessing.get_context("spawn").SimpleQueue())
    print(seconds(fiberq.SimpleQueue()) - other)
"""


def wall(code: str) -> float:
    """Seconds that a Python process with this program takes."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def said(code: str, environment: dict[str, str]) -> float:
    """The number that such a process prints."""
    return float(
        subprocess.run([sys.executable, "-c", code], check=True, env=environment, stdout=subprocess.PIPE).stdout
    )


def worker(directory: str, environment: dict[str, str]) -> float:
    """Seconds by which a worker that is spawned, and gets an item, is later than with `multiprocessing`'s queue."""
    path = os.path.join(directory, "program.py")
    with open(path, "w") as file:
        file.write(WORKER)
    done = subprocess.run([sys.executable, path], check=True, env=environment, stdout=subprocess.PIPE)
    return float(done.stdout)


def ending(used: bool, environment: dict[str, str]) -> float:
    """Seconds from a program's last statement to its end."""
    return -said(EXIT.format(used=used), environment) + time.monotonic()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transports", nargs="+", default=["zmq", "nng", "stream"])
    parser.add_argument("--repetitions", type=int, default=20)
    options = parser.parse_args()
    table = Table(title=f"Python {platform.python_version()}, median of {options.repetitions}", title_justify="left")
    for heading in ("", "ms", "highest"):
        table.add_column(heading, justify="right" if heading else "left")

    def row(name: str, seconds: list[float]) -> None:
        table.add_row(name, f"{statistics.median(seconds) * 1000:.1f}", f"{max(seconds) * 1000:.1f}")

    times = range(options.repetitions)
    row("import fiberq, beside starting Python", [wall(IMPORT) - wall("pass") for _ in times])
    for transport in options.transports:
        environment = {**os.environ, "FIBERQ_TRANSPORT": transport}
        row(f"the first queue, {transport}", [said(FIRST, environment) for _ in times])
        with TemporaryDirectory() as directory:
            name = f"a worker's first item, beyond that with multiprocessing, {transport}"
            row(name, [worker(directory, environment) for _ in times])
        ends = [ending(True, environment) - ending(False, environment) for _ in times]
        row(f"what a queue adds to the program's exit, {transport}", ends)
    Console(width=110).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
