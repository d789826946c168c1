"""What closing from any thread takes: a bell that wakes who is blocked, and letting go after the last one has left."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from abc import abstractmethod
from collections.abc import Callable
from contextlib import suppress

from fiberq.errors import ClosedError

LONGEST = 3600.0
"""Seconds of one wait at most: `poll` cannot count very long ones."""


def remaining(deadline: float | None) -> float | None:
    """Return for how many seconds to wait now, 0 when the deadline has passed; `None` when there is none."""
    return None if deadline is None else min(max(deadline - time.monotonic(), 0.0), LONGEST)


def daemon(target: Callable[[], None]) -> None:
    """Run `target` in a thread that gets no signals, so that they wake the main thread."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        threading.Thread(target=target, name="fiberq stream", daemon=True).start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def drop(sock: socket.socket) -> None:
    """Close a socket's descriptor, and forget its number. In a forked child the core may have closed it before."""
    with suppress(OSError):
        os.close(sock.detach())


class Bell:
    """A descriptor that is readable while it rings."""

    def __init__(self) -> None:
        self.fd, self._rope = os.pipe()
        os.set_blocking(self.fd, False)
        self.rings = False

    def ring(self) -> None:
        if not self.rings:
            self.rings = True
            os.write(self._rope, b"!")

    def hush(self) -> None:
        with suppress(BlockingIOError):  # A signal handler's exception may have come between `rings` and the ringing.
            os.read(self.fd, 1)
        self.rings = False

    def close(self) -> None:
        os.close(self.fd)
        os.close(self._rope)


class Closable:
    """A socket of the contract. Whoever is about to wait enters, and leaves afterwards.

    A descriptor that is closed while a thread waits for it may be somebody else's a moment later. So `close` only says
    that the socket is closed, and rings; the last one who leaves closes the descriptors.
    """

    def __init__(self, forget: Callable[[Closable], None]) -> None:
        self._lock = threading.RLock()  # A signal handler may close a socket that this very thread has locked.
        self._bell = Bell()
        self._forget = forget
        self._closed = False
        self._inside = 0

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._withdraw()
            self._bell.ring()
            self._end()

    def _check(self) -> None:
        if self._closed:
            raise ClosedError("stream: the socket is closed")

    def _enter(self) -> None:
        with self._lock:
            self._check()
            self._inside += 1

    def _leave(self) -> None:
        with self._lock:
            self._inside -= 1
            self._end()

    def _end(self) -> None:
        if self._closed and not self._inside:
            self._forget(self)
            self.let_go()

    @abstractmethod
    def _withdraw(self) -> None:
        """Tell the world of the end: the first part of closing."""

    @abstractmethod
    def let_go(self) -> None:
        """Close this process's descriptors, and touch nothing else: a forked child does this to what it inherited."""
