"""How fast queues are beside `multiprocessing.SimpleQueue`: ``python -m benchmarks.queues``.

One producer and one consumer process, started afresh for each figure. Contenders take turns within a repetition, and
each figure is shown as the median of its ratios to `multiprocessing.SimpleQueue` in the same repetition, because the
speed of a shared machine drifts. Above 1 is better than multiprocessing, for latency too.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import fiberq

REFERENCE = "multiprocessing.SimpleQueue"
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
    context = multiprocessing.get_context("spawn")
    queue, start, done = make(), context.SimpleQueue(), context.SimpleQueue()
    consumer = context.Process(target=consume, args=(queue, count, done))
    producer = context.Process(target=produce, args=(queue, item, count, start))
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
    context = multiprocessing.get_context("spawn")
    there, back = make(), make()
    process = context.Process(target=echo, args=(there, back, count + 100))
    process.start()
    times = []
    for _ in range(count + 100):
        start = time.perf_counter()
        there.put(item)
        back.get()
        times.append(time.perf_counter() - start)
    process.join()
    return 1 / statistics.median(times[100:])


WORK: dict[str, tuple[Callable[..., float], Any, int, str]] = {
    "small ints": (throughput, 7, 300_000, "k items/s"),
    "1 MB bytes": (throughput, b"x" * 1_000_000, 400, "items/s"),
    "ping-pong": (round_trips, 7, 2_000, "us"),
}


def contenders(transports: list[str]) -> dict[str, Make]:
    context = multiprocessing.get_context("spawn")
    made: dict[str, Make] = {REFERENCE: context.SimpleQueue, "multiprocessing.Queue": context.Queue}
    for transport in transports:
        for kind in (fiberq.SimpleQueuePull, fiberq.SimpleQueuePush):
            made[f"fiberq {kind.__name__} {transport}"] = _maker(kind, transport)
    return made


def _maker(kind: Callable[[], Any], transport: str) -> Make:
    def make() -> Any:
        fiberq.config.transport = transport
        return kind()

    return make


def shown(value: float, unit: str) -> str:
    if unit == "us":
        return f"{1e6 / value:,.0f}"
    return f"{value / 1000:,.0f}" if unit.startswith("k ") else f"{value:,.0f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transports", nargs="+", default=["zmq", "nng"])
    parser.add_argument("--work", nargs="+", choices=WORK, default=list(WORK))
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="multiply the number of items")
    options = parser.parse_args()
    makers = contenders(options.transports)
    results: dict[tuple[str, str], list[float]] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("", total=len(options.work) * options.repetitions * len(makers))
        for work in options.work:
            measure, item, count, _unit = WORK[work]
            for _ in range(options.repetitions):
                for name, make in makers.items():
                    progress.update(bar, description=f"{work}: {name}")
                    results.setdefault((work, name), []).append(measure(make, item, int(count * options.scale)))
                    progress.advance(bar)
    console = Console(width=110)
    console.print(f"Python {platform.python_version()}, {platform.machine()}, {multiprocessing.cpu_count()} cores")
    for work in options.work:
        unit = WORK[work][3]
        table = Table(title=f"{work} (median of {options.repetitions})", title_justify="left")
        for heading in ("", unit, f"ratio to {REFERENCE}", "lowest", "highest"):
            table.add_column(heading, justify="right" if heading else "left")
        for name in makers:
            mine, reference = results[work, name], results[work, REFERENCE]
            ratios = [one / other for one, other in zip(mine, reference, strict=True)]
            spread = [f"{ratio:.2f}" for ratio in (statistics.median(ratios), min(ratios), max(ratios))]
            table.add_row(name, shown(statistics.median(mine), unit), *spread)
        console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
