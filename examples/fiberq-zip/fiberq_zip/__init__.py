"""A transport that compresses what another one carries: `packing` says how, and the other does all the rest.

The classes here pass each call on to the other transport's, and give its errors their own name. The environment
variable ZIP_INNER names the other transport, for all processes alike.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence
from functools import wraps
from time import monotonic
from typing import ParamSpec, TypeVar

from fiberq.abc import Buffer, ClientSocket, Credentials, Message, PeerLost, ServerSocket, Transport
from fiberq.errors import ConnectionLost, FiberqError
from fiberq.registry import load

from .packing import Malformed, pack, unpack

__all__ = ["ZipTransport"]

P = ParamSpec("P")
T = TypeVar("T")

Inner = load(os.environ.get("ZIP_INNER", "zmq"))  # now, because `capabilities` belongs to the class


def named(method: Callable[P, T]) -> Callable[P, T]:
    """Put this transport's name before the message of an error of the other's."""

    @wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(*args, **kwargs)
        except FiberqError as error:
            raise type(error)(f"zip: {error}") from error

    return call


class ZipServer(ServerSocket):
    """See `fiberq.abc.ServerSocket`. A message that no `ZipClient` sent is dropped, as if it had not come."""

    def __init__(self, inner: ServerSocket) -> None:
        self._inner = inner
        self._held: Message | PeerLost | None = None
        """Received and not returned yet: a signal's handler may raise while it is unpacked."""

    @named
    def bind(self, address: str) -> str:
        for each in ("max_connections", "max_message", "refused"):
            setattr(self._inner, each, getattr(self, each))
        return self._inner.bind(address)

    @named
    def recv(self, timeout: float | None) -> Message | PeerLost | None:
        deadline = None if timeout is None else monotonic() + timeout
        while True:
            self._held = event = self._held or self._inner.recv(timeout)
            try:
                if isinstance(event, Message):
                    event = Message(event.peer, unpack(event.parts))
                self._held = None
                return event
            except Malformed:
                self._held = None
                if deadline is not None:
                    timeout = max(0.0, deadline - monotonic())

    @named
    def send(self, peer: Hashable, parts: Sequence[Buffer]) -> None:
        self._inner.send(peer, pack(parts))

    def close(self) -> None:
        self._inner.close()


class ZipClient(ClientSocket):
    """See `fiberq.abc.ClientSocket`. To a server that is no `ZipServer` the connection counts as lost."""

    def __init__(self, inner: ClientSocket) -> None:
        self._inner = inner
        self._held: Sequence[Buffer] | None = None
        """As in `ZipServer`. A malformed message stays here, so that each further `recv` raises, too."""

    @named
    def connect(self, address: str, timeout: float | None) -> None:
        self._inner.connect(address, timeout)

    @named
    def send(self, parts: Sequence[Buffer]) -> None:
        self._inner.send(pack(parts))

    @named
    def recv(self, timeout: float | None) -> Sequence[Buffer] | None:
        if self._held is None:
            self._held = self._inner.recv(timeout)
        try:
            parts = None if self._held is None else unpack(self._held)
        except Malformed:
            raise ConnectionLost("what the server sends was not packed by this transport") from None
        self._held = None
        return parts

    @named
    def fileno(self) -> int:
        return self._inner.fileno()  # which is right as it is, because one message there is one message here

    def close(self) -> None:
        self._inner.close()


class ZipTransport(Transport):
    """See `fiberq.abc.Transport`. It can do what the other one can."""

    capabilities = Inner.capabilities

    @named
    def __init__(self) -> None:
        self._inner = Inner()

    @named
    def server(self, credentials: Credentials | None = None) -> ZipServer:
        return ZipServer(self._inner.server(credentials))

    @named
    def client(self, credentials: Credentials | None = None) -> ZipClient:
        return ZipClient(self._inner.client(credentials))

    def bind_any(self, directory: str) -> Sequence[str]:
        return self._inner.bind_any(directory)

    def close(self) -> None:
        self._inner.close()
