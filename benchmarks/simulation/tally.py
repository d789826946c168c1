"""Schedules, one after the other, and what they come to."""

from __future__ import annotations

import gc
import logging
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from sim import Broken, World, play


@dataclass
class Tally:
    """What many schedules come to."""

    schedules: int = 0
    seconds: float = 0.0  # of processor time
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str]] = field(default_factory=list)

    def add(self, world: World) -> None:
        ledger = world.ledger
        self.schedules += 1
        self.counts.update(world.counts)
        self.counts["items accepted"] += len(ledger.accepted)
        self.counts["items redelivered"] += sum(len(got) > 1 for got in ledger.receivers.values())
        self.counts["recalls enforced"] += len({process for _, process in ledger.taken})
        self.counts["leases"] += len(ledger.settled)
        self.counts["dead letters"] += sum(len(channel.revived) for channel in world.channels)
        self.counts["events"] += world.events
        self.counts["seconds of virtual time"] += int(world.now - 1000.0)
        for channel in world.channels:
            self.counts[f"channels: {channel.traffic.kind}"] += 1

    def merge(self, other: Tally) -> None:
        self.schedules += other.schedules
        self.seconds += other.seconds
        self.counts.update(other.counts)
        self.failures += other.failures


def play_all(seeds: Iterable[int]) -> Tally:
    """Run the schedules of these seeds; a failure does not stop the others."""
    logging.disable()  # the node says whom it takes for dead
    gc.disable()  # a schedule is garbage in one piece
    tally = Tally()
    began = time.process_time()
    for seed in seeds:
        try:
            tally.add(play(seed))
        except Broken as broken:
            tally.schedules += 1
            tally.failures.append((seed, str(broken)))
        if not tally.schedules % 20:
            gc.collect()
    gc.enable()
    tally.seconds = time.process_time() - began
    return tally
