"""Hangs up on TCP connections that take too long over their TLS handshake. NNG would wait for ever.

NNG tells of a connection only when it is a pipe, after the handshake. So a thread looks at the descriptors of this
process: a socket at the server's port that is at no pipe's other end belongs to a stranger.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
import time
from collections.abc import Callable
from typing import Final

__all__ = ["Strangers"]

PATIENCE: Final = 5.0
"""Seconds that a handshake may take."""

MOST: Final = 256
"""How many may be at it at once: one more, and the oldest has to go."""

_INTERVAL: Final = 0.25  # seconds


class Strangers:
    """`known` returns the other ends, (host, port), of those that are pipes."""

    def __init__(self, port: int, known: Callable[[], set[tuple[str, int]]]) -> None:
        self._port = port
        self._known = known
        self._since: dict[tuple[int, tuple[str, int]], float] = {}  # by descriptor and other end, the oldest first
        self._end = threading.Event()
        threading.Thread(target=self._run, name="fiberq-nng-strangers", daemon=True).start()

    def stop(self) -> None:
        self._end.set()

    def _run(self) -> None:
        while not self._end.wait(_INTERVAL):
            with contextlib.suppress(OSError):  # no list, as where /proc is not mounted
                self._look(time.monotonic())

    def _look(self, now: float) -> None:
        found = {(fd, end) for fd in map(int, os.listdir("/dev/fd")) if (end := self._other_end(fd))}
        known = self._known()  # after that: who is there by now is no stranger
        strangers = {each for each in found if each[1] not in known}
        self._since = {each: since for each, since in self._since.items() if each in strangers}
        for each in strangers - self._since.keys():
            self._since[each] = now
        for place, (each, since) in enumerate(list(self._since.items())):
            if now >= since + PATIENCE or place < len(self._since) - MOST:
                self._hang_up(*each)

    def _other_end(self, fd: int) -> tuple[str, int] | None:
        """Who is connected to the server at this descriptor, if it is one that the server accepted."""
        try:
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                return None
            sock = socket.socket(fileno=os.dup(fd))
        except OSError:
            return None
        with sock:
            try:
                if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.getsockname()[1] != self._port:
                    return None
                end = sock.getpeername()
                return str(end[0]), int(end[1])
            except OSError:
                return None  # it listens

    def _hang_up(self, fd: int, end: tuple[str, int]) -> None:
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as sock:
            if sock.getpeername()[:2] == end:
                sock.shutdown(socket.SHUT_RDWR)
