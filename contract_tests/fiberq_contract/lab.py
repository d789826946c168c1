"""What the tests work with: a `Lab` makes and cleans up sockets, a `Hub` is a server that is driven while clients act.

The tests never assume that a server does anything while nobody is in its `recv`: a transport without threads is right,
too. So whatever needs the server's help happens while a `Hub` drives it.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, ParamSpec, TypeVar

from fiberq.abc import Buffer, ClientSocket, Credentials, Message, PeerLost, ServerSocket, Transport
from fiberq.errors import FiberqError

from .processes import Child

__all__ = [
    "LOSS_LIMIT",
    "PATIENCE",
    "Call",
    "Hub",
    "Lab",
    "Link",
    "Wire",
    "assert_within",
    "eventually",
    "plain",
    "readable",
]

P = ParamSpec("P")
T = TypeVar("T")

PATIENCE = float(os.environ.get("FIBERQ__CONTRACT_PATIENCE", "10"))
"""Seconds after which something that must happen is taken for never happening. The start of a process takes longer."""

LOSS_LIMIT = 0.1
"""Seconds within which the contract wants a lost peer or server to be noticed."""


class Call(Generic[T]):
    """A call in a thread of its own, so that one that hangs does not hang the run."""

    def __init__(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> None:
        self._results: list[T] = []
        self._error: BaseException | None = None
        self._done = threading.Event()
        self.name = getattr(function, "__qualname__", repr(function))
        self.ended_at = 0.0

        def run() -> None:
            try:
                self._results.append(function(*args, **kwargs))
            except BaseException as error:
                self._error = error
            self.ended_at = time.monotonic()
            self._done.set()

        threading.Thread(target=run, daemon=True).start()

    def done(self, timeout: float = 0.0) -> bool:
        """Whether the call has ended, after at most `timeout` seconds."""
        return self._done.wait(timeout)

    def result(self, timeout: float = PATIENCE) -> T:
        """Return what the call returned, or raise what it raised."""
        if not self.done(timeout):
            raise AssertionError(f"{self.name} is still blocked after {timeout} s")
        if self._error is not None:
            raise self._error
        return self._results[0]


def eventually(condition: Callable[[], object], what: str, timeout: float = PATIENCE) -> None:
    """Poll until `condition` holds; fail after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what}")
        time.sleep(0.001)


def assert_within(limit: float, measure: Callable[[], float], tries: int = 3) -> None:
    """Fail when each of `tries` measurements is longer than `limit` seconds: a noisy machine delays one, not all."""
    seen: list[float] = []
    while len(seen) < tries:
        seen.append(measure())
        if seen[-1] <= limit:
            return
    raise AssertionError(f"took {', '.join(f'{each:.3f}' for each in seen)} s; the limit is {limit} s")


def readable(fileno: int, timeout: float = 0.0) -> bool:
    """Whether `fileno` is readable, after at most `timeout` seconds."""
    poll = select.poll()
    poll.register(fileno, select.POLLIN)
    return bool(poll.poll(timeout * 1000))


def plain(parts: Sequence[Buffer] | None) -> list[bytes]:
    """The parts of a message as bytes, whatever buffers they came in; an error when there is no message."""
    if parts is None:
        raise AssertionError("no message came")
    for part in parts:
        if not isinstance(part, bytes | bytearray | memoryview):
            raise AssertionError(f"a received part is a {type(part).__name__}, not a buffer")
    return [bytes(part) for part in parts]


class Hub:
    """A bound server socket, and all that it has received so far."""

    def __init__(self, socket: ServerSocket, address: str) -> None:
        self.socket = socket
        self.address = address
        self.inbox: deque[Message] = deque()
        self.lost: list[Hashable] = []
        self.late: list[Message] = []
        """Messages that came after their peer was lost."""

    def drive(self, timeout: float = 0.0) -> bool:
        """Let the server receive once; whether something came."""
        event = self.socket.recv(timeout)
        if isinstance(event, PeerLost):
            self.lost.append(event.peer)
        elif event is not None:
            if event.peer in self.lost:
                self.late.append(event)
            else:
                self.inbox.append(event)
        return event is not None

    def drain(self) -> None:
        """Receive whatever is there now."""
        for _ in range(100_000):
            if not self.drive():
                return
        raise AssertionError("recv(0) never runs dry")

    def until(self, condition: Callable[[], object], what: str, timeout: float = PATIENCE) -> None:
        """Drive the server until `condition` holds; fail after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {timeout} s: {what}")
            self.drive(0.002)

    def until_lost(self, peer: Hashable, timeout: float = PATIENCE) -> None:
        """Drive the server until it has reported the loss of `peer`."""
        self.until(lambda: peer in self.lost, f"the loss of {peer!r} is reported", timeout)

    def take(self, timeout: float = PATIENCE) -> Message:
        """Return the next message."""
        self.until(lambda: self.inbox, "the server receives a message", timeout)
        return self.inbox.popleft()

    def take_from(self, peer: Hashable, timeout: float = PATIENCE) -> list[bytes]:
        """Return the parts of the next message, which must be from `peer`."""
        message = self.take(timeout)
        assert message.peer == peer, f"a message of {message.peer!r} came instead of one of {peer!r}"
        return plain(message.parts)

    def hear(self, client: ClientSocket, timeout: float = PATIENCE) -> list[bytes]:
        """Return the next message that `client` receives."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            self.drive()
            parts = client.recv(0.005)
            if parts is not None:
                return plain(parts)
        raise AssertionError(f"the client received nothing within {timeout} s")

    def connect(self, client: ClientSocket, timeout: float = PATIENCE) -> None:
        """Connect `client` to this server."""
        call = Call(client.connect, self.address, timeout)
        self.until(call.done, "connect returns or raises", timeout + PATIENCE)
        call.result()


