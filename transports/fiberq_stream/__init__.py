"""A fiberq transport on the standard library's sockets alone: UNIX sockets and TCP, with TLS for credentials.

To read it top to bottom: `framing` says how messages lie in a stream, `connection` is one connected socket, `greeting`
says how a connection begins, and `tls` encrypts it. `closing` is what both sockets of the contract share; `address`,
`server` and `client` are the rest.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from fiberq.abc import Capabilities, Credentials, Transport
from fiberq.errors import TransportError

from .client import Client

if TYPE_CHECKING:
    from .server import Server

__all__ = ["StreamTransport"]

AnySocket = TypeVar("AnySocket", Client, "Server")

_transports: weakref.WeakSet[StreamTransport] = weakref.WeakSet()
"""All of this process: each lives as long as one of its sockets."""


class StreamTransport(Transport):
    capabilities = Capabilities(schemes=("ipc", "tcp"), authenticates=True, forks=True)

    def __init__(self) -> None:
        self._sockets: set[Client | Server] = set()
        _transports.add(self)

    def server(self, credentials: Credentials | None = None) -> Server:
        from .server import Server  # which no worker needs, and which takes a while

        return self._make(Server, credentials)

    def client(self, credentials: Credentials | None = None) -> Client:
        return self._make(Client, credentials)

    def bind_any(self, directory: str) -> list[str]:
        return [f"ipc://{os.path.join(directory, os.urandom(8).hex())}", "tcp://127.0.0.1:0"]

    def close(self) -> None:
        for each in list(self._sockets):
            each.close()

    def let_go(self) -> None:
        for each in list(self._sockets):
            each.let_go()

    def _make(self, kind: Callable[..., AnySocket], credentials: Credentials | None) -> AnySocket:
        if credentials is not None:
            from . import tls  # Only now: it takes a while, and most processes need none.

            tls.context(server_side=True)
        try:
            made = kind(None if credentials is None else credentials.secret, self.heartbeat, self._forget)
        except OSError as error:
            raise TransportError(f"stream: no more sockets: {error.strerror}") from error
        self._sockets.add(made)
        return made

    def _forget(self, closed: Client | Server) -> None:
        self._sockets.discard(closed)


def _let_go_of_inherited() -> None:
    """In a forked child: else its copies would keep connections alive whose process has died."""
    for each in list(_transports):
        each.let_go()


os.register_at_fork(after_in_child=_let_go_of_inherited)
