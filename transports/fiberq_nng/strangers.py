"""Hangs up on TCP connections that take too long over their TLS handshake, and tells of those that fail in it.

NNG tells of a connection only when it is a pipe, after the handshake, for which it would wait for ever. So a thread
looks at the descriptors of this process: a socket at the server's port that is at no pipe's other end belongs to a
stranger. Of handshakes that failed NNG tells the number. Their sockets were soon gone; but it was this side that ended
them, and the kernel remembers that for a while.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

from .address import Endpoint
from .descriptors import KEPT, ended_here

__all__ = ["Strangers"]

PATIENCE: Final = 5.0
"""Seconds that a handshake may take."""

MOST: Final = 256
"""How many may be at it at once: one more, and the oldest has to go."""

_INTERVAL: Final = 0.25  # seconds


_COUNT: Final = 1.0
"""Seconds between two looks at NNG's count, which takes some milliseconds where there are thousands of pipes."""


class Host(Protocol):
    """The server, and what it knows of the connections that became pipes."""

    refused: Callable[[object, str], None]

    def other_ends(self) -> set[Endpoint]:
        """Where those come from that are there."""

    def ends_gone(self) -> set[Endpoint]:
        """Where those came from that went in the last `KEPT` seconds."""


class Strangers:
    """Those at `port`. `failed` returns how many handshakes have failed there, since it was bound."""

    def __init__(self, port: int, host: Host, failed: Callable[[], int]) -> None:
        self._port = port
        self._host = host
        self._failed = failed
        self._since: dict[tuple[int, Endpoint], float] = {}  # by descriptor and other end, the oldest first
        self._told: dict[Endpoint, float] = {}
        self._count = 0
        self._count_at = 0.0
        self._again = False
        """Whether there may be more that NNG did not count: after one, it counts none for 0.1 s."""
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
        known = self._host.other_ends()  # after that: who is there by now is no stranger
        strangers = {each for each in found if each[1] not in known}
        self._since = {each: since for each, since in self._since.items() if each in strangers}
        for each in strangers - self._since.keys():
            self._since[each] = now
        for place, (each, since) in enumerate(list(self._since.items())):
            if now >= since + PATIENCE:
                self._hang_up(*each, f"its handshake took more than {PATIENCE:g} s")
            elif place < len(self._since) - MOST:
                self._hang_up(*each, f"more than {MOST} were at their handshake")
        if now >= self._count_at:
            self._count_at = now + _COUNT
            self._tell(now)

    def _tell(self, now: float) -> None:
        """Tell of the handshakes that failed, and whence they came if the kernel remembers."""
        before, self._count = self._count, self._failed()
        count = self._count - before
        again, self._again = self._again, count > 0
        if count <= 0 and not again:
            return
        self._told = {end: at for end, at in self._told.items() if now < at + KEPT}
        found = ended_here(self._port) - self._host.other_ends() - self._host.ends_gone() - self._told.keys()
        self._told.update(dict.fromkeys(found, now))
        for end in [*found, *[None] * (count - len(found))]:
            self._host.refused(end, "it has no key, or another one")

    def _other_end(self, fd: int) -> Endpoint | None:
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

    def _hang_up(self, fd: int, end: Endpoint, why: str) -> None:
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as sock:
            if sock.getpeername()[:2] == end:
                sock.shutdown(socket.SHUT_RDWR)
                if end not in self._told:  # else NNG takes its time
                    self._told[end] = time.monotonic()
                    self._host.refused(end, why)
