"""A fiberq transport on the standard library's sockets alone: UNIX sockets and TCP, with TLS for credentials.

`framing` says how messages lie in a stream, `greeting` how a connection begins, `connection` is one afterwards;
`server` and `client` are the two sockets of the contract.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from fiberq.abc import Capabilities, Credentials, Transport
from fiberq.errors import TransportError

from .client import Client
from .closing import Closable
from .server import Server

__all__ = ["StreamTransport"]

AnySocket = TypeVar("AnySocket", Client, Server)

_open: set[Closable] = set()
"""All sockets of this process that are not closed."""


def _let_go_of_inherited() -> None:
    """In a forked child: else its copies would keep connections alive whose process has died."""
    for each in _open:
        with suppress(OSError):
            each.let_go()
    _open.clear()


os.register_at_fork(after_in_child=_let_go_of_inherited)


class StreamTransport(Transport):
    capabilities = Capabilities(schemes=("ipc", "tcp"), authenticates=True, forks=True)

    def __init__(self) -> None:
        self._sockets: set[Closable] = set()

    def server(self, credentials: Credentials | None = None) -> Server:
        return self._make(Server, credentials)

    def client(self, credentials: Credentials | None = None) -> Client:
        return self._make(Client, credentials)

    def bind_any(self, directory: str) -> list[str]:
        return [f"ipc://{os.path.join(directory, secrets.token_hex(8))}", "tcp://127.0.0.1:0"]

    def close(self) -> None:
        for each in list(self._sockets):
            each.close()

    def _make(self, kind: Callable[..., AnySocket], credentials: Credentials | None) -> AnySocket:
        if credentials is not None:
            from . import tls  # Only now: it takes a while, and most processes need none.

            tls.context(server_side=True)
        try:
            made = kind(None if credentials is None else credentials.secret, self._forget)
        except OSError as error:
            raise TransportError(f"stream: no more sockets: {error.strerror}") from error
        self._sockets.add(made)
        _open.add(made)
        return made

    def _forget(self, closed: Closable) -> None:
        self._sockets.discard(closed)
        _open.discard(closed)
