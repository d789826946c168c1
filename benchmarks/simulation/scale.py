"""What many readers cost: balance, messages, and the node's processor time for an item, in virtual time."""

from __future__ import annotations

import gc
import heapq
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from sim import Plan, World
from sim.ledger import source

READERS: Final = (10, 100, 1_000, 10_000)

EACH: Final = 10
"""Items for each reader."""

LEAST: Final = 2_000
"""Items at least."""

WRITERS: Final = 4

UNIFORM: Final = (0.02,)
SKEWED: Final = (0.005,) * 9 + (0.155,)
"""Seconds that an item takes; both come to 20 ms on average."""

HEADINGS: Final = (
    "queue",
    "work",
    "readers",
    "items",
    "items of a reader, least/most",
    "time / list scheduling",
    "messages to the node, an item",
    "from the node, an item",
    "items a delivery",
    "node, us an item",
)


class Measured(World):
    """Counts what the node is sent and sends, and how long its broker is busy with that."""

    def __init__(self, plan: Plan, random: Random) -> None:
        super().__init__(plan, random)
        self.busy = 0.0
        for name in ("message", "output", "due", "lost"):
            setattr(self.broker, name, self._timed(name))

    def _timed(self, name: str) -> Any:
        method, clock = getattr(self.broker, name), time.process_time
        counts = self.counts

        def timed(*arguments: Any) -> Any:
            began = clock()
            result = method(*arguments)
            self.busy += clock() - began
            counts[name] += len(result) if name == "output" else 1
            return result

        return timed


@dataclass
class Cost:
    """One row."""

    kind: str
    work: str
    readers: int
    items: int
    least: int
    most: int
    stretch: float
    messages_in: float
    messages_out: float
    batch: float
    micros: float

    def row(self) -> list[str]:
        return [
            self.kind,
            self.work,
            f"{self.readers:,}",
            f"{self.items:,}",
            f"{self.least:,} / {self.most:,}",
            f"{self.stretch:.2f}",
            f"{self.messages_in:.2f}",
            f"{self.messages_out:.2f}",
            f"{self.batch:.2f}",
            f"{self.micros:.0f}",
        ]


def measure(kind: str, work: str, readers: int) -> Cost:
    """Run one queue with so many readers, which are all there when the first item comes."""
    random = Random(readers)
    seconds = list(UNIFORM if work == "uniform" else SKEWED * 100)
    random.shuffle(seconds)
    items = max(LEAST, EACH * readers)
    plan = Plan.of(
        kind,
        writers=WRITERS,
        readers=readers,
        items=items // WRITERS,
        burst=100,
        work=tuple(seconds),
        fixed=True,
        wait_for_readers=True,
        latency=0.0001,
        probes=False,
        session_timeout=1e6,
    )
    world = Measured(plan, random)
    gc.collect()
    gc.disable()
    world.run()
    gc.enable()
    shares = Counter(got.process for got in world.ledger.got)
    first = min(got.at for got in world.ledger.got)
    last = max(world.ledger.finished.values())
    log = world.ledger.log[world.channels[0].number]
    best = list_scheduling((seconds[source(item)[1] % len(seconds)] for item in log), readers)
    counts = world.counts
    return Cost(
        kind,
        work,
        readers,
        items,
        min(shares.values()) if len(shares) == readers else 0,
        max(shares.values()),
        (last - first) / best,
        counts["message"] / items,
        counts["output"] / items,
        items / max(world.ledger.deliveries, 1),
        1e6 * world.busy / items,
    )


def list_scheduling(times: Iterable[float], readers: int) -> float:
    """How long it takes when each item, in order, goes to whoever is free first, and nothing else takes time."""
    free = [0.0] * readers
    for seconds in times:
        heapq.heapreplace(free, free[0] + seconds)
    return max(free)


def show(readers: Sequence[int], console: Console) -> None:
    table = Table(*HEADINGS)
    for column in table.columns[2:]:
        column.justify = "right"
    with console.status("") as status:
        for kind in ("pull", "push"):
            for work in ("uniform", "skewed"):
                for number in readers:
                    status.update(f"{kind}, {work}, {number:,} readers")
                    table.add_row(*measure(kind, work, number).row())
    console.print(table)
