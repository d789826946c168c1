"""What is measured. Each function runs in a process of its own, which makes the queues and starts the others.

Starting up is not timed: all processes have used their queue once before the clock starts.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from multiprocessing.connection import Connection
from typing import Any, Final, NamedTuple

from fiberq.bench.contenders import QUEUE, SIMPLE_QUEUE, attach
from fiberq.bench.crew import Crew, Member
from fiberq.bench.skew import skewed
from fiberq.bench.standing import depth, many_queues
from fiberq.bench.values import Figures, Make, Size, percentile

BATCH: Final = 1000
"""Items of one `put_many`, and the most of one `get_many`."""


class Work(NamedTuple):
    """`reference`: what the figures are compared to. `spreads`: whether the numbers of processes can be chosen."""

    title: str
    measure: Callable[[Crew, Make, Size], Figures]
    items: int
    unit: str
    reference: str | None = SIMPLE_QUEUE
    spreads: bool = False
    lower: bool = False
    """Whether less is better."""


def array() -> Any:
    import numpy

    return numpy.arange(1_000_000, dtype=float)  # not zeros, which would have no memory of their own


PAYLOADS: Final[dict[str, Callable[[], Any]]] = {
    "int": lambda: 7,
    "dict": lambda: {
        "id": 123_456_789,
        "name": "an item",
        "price": 12.5,
        "tags": ["new", "red", "small"],
        "open": True,
    },
    "1KB": lambda: b"x" * 1_000,
    "4KB": lambda: b"x" * 4_000,
    "20KB": lambda: b"x" * 20_000,
    "64KB": lambda: b"x" * 65_536,
    "1MB": lambda: b"x" * 1_000_000,
    "array": array,
}


def throughput(payload: str, batch: int, crew: Crew, make: Make, size: Size) -> Figures:
    """Items per second, from producers to consumers."""
    queue = make()
    share = max(1, 2 * batch, size.items // size.producers)  # what comes after the first batch is timed
    total, warm = share * size.producers, size.producers
    counts = crew.context.RawArray("q", size.consumers)
    alone = size.consumers == 1
    taking = (
        [crew.start("consumer 0", consume_all, queue, warm, total, batch)]
        if alone
        else [
            crew.start(f"consumer {number}", consume_some, queue, counts, number, batch)
            for number in range(size.consumers)
        ]
    )
    making = [
        crew.start(f"producer {number}", produce, queue, payload, share, batch) for number in range(size.producers)
    ]
    everyone(crew, taking)
    for member in making:
        member.tell()
    everyone(crew, making)
    if alone:
        crew.hear(taking[0])
    else:
        crew.until(lambda: sum(counts) >= warm)
    start = time.monotonic()
    for member in making:
        member.tell()
    if alone:
        items, seconds = crew.hear(taking[0])
        return Figures(items / seconds)
    crew.until(lambda: sum(counts) >= warm + total)
    return Figures(total / (time.monotonic() - start))


def everyone(crew: Crew, members: list[Member]) -> None:
    """Hear something of each."""
    for member in members:
        crew.hear(member)


def produce(talk: Connection[Any, Any], queue: Any, payload: str, share: int, batch: int) -> None:
    item = PAYLOADS[payload]()
    talk.recv()
    queue.put(item)
    talk.send("warm")
    talk.recv()
    if batch and hasattr(queue, "put_many"):
        for first in range(0, share, batch):
            queue.put_many([item] * min(batch, share - first))
    else:
        put = queue.put
        for _ in range(share):
            put(item)


def consume_all(talk: Connection[Any, Any], queue: Any, warm: int, total: int, batch: int) -> None:
    """Say in how many seconds how many items came, from the first on."""
    attach(queue)
    talk.send("attached")
    get = queue.get
    for _ in range(warm):
        get()
    talk.send("warm")
    if batch and hasattr(queue, "get_many"):
        get_many = queue.get_many
        left = timed = total - len(get_many(batch))
        first = time.monotonic()
        while left > 0:
            left -= len(get_many(batch))
    else:
        get()
        first, timed = time.monotonic(), total - 1
        for _ in range(timed):
            get()
    talk.send((timed, max(time.monotonic() - first, 1e-9)))


def consume_some(talk: Connection[Any, Any], queue: Any, counts: Any, number: int, batch: int) -> None:
    """Count in `counts` what comes, which others share: so nobody knows how much will, and it goes on until the end."""
    attach(queue)
    talk.send("attached")
    mine = memoryview(counts).cast("B").cast("q")  # that is set in half the time
    if batch and hasattr(queue, "get_many"):
        get_many, count = queue.get_many, 0
        while True:
            count += len(get_many(batch))
            mine[number] = count
    get = queue.get
    for count in itertools.count(1):
        get()
        mine[number] = count


def ping_pong(crew: Crew, make: Make, size: Size) -> Figures:
    """Microseconds of a lone item's round trip."""
    there, back = make(), make()
    echoes = crew.start("echo", echo, there, back)
    crew.hear(echoes)
    times = crew.hear(crew.start("ping", ping, there, back, size.items))
    latencies = [percentile(times, each) * 1e6 for each in range(101)]
    return Figures(latencies[50], {"p99, us": latencies[99]}, latencies)


def echo(talk: Connection[Any, Any], there: Any, back: Any) -> None:
    attach(there)
    talk.send("attached")
    while True:
        back.put(there.get())


def ping(talk: Connection[Any, Any], there: Any, back: Any, count: int) -> None:
    attach(back)
    warm, times = min(100, count), []
    for _ in range(warm + count):
        start = time.perf_counter()
        there.put(7)
        back.get()
        times.append(time.perf_counter() - start)
    talk.send(times[warm:])


def missing(work: str) -> str | None:
    """The module that this work needs and that is not installed."""
    return "numpy" if work == "array" and find_spec("numpy") is None else None


def _through(title: str, payload: str, count: int, unit: str = "k items/s", batch: int = 0) -> Work:
    return Work(title, partial(throughput, payload, batch), count, unit, spreads=True)


WORK: Final[dict[str, Work]] = {
    "ints": _through("small ints, put and get one by one", "int", 300_000),
    "batches": _through(f"small ints, put_many and get_many of {BATCH}", "int", 600_000, batch=BATCH),
    "dict": _through("a dict, 100 bytes pickled", "dict", 200_000),
    "1KB": _through("1 KB bytes", "1KB", 200_000),
    "4KB": _through("4 KB bytes", "4KB", 100_000),
    "20KB": _through("20 KB bytes", "20KB", 40_000),
    "64KB": _through("64 KB bytes", "64KB", 20_000, "items/s"),
    "1MB": _through("1 MB bytes", "1MB", 2_000, "items/s"),
    "array": _through("an array of 8 MB (float64)", "array", 200, "items/s"),
    "ping-pong": Work("ping-pong of a lone item", ping_pong, 2_000, "us", QUEUE, lower=True),
    "skew": Work("skewed work, 8 workers: the last is done", skewed, 400, "s", lower=True),
    "depth": Work("items put while nobody gets", depth, 10_000_000, "k items/s", None),
    "queues": Work("put into one of many queues", many_queues, 10_000, "k items/s", None),
}
