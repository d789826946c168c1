"""Finds the connections whose end NNG overlooks, and has NNG report them.

NNG 1.11 reads ahead under TLS. When it meets the end of a connection between two reads of its own upper layer, it shuts
the socket down and tells nobody: the connection would never be reported as gone. Such a socket has no peer any more,
which can be asked for; so one thread asks, as long as there are TLS connections.

NNG has no times for keep-alive, and gives nobody its descriptors. The same thread looks for those of new TCP
connections and hands them to `fiberq.vanished`.
"""

from __future__ import annotations

import threading
import time
from typing import Any, Protocol

from fiberq.vanished import watch

from .address import Endpoint
from .descriptors import descriptors_at

__all__ = ["Watch"]

_INTERVAL = 0.03  # seconds; a loss is to be known within 0.1


class Watchable(Protocol):
    """A socket that has TCP connections."""

    heartbeat: float
    encrypted: bool

    def endpoints(self) -> set[Endpoint]: ...


class Watch:
    """The TCP connections of one copy of NNG."""

    def __init__(self, ffi: Any, lib: Any) -> None:
        self._ffi, self._lib = ffi, lib
        self._lock = threading.Lock()
        self._new: set[Watchable] = set()
        """Those that have connections whose descriptors are not known yet."""
        self._pipes: set[int] = set()
        self._running = False

    def add(self, pipe: int, owner: Watchable) -> None:
        """Watch `owner`'s new connection `pipe` until it is gone."""
        with self._lock:
            self._new.add(owner)
            if owner.encrypted:
                self._pipes.add(pipe)
            start = not self._running
            self._running = True
        if start:
            threading.Thread(target=self._run, name="fiberq-nng-watch", daemon=True).start()

    def _run(self) -> None:
        while True:
            time.sleep(_INTERVAL)
            with self._lock:
                new, self._new = self._new, set()
                pipes = list(self._pipes)
                self._running = bool(new or pipes)
                if not self._running:
                    return
            for owner in new:
                for fd in descriptors_at(owner.endpoints()):
                    watch(fd, owner.heartbeat)
            self._report_overlooked(pipes)

    def _report_overlooked(self, pipes: list[int]) -> None:
        address = self._ffi.new("nng_sockaddr *")
        for number in pipes:
            pipe = self._ffi.new("nng_pipe *", (number,))[0]
            if self._lib.nng_pipe_get_addr(pipe, b"remote-address", address):
                self._lib.nng_pipe_close(pipe)
                with self._lock:
                    self._pipes.discard(number)
