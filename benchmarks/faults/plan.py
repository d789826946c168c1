"""How much happens in a run, and in which order: all of it follows from the seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum


class Fault(str, Enum):
    """What is done to a process, or to a connection, amid traffic."""

    KILL_READER = "kill reader"
    KILL_WRITER = "kill writer"
    STOP_READER = "stop reader"  # for longer than a recall's patience
    STOP_WRITER = "stop writer"
    STOP_NODE = "stop node"
    EXPIRE = "stop past timeout"  # a reader or writer, for longer than the node bears
    GARBAGE = "garbage"
    CUT = "cut"
    CUT_AMID = "cut amid frame"
    STALL = "half-open"


WEIGHTS: dict[Fault, int] = {
    Fault.KILL_READER: 50,
    Fault.KILL_WRITER: 30,
    Fault.STOP_READER: 24,
    Fault.STOP_WRITER: 12,
    Fault.STOP_NODE: 14,
    Fault.EXPIRE: 8,
    Fault.GARBAGE: 16,
    Fault.CUT: 20,
    Fault.CUT_AMID: 14,
    Fault.STALL: 12,
}
"""Out of 200, how many faults are of each kind."""

KILLS: dict[Fault, int] = {Fault.KILL_READER: 60, Fault.KILL_WRITER: 20}
"""What the controls suffer."""

HARMLESS_TO_PIPES: dict[Fault, int] = {
    fault: weight for fault, weight in WEIGHTS.items() if fault is not Fault.KILL_READER
}
"""A pipe's message ends when it is received, so a reader's death takes some with it; that is its promise."""


@dataclass(frozen=True)
class Size:
    """How much of everything a run of one transport and class has."""

    items: int = 1_000_000
    faults: int = 210
    slow_kills: int = 10  # readers that are killed while items take `slow_for`
    readers: int = 3
    writers: int = 2
    pause: float = 0.08  # seconds between faults, on average
    slow_for: float = 0.010
    bound: int = 500  # of bounded queues
    session_timeout: float = 0.9  # just below the second after which the node asks a silent process again
    session_grace: float = 1.0
    patience: float = 10.0  # seconds without progress after which a process is wedged
    limit: float = 600.0  # seconds that a run may take


SHORT = Size(items=8_000, faults=11, slow_kills=1, pause=0.02, session_grace=0.4, patience=8.0, limit=60.0)
CONTROL = Size(items=100_000, faults=40, slow_kills=0, patience=3.0, limit=60.0)
SHORT_CONTROL = Size(items=20_000, faults=12, slow_kills=0, pause=0.02, patience=1.5, limit=30.0)


def deal(weights: dict[Fault, int], count: int, rng: random.Random) -> list[Fault]:
    """`count` faults in random order, each kind as often as its weight says, and once at least where that fits."""
    total = sum(weights.values())
    shares = {fault: max(1, round(count * weight / total)) for fault, weight in weights.items()}
    faults = [fault for fault, share in shares.items() for _ in range(share)]
    while len(faults) < count:
        faults.append(max(weights, key=lambda each: weights[each] * rng.random()))
    rng.shuffle(faults)
    return faults if count >= len(weights) else faults[:count]
