"""A world in virtual time, made from a seed: one node, client processes with threads, and a network that misbehaves.

It drives `Broker` and `Client` exactly as the I/O shells do, writes down what was put and what came out, and can say
afterwards whether a promise was broken. Nothing in it sleeps or reads a clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from random import Random
from typing import Any, Final, TypeAlias

from fiberq.abc import Buffer
from fiberq.driven import HEARTBEAT, LULL
from fiberq.errors import NodeError
from fiberq.protocol.batch import Run
from fiberq.protocol.broker import Broker
from fiberq.protocol.client import Client, Request
from fiberq.protocol.device import Device, Key, Memory, Send
from fiberq.protocol.device import Reader as Lessee
from fiberq.protocol.frames import Items, split
from fiberq.protocol.kinds import Kind
from fiberq.protocol.pull import PullDevice
from fiberq.protocol.push import PushDevice
from fiberq.protocol.reader import FRESH, Reader
from fiberq.protocol.session import drain
from fiberq.protocol.writer import Writer

CHANNEL: Final = 77
LONGEST: Final = 200.0
"""Seconds of virtual time after which a schedule is taken for stuck."""
LONGEST_WAIT: Final = 0.040
"""Seconds that a reader may wait while there are items that nobody has started, beside what the network takes."""

Message: TypeAlias = "tuple[Buffer, ...]"
Steps: TypeAlias = "Generator[float | None, None, None]"
"""A thread: it yields the seconds that it sleeps, negative ones for 'or until there is news', `None` for news only."""


@dataclass
class Plan:
    """What happens in one schedule. Probabilities are per message, rates per second of virtual time."""

    kind: str = "pull"
    maxsize: int = 0
    writers: int = 2
    readers: int = 2
    threads: int = 1
    items: int = 60
    burst: int = 10
    work: tuple[float, ...] = (0.0,)
    pace: tuple[float, ...] = (0.0,)
    timeouts: tuple[float | None, ...] = (None,)
    padding: int = 0
    large: float = 0.0
    latency: float = 0.0005
    drop: float = 0.0
    repeat: float = 0.0
    cuts: int = 0
    kills: int = 0
    pauses: int = 0
    max_bytes: int = 1 << 30
    grace: bool = True
    wait_for_readers: bool = False
    goodbye: bool = True

    @property
    def duplicates(self) -> bool:
        """Whether an item that a recall took back unasked may come out twice."""
        return bool(self.drop or self.pauses or self.kills)

    @classmethod
    def random(cls, random: Random) -> Plan:
        plan = cls(
            kind=random.choice(("pull", "pull", "push", "pipe", "joinable")),
            writers=random.randint(1, 3),
            readers=random.randint(1, 4),
            threads=random.choice((1, 1, 1, 2, 3)),
            items=random.choice((5, 30, 150, 300)),
            burst=random.choice((1, 3, 50, 300)),
            work=random.choice(
                (
                    (0.0,),
                    (0.00001,),
                    (0.0002, 0.001),
                    (0.0, 0.0, 0.0, 0.03),
                    (0.00001, 0.00001, 0.2),
                    (0.00001,) * 200 + (0.3,),
                )
            ),
            pace=random.choice(((0.0,), (0.0, 0.0005), (0.002,), (0.0, 0.1))),
            padding=random.choice((0, 0, 100, 3000)),
            large=random.choice((0.0, 0.0, 0.1, 0.5)),
            latency=random.choice((0.0001, 0.001, 0.01)),
            max_bytes=random.choice((1 << 30, 1 << 30, 5000)),
            grace=random.random() < 0.6,
            goodbye=random.random() < 0.5,
        )
        if plan.kind in ("pull", "joinable"):
            plan.maxsize = random.choice((0, 0, 1, 3, 20, 1000))
        # A reader that never waits for as long as a round trip takes gets nothing: what comes late goes back.
        long = 6 * plan.latency
        plan.timeouts = random.choice(((None,), (None,), (0.0, long / 6, long, None), (long / 2, long)))
        for fault in random.sample(("drop", "repeat", "cut", "kill", "pause"), random.choice((0, 1, 1, 2, 3))):
            if fault == "drop":
                plan.drop = random.choice((0.01, 0.05))
            elif fault == "repeat":
                plan.repeat = random.choice((0.05, 0.5))
            elif fault == "cut" and plan.grace:
                plan.cuts = random.randint(1, 6)
            elif fault == "kill":
                plan.kills = random.randint(1, 3)
            elif fault == "pause":
                plan.pauses = random.randint(1, 4)
        return plan


@dataclass
class Ledger:
    """What happened to the items."""

    put: dict[bytes, int] = field(default_factory=dict)  # item -> its writer's process
    accepted: Counter[bytes] = field(default_factory=Counter)
    taken: set[bytes] = field(default_factory=set)  # were taken back from a reader that did not answer
    perished: set[bytes] = field(default_factory=set)  # pipe messages that a process had when it died
    got: list[tuple[bytes, int]] = field(default_factory=list)  # with the reader's process
    inside: dict[bytes, int] = field(default_factory=dict)  # put, by its writer's process, and never got
    finished: set[tuple[bytes, int]] = field(default_factory=set)

    def receivers(self) -> dict[bytes, list[int]]:
        receivers: dict[bytes, list[int]] = {}
        for item, process in self.got:
            receivers.setdefault(item, []).append(process)
        return receivers


def contents(run: Run) -> list[bytes]:
    """The items of a run."""
    if run.batch.parts:
        return [b"".join(run.batch.parts)]
    return [bytes(item) for item in split(Items(run.lengths(), run.payload(), ()))]


def whole(item: Buffer | Sequence[Buffer]) -> bytes:
    """An item as a reader gets it, in one piece."""
    return b"".join(item) if isinstance(item, (list, tuple)) else bytes(item)  # type: ignore[arg-type]


class WatchedPull(PullDevice):
    ledger: Ledger

    def put(self, key: Key, items: Items, now: float) -> None:
        self.ledger.accepted.update(contents(Run.of(items)))
        super().put(key, items, now)

    def lost(self, key: Key, now: float) -> None:
        reader = self.readers.get(key)
        if reader is not None and not self.kind.keeps:
            for lease in reader.leases:
                self.ledger.perished.update(contents(lease.run))
        super().lost(key, now)

    def _take_all_back(self, reader: Lessee, now: float) -> None:
        for lease in reader.leases:
            self.ledger.taken.update(contents(lease.run))
        super()._take_all_back(reader, now)


class WatchedPush(PushDevice):
    ledger: Ledger

    def put(self, key: Key, items: Items, now: float) -> None:
        self.ledger.accepted.update(contents(Run.of(items)))
        super().put(key, items, now)


class WatchedBroker(Broker):
    def __init__(self, ledger: Ledger, **settings: Any) -> None:
        self.ledger = ledger
        super().__init__("node", **settings)

    def _device(self, number: int, kind: Kind) -> Device:
        make: Callable[[int, Kind, Send, Memory, int], WatchedPull | WatchedPush]
        make = WatchedPush if kind.pushed else WatchedPull
        device = make(number, kind, self._send, self.memory, self._max_deliveries)
        device.ledger = self.ledger
        return device

    def expire(self, name: str) -> None:
        """Give a process up at once that lost its connection."""
        self._end(self._members[name])

    def device(self) -> Device | None:
        channel = self._channels.get(CHANNEL)
        return None if channel is None else channel.device


class Connection:
    """Carries messages both ways in order, while it is whole."""

    def __init__(self, world: World, process: Process) -> None:
        self.world = world
        self.process = process
        self.whole = True
        self.noticed = False  # the node was told that it broke
        self.still_arriving = False  # what was on its way to the node when it broke arrives
        self._up_at = self._down_at = 0.0

    def up(self, message: Message) -> None:
        for _ in range(self._copies()):
            self._up_at = max(self._up_at, self.world.now + self._latency())
            self.world.at(self._up_at, lambda: self._arrive_up(message))

    def down(self, message: Message) -> None:
        for _ in range(self._copies()):
            self._down_at = max(self._down_at, self.world.now + self._latency())
            self.world.at(self._down_at, lambda: self.process.awake(lambda: self._arrive_down(message)))

    def cut(self) -> None:
        """Break. The node notices, and so does the client."""
        if not self.whole:
            return
        world = self.world
        self.whole = False
        self.still_arriving = world.random.random() < 0.5
        world.at(world.now + world.random.uniform(0, 0.005), self._notice)
        world.at(world.now + world.random.uniform(0, 0.020), lambda: self.process.awake(self._client_notices))

    def _client_notices(self) -> None:
        self.process.disconnected(self)

    def _notice(self) -> None:
        self.noticed = True
        self.world.broker.lost(self, self.world.now)
        self.world.node_ran()

    def _arrive_up(self, message: Message) -> None:
        if self.whole or (self.still_arriving and not self.noticed):
            self.world.broker.message(self, message, self.world.now)
            self.world.node_ran()

    def _arrive_down(self, message: Message) -> None:
        if self.whole:
            self.process.message(message)

    def _latency(self) -> float:
        return self.world.random.uniform(0.2, 2.0) * self.world.plan.latency

    def _copies(self) -> int:
        chance = self.world.random.random()
        if not self.whole or chance < self.world.plan.drop:
            return 0
        return 2 if chance > 1 - self.world.plan.repeat else 1


class Thread:
    def __init__(self, steps: Steps) -> None:
        self.steps = steps
        self.turn = 0  # a wake-up for an earlier turn is stale
        self.listens = False
        self.item: bytes | None = None


class Process:
    """A client process: what `link` does, on virtual time."""

    def __init__(self, world: World, number: int, grace: bool) -> None:
        self.world = world
        self.number = number
        self.alive = True
        self.closed = False
        self.leaving = False
        self.client = Client(f"process {number}", grace)
        self.threads: list[Thread] = []
        self.running = 0
        self.blocked_since: float | None = None
        self.reached: int | None = None  # how far its reader was when last looked at
        self.look_at = 0.0  # when the I/O thread looks at the clocks of the protocol
        self._paused_until = 0.0
        self._timer = float("inf")
        self._connection = Connection(world, self)
        self._connect()
        self._greet_again()

    @property
    def session_busy(self) -> int:
        return self.client.session.busy

    # -- life --

    def awake(self, action: Callable[[], None]) -> None:
        """Do something as soon as this process is not stopped, if it still lives."""
        if self.world.now < self._paused_until:
            self.world.at(self._paused_until, lambda: self.awake(action))
        elif self.alive:
            action()

    def pause(self, seconds: float) -> None:
        self._paused_until = max(self._paused_until, self.world.now + seconds)

    def kill(self) -> None:
        if not self.world.stopping:
            self.alive = False
            self._connection.cut()

    def cut(self) -> None:
        self._connection.cut()

    def disconnected(self, connection: Connection) -> None:
        if connection is self._connection and not self.closed:
            self.client.session.disconnect()
            self._connection = Connection(self.world, self)
            self._connection.whole = False
            later = self.world.now + self.world.random.choice((0.0, 0.01, 0.3, 1.0))
            self.world.at(later, lambda: self.awake(self._connect))

    def _connect(self) -> None:
        self._connection.whole = True
        self._greet()

    def _greet(self) -> None:
        self.client.hello()
        self.transmit()

    def _greet_again(self) -> None:
        if self._connection.whole and not self.client.welcomed:
            self._greet()
        self.world.at(self.world.now + 1.0, lambda: self.awake(self._greet_again))

    def idle(self) -> None:
        """What the I/O thread does: soon again if there is more to do, or after a caller has stopped waiting."""
        if not self.closed and self.world.now >= self.look_at:
            left = self.client.idle(self.world.now)
            self.look_at = self.world.now + (LULL if left else HEARTBEAT)
            self.transmit()

    # -- messages --

    def message(self, message: Message) -> None:
        if self.closed:
            return
        try:
            self.client.message(message, self.world.now)
        except NodeError:
            if not self.leaving:
                raise
            self.closed = True  # its goodbye had arrived
        self.transmit()
        self.news()
        if not any(reader.waiting for reader in self.client.readers.values()):
            self.look_at = self.world.now  # nobody else drives

    def transmit(self) -> None:
        session, now = self.client.session, self.world.now
        if session.due() <= now:
            session.tick(now)
        for message in drain(session):
            self._connection.up(message)
        if session.due() < self._timer:
            self._timer = session.due()
            self.world.at(self._timer, lambda: self.awake(self._ring))

    def _ring(self) -> None:
        if self._timer <= self.world.now:
            self._timer = float("inf")
            self.transmit()

    def news(self) -> None:
        """Wake the threads that wait, if there is something for any of them."""
        changed, self.client.changed = self.client.changed, []
        for thread in self.threads if changed or self.world.stopping or self.closed else ():
            if thread.listens:
                thread.listens = False
                self._wake(thread, self.world.random.choice((0.0, 0.00001, 0.0001)))

    # -- threads --

    def start(self, steps: Callable[[Thread], Steps]) -> None:
        thread = Thread(iter(()))  # type: ignore[arg-type]
        thread.steps = steps(thread)
        self.threads.append(thread)
        self.running += 1
        self._wake(thread, 0.0)

    def _wake(self, thread: Thread, after: float) -> None:
        turn = thread.turn

        def go() -> None:
            if thread.turn == turn:
                thread.turn += 1
                self._step(thread)

        self.world.at(self.world.now + after, lambda: self.awake(go))

    def _step(self, thread: Thread) -> None:
        thread.listens = False
        try:
            pause = next(thread.steps)
        except StopIteration:
            self.running -= 1
            self.transmit()
            return
        self.transmit()
        thread.listens = pause is None or pause < 0
        if pause is not None:
            self._wake(thread, abs(pause))

    # -- what threads do --

    def ask(self, **question: Any) -> Steps:
        request: Request = self.client.request(self.world.now, **question)
        while request.answer is None:
            yield None
        assert "error" not in request.answer, request.answer

    def permit(self, writer: Writer) -> Steps:
        """Take a slot of a bounded queue."""
        permits, session = writer.permits, self.client.session
        if permits is None:
            return
        waited = not permits.free
        if waited:
            permits.waiting += 1
            while not permits.free:
                permits.ask(session, self.world.now)
                yield None
            permits.waiting -= 1
        permits.free.pop()
        permits.taken(session, self.world.now, waited)

    def put(self, writer: Writer, item: bytes | tuple[Buffer, ...]) -> None:
        ledger, data = self.world.ledger, item if isinstance(item, bytes) else b"".join(item)
        ledger.put[data] = ledger.inside[data] = self.number
        self.world.check_bound()
        writer.items.append(item)
        if not writer.full:
            self.client.pump(writer, self.world.now)

    def flush(self, writer: Writer) -> Steps:
        while True:
            self.client.pump(writer, self.world.now, urgent=True)
            if writer.settled(self.client.session):
                return
            yield None

    def get(self, reader: Reader, thread: Thread, timeout: float | None) -> Steps:
        """Leave the next item in `thread.item`; `None` after `timeout`, or at the end."""
        world, session = self.world, self.client.session
        if thread.item is not None:
            if reader.kind.joins:
                assert reader.done(id(thread)) is not None
                reader.progress_later(session, world.now)
            world.ledger.finished.add((thread.item, self.number))
            thread.item = None
        if reader.ready and world.now > reader.fresh_until:
            reader.progress(session, world.now)
            reader.fresh_until = world.now + FRESH
        deadline = None if timeout is None else world.now + timeout
        waited = False
        while True:
            got = reader.take(id(thread))
            if got is not None:
                thread.item = whole(got[1])
                world.ledger.got.append((thread.item, self.number))
                world.ledger.inside.pop(thread.item, None)
            if got is not None or reader.ended or world.stopping or (deadline is not None and world.now >= deadline):
                break
            if not waited:
                waited = True
                reader.waiting += 1
            reader.ask(session, world.now)
            yield None if deadline is None else -max(deadline - world.now, 1e-9)
        if waited:
            self.look_at = min(self.look_at, world.now + LULL)
            reader.waiting -= 1
            if got is None:
                reader.cancel(session, world.now)
            else:
                reader.arrived(world.now)
        if got is not None and len(reader.ready) < reader.low:
            reader.ask_ahead(session, world.now)

    def close(self, goodbye: bool) -> Steps:
        """Let go of everything; what this process put was flushed."""
        now = self.world.now
        if not goodbye:
            self.client.writers.pop(CHANNEL, None)
            self.client.release(CHANNEL, "rw", now)
        while self.client.session.busy:
            yield 0.001
        self.leaving = True
        number = self.client.goodbye(self.world.now)
        while self.client.session.acknowledged < number and not self.closed:
            yield 0.001
        self.closed = True


class World:
    """One schedule."""

    def __init__(self, plan: Plan, random: Random) -> None:
        self.plan = plan
        self.random = random
        self.now = 1000.0
        self.ledger = Ledger()
        self.stopping = False
        # Where messages are dropped or processes stopped it takes long to come back; that must not be taken for death.
        patience = {"session_grace": 10.0, "session_timeout": LONGEST} if plan.drop or plan.pauses else {}
        self.broker = WatchedBroker(self.ledger, max_bytes=plan.max_bytes, **patience)
        self.waits: list[float] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._node_timer = float("inf")
        self.creator = Process(self, 0, plan.grace)
        self.writers = [Process(self, 10 + number, plan.grace) for number in range(plan.writers)]
        self.readers = [Process(self, 50 + number, plan.grace) for number in range(plan.readers)]
        self._open: set[Process] = set()
        self._attached: set[Process] = set()

    @property
    def processes(self) -> list[Process]:
        return [self.creator, *self.writers, *self.readers]

    def at(self, when: float, action: Callable[[], None]) -> None:
        self._count += 1
        heappush(self._events, (when, self._count, action))

    def node_ran(self) -> None:
        """Send what the broker has to send, and wake it when it wants."""
        for peer, message in self.broker.output(self.now):
            assert isinstance(peer, Connection), peer
            peer.down(message)
        due = self.broker.due()
        if due < self._node_timer:
            self._node_timer = due
            self.at(max(due, self.now), self._node_rings)

    def _node_rings(self) -> None:
        if self._node_timer <= self.now:
            self._node_timer = float("inf")
            self.node_ran()

    def run(self) -> None:
        self.creator.start(self._create)
        self._misfortunes()
        self.at(self.now + 0.005, self._probe)
        end = self.now + LONGEST
        while not self._over():
            assert self._events, "nothing will ever happen again, and not all is done"
            self.now, _, action = heappop(self._events)
            assert self.now < end, self._stuck()
            action()
        self.check()

    def _stuck(self) -> str:
        missing = [item for item in self.ledger.accepted if item not in self.ledger.receivers()]
        return f"stuck: {self.plan}; not received: {missing[:5]}"

    def _over(self) -> bool:
        return all(process.closed or not process.alive for process in self.processes) and not self.broker.memory.bytes

    # -- the story --

    def _create(self, thread: Thread) -> Steps:  # noqa: ARG002
        creator = self.creator
        yield from creator.ask(op="create", channel=CHANNEL, kind=Kind(self.plan.kind, self.plan.maxsize))
        for process in self.readers:
            for number in range(self.plan.threads):
                process.start(self._reading(process, number == 0))
        for process in self.writers:
            process.start(self._writing(process))
        while any(process.alive and process not in self._open for process in (*self.writers, *self.readers)):
            yield 0.01
        if self.plan.kind == "joinable":
            while any(process.alive and not process.closed for process in self.writers):
                yield 0.01
            yield from creator.ask(op="join", channel=CHANNEL)
            finished = {item for item, _ in self.ledger.finished}
            assert set(self.ledger.accepted) <= finished, "join ended before all was done"
        if self.plan.kind != "pipe":
            while not self._done():
                yield 0.01
        self.stopping = self.plan.kind != "pipe"
        for process in self.processes:
            process.news()
        yield from creator.close(self.plan.goodbye)

    def _writing(self, process: Process) -> Callable[[Thread], Steps]:
        def steps(thread: Thread) -> Steps:  # noqa: ARG001
            plan, random = self.plan, self.random
            yield from process.ask(op="open", holds=[[CHANNEL, "w"]])
            self._open.add(process)
            writer = process.client.writers[CHANNEL] = Writer(CHANNEL, Kind(plan.kind, plan.maxsize))
            while plan.wait_for_readers and len(self._attached) < plan.readers:
                yield 0.001
            for number in range(plan.items):
                data = b"%d:%d:" % (process.number, number) + b"." * random.randint(0, plan.padding)
                yield from process.permit(writer)
                process.put(writer, (data[:3], data[3:]) if random.random() < plan.large else data)
                if number % plan.burst == plan.burst - 1:
                    yield random.choice(plan.pace)
            yield from process.flush(writer)
            yield from process.close(plan.goodbye)

        return steps

    def _reading(self, process: Process, first: bool) -> Callable[[Thread], Steps]:
        def steps(thread: Thread) -> Steps:
            plan, random = self.plan, self.random
            if first:
                yield from process.ask(op="open", holds=[[CHANNEL, "r"]])
                self._open.add(process)
                process.client.readers[CHANNEL] = Reader(CHANNEL, Kind(plan.kind, plan.maxsize))
            while CHANNEL not in process.client.readers:
                yield 0.001
            reader = process.client.readers[CHANNEL]
            while not reader.ended and not self.stopping:
                self.at(self.now + 0.01, lambda: self._attached.add(process))
                yield from process.get(reader, thread, random.choice(plan.timeouts))
                yield random.choice(plan.work) if thread.item is not None else random.choice((0.0, 0.001, 0.02))
            if reader.ended == "eof":
                self._at_eof()
            if not first:
                return
            while process.running > 1:
                yield 0.001
            if plan.kind == "pipe" and process.alive:
                assert reader.ended == "eof", reader.ended
            yield from process.close(plan.goodbye)

        return steps

    def _done(self) -> bool:
        """Whether nothing is left to do but closing."""
        if any(process.alive and not process.closed for process in self.writers):
            return False
        return not self._missing()

    def _missing(self) -> list[bytes]:
        """Items of which nobody took care."""
        ledger = self.ledger
        alive = {process.number for process in self.processes if process.alive}
        keeps = self.plan.kind != "pipe"  # a pipe's message is finished when it is received
        cared = {item for item, process in ledger.got if process in alive or not keeps}
        cared |= {item for item, _ in ledger.finished}
        return [item for item in ledger.accepted if item not in cared | ledger.perished]

    def check_bound(self) -> None:
        """See that no more items are in the queue than may be; what a dead writer had not sent is not in it."""
        inside, maxsize = self.ledger.inside, self.plan.maxsize
        if 0 < maxsize < len(inside):
            dead = {process.number for process in self.processes if not process.alive}
            there = [item for item, writer in inside.items() if writer not in dead or item in self.ledger.accepted]
            assert len(there) <= maxsize, (
                f"{len(there)} items are in a queue for {maxsize}: {[item[:20] for item in there[:5]]}"
            )

    def _at_eof(self) -> None:
        got = {item for item, _ in self.ledger.got}
        unread = [item for item in self.ledger.accepted if item not in got | self.ledger.perished]
        assert not unread, f"the end was told before {unread[:5]} was read"

    def _misfortunes(self) -> None:
        plan, random = self.plan, self.random
        spread = random.choice((0.01, 0.1, 0.5))
        for _ in range(plan.cuts):
            self.at(self.now + random.uniform(0, spread), random.choice(self.processes).cut)
        mortals = [*self.writers[1:], *self.readers[1:]]
        for _ in range(plan.kills if mortals else 0):
            self.at(self.now + random.uniform(0, spread), random.choice(mortals).kill)
        for _ in range(plan.pauses):
            self._pause_at(self.now + random.uniform(0, spread), random.choice(self.processes))

    def _pause_at(self, when: float, process: Process) -> None:
        self.at(when, lambda: process.pause(self.random.choice((0.01, 0.04, 0.4, 1.5))))

    def _probe(self) -> None:
        """Look who waits although there are items: at the node, or not started by another."""
        for process in (*self.writers, *self.readers):
            process.awake(process.idle)
        device = self.broker.device()
        queued = device is not None and next(device.queued(), None) is not None
        sitting = set()
        for process in self.readers:
            reader = process.client.readers.get(CHANNEL)
            if reader is not None and process.alive and len(reader.ready) > reader.waiting:
                sitting.add(process)
        for process in self.readers:
            reader = process.client.readers.get(CHANNEL)
            waits = reader is not None and reader.waiting and not reader.ready and process.alive
            at, process.reached = process.reached, reader and reader._next
            if not waits or not (queued or sitting - {process}):
                process.blocked_since = None
                continue
            if process.blocked_since is None or at != process.reached:
                process.blocked_since = self.now
            self.waits.append(self.now - process.blocked_since)
        self.at(self.now + 0.005, self._probe)

    # -- the promises --

    def check(self) -> None:
        plan, ledger = self.plan, self.ledger
        assert not self._missing(), f"lost: {self._missing()[:5]}"
        repeated = [item for item, times in ledger.accepted.items() if times > 1]
        assert not repeated, f"accepted twice: {repeated[:5]}"
        receivers = ledger.receivers()
        invented = [item for item in receivers if item not in ledger.put]
        assert not invented, f"came from nowhere: {invented[:5]}"
        dead = {process.number for process in self.processes if not process.alive}
        unaccepted = [
            item for item, process in ledger.put.items() if process not in dead and item not in ledger.accepted
        ]
        assert not unaccepted, f"flushed but not accepted: {unaccepted[:5]}"
        assert plan.duplicates or not ledger.taken, "a reader that was reachable was not heard"
        for item, processes in receivers.items():
            excused = item in ledger.taken or any(process in dead for process in processes)
            assert len(processes) == 1 or excused, f"came out at {processes}: {item!r}"
        if plan.readers == 1 and plan.threads == 1:
            self._check_order()
        if plan.kind != "push" and not (plan.drop or plan.cuts or plan.kills or plan.pauses):
            # A waiting reader's word, the recall, what goes back and what comes: each takes at most twice the latency.
            assert max(self.waits, default=0.0) <= LONGEST_WAIT + 8 * plan.latency, (
                f"a reader waited {max(self.waits)} s"
            )
        if plan.kind == "push" and plan.wait_for_readers and plan.threads == 1:
            shares = Counter(process for _, process in ledger.got)
            assert set(shares.values()) == {plan.items * plan.writers // plan.readers}, shares
        assert not self.broker.garbage

    def _check_order(self) -> None:
        last: dict[int, int] = {}
        for item, _ in self.ledger.got:
            if item not in self.ledger.taken:
                writer, number = map(int, item.split(b":")[:2])
                assert last.get(writer, -1) < number, f"{item!r} came after {last[writer]} of the same writer"
                last[writer] = number


def play(seed: int) -> World:
    """Run the schedule that `seed` makes."""
    random = Random(seed)
    world = World(Plan.random(random), random)
    world.run()
    return world
