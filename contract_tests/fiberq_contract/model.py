"""A model of what a server and its clients must see next, step by step on real sockets; and how an example that fails
becomes a small one."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition
from hypothesis.stateful import rule as step

from fiberq.abc import MAX_PARTS, MIN_QUEUED, Buffer, ClientSocket, Message, PeerLost
from fiberq.errors import ClosedError, ConnectionLost

from .lab import PATIENCE, Call, Lab, plain, readable
from .rules import BrokenRule

__all__ = ["Failure", "Machine", "Part", "Step", "fewest", "replay", "shrink"]

T = TypeVar("T")

MAX_CLIENTS = 6
LARGEST = 3_000_000
"""Bytes in one part."""
SHRINKING = 1.5 * PATIENCE
"""Seconds in which steps are left out of an example that fails."""
IMPATIENCE = PATIENCE / 20
"""Stands for `PATIENCE` meanwhile: what is lost is waited for each time."""

_PATTERN = bytes(range(251)) * (LARGEST // 251 + 2)  # a part is a piece of it, so that one that is shifted differs


class Part(NamedTuple):
    """Prints small, however large it is."""

    size: int
    kind: Callable[[bytes], Buffer]
    first: int

    def data(self) -> bytes:
        return _PATTERN[self.first : self.first + self.size]

    def __repr__(self) -> str:
        return f"{self.size} bytes" if self.size != 1 else "1 byte"


SIZES = st.one_of(
    st.integers(0, 40),
    st.sampled_from([0, 1, 127, 128, 255, 256, 4095, 4096, 65_535, 65_536]),
    st.integers(0, 100_000),
)
PARTS = st.builds(Part, SIZES, st.sampled_from([bytes, bytearray, memoryview]), st.integers(0, 250))
LARGE = st.builds(Part, st.integers(100_000, LARGEST), st.just(bytes), st.integers(0, 250))
SHAPES = st.one_of(
    st.lists(PARTS, max_size=4),
    st.lists(PARTS, max_size=4),
    st.lists(PARTS, max_size=MAX_PARTS),
    st.builds(lambda before, part: [*before, part], st.lists(PARTS, max_size=2), LARGE),
)
TIMEOUTS = st.sampled_from([0, 0, 0, 0.001, 0.02])


@dataclass
class Client:
    """What the model knows of one connection."""

    number: int
    socket: ClientSocket
    peer: Hashable = None
    to_server: deque[list[bytes]] = field(default_factory=deque)
    to_client: deque[list[bytes]] = field(default_factory=deque)
    last: list[bytes] | None = None
    """What came last, to tell a message that comes twice."""
    closed: bool = False


class Step(NamedTuple):
    """One step of an example, which can be taken again although others before it are left out."""

    name: str
    client: int | None
    """The number of the client whose step it is."""
    arguments: dict[str, Any]
    told: str

    def with_shape(self, shape: list[Part]) -> Step:
        before = str(self.arguments["shape"])
        return self._replace(arguments={"shape": shape}, told=self.told.replace(before, str(shape)))


class Machine(RuleBasedStateMachine):
    """A server and its clients. A step that sees what the model forbids raises `BrokenRule`."""

    def __init__(self, lab: Lab, patience: float = PATIENCE) -> None:
        super().__init__()
        self.lab = lab
        self.patience = patience
        self.steps: list[Step] = []
        self.transport = lab.transport_class()
        self.count = 0
        self.clients: list[Client] = []
        self.known: dict[Hashable, Client] = {}
        self.lost: dict[Hashable, int | None] = {}
        """And the number of the client that it was."""
        self.dropped: list[list[bytes]] = []
        """What was sent to lost peers."""
        self.listen()

    def listen(self) -> None:
        self.server = self.transport.server(self.lab.wire.credentials)
        self.address = self.server.bind(self.lab.free_address())

    def teardown(self) -> None:
        self.transport.close()

    def note(self, name: str, client: int | None, told: str, **arguments: Any) -> None:
        self.steps.append(Step(name, client, arguments, told))

    def take(self, step: Step) -> None:
        """Take a step of another run again, if there is the client that it needs."""
        if step.name == "connect":
            self.count = (step.client or 1) - 1
            self.connect()
            return
        among = self.lost.values() if step.name == "send_to_the_lost" else [each.number for each in self.clients]
        if step.client is None:
            getattr(self, step.name)(**step.arguments)
        elif step.client in among:
            getattr(self, step.name)(which=list(among).index(step.client), **step.arguments)

    # -- what may happen --

    @precondition(lambda self: len(self.clients) < MAX_CLIENTS)
    @step()
    def connect(self) -> None:
        self.count += 1
        self.note("connect", self.count, f"client {self.count} connects")
        socket = self.transport.client(self.lab.wire.credentials)
        call = Call(socket.connect, self.address, self.patience)
        self.drive_until(call.done, "CONN-3", "connect does not return")
        call.result()
        client = Client(self.count, socket)
        self.clients.append(client)
        hello = [b"client", b"%d" % client.number]
        client.to_server.append(hello)
        socket.send(hello)
        self.drive_until(lambda: client.peer is not None, "MSG-5", f"the first message of client {self.count} is lost")

    @precondition(lambda self: self.clients)
    @step(which=st.integers(0, MAX_CLIENTS), shape=SHAPES)
    def send(self, which: int, shape: list[Part]) -> None:
        client = self.clients[which % len(self.clients)]
        if len(client.to_server) < MIN_QUEUED - 1:
            self.note("send", client.number, f"client {client.number} sends {shape}", shape=shape)
            client.to_server.append([part.data() for part in shape])
            client.socket.send([part.kind(part.data()) for part in shape])

    @precondition(lambda self: self.clients)
    @step(which=st.integers(0, MAX_CLIENTS), shape=SHAPES)
    def reply(self, which: int, shape: list[Part]) -> None:
        client = self.clients[which % len(self.clients)]
        if len(client.to_client) < MIN_QUEUED - 1:
            self.note("reply", client.number, f"the server sends {shape} to client {client.number}", shape=shape)
            client.to_client.append([part.data() for part in shape])
            self.server.send(client.peer, [part.kind(part.data()) for part in shape])

    @precondition(lambda self: self.lost)
    @step(which=st.integers(0, 100), shape=SHAPES)
    def send_to_the_lost(self, which: int, shape: list[Part]) -> None:
        peer = list(self.lost)[which % len(self.lost)]
        self.note("send_to_the_lost", self.lost[peer], f"the server sends {shape} to a lost peer", shape=shape)
        with self.nothing_raised("ROUTE-4", "a message to a lost peer raises"):
            self.server.send(peer, [part.kind(part.data()) for part in shape])
        self.dropped.append([part.data() for part in shape])

    @step(timeout=TIMEOUTS)
    def receive(self, timeout: float) -> None:
        self.note("receive", None, f"the server receives, timeout {timeout}", timeout=timeout)
        started = time.monotonic()
        if not self.drive(timeout):
            self.check_time(timeout, started)

    @precondition(lambda self: self.clients)
    @step(which=st.integers(0, MAX_CLIENTS), timeout=TIMEOUTS)
    def hear(self, which: int, timeout: float) -> None:
        client = self.clients[which % len(self.clients)]
        self.note("hear", client.number, f"client {client.number} receives, timeout {timeout}", timeout=timeout)
        ready = readable(client.socket.fileno())
        started = time.monotonic()
        got = client.socket.recv(timeout)
        if got is not None:
            self.check(client, client.to_client, plain(got), f"client {client.number}")
        elif ready and not client.to_client:
            raise BrokenRule("READY-2", "the descriptor is readable, and there is nothing to receive")
        else:
            self.check_time(timeout, started)

    @precondition(lambda self: self.clients)
    @step(which=st.integers(0, MAX_CLIENTS))
    def close(self, which: int) -> None:
        client = self.clients.pop(which % len(self.clients))
        self.note("close", client.number, f"client {client.number} closes")
        client.closed = True
        client.socket.close()
        for call in (lambda: client.socket.recv(0), lambda: client.socket.send([b"x"])):
            self.must_raise(ClosedError, "CLOSE-2", call)
        self.drive_until(lambda: client.peer in self.lost, "LOSS-2", f"the loss of client {client.number} is not told")

    @step()
    def settle(self) -> None:
        """Everything arrives, and then there is nothing more."""
        self.note("settle", None, "everything arrives")
        self.drive_until(
            lambda: not any(each.to_server for each in self.clients), "MSG-5", "what a client sent does not arrive"
        )
        for client in self.clients:
            deadline = time.monotonic() + self.patience
            while client.to_client:
                self.drive(0)
                got = client.socket.recv(0.002)
                if got is not None:
                    self.check(client, client.to_client, plain(got), f"client {client.number}")
                elif time.monotonic() > deadline:
                    raise BrokenRule("MSG-5", f"what the server sent does not arrive at client {client.number}")
            if client.socket.recv(0) is not None:
                raise BrokenRule("MSG-5", f"client {client.number} receives what nobody sent")
        while self.drive(0):
            pass

    @step()
    def restart(self) -> None:
        """The server closes, and another one comes. Nobody connects again by himself."""
        self.note("restart", None, "the server closes, and another comes")
        self.server.close()
        self.must_raise(ClosedError, "CLOSE-2", lambda: self.server.recv(0))
        self.listen()
        for client in self.clients:
            with self.ends_lost("LOSS-8", f"client {client.number} is not told that its server closed"):
                for _ in range(MIN_QUEUED + 1):
                    got = client.socket.recv(self.patience)
                    if got is None:
                        break
                    self.check(client, client.to_client, plain(got), f"client {client.number}")
            for call in (lambda: client.socket.recv(0), lambda: client.socket.send([b"x"])):  # noqa: B023
                self.must_raise(ConnectionLost, "LOSS-9", call)
            client.socket.close()
        self.clients.clear()
        self.known.clear()
        self.lost.clear()

    # -- what must be --

    def drive(self, timeout: float) -> bool:
        """Let the server receive once, and compare with the model; whether something came."""
        event = self.server.recv(timeout)
        if isinstance(event, PeerLost):
            self.lose(event.peer)
        elif event is not None:
            self.arrive(event)
        return event is not None

    def arrive(self, event: Message) -> None:
        parts = plain(event.parts)
        strangers = [each for each in self.clients if each.peer is None]
        if event.peer in self.lost:
            if strangers and parts == strangers[0].to_server[0]:
                raise BrokenRule("ROUTE-3", "a new client has the name of a lost peer")
            raise BrokenRule("LOSS-4", "a message comes after the loss of its peer")
        client = self.known.get(event.peer)
        if client is None:
            if not strangers or parts != strangers[0].to_server[0]:
                raise BrokenRule("ROUTE-5", f"a message comes from {event.peer!r}, whom nobody knows")
            client = strangers[0]
            client.peer = event.peer
            self.known[event.peer] = client
        self.check(client, client.to_server, parts, "the server")

    def lose(self, peer: Hashable) -> None:
        if peer in self.lost:
            raise BrokenRule("LOSS-3", "a peer is lost twice")
        client = self.known.get(peer)
        if client is not None and not client.closed:
            raise BrokenRule("LOSS-5", f"client {client.number} is reported lost, and lives")
        self.lost[peer] = client.number if client is not None else None

    def check(self, client: Client, expected: deque[list[bytes]], parts: list[bytes], who: str) -> None:
        """`who` receives `parts` on the client's connection."""
        if expected and parts == expected[0]:
            client.last = expected.popleft()
            return
        others = [each for each in self.clients if each is not client]
        if any(parts in (*each.to_server, *each.to_client) and parts for each in others):
            raise BrokenRule("ROUTE-1", f"{who} receives what belongs to another: {_shape(parts)}")
        if parts in self.dropped:
            raise BrokenRule("ROUTE-4", f"{who} receives what is for a lost peer: {_shape(parts)}")
        if parts in expected:
            raise BrokenRule("MSG-5", f"{who} receives {_shape(parts)} too early, or what was before it is lost")
        if not expected or parts == client.last:
            raise BrokenRule("MSG-5", f"{who} receives {_shape(parts)}, which came already, or nobody sent")
        which = "MSG-1" if len(parts) != len(expected[0]) else "MSG-2"
        raise BrokenRule(which, f"{who} receives {_shape(parts)} instead of {_shape(expected[0])}")

    def check_time(self, timeout: float, started: float) -> None:
        took = time.monotonic() - started
        if took < timeout * 0.95 - 0.002:
            raise BrokenRule("TIME-2", f"recv({timeout}) returns nothing after {took:.4f} s already")
        if took > timeout + 3:
            raise BrokenRule("TIME-2" if timeout else "TIME-1", f"recv({timeout}) blocks for {took:.1f} s")

    def drive_until(self, condition: Callable[[], object], broken: str, what: str) -> None:
        deadline = time.monotonic() + self.patience
        while not condition():
            if time.monotonic() > deadline:
                raise BrokenRule(broken, what)
            self.drive(0.002)

    def must_raise(self, kind: type[Exception], broken: str, call: Callable[[], object]) -> None:
        try:
            call()
        except kind:
            return
        raise BrokenRule(broken, f"{kind.__name__} is not raised")

    @contextmanager
    def ends_lost(self, broken: str, what: str) -> Iterator[None]:
        try:
            yield
        except ConnectionLost:
            return
        raise BrokenRule(broken, what)

    @contextmanager
    def nothing_raised(self, broken: str, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise BrokenRule(broken, f"{what} {error!r}") from error


def _shape(parts: list[bytes]) -> str:
    return str([Part(len(each), bytes, 0) for each in parts])


class Failure(NamedTuple):
    """How an example failed, after which steps."""

    error: Exception
    steps: list[Step]

    def like(self, other: Failure) -> bool:
        """Whether it is the same fault."""
        broken = [
            each.error.rules if isinstance(each.error, BrokenRule) else type(each.error) for each in (self, other)
        ]
        return broken[0] == broken[1]


def replay(lab: Lab, steps: Iterable[Step]) -> Failure | None:
    """Take these steps, impatiently."""
    machine = Machine(lab, IMPATIENCE)
    try:
        for each in steps:
            machine.take(each)
        machine.settle()
    except Exception as error:
        return Failure(error, machine.steps)
    finally:
        machine.teardown()
    return None


def fewest(items: list[T], fails: Callable[[list[T]], bool]) -> list[T]:
    """Those of `items` that are needed so that it `fails`: the rest was left out in pieces, ever smaller ones."""
    size = len(items)
    while size:
        for place in range(len(items) - size, -1, -size):
            others = items[:place] + items[place + size :]
            if fails(others):
                items = others
        size //= 2
    return items


def shrink(lab: Lab, found: Failure) -> Failure:
    """The same failure, after fewer steps and with fewer parts, as far as there is time."""
    until = time.monotonic() + SHRINKING

    def fails(steps: list[Step]) -> bool:
        nonlocal found
        failure = replay(lab, steps) if time.monotonic() < until else None
        if failure is None or not failure.like(found) or len(failure.steps) > len(found.steps):
            return False
        found = failure
        return True

    steps = fewest(found.steps, fails)
    for place, taken in enumerate(steps):
        if "shape" in taken.arguments:
            before, after = steps[:place], steps[place + 1 :]
            change = taken.with_shape
            steps[place] = change(
                fewest(taken.arguments["shape"], lambda shape: fails([*before, change(shape), *after]))  # noqa: B023
            )
    return found
