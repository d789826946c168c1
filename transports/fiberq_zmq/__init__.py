"""The ZeroMQ transport: a ROUTER that serves DEALERs, over UNIX sockets and TCP, with CURVE given credentials.

`wire` says how a message becomes frames, `server` and `client` are the sockets, `auth` the keys.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import zmq
import zmq.backend

from fiberq.abc import Capabilities, Credentials, Transport

from .auth import USER, admit, client_options, server_options
from .client import ZmqClient

if TYPE_CHECKING:
    from .server import ZmqServer

__all__ = ["ZmqTransport"]


class ZmqTransport(Transport):
    """See `fiberq.abc.Transport`. Its clients share one libzmq context; each server has its own."""

    capabilities = Capabilities(schemes=("ipc", "tcp"), authenticates=True)

    def __init__(self) -> None:
        self._context = _context()
        self._sockets: set[ZmqServer | ZmqClient] = set()

    def server(self, credentials: Credentials | None = None) -> ZmqServer:
        from .server import ZmqServer  # which no worker needs, and which takes a while

        # A context of its own: ending it waits until the address is free again, and it holds one ZAP handler at most.
        context = _context()
        options: dict[int, int | bytes] = {}
        if credentials is not None:
            admit(context, credentials)
            options = server_options(credentials)
        server = ZmqServer(
            context, self._sockets.discard, options, None if credentials is None else USER, self.heartbeat
        )
        self._sockets.add(server)
        return server

    def client(self, credentials: Credentials | None = None) -> ZmqClient:
        options = {} if credentials is None else client_options(credentials)
        client = ZmqClient(self._context, self._sockets.discard, options, self.heartbeat)
        self._sockets.add(client)
        return client

    def bind_any(self, directory: str) -> Sequence[str]:
        return f"ipc://{os.path.join(directory, 'zmq-' + os.urandom(4).hex())}", "tcp://127.0.0.1:0"

    def close(self) -> None:
        for socket in list(self._sockets):
            socket.close()
        self._context.term()


def _context() -> zmq.backend.Context:
    context = zmq.backend.Context()
    context.set(zmq.MAX_SOCKETS, 16384)  # the default is about 1000, of which a client uses three
    return context
