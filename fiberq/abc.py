"""What a transport must bring: whole messages between one server and many clients. This file is the whole contract.

A transport is three small classes. It knows nothing of queues, items or acknowledgements: the core builds those from
whole messages. Register a `Transport` subclass as an entry point in the group ``fiberq.transports``; its name there is
the name that users write in their config.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from typing import ClassVar, NamedTuple, TypeAlias

__all__ = [
    "API_VERSION",
    "MAX_PARTS",
    "MIN_QUEUED",
    "Buffer",
    "Capabilities",
    "ClientSocket",
    "Credentials",
    "Message",
    "PeerLost",
    "ServerSocket",
    "Transport",
]

API_VERSION = 1
"""The version of this file. The core refuses a plug-in whose `Transport.api_version` differs."""

MAX_PARTS = 64
"""The most parts that a message has."""

MIN_QUEUED = 64
"""The messages to one peer, not yet received by it, that a socket must take without blocking and without losing one."""

Buffer: TypeAlias = "bytes | bytearray | memoryview"
"""A contiguous run of bytes. A receiver may keep it as long as it likes; nobody writes to it afterwards."""


class Credentials(NamedTuple):
    """What proves to each other that a server and a client belong together. `repr` shows no secret.

    `secret` is 32 random bytes that the server's owner made; everything a transport needs (a key pair, a pre-shared
    key) is derived from it.
    """

    secret: bytes

    def __repr__(self) -> str:
        return "Credentials(...)"


class Capabilities(NamedTuple):
    """What a transport can do. What is declared false is tested to be false."""

    schemes: tuple[str, ...]
    """The address schemes that `bind` and `connect` take, such as ``("ipc", "tcp")``."""
    authenticates: bool = False
    """With `Credentials`, only a peer that has them can exchange messages, and the traffic is encrypted."""
    forks: bool = True
    """A process that used this transport can fork, and the child can make a new `Transport` and use it."""


class Message(NamedTuple):
    """One whole message, as received by a server."""

    peer: Hashable
    parts: Sequence[Buffer]


class PeerLost(NamedTuple):
    """The connection that was `peer` is gone, and all that arrived from it was received before."""

    peer: Hashable


def _unheard(end: object, why: str) -> None:
    """What a server socket tells of refusals where nobody listens."""


class ServerSocket(ABC):
    """The listening side: one socket, any number of peers. Not thread-safe, but for `close`.

    A peer is one connection, never an identity that the client chose: a client that connects again is a new peer. The
    core may set the limits before it calls `bind`; who exceeds one is cut off, and disturbs nobody else.
    """

    refused: Callable[[object, str], None] = staticmethod(_unheard)
    """The core may set this, too. A socket calls it, from any thread, for each client that it turns away before there
    is a peer: with the other end, as `getpeername` says (`None` if it is not known), and why, in words of its own. It
    takes a moment and never raises. Who leaves by himself is not refused. A transport may leave these calls out."""

    max_connections: int = 4096
    """Connections at a time. Those that are there go on when another one comes."""
    max_message: int = (1 << 30) + (1 << 20)
    """Bytes of a message. Nothing is allocated for a larger one."""

    @abstractmethod
    def bind(self, address: str) -> str:
        """Listen at `address`, too, and return the concrete address: ``tcp://127.0.0.1:0`` comes back with its port.

        May be called several times. Raises `fiberq.errors.AddressError` for an address that this transport cannot
        parse, and `fiberq.errors.TransportError` when the address is in use or may not be bound.
        """

    @abstractmethod
    def recv(self, timeout: float | None) -> Message | PeerLost | None:
        """Return the next message or loss of a peer; `None` when `timeout` seconds have passed without one.

        ``0`` tries once and never blocks; `None` blocks until something comes. Messages of one peer come in the order
        in which it sent them, whole, with the same parts, once. A killed peer is reported within 100 ms of its death.
        A signal handler that raises interrupts the call. Raises `fiberq.errors.ClosedError` once the socket is closed,
        also in a thread that is blocked here at that moment.
        """

    @abstractmethod
    def send(self, peer: Hashable, parts: Sequence[Buffer]) -> None:
        """Queue one message of 0 to `MAX_PARTS` parts for `peer`; never blocks.

        The caller keeps fewer than `MIN_QUEUED` messages to one peer under way. A message to a peer that is gone is
        dropped without an error: `PeerLost` says so. The buffers must not be changed until the message has left.
        """

    def drop(self, peer: Hashable) -> None:  # noqa: B027 - without it, who is refused only stays connected
        """Hang up on a peer; `PeerLost` follows, unless it was lost already. Never blocks, and never raises."""

    @abstractmethod
    def close(self) -> None:
        """Close at once, without waiting for what is unsent; idempotent. Callable from any thread."""


class ClientSocket(ABC):
    """The connecting side: one connection, which is never renewed. Not thread-safe, but for `close` and `fileno`.

    After the connection is lost the core makes a new `ClientSocket`; a transport's own reconnecting must be off.
    """

    @abstractmethod
    def connect(self, address: str, timeout: float | None) -> None:
        """Connect, and return when a message can be exchanged (authentication included). Called once.

        Raises `fiberq.errors.ConnectError` when nobody listens there (as soon as that is known), when the server
        refuses the credentials, or when `timeout` seconds have passed; `fiberq.errors.AddressError` for an address
        that cannot be parsed.
        """

    @abstractmethod
    def send(self, parts: Sequence[Buffer]) -> None:
        """Queue one message of 0 to `MAX_PARTS` parts; never blocks.

        The caller keeps fewer than `MIN_QUEUED` messages under way. Raises `fiberq.errors.ConnectionLost` when the
        connection is known to be gone, `fiberq.errors.ClosedError` after `close`.
        """

    @abstractmethod
    def recv(self, timeout: float | None) -> Sequence[Buffer] | None:
        """Return the parts of the next message; `None` when `timeout` seconds have passed without one.

        ``0`` tries once and never blocks. Raises `fiberq.errors.ConnectionLost`, after the last message that arrived,
        within 100 ms of the server's death, and `fiberq.errors.ClosedError` once the socket is closed, also in a
        thread that is blocked here at that moment.
        """

    @abstractmethod
    def fileno(self) -> int:
        """Return a descriptor, the same for the socket's whole life, that is readable while `recv(0)` would return a
        message or raise: level-triggered, for `select`, `poll` and `epoll`, from any thread.

        It may be readable, too, when part of a message has come, but not once `recv(0)` has returned `None` for that:
        who polls must not be woken again and again by what he cannot have yet.
        """

    @abstractmethod
    def close(self) -> None:
        """Close at once, without waiting for what is unsent; idempotent. Callable from any thread."""


class Transport(ABC):
    """A plug-in: it makes sockets. The core builds one with no arguments, afresh in each process that needs it.

    An instance that was inherited through a fork is never called again, not even its `close`.
    """

    api_version: ClassVar[int] = API_VERSION
    capabilities: ClassVar[Capabilities]
    heartbeat: float = 1.0
    """Seconds. The core sets it before it makes sockets. A TCP peer whose host has vanished is reported, as any other
    that is gone, within three of these; one whose process is stopped, or busy, is not. So whoever answers must be the
    other kernel, or a thread that needs nothing of the process (`fiberq.vanished` does it for a kernel's TCP socket). A
    transport that has no such means may ignore this, and 0 switches it off."""

    @abstractmethod
    def server(self, credentials: Credentials | None = None) -> ServerSocket:
        """Make a server socket that is not bound yet. With credentials it serves only peers that have the same."""

    @abstractmethod
    def client(self, credentials: Credentials | None = None) -> ClientSocket:
        """Make a client socket that is not connected yet."""

    @abstractmethod
    def bind_any(self, directory: str) -> Sequence[str]:
        """Return one address for each scheme, to which `bind` binds with a free port or path of its own choosing.

        A path lies in `directory`, which exists, is private to the caller and is removed by him afterwards; TCP is
        on the loopback interface.
        """

    @abstractmethod
    def close(self) -> None:
        """Close all sockets of this instance and what it shares among them; idempotent."""
