"""One node and three processes, step by step: Hypothesis chooses every interleaving, and shrinks what fails."""

from __future__ import annotations

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from sim import CHANNEL, Ledger, Message, WatchedBroker

from fiberq.protocol.client import Client
from fiberq.protocol.kinds import Kind
from fiberq.protocol.reader import Reader
from fiberq.protocol.session import drain
from fiberq.protocol.writer import Writer

NUMBERS = st.integers(0, 2)
THREADS = st.integers(0, 1)


class Line:
    """One client, and its present connection."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.client = Client(f"client {number}", grace=True)
        self.peer = object()
        self.up: deque[Message] = deque()
        self.down: deque[Message] = deque()
        self.alive = True
        self.leaving: int | None = None  # the number of its goodbye
        self.waiting: set[int] = set()  # threads that are blocked in `get`
        self.holding: dict[int, bytes] = {}

    @property
    def reader(self) -> Reader:
        return self.client.readers[CHANNEL]


class Interleavings(RuleBasedStateMachine):
    @initialize(kind=st.sampled_from(["pull", "push", "pipe"]))
    def begin(self, kind: str) -> None:
        self.now = 0.0
        self.kind = kind
        self.ledger = Ledger()
        self.broker = WatchedBroker(self.ledger, session_grace=1e6, session_timeout=1e9)
        self.lines = [Line(number) for number in range(3)]
        self.killed: set[str] = set()
        creator = self.lines[0].client
        for line in self.lines:
            line.client.hello()
            self.settle()
            if line.client is creator:
                creator.request(self.now, op="create", channel=CHANNEL, kind=Kind(kind))
            else:
                line.client.request(self.now, op="open", holds=[[CHANNEL, "rw"]])
            self.settle()
            line.client.readers[CHANNEL] = Reader(CHANNEL, Kind(kind))
            line.client.writers[CHANNEL] = Writer(CHANNEL, Kind(kind))

    # -- the network --

    def carry(self) -> None:
        """Put on their way what the ends want to send."""
        for peer, message in self.broker.output(self.now):
            for line in self.lines:
                if line.peer is peer:
                    line.down.append(message)
        for line in self.lines:
            if line.alive:
                if line.client.session.due() <= self.now:
                    line.client.session.tick(self.now)
                line.up.extend(drain(line.client.session))

    @rule(number=NUMBERS, repeat=st.booleans())
    def arrive_at_node(self, number: int, repeat: bool) -> None:
        self.carry()
        line = self.lines[number]
        if line.up:
            self.broker.message(line.peer, line.up[0] if repeat else line.up.popleft(), self.now)
            self.carry()

    @rule(number=NUMBERS, repeat=st.booleans())
    def arrive_at_client(self, number: int, repeat: bool) -> None:
        self.carry()
        line = self.lines[number]
        if line.down and line.alive:
            line.client.message(line.down[0] if repeat else line.down.popleft(), self.now)
            self.carry()

    @rule(number=NUMBERS, up=st.booleans())
    def drop(self, number: int, up: bool) -> None:
        self.carry()
        line = self.lines[number]
        way = line.up if up else line.down
        if way and line.client.welcomed:
            way.popleft()

    @rule(number=NUMBERS, node_notices=st.booleans())
    def cut(self, number: int, node_notices: bool) -> None:
        line = self.lines[number]
        if not line.alive:
            return
        line.up.clear()
        line.down.clear()
        if node_notices:
            self.broker.lost(line.peer, self.now)
        line.peer = object()
        line.client.hello()
        self.carry()

    @precondition(lambda self: not self.killed)
    @rule(number=st.integers(1, 2))
    def kill(self, number: int) -> None:
        line = self.lines[number]
        line.alive = False
        self.killed.add(line.client.name)
        line.up.clear()
        self.broker.lost(line.peer, self.now)
        self.broker.expire(line.client.name)
        self.carry()

    @rule(seconds=st.sampled_from([0.001, 0.011, 1.1]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.carry()

    # -- what processes do --

    @rule(number=NUMBERS, items=st.integers(1, 5))
    def put(self, number: int, items: int) -> None:
        line = self.lines[number]
        if line.alive:
            for _ in range(items):
                item = b"%d:%d" % (number, len(self.ledger.put))
                self.ledger.put[item] = line.client.name
                line.client.writers[CHANNEL].items.append(item)
            line.client.pump(line.client.writers[CHANNEL], self.now)

    @rule(number=NUMBERS, thread=THREADS)
    def get(self, number: int, thread: int) -> None:
        """A thread begins to get, or looks again."""
        line = self.lines[number]
        if not line.alive:
            return
        reader, session = line.reader, line.client.session
        if thread not in line.waiting and thread in line.holding:
            self.ledger.finishes(line.holding.pop(thread), line.client.name)
        if reader.ready and self.now > reader.fresh_until:
            reader.progress(session, self.now)
        got = reader.take(thread)
        if got is None:
            line.waiting.add(thread)
            reader.waiting = len(line.waiting)
            reader.ask(session, self.now)
            return
        assert isinstance(got[1], bytes)
        line.holding[thread] = got[1]
        self.ledger.gets(CHANNEL, got[1], line.client.name)
        if thread in line.waiting:
            line.waiting.remove(thread)
            reader.waiting = len(line.waiting)
            reader.arrived(self.now)
        if len(reader.ready) < reader.low:
            reader.ask_ahead(session, self.now)

    @rule(number=NUMBERS, thread=THREADS)
    def give_up(self, number: int, thread: int) -> None:
        line = self.lines[number]
        if thread in line.waiting and line.alive and not line.reader.ready:
            line.waiting.remove(thread)
            line.reader.waiting = len(line.waiting)
            if not line.waiting:
                line.reader.cancel(line.client.session, self.now)

    # -- the end --

    def settle(self) -> None:
        """Let everything arrive."""
        for _ in range(300):
            self.carry()
            busy = False
            for line in self.lines:
                while line.up:
                    busy = True
                    self.broker.message(line.peer, line.up.popleft(), self.now)
                while line.down and line.alive:
                    busy = True
                    line.client.message(line.down.popleft(), self.now)
                    if line.leaving is not None and line.client.session.acknowledged >= line.leaving:
                        line.alive = False
            if not busy:
                sessions = [line.client.session for line in self.lines if line.alive]
                due = min([self.broker.due(), *(session.due() for session in sessions)])
                if due > self.now + 100:
                    return
                self.now = max(self.now, due)
        raise AssertionError("they never fall silent")

    def teardown(self) -> None:
        if not hasattr(self, "lines"):
            return
        for line in self.lines:
            if line.alive and not line.client.welcomed:
                line.client.hello()
        self.settle()
        for line in self.lines[1:]:
            if line.alive:
                line.client.release(CHANNEL, "r", self.now)
                self.settle()
        for _ in range(4 * len(self.ledger.put) + 8):
            self.get(0, 0)
            self.get(0, 1)
            self.settle()
        for line in self.lines:
            if line.alive:
                assert line.client.writers[CHANNEL].settled(line.client.session)
        self.check()
        for line in self.lines:
            if line.alive:
                line.leaving = line.client.goodbye(self.now)
        self.settle()
        assert self.broker.memory.bytes == 0
        assert self.broker.device(CHANNEL) is None

    def check(self) -> None:
        receivers = self.ledger.receivers
        assert not set(receivers) - set(self.ledger.put)
        assert all(times == 1 for times in self.ledger.accepted.values())
        lost = set(self.ledger.accepted) - set(receivers) - self.ledger.perished
        assert not lost, f"lost: {lost}"
        unaccepted = {item for item, name in self.ledger.put.items() if name not in self.killed}
        assert unaccepted <= set(self.ledger.accepted)
        for item, got in receivers.items():
            names = [one.process for one in got]
            excused = {name for name in names if (item, name) in self.ledger.taken} | (set(names) & self.killed)
            assert len(names) == 1 or excused, f"{item!r} came out at {names}"


Interleavings.TestCase.settings = settings(max_examples=250, stateful_step_count=60, deadline=None)
TestInterleavings = Interleavings.TestCase
