"""The transport ``blank`` of fiberq. `server` and `client` are the sockets."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from weakref import WeakSet

from fiberq.abc import Capabilities, ClientSocket, Credentials, ServerSocket, Transport
from fiberq.errors import TransportError

from .base import NAME, Base
from .client import Client
from .server import Server

__all__ = ["BlankTransport"]


class BlankTransport(Transport):
    """Makes the sockets. fiberq makes one instance in each process that needs it."""

    # What is declared is tested (CAP). `authenticates`: see AUTH. `forks`: see PROC.
    capabilities = Capabilities(schemes=("ipc", "tcp"), authenticates=False, forks=True)

    def __init__(self) -> None:
        self._sockets: WeakSet[Base] = WeakSet()

    def server(self, credentials: Credentials | None = None) -> ServerSocket:
        _refuse(credentials)
        server = Server()
        self._sockets.add(server)
        return server

    def client(self, credentials: Credentials | None = None) -> ClientSocket:
        _refuse(credentials)
        client = Client()
        self._sockets.add(client)
        return client

    def bind_any(self, directory: str) -> Sequence[str]:
        path = os.path.join(directory, secrets.token_hex(4))
        return [f"ipc://{path}", "tcp://127.0.0.1:0"]

    def close(self) -> None:
        for socket in list(self._sockets):
            socket.close()


def _refuse(credentials: Credentials | None) -> None:
    """Refuse credentials (AUTH-1), until they are used and `authenticates` is true."""
    if credentials is not None:
        raise TransportError(f"{NAME}: this transport takes no credentials")