class Link(NamedTuple):
    """A connected client, and what the server knows it by."""

    client: ClientSocket
    peer: Hashable


@dataclass(frozen=True)
class Wire:
    """One way to connect: an address scheme, with credentials or without."""

    scheme: str
    credentials: Credentials | None = None

    def __str__(self) -> str:
        return self.scheme + ("+credentials" if self.credentials else "")


class Lab:
    """Makes the sockets, transports and child processes of one test, on one wire, and cleans up after it."""

    def __init__(self, name: str, transport_class: type[Transport], wire: Wire, directory: str) -> None:
        self.name = name
        self.transport_class = transport_class
        self.capabilities = transport_class.capabilities
        self.wire = wire
        self.directory = directory
        self._tokens = 0
        self._cleanup = contextlib.ExitStack()
        self.transport = self.new_transport()

    def new_transport(self) -> Transport:
        """A further `Transport` of the class under test."""
        transport = self.transport_class()
        self._cleanup.callback(transport.close)
        return transport

    def free_address(self, scheme: str | None = None) -> str:
        """An address of this wire's scheme that `bind` can bind to."""
        wanted = (scheme or self.wire.scheme) + "://"
        found = [each for each in self.transport.bind_any(self.directory) if each.startswith(wanted)]
        assert len(found) == 1, f"bind_any must give one {wanted} address, and gave {found}"
        return found[0]

    def server(self) -> ServerSocket:
        """A server socket that is not bound."""
        socket = self.transport.server(self.wire.credentials)
        self._cleanup.callback(socket.close)
        return socket

    def hub(self, address: str | None = None) -> Hub:
        """A server bound to a free address, or to `address`."""
        socket = self.server()
        return Hub(socket, socket.bind(address or self.free_address()))

    def client(self) -> ClientSocket:
        """A client socket that is not connected."""
        socket = self.transport.client(self.wire.credentials)
        self._cleanup.callback(socket.close)
        return socket

    def join(self, hub: Hub) -> Link:
        """A new client that is connected to `hub` and known to it by one message."""
        client = self.client()
        hub.connect(client)
        return Link(client, self.introduce(hub, client))

    def introduce(self, hub: Hub, client: ClientSocket) -> Hashable:
        """Let the client send one message, and return the peer from which it came."""
        self._tokens += 1
        token = b"hello %d" % self._tokens
        client.send([token])
        hub.until(lambda: any(plain(each.parts) == [token] for each in hub.inbox), "the client's hello arrives")
        hello = next(each for each in hub.inbox if plain(each.parts) == [token])
        hub.inbox.remove(hello)
        return hello.peer

    def child(self, role: str, **args: object) -> Child:
        """Start a process that plays `role` (a function in child.py) on this wire."""
        credentials = self.wire.credentials
        child = Child(
            role,
            transport=self.name,
            secret=credentials.secret.hex() if credentials else None,
            scheme=self.wire.scheme,
            directory=self.directory,
            **args,
        )
        self._cleanup.callback(child.end)
        return child

    @contextlib.contextmanager
    def raises_ours(self, *kinds: type[FiberqError]) -> Iterator[list[FiberqError]]:
        """Expect one of `kinds`; the list holds it afterwards."""
        caught: list[FiberqError] = []
        try:
            yield caught
        except kinds as error:
            caught.append(error)
        else:
            raise AssertionError(f"nothing was raised; expected {' or '.join(each.__name__ for each in kinds)}")

    def path(self, name: str) -> str:
        """A path in the test's private directory."""
        return os.path.join(self.directory, name)

    def close(self) -> None:
        """Close everything that was made, the last first."""
        self._cleanup.close()
