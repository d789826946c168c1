"""Random interleavings of many clients on real sockets, against a model of what each side must see next."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, reject, settings
from hypothesis import strategies as st
from hypothesis.errors import HypothesisException
from hypothesis.stateful import RuleBasedStateMachine, precondition, run_state_machine_as_test
from hypothesis.stateful import rule as step

from fiberq.abc import MAX_PARTS, MIN_QUEUED, Buffer, ClientSocket, Message, PeerLost
from fiberq.errors import ClosedError, ConnectionLost

from .lab import PATIENCE, Call, Lab, plain, readable
from .rules import BrokenRule, rule

MAX_CLIENTS = 6
LARGEST = 3_000_000
"""Bytes in one part."""
SHRINKING = 1.5 * PATIENCE
"""Seconds in which Hypothesis may look for a smaller example."""

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


class Machine(RuleBasedStateMachine):
    """A server and its clients. A step that sees what the model forbids raises `BrokenRule`."""

    def __init__(self, lab: Lab, log: list[str]) -> None:
        super().__init__()
        self.lab = lab
        self.log = log
        self.transport = lab.transport_class()
        self.count = 0
        self.clients: list[Client] = []
        self.known: dict[Hashable, Client] = {}
        self.lost: set[Hashable] = set()
        self.dropped: list[list[bytes]] = []
        """What was sent to lost peers."""
        self.listen()

    def listen(self) -> None:
        self.server = self.transport.server(self.lab.wire.credentials)
        self.address = self.server.bind(self.lab.free_address())

    def teardown(self) -> None:
        self.transport.close()

    # -- what may happen --

    @precondition(lambda self: len(self.clients) < MAX_CLIENTS)
    @step()
    def connect(self) -> None:
        self.count += 1
        self.log.append(f"client {self.count} connects")
        socket = self.transport.client(self.lab.wire.credentials)
        call = Call(socket.connect, self.address, PATIENCE)
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
            self.log.append(f"client {client.number} sends {shape}")
            client.to_server.append([part.data() for part in shape])
            client.socket.send([part.kind(part.data()) for part in shape])

    @precondition(lambda self: self.clients)
    @step(which=st.integers(0, MAX_CLIENTS), shape=SHAPES)
    def reply(self, which: int, shape: list[Part]) -> None:
        client = self.clients[which % len(self.clients)]
        if len(client.to_client) < MIN_QUEUED - 1:
            self.log.append(f"the server sends {shape} to client {client.number}")
            client.to_client.append([part.data() for part in shape])
            self.server.send(client.peer, [part.kind(part.data()) for part in shape])

    @precondition(lambda self: self.lost)
    @step(which=st.integers(0, 100), shape=SHAPES)
    def send_to_the_lost(self, which: int, shape: list[Part]) -> None:
        peer = list(self.lost)[which % len(self.lost)]
        self.log.append(f"the server sends {shape} to a lost peer")
        with self.nothing_raised("ROUTE-4", "a message to a lost peer raises"):
            self.server.send(peer, [part.kind(part.data()) for part in shape])
        self.dropped.append([part.data() for part in shape])

    @step(timeout=TIMEOUTS)
    def receive(self, timeout: float) -> None:
        self.log.append(f"the server receives, timeout {timeout}")
        started = time.monotonic()
        if not self.drive(timeout):
            self.check_time(timeout, started)

    @precondition(lambda self: self.clients)
    @step(which=st.integers(0, MAX_CLIENTS), timeout=TIMEOUTS)
    def hear(self, which: int, timeout: float) -> None:
        client = self.clients[which % len(self.clients)]
        self.log.append(f"client {client.number} receives, timeout {timeout}")
        ready = readable(client.socket.fileno())
        started = time.monotonic()
        got = client.socket.recv(timeout)
        if got is not None:
            self.check(client, client.to_client, plain(got), f"client {client.number}")
        elif ready:
            raise BrokenRule("READY-2", "the descriptor is readable, and there is nothing to receive")
        else:
            self.check_time(timeout, started)

    @precondition(lambda self: self.clients)
    @step(which=st.integers(0, MAX_CLIENTS))
    def close(self, which: int) -> None:
        client = self.clients.pop(which % len(self.clients))
        self.log.append(f"client {client.number} closes")
        client.closed = True
        client.socket.close()
        for call in (lambda: client.socket.recv(0), lambda: client.socket.send([b"x"])):
            self.must_raise(ClosedError, "CLOSE-2", call)
        self.drive_until(lambda: client.peer in self.lost, "LOSS-2", f"the loss of client {client.number} is not told")

    @step()
    def settle(self) -> None:
        """Everything arrives, and then there is nothing more."""
        self.log.append("everything arrives")
        self.drive_until(
            lambda: not any(each.to_server for each in self.clients), "MSG-5", "what a client sent does not arrive"
        )
        for client in self.clients:
            deadline = time.monotonic() + PATIENCE
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
        self.log.append("the server closes, and another comes")
        self.server.close()
        self.must_raise(ClosedError, "CLOSE-2", lambda: self.server.recv(0))
        self.listen()
        for client in self.clients:
            with self.ends_lost("LOSS-8", f"client {client.number} is not told that its server closed"):
                for _ in range(MIN_QUEUED + 1):
                    got = client.socket.recv(PATIENCE)
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
        self.lost.add(peer)

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
        deadline = time.monotonic() + PATIENCE
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


@rule("MSG-1", "MSG-2", "MSG-5", "ROUTE-1", "ROUTE-3", "ROUTE-4", "ROUTE-5", "LOSS-2", "LOSS-3", "LOSS-4", "LOSS-5")
@rule("LOSS-8", "LOSS-9", "CLOSE-2", "READY-2", "TIME-1", "TIME-2")
def test_whatever_clients_do_at_once_each_side_sees_what_it_must(lab: Lab, pytestconfig: pytest.Config) -> None:
    examples = 10 if pytestconfig.getoption("--fiberq-quick") else 40
    smallest: tuple[list[str], Exception] | None = None
    failed_at = 0.0
    log: list[str] = []

    class Logged(Machine):
        def __init__(self) -> None:
            if smallest is not None and time.monotonic() - failed_at > SHRINKING:
                reject()
            log.clear()
            super().__init__(lab, log)

        def teardown(self) -> None:
            failure = sys.exc_info()[1]  # what ended the steps; Hypothesis calls this on the way out
            try:
                if failure is None:
                    self.settle()
            except Exception as error:
                failure = error
                raise
            finally:
                super().teardown()
                if isinstance(failure, Exception) and not isinstance(failure, HypothesisException):
                    note(failure)

    def note(error: Exception) -> None:
        nonlocal smallest, failed_at
        failed_at = failed_at or time.monotonic()
        if smallest is None or len(log) < len(smallest[0]):
            smallest = list(log), error

    chosen: Any = settings(
        max_examples=examples,
        stateful_step_count=30,
        deadline=None,
        database=None,
        print_blob=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    try:
        run_state_machine_as_test(Logged, settings=chosen)
    except Exception as error:
        if smallest is None:
            raise
        steps, first = smallest
        story = "\n".join([str(first), "after these steps:", *(f"  {each}" for each in steps)])
        broken = first.rules if isinstance(first, BrokenRule) else ()
        raise BrokenRule(*broken, story) from error
