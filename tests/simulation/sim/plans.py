"""What one schedule is to be: its queues and pipes, who uses them, and what goes wrong meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from random import Random
from typing import Any


@dataclass
class Traffic:
    """What happens on one channel. Each time something is to be done, one of the given values is chosen."""

    kind: str = "pull"
    maxsize: int = 0
    writers: int = 2
    readers: int = 2
    threads: int = 1  # of each reader
    items: int = 60  # of each writer
    burst: int = 10
    work: tuple[float, ...] = (0.0,)
    fixed: bool = False  # each writer's items take those times in turn
    pace: tuple[float, ...] = (0.0,)
    timeouts: tuple[float | None, ...] = (None,)  # of `get`
    patience: tuple[float | None, ...] = (None,)  # of `put`
    padding: int = 0
    large: float = 0.0
    manners: tuple[str, ...] = ("get",)  # how readers get: "get", "many", "poll", "listen", "lease"
    durations: tuple[float | None, ...] = (None,)  # of leases
    failing: float = 0.0  # of the leases, how many go back as failed
    max_deliveries: int | None = None
    into: int | None = None  # readers put a result for each item into that channel
    end: str = "stop"  # or "shut", "drop"
    shut_early: bool = False  # while writers still put
    wait_for_readers: bool = False

    @classmethod
    def random(cls, random: Random, latency: float, large: bool) -> Traffic:
        kind = random.choice(("pull", "pull", "pull", "push", "pipe", "joinable"))
        traffic = cls(
            kind=kind,
            writers=random.choice((2, 3) if large else (1, 1, 2)),
            readers=random.choice((2, 3, 4) if large else (1, 2, 2, 3)),
            threads=random.choice((1, 1, 1, 2, 3)),
            items=random.choice((30, 60, 200) if large else (1, 3, 8, 20)),
            burst=random.choice((1, 3, 50, 300)),
            work=random.choice(
                (
                    (0.0,),
                    (0.00001,),
                    (0.0002, 0.001),
                    (0.0, 0.0, 0.0, 0.03),
                    (0.00001, 0.00001, 0.2),
                    (0.00001,) * 200 + (0.3,),
                    (0.01, 0.015),
                )
            ),
            pace=random.choice(((0.0,), (0.0, 0.0005), (0.002,), (0.0, 0.1))),
            padding=random.choice((0, 0, 0, 100, 3000)),
            large=random.choice((0.0, 0.0, 0.0, 0.1, 0.5)),
        )
        if kind in ("pull", "joinable"):
            traffic.maxsize = random.choice((0, 0, 1, 3, 20, 1000))
            traffic.patience = random.choice(((None,), (None, 0.0, 0.01)))
        # A reader that never waits for as long as a round trip takes gets nothing: what comes late goes back.
        long = 6 * latency
        traffic.timeouts = random.choice(((None,), (None,), (0.0, long / 6, long, None), (long / 2, long)))
        manners = ["get", "many", "poll", "listen"]
        if kind in ("pull", "push"):
            manners.append("lease")
            traffic.durations = random.choice(((None,), (None, 0.05, 0.5), (1.0,)))
            traffic.failing = random.choice((0.0, 0.0, 0.1))
        traffic.manners = random.choice((("get",), ("get",), tuple(random.sample(manners, 2))))
        if kind != "pipe":
            traffic.max_deliveries = random.choice((None, None, 1, 2))
            traffic.end = random.choice(("stop", "stop", "stop", "shut", "drop"))
            traffic.shut_early = traffic.end != "stop" and random.random() < 0.3
        return traffic


FAULTS = ("drop", "repeat", "cut", "double", "partition", "kill", "pause", "stop node", "jump")


@dataclass
class Plan:
    """One schedule. Probabilities are per message; what is counted happens so often, at some time."""

    channels: tuple[Traffic, ...] = field(default_factory=lambda: (Traffic(),))
    shared: float = 0.0  # how often a process that is there already takes one more part
    children: float = 0.0  # how many of the processes begin later, with handles that were in flight
    latency: float = 0.0005
    drop: float = 0.0
    repeat: float = 0.0
    cuts: int = 0
    doubles: int = 0  # cuts that the node does not notice until the next connection stands
    partitions: int = 0
    kills: int = 0
    pauses: int = 0
    stops: int = 0  # of the node
    jumps: int = 0  # of the clients' clocks
    spread: float = 0.1  # seconds within which all that happens
    session_grace: float = 2.0
    session_timeout: float = 30.0
    max_bytes: int = 1 << 30
    grace: bool = True
    probes: bool = True  # somebody looks meanwhile who waits in vain
    goodbye: float = 1.0  # how many processes only say goodbye, and do not let go of each queue before

    @property
    def faults(self) -> bool:
        """Whether anything goes wrong that takes time to mend."""
        return bool(
            self.drop or self.cuts or self.doubles or self.partitions or self.kills or self.pauses or self.stops
        )

    @property
    def quiet(self) -> bool:
        """Whether all messages arrive in time, although processes may die."""
        return not (self.drop or self.cuts or self.doubles or self.partitions or self.pauses or self.stops)

    @classmethod
    def of(cls, kind: str, **settings: Any) -> Plan:
        """One channel."""
        names = {one.name for one in fields(Traffic)}
        mine = {name: settings.pop(name) for name in list(settings) if name in names}
        return cls((Traffic(kind, **mine),), **settings)

    @classmethod
    def random(cls, random: Random, certain: Sequence[str] = ()) -> Plan:
        """Any plan, where the faults of `certain` happen, and others may. "chain": results go on; "lease": items are
        leased by name, some for too short; "bound": queues are small; "ahead": readers ask ahead, and then are slow."""
        latency = random.choice((0.0001, 0.001, 0.001, 0.01))
        chained = "chain" in certain
        number = 2 if chained else random.choice((1, 1, 1, 2, 2, 3))
        large = random.random() < 0.07
        plan = cls(
            tuple(Traffic.random(random, latency, large) for _ in range(number)),
            shared=random.choice((0.0, 0.3, 0.8)),
            children=random.choice((0.0, 0.0, 0.3)),
            latency=latency,
            spread=random.choice((0.01, 0.1, 0.5)),
            grace=random.random() < 0.75,
            goodbye=random.choice((0.0, 0.5, 1.0)),
        )
        for traffic in plan.channels:
            if "lease" in certain and traffic.kind in ("pull", "push"):
                traffic.manners, traffic.durations, traffic.work = ("lease",), (0.05,), (0.00001, 0.2)
            if "ahead" in certain:
                traffic.kind, traffic.maxsize, traffic.readers, traffic.threads = "pull", 0, 3, 1
                traffic.items, traffic.burst, traffic.end = 100, 300, "stop"
                traffic.manners, traffic.timeouts, traffic.work = ("get",), (None,), (0.00001,) * 20 + (0.5,)
            if "bound" in certain and traffic.kind in ("pull", "joinable"):
                traffic.maxsize = random.choice((1, 3))
        for place, traffic in enumerate(plan.channels[:-1]):
            if traffic.kind != "pipe" and (chained or random.random() < 0.4):
                traffic.into = random.randrange(place + 1, number)
                traffic.threads = 1
                plan.channels[traffic.into].shut_early = False
                plan.channels[traffic.into].end = "stop"
        # Who waits without getting still holds what it got; so little memory would then be full of that forever.
        if all(set(traffic.manners) <= {"get", "many"} for traffic in plan.channels):
            plan.max_bytes = random.choice((1 << 30, 5000))
        for fault in (*certain, *random.sample(FAULTS, random.choice((0, 1, 1, 2, 3, 4)))):
            plan.add(fault, random)
        if plan.drop:  # each lost message costs a second, and the clients look meanwhile
            for traffic in plan.channels:
                traffic.items = min(traffic.items, 30)
        plan.session_timeout = random.choice((2.0, 30.0)) if not plan.drop else 30.0
        plan.session_grace = random.choice((0.3, 2.0)) if not plan.drop else 10.0
        return plan

    def add(self, fault: str, random: Random) -> None:
        if fault == "drop":
            self.drop = random.choice((0.01, 0.05))
        elif fault == "repeat":
            self.repeat = random.choice((0.05, 0.5))
        elif fault == "cut" and self.grace:
            self.cuts = random.randint(1, 6)
        elif fault == "double" and self.grace:
            self.doubles = random.randint(1, 6)
        elif fault == "partition" and self.grace:
            self.partitions = random.randint(1, 2)
        elif fault == "kill":
            self.kills = random.randint(1, 3)
        elif fault == "pause":
            self.pauses = random.randint(1, 4)
        elif fault == "stop node":
            self.stops = random.randint(1, 2)
        elif fault == "jump":
            self.jumps = random.randint(1, 4)
