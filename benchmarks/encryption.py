"""What encryption costs over loopback TCP, on each transport: ``python -m benchmarks.encryption``.

For each transport there are two nodes, one with keys, as ``fiberq serve`` has them, and one without, which no setting
makes. They take turns within a repetition; a ratio is what the encrypted one reaches of the other's figure in the same
repetition, as a median: 0.9 is a tenth slower, for latency too.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import fiberq
from fiberq.access import Authority, Url, make_keys
from fiberq.address import parse
from fiberq.listening import listen
from fiberq.node import serve
from fiberq.protocol.broker import Broker
from fiberq.registry import make, resolve

CONTEXT = multiprocessing.get_context("spawn")
Make = Callable[[], Any]


def consume(queue: Any, count: int, back: Any) -> None:
    """Get `count` items; say when the first and the last came."""
    queue.get()
    first = time.monotonic()
    for _ in range(count - 1):
        queue.get()
    back.put((first, time.monotonic()))


def produce(queue: Any, item: Any, count: int, back: Any) -> None:
    back.get()
    put = queue.put
    for _ in range(count):
        put(item)


def throughput(make: Make, item: Any, count: int) -> float:
    """Items per second from the first to the last that the consumer gets."""
    queue, start, done = make(), CONTEXT.SimpleQueue(), CONTEXT.SimpleQueue()
    consumer = CONTEXT.Process(target=consume, args=(queue, count, done))
    producer = CONTEXT.Process(target=produce, args=(queue, item, count, start))
    consumer.start()
    producer.start()
    time.sleep(0.3)  # both are up, and the node is quiet
    start.put(None)
    first, last = done.get()
    producer.join()
    consumer.join()
    return (count - 1) / (last - first)


def echo(there: Any, back: Any, count: int) -> None:
    for _ in range(count):
        back.put(there.get())


def round_trips(make: Make, item: Any, count: int) -> float:
    """Round trips per second of a lone item: the inverse of the median latency."""
    there, back = make(), make()
    process = CONTEXT.Process(target=echo, args=(there, back, count + 100))
    process.start()
    times = []
    for _ in range(count + 100):
        start = time.perf_counter()
        there.put(item)
        back.get()
        times.append(time.perf_counter() - start)
    process.join()
    return 1 / statistics.median(times[100:])


def shown(value: float, unit: str) -> str:
    if unit == "us":
        return f"{1e6 / value:,.0f}"
    return f"{value / 1000:,.0f}" if unit.startswith("k ") else f"{value:,.0f}"


WORK: dict[str, tuple[Any, Any, int, str]] = {
    "small ints": (throughput, 7, 200_000, "k items/s"),
    "64 KB bytes": (throughput, b"x" * 65_536, 2_000, "items/s"),
    "1 MB bytes": (throughput, b"x" * 1_000_000, 200, "items/s"),
    "ping-pong": (round_trips, 7, 1_000, "us"),
}


def node(transport: str, encrypted: bool, answer: Any) -> None:
    """Run a node until it is killed; answer with its URL."""
    target = resolve(transport)
    keys = make_keys() if encrypted else None
    authority = None if keys is None else Authority(keys)
    found = listen(target, make(target), ["tcp://127.0.0.1:0"], keys, authority, allow_insecure=False)
    key = None if authority is None else authority.owner_key
    answer.send(str(Url(transport, parse(found.addresses[0]), key)))
    serve(found.server, Broker(os.urandom(8).hex(), authority=authority), fiberq.config.spin_us / 1e6)


@contextmanager
def running(transport: str, encrypted: bool) -> Iterator[str]:
    """The URL of a node."""
    ours, theirs = CONTEXT.Pipe(False)
    process = CONTEXT.Process(target=node, args=(transport, encrypted, theirs))
    process.start()
    try:
        yield ours.recv()
    finally:
        process.kill()
        process.join()


def queue_at(url: str) -> Any:
    fiberq.config.node = url
    try:
        return fiberq.SimpleQueuePull()
    finally:
        del fiberq.config.node


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transports", nargs="+", default=["zmq", "nng", "stream"])
    parser.add_argument("--work", nargs="+", choices=WORK, default=list(WORK))
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="multiply the number of items")
    options = parser.parse_args()
    table = Table(
        title=f"Python {platform.python_version()}, {multiprocessing.cpu_count()} cores", title_justify="left"
    )
    for heading in ("", "", "", "plain", "encrypted", "ratio", "lowest", "highest"):
        table.add_column(heading, justify="right" if heading else "left")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("", total=len(options.transports) * len(options.work) * options.repetitions)
        for transport in options.transports:
            with ExitStack() as stack:
                urls = [stack.enter_context(running(transport, encrypted)) for encrypted in (False, True)]
                for work in options.work:
                    measure, item, count, unit = WORK[work]
                    figures: list[list[float]] = [[], []]
                    for _ in range(options.repetitions):
                        progress.update(bar, description=f"{transport}: {work}")
                        for mine, url in zip(figures, urls, strict=True):
                            mine.append(
                                measure(lambda url=url: queue_at(url), item, max(100, int(count * options.scale)))
                            )
                        progress.advance(bar)
                    ratios = [encrypted / plain for plain, encrypted in zip(*figures, strict=True)]
                    spread = [f"{each:.2f}" for each in (statistics.median(ratios), min(ratios), max(ratios))]
                    medians = [shown(statistics.median(each), unit) for each in figures]
                    table.add_row(transport, work, unit, *medians, *spread)
    Console(width=110).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
