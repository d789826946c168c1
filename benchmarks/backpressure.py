"""The memory of a queue whose producers are far faster than its consumer: ``python -m benchmarks.backpressure``.

Producers put as fast as they can, the consumer takes a millisecond for each item, for some seconds; then the producers
stop and the consumer takes out what is there, in no time. Linux: memory is what /proc says that is resident.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from multiprocessing.process import BaseProcess
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import fiberq
from fiberq.bench.memory import own_node, resident

MB = 1e6


def produce(queue: Any, size: int, stop: Any, done: Any) -> None:
    item = b"x" * size
    count = 0
    while not stop.is_set():
        queue.put(item)
        count += 1
    queue.flush()
    done.put(count)


def consume(queue: Any, pause: Any, done: Any) -> None:
    count = 0
    while queue.get() is not None:
        count += 1
        if pause.value:
            time.sleep(pause.value)
    done.put(count)


def measure(transport: str, options: argparse.Namespace, advance: Any) -> list[str]:
    """One row of the table."""
    context = multiprocessing.get_context("spawn")
    pause, stop, done = context.Value("d", 0.001), context.Event(), context.SimpleQueue()
    fiberq.config.update(transport=transport, max_bytes=int(options.limit * MB))
    queue: fiberq.SimpleQueuePull[Any] = fiberq.SimpleQueuePull()
    node = own_node()
    empty = resident(node)
    consumer = context.Process(target=consume, args=(queue, pause, done))
    producers = [context.Process(target=produce, args=(queue, options.size, stop, done)) for _ in range(3)]
    everyone: list[BaseProcess] = [consumer, *producers]
    for process in everyone:
        process.start()
    most, deadline = (
        dict.fromkeys([node, *(process.pid for process in everyone)], 0),
        time.monotonic() + options.seconds,
    )
    while time.monotonic() < deadline:
        most = {pid: max(seen, resident(pid) or 0) for pid, seen in most.items()}
        time.sleep(0.05)
        advance()
    pause.value = 0.0
    stop.set()
    put = [done.get() for _ in producers]
    queue.put(None)
    got = done.get()
    for process in everyone:
        process.join()
    assert got == sum(put), "items were lost"
    queue.close()
    producer = max(most[process.pid] for process in producers)
    return [
        transport,
        f"{got:,}",
        f"{got * options.size / MB:,.0f}",
        *(f"{(each or 0) / MB:,.0f}" for each in (empty, most[node], producer)),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transports", nargs="+", default=["zmq", "nng", "stream"])
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--size", type=int, default=2000, help="bytes of an item")
    parser.add_argument("--limit", type=float, default=50.0, help="config.max_bytes, in MB")
    options = parser.parse_args()
    table = Table("", "items", "MB put", "node, empty", "node, at most", "a producer, at most")
    table.title = f"3 producers, {options.seconds:g} s, max_bytes {options.limit:g} MB; resident MB"
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("", total=len(options.transports) * options.seconds / 0.05)
        for transport in options.transports:
            progress.update(bar, description=transport)
            table.add_row(*measure(transport, options, lambda: progress.advance(bar)))
    Console(width=110).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
