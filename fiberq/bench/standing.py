"""What stands in a node: very many items in a queue, and very many queues."""

from __future__ import annotations

import time
from multiprocessing.connection import Connection
from typing import Any, Final

from fiberq.bench.crew import Crew
from fiberq.bench.memory import own_node, resident
from fiberq.bench.values import Figures, Make, Size
from fiberq.protocol.ints import SIZE
from fiberq.settings import config

STEPS: Final = 10
PROBE: Final = 20_000
"""Items by which the rate of one queue is measured."""


def depth(crew: Crew, make: Make, size: Size) -> Figures:
    """Items per second that are put while nobody gets, and the node's memory; the series is its growth, in bytes."""
    config.max_bytes = 1 << 40
    queue = make()
    step = max(1, size.items // STEPS)
    producer = crew.start("producer 0", fill, queue, step)
    crew.hear(producer)
    node = own_node()
    empty = resident(node)
    seconds, grown = [], []
    for _ in range(STEPS):
        producer.tell()
        seconds.append(crew.hear(producer))
        now = resident(node)
        if now is not None and empty is not None:
            grown.append(float(now - empty))
    extra = {"the last tenth's rate to the first's": seconds[0] / seconds[-1]}
    if grown:
        extra["node's bytes an item, over the payload"] = grown[-1] / (step * STEPS) - SIZE
    return Figures(step * STEPS / sum(seconds), extra, grown)


def fill(talk: Connection[Any, Any], queue: Any, step: int) -> None:
    """Put so many items each time that it is told to, and say how many seconds it took until the node had them."""
    rate(queue, 1)
    talk.send("warm")
    while True:
        talk.recv()
        talk.send(step / rate(queue, step))


def rate(queue: Any, count: int) -> float:
    """Items per second that the node accepts."""
    put = queue.put
    start = time.monotonic()
    for _ in range(count):
        put(7)
    queue.flush()
    return count / max(time.monotonic() - start, 1e-9)


def many_queues(crew: Crew, make: Make, size: Size) -> Figures:  # noqa: ARG001 - all is done in one process
    """Items per second into one of many queues, and into one that is alone."""
    probe = min(PROBE, 100 * size.items)
    lone = make()
    rate(lone, 1)
    before = rate(lone, probe)
    node = own_node()
    empty = resident(node)
    queues = [make() for _ in range(size.items)]
    full = resident(node)
    rate(queues[0], 1)
    after = rate(queues[0], probe)
    start = time.monotonic()
    for queue in queues:
        queue.put(7)
    for queue in queues:
        queue.flush()
    each = size.items / (time.monotonic() - start)
    extra = {"ratio to one alone": after / before, "one item into each, items/s": each}
    if full is not None and empty is not None:
        extra["node's bytes a queue"] = (full - empty) / size.items
    return Figures(after, extra)
