"""What a queue costs: descriptors and threads of each process that has one, and the time until an item is through.

``python -m benchmarks.costs``, on Linux. Counts are what is there beyond a process of the same kind without a queue;
threads are the system's, those of transports' libraries included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

PROGRAM = """
import json, multiprocessing, os, time
from multiprocessing import get_context
import fiberq

def count():
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

def beyond(before):
    return [now - then for now, then in zip(count(), before)]

def write(queue, told):
    before = count()
    queue.put(1)
    queue.flush()
    told.send(beyond(before))

def read(queue, told):
    before = count()
    queue.get()
    told.send(beyond(before))

def child(target, queue):
    here, there = get_context("spawn").Pipe(duplex=False)
    process = get_context("spawn").Process(target=target, args=(queue, there))
    process.start()
    told = here.recv()
    process.join()
    return told

def through():
    start = time.perf_counter()
    queue = fiberq.Queue()
    queue.put(1)
    queue.get()
    return queue, time.perf_counter() - start

if __name__ == "__main__":
    before = count()
    first, seconds = through()
    result = {"creator": beyond(before), "first": seconds}
    before = count()
    second, result["second"] = through()
    result["further"] = beyond(before)
    result["writer"], result["reader"] = child(write, first), child(read, first)
    print(json.dumps(result))
"""


def measure(transport: str, directory: str) -> dict[str, Any]:
    """What one run of the program, which lies in `directory`, found."""
    done = subprocess.run(
        [sys.executable, os.path.join(directory, "program.py")],
        env={**os.environ, "FIBERQ_TRANSPORT": transport},
        stdout=subprocess.PIPE,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> int:
    from tempfile import TemporaryDirectory

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transports", nargs="+", default=["zmq", "nng", "stream"])
    parser.add_argument("--repetitions", type=int, default=20)
    options = parser.parse_args()
    title = f"Python {platform.python_version()}, medians of {options.repetitions}; descriptors + threads"
    table = Table("", "creator", "each further queue", "writer", "reader", "first item, ms", "of the second queue, ms")
    table.title, table.title_justify = title, "left"
    with TemporaryDirectory() as directory:
        with open(os.path.join(directory, "program.py"), "w") as file:
            file.write(PROGRAM)
        for transport in options.transports:
            found = [measure(transport, directory) for _ in range(options.repetitions)]
            counts = []
            for role in ("creator", "further", "writer", "reader"):
                numbers = [statistics.median(each[role][index] for each in found) for index in (0, 1)]
                counts.append(f"{numbers[0]:g} + {numbers[1]:g}")
            times = [statistics.median(each[key] for each in found) * 1000 for key in ("first", "second")]
            table.add_row(transport, *counts, *(f"{each:.1f}" for each in times))
    Console(width=120).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
