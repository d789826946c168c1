"""Finds the TLS connections whose end NNG itself overlooked, and has NNG report them.

NNG 1.11 reads ahead under TLS. When it meets the end of a connection between two reads of its own upper layer, it shuts
the socket down and tells nobody: the connection would never be reported as gone. Such a socket has no peer any more,
which can be asked for; so one thread asks, as long as there are TLS connections.
"""

from __future__ import annotations

import threading
import time
from typing import Any

__all__ = ["Watch"]

_INTERVAL = 0.03  # seconds; a loss is to be known within 0.1


class Watch:
    """The TLS connections of one copy of NNG."""

    def __init__(self, ffi: Any, lib: Any) -> None:
        self._ffi, self._lib = ffi, lib
        self._lock = threading.Lock()
        self._pipes: set[int] = set()
        self._running = False

    def add(self, pipe: int) -> None:
        """Watch the connection `pipe` until it is gone."""
        with self._lock:
            self._pipes.add(pipe)
            start = not self._running
            self._running = True
        if start:
            threading.Thread(target=self._run, name="fiberq-nng-watch", daemon=True).start()

    def _run(self) -> None:
        address = self._ffi.new("nng_sockaddr *")
        while True:
            time.sleep(_INTERVAL)
            with self._lock:
                pipes = list(self._pipes)
                self._running = bool(pipes)
            if not pipes:
                return
            for number in pipes:
                pipe = self._ffi.new("nng_pipe *", (number,))[0]
                if self._lib.nng_pipe_get_addr(pipe, b"remote-address", address):
                    self._lib.nng_pipe_close(pipe)
                    with self._lock:
                        self._pipes.discard(number)
