"""A world in virtual time, made from a seed: one node, client processes with threads, and a network that misbehaves.

It drives `Broker` and `Client` exactly as the I/O shells do. Nothing in it sleeps or reads a clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from heapq import heappop, heappush
from random import Random
from typing import Final

from fiberq.protocol.device import Device
from fiberq.protocol.kinds import Kind
from fiberq.protocol.members import Member
from sim import promises
from sim.ledger import FIRST_RESULT, Ledger
from sim.node import Node
from sim.plans import Plan, Traffic
from sim.processes import Process, Steps, Thread
from sim.stories import Part, conducting, reading, relieving, writing
from sim.watched import WatchedBroker

CHANNEL: Final = 77
LONGEST: Final = 400.0
"""Seconds of virtual time after which a schedule is taken for stuck."""
PROBE: Final = 0.005
"""Seconds between two looks at who waits."""


class Channel:
    """One channel of a schedule, and how far it is."""

    def __init__(self, place: int, traffic: Traffic) -> None:
        self.number = CHANNEL + place
        self.traffic = traffic
        self.kind = Kind(traffic.kind, traffic.maxsize)
        self.writing: list[Part] = []
        self.reading: list[Part] = []
        self.sources: list[Channel] = []  # whose readers put results into it
        self.attached: set[Process] = set()
        self.revived: set[bytes] = set()  # dead letters that were put back
        self.sealed: int | None = None  # how many items had been accepted when its shutdown was answered
        self.shut = False
        self.over = False  # nobody needs to read any more
        self.relieved = False  # the creator reads only if asked to
        self.finished = False
        self.pending: list[bytes] = []  # accepted, and not known to be done with
        self.looked = 0  # how many of the accepted are in there
        self.waits: list[float] = []


class World:
    """One schedule."""

    def __init__(self, plan: Plan, random: Random) -> None:
        self.plan = plan
        self.random = random
        self.now = 1000.0
        self.events = 0
        self.counts: Counter[str] = Counter()
        self.ledger = Ledger()
        self.broker = WatchedBroker(
            self.ledger,
            max_bytes=plan.max_bytes,
            session_grace=plan.session_grace,
            session_timeout=plan.session_timeout,
        )
        self.broker.on_end = self._member_ends
        self.ended: dict[str, float] = {}  # when the node took a process for dead
        self.blocked: dict[
            tuple[int, int], tuple[float, int]
        ] = {}  # since when a reader waits in vain, and how far it is
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._results = FIRST_RESULT
        self.node = Node(self)
        self.creator = Process(self, 0, plan.grace, mortal=False)
        self.processes = [self.creator]
        self.by_name = {self.creator.name: self.creator}
        self.channels = [Channel(place, traffic) for place, traffic in enumerate(plan.channels)]
        for channel in self.channels:
            if channel.traffic.into is not None:
                self.channels[channel.traffic.into].sources.append(channel)

    # -- time --

    def at(self, when: float, action: Callable[[], None]) -> None:
        self.events += 1
        heappush(self._heap, (when, self.events, action))

    def run(self) -> World:
        self._cast()
        self.creator.start(self._create)
        self.creator.begin()
        self._misfortunes()
        if self.plan.probes:
            self.at(self.now + PROBE, self._probe)
        end = self.now + LONGEST
        while not self._over():
            self.now, _, action = heappop(self._heap)
            self.ledger.now = self.now
            assert self.now < end, self._stuck()
            action()
        promises.check(self)
        return self

    def _stuck(self) -> str:
        open_ = [channel for channel in self.channels if not channel.finished]
        missing = [self.missing(channel)[:2] for channel in open_]
        there = [process.name for process in self.processes if process.there]
        return f"stuck: {[channel.traffic for channel in open_]}; not received: {missing}; there: {there}"

    def _over(self) -> bool:
        return self.creator.closed and not any(process.there for process in self.processes)

    def count(self, what: str) -> None:
        self.counts[what] += 1

    def settle(self) -> None:
        """Let the node find out who is dead."""
        end = self.now + LONGEST
        while self.broker.left_of(set()) and self.now < end and self._heap:
            later = self.now + 0.1
            while self._heap and self._heap[0][0] < later:
                self.now, _, action = heappop(self._heap)
                self.ledger.now = self.now
                action()
            self.now = later

    # -- who is there --

    def _cast(self) -> None:
        """Give the parts to processes; some play several."""
        plan = self.plan
        for channel in self.channels:
            traffic = channel.traffic
            writers: list[Process] = []
            for _ in range(traffic.writers):
                writers.append(self._actor([*writers, self.creator]))
                channel.writing.append(Part(writers[-1]))
            readers: list[Process] = []
            for _ in range(traffic.readers):
                readers.append(self._actor([*readers, self.creator]))
                channel.reading.append(Part(readers[-1], traffic.threads))
        # Where results go on to another channel, that one's end waits for this one's.
        chained = any(traffic.into is not None for traffic in plan.channels)
        for process in self.processes[1:]:
            process.brief = not chained and self.random.random() < plan.goodbye
            process.late = self.random.choice((0.0, 0.01, 0.05)) if self.random.random() < plan.children else None
        self._conductors = [Part(self.creator) for _ in self.channels]

    def _actor(self, taken: list[Process]) -> Process:
        if self.random.random() < self.plan.shared:
            free = [process for process in self.processes if process not in taken]
            if free:
                return self.random.choice(free)
        process = Process(self, len(self.processes), self.plan.grace)
        self.processes.append(process)
        self.by_name[process.name] = process
        return process

    def _create(self, _: Thread) -> Steps:
        creator = self.creator
        for channel in self.channels:
            number = channel.number
            yield from creator.granted(
                op="create", channel=number, kind=channel.kind, max_deliveries=channel.traffic.max_deliveries
            )
            creator.client.kinds[number] = channel.kind
            creator.handles[number, "r"] = creator.handles[number, "w"] = 1
            creator.client.writer(number, channel.kind)
        tokens: dict[str, Process] = {}
        for channel in self.channels:
            manners = channel.traffic.manners
            for part in channel.writing:
                self._hand(part.process, channel, "w", tokens)
                part.process.start(writing(self, channel, part))
            for part in channel.reading:
                self._hand(part.process, channel, "r", tokens)
                for number in range(part.threads):
                    manner = self.random.choice(manners)
                    part.process.start(reading(self, channel, part, number == 0, manner))
        for process in self.processes[1:]:
            self.at(self.now + (process.late or 0.0), process.begin)
        for channel, part in zip(self.channels, self._conductors, strict=True):
            creator.start(conducting(self, channel, part))
            creator.start(relieving(self, channel))
        while tokens and not creator.leaving:  # the lifelines of children
            yield 0.1
            for token, process in list(tokens.items()):
                if not process.there:  # whether it used the handle or not
                    creator.client.tell(creator.now, op="landed", token=token)
                    del tokens[token]

    def _hand(self, process: Process, channel: Channel, side: str, tokens: dict[str, Process]) -> None:
        """Give a process that is yet to start a handle on its way."""
        if process.late is not None and (channel.number, side) not in process.tokens:
            token = f"{process.name} {channel.number} {side}"
            process.tokens[channel.number, side] = token
            tokens[token] = process
            self.creator.client.tell(self.creator.now, op="flight", token=token, holds=[[channel.number, side]])

    def new_item(self, channel: Channel, process: Process, number: int, rest: bytes) -> bytes:
        return b"%d:%d:%d:%b" % (channel.number, process.number, number, rest)

    def next_result(self) -> int:
        self._results += 1
        return self._results

    # -- what goes wrong --

    def _misfortunes(self) -> None:
        plan, random = self.plan, self.random
        mortals = self.processes[1:]
        for _ in range(plan.cuts):
            self._mishap("cuts", random.choice(self.processes).cut)
        for _ in range(plan.doubles):
            victim = random.choice(self.processes)
            unnoticed = random.choice((0.02, 0.2, 1.5))
            self._mishap("doubled connections", lambda victim=victim, t=unnoticed: victim.cut(t))
        for _ in range(plan.partitions):
            group = random.sample(mortals, random.randint(1, len(mortals)))
            seconds = random.choice((0.02, 0.3, 1.0, 4.0))
            breaks = random.random() < 0.5
            self._mishap("partitions", lambda group=group, s=seconds, b=breaks: [each.part(s, b) for each in group])
        for _ in range(plan.kills):
            self._mishap("kills", random.choice(mortals).kill)
        for _ in range(plan.pauses):
            victim, seconds = random.choice(mortals), random.choice((0.01, 0.04, 0.4, 0.7, 1.5, 5.0))
            self._mishap("pauses", lambda victim=victim, s=seconds: victim.pause(s))
        for _ in range(plan.stops):
            seconds = random.choice((0.05, 0.3, 1.5, 5.0))
            self._mishap("stops of the node", lambda s=seconds: self._stop_node(s))
        for _ in range(plan.jumps):
            victim, seconds = random.choice(self.processes), random.choice((0.02, 0.6, 3.0, 1000.0))
            self._mishap("jumps of a clock", lambda victim=victim, s=seconds: victim.jump(s))

    def _mishap(self, name: str, action: Callable[[], object]) -> None:
        def happens() -> None:
            if not self._over():
                self.count(name)
                action()

        self.at(self.now + self.random.uniform(0, self.plan.spread), happens)

    def _stop_node(self, seconds: float) -> None:
        self.node.stop(seconds)

    def _member_ends(self, member: Member) -> None:
        process = self.by_name[member.name]
        if not process.leaving:
            promises.check_end(self, process)
        if not process.leaving or member in self.broker.given_up:  # its goodbye has not arrived
            self.ended[process.name] = self.now

    # -- what is looked at meanwhile --

    def _probe(self) -> None:
        """Look who waits although there are items: at the node, or not started by another."""
        ran = self.node.ran
        for channel in self.channels:
            if not channel.finished and channel.traffic.kind != "push":
                promises.probe(self, channel)
        # Where nothing happens there is nothing new to see.
        self._quiet = min(2 * self._quiet, 0.1) if ran == self._ran else PROBE
        self._ran = ran
        self.at(self.now + self._quiet, self._probe)

    _quiet = PROBE
    _ran = -1

    def missing(self, channel: Channel) -> list[bytes]:
        """Items of which nobody took care."""
        return promises.missing(self, channel, self.ledger.log[channel.number])

    def all_done(self, channel: Channel, final: bool) -> bool:
        """Whether nothing is left to do but to let go."""
        log = self.ledger.log[channel.number]
        channel.pending += log[channel.looked :]
        channel.looked = len(log)
        channel.pending = promises.missing(self, channel, channel.pending)
        device = self.broker.device(channel.number)
        assert device is not None
        if channel.pending and not self._has_any(device):
            raise AssertionError(f"lost: {channel.pending[:3]}")
        if not final:
            return not channel.pending
        if device.dead_letters:
            return False
        if device.unfinished <= (0 if channel.over else self._held(channel)):
            missing = self.missing(channel)
            assert not missing, f"lost: {missing[:3]}"
            return True
        assert self._has_any(device), f"{device.unfinished} items are unfinished, and nobody has them"
        return False

    def _held(self, channel: Channel) -> int:
        """Items that threads hold until they get again, or end."""
        prefix = b"%d:" % channel.number
        processes = {part.process for part in channel.reading if part.process.there}
        return sum(item.startswith(prefix) for each in processes for thread in each.threads for item in thread.holds)

    def _has_any(self, device: Device) -> bool:
        """Whether an item is somewhere from where it may still come."""
        queued = next(device.queued(), None) is not None
        return queued or bool(device.dead_letters) or any(reader.leases for reader in device.readers.values())

    def check_bound(self, channel: Channel) -> None:
        promises.check_bound(self, channel)

    def at_eof(self, channel: Channel) -> None:
        promises.check_eof(self, channel)

    def at_join(self, channel: Channel, before: list[bytes]) -> None:
        promises.check_join(self, channel, before)

    def at_shut(self, channel: Channel) -> None:
        channel.sealed = len(self.ledger.log[channel.number])

    def at_letter(self, channel: Channel, item: bytes, letter: dict[str, object]) -> None:
        promises.check_letter(self, channel, item, letter)

    def at_end(self, channel: Channel) -> None:
        promises.check_channel(self, channel)
