"""The plug-in: what fiberq's core loads. It makes sockets, and closes those that it made."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from typing import ClassVar

from fiberq.abc import Capabilities, ClientSocket, Credentials, ServerSocket, Transport
from fiberq.errors import ClosedError

from .sockets import NngClient, NngServer

__all__ = ["NngTransport"]


class NngTransport(Transport):
    """NNG over UNIX sockets and TCP. With credentials, TCP is encrypted and authenticated; UNIX sockets are refused."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        schemes=("ipc", "tcp"), authenticates=True, forks=hasattr(os, "memfd_create")
    )

    def __init__(self) -> None:
        self._sockets: weakref.WeakSet[NngServer | NngClient] = weakref.WeakSet()
        self._closed = False

    def server(self, credentials: Credentials | None = None) -> ServerSocket:
        self._check_open()
        server = NngServer(credentials, self.heartbeat)
        self._sockets.add(server)
        return server

    def client(self, credentials: Credentials | None = None) -> ClientSocket:
        self._check_open()
        client = NngClient(credentials, self.heartbeat)
        self._sockets.add(client)
        return client

    def bind_any(self, directory: str) -> Sequence[str]:
        return f"ipc://{os.path.join(directory, 'nng-' + os.urandom(4).hex())}", "tcp://127.0.0.1:0"

    def close(self) -> None:
        self._closed = True
        for each in list(self._sockets):
            each.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this nng transport is closed")
