"""Ends the TCP connections whose other host has vanished: whatever is sent there, nothing is heard. For transports.

The other host's kernel answers, whether its processes run or not. So a process that is stopped, or keeps its GIL, is
not taken for dead; a heartbeat between processes would do that, and so does ZeroMQ's. Nor is `TCP_USER_TIMEOUT` of use:
Linux ends with it the connection to a peer that answers, but takes no more because its buffers are full.

Keep-alive makes a quiet connection ask, and the kernel counts what is not answered; a busy one is its own question, and
the kernel counts its retransmissions. A thread reads these counts. Where there is no `TCP_INFO`, as on macOS, only the
kernel's own end of a quiet connection remains.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
import sys
import threading
import time
from collections.abc import Container
from contextlib import suppress
from typing import NamedTuple

__all__ = ["watch"]

UNANSWERED = 1.4
"""Heartbeats for which something must have been unanswered. One lost packet, or a slow answer, is no proof."""
SILENT = 2.5
"""Heartbeats for which nothing at all must have been heard."""
LOOKS = 4
"""Looks in a heartbeat."""
GRAIN = 0.02
"""Seconds by which the kernel's clock may be behind ours."""

_INFO = struct.Struct("=2x B B 4x 44x I I")
"""What counts of `struct tcp_info`: retransmits, probes; the milliseconds since data came and since an answer came."""
_PROBES = 10 if sys.platform == "linux" else 2
"""After so many that are not answered the kernel ends the connection, if this process does not run."""
_LONGEST_PAUSE = 44
"""`TCP_RTO_MAX_MS`, which Python does not name."""
_IDLE = getattr(socket, "TCP_KEEPIDLE", None) or getattr(socket, "TCP_KEEPALIVE", None)


class Reading(NamedTuple):
    """What the kernel says of one connection."""

    attempts: int
    """What was sent since the last answer, and had no answer in time; some of it may be counted from before."""
    heard: float
    """Seconds since anything came."""


class Verdict:
    """Decides from one reading after the other whether the other host has vanished. Opens nothing, reads no clock."""

    def __init__(self, heartbeat: float, now: float) -> None:
        self._heartbeat = heartbeat
        self._looked = now
        self._answered = 0
        self._unanswered_since: float | None = None

    def vanished(self, reading: Reading, now: float) -> bool:
        if reading.heard <= now - self._looked + GRAIN:
            self._answered = reading.attempts
        self._looked = now
        if reading.attempts <= self._answered:
            self._unanswered_since = None
            return False
        if self._unanswered_since is None:
            self._unanswered_since = now
        unanswered = now - self._unanswered_since
        return unanswered >= UNANSWERED * self._heartbeat and reading.heard >= SILENT * self._heartbeat


class _Watched(NamedTuple):
    inode: tuple[int, int]
    """By which a descriptor is known again: its number may be somebody else's a moment after it was closed. Looked at
    only where it matters, as it costs as much as all the rest."""
    heartbeat: float
    verdict: Verdict


_lock = threading.Lock()
_watched: dict[int, _Watched] = {}
_running = False


def watch(fd: int, heartbeat: float, ports: Container[int] | None = None) -> None:
    """Have the TCP connection `fd` shut down within 3 `heartbeat` (seconds) of when its other host vanished. Never
    blocks.

    Whoever reads then finds the end of the stream, after what had arrived. The watch ends with the descriptor.
    Keep-alive counts whole seconds: a heartbeat below 1 has the effect of 1. With 0, and for other descriptors than
    connected TCP sockets, nothing is done. Where `fd` may be somebody else's by now, `ports` tells its own: one of the
    two ends must have one of them.
    """
    global _running
    if heartbeat <= 0:
        return
    heartbeat = max(heartbeat, 1.0)
    try:
        inode = _inode(fd)
        if (known := _watched.get(fd)) is not None and known.inode == inode:
            return
        if not _keep_alive(fd, heartbeat, ports):
            return
        if sys.platform != "linux":
            return
        _read(fd)
    except (OSError, struct.error):
        return
    with _lock:
        _watched[fd] = _Watched(inode, heartbeat, Verdict(heartbeat, time.monotonic()))
        if not _running:
            try:
                threading.Thread(target=_run, name="fiberq-vanished", daemon=True).start()
                _running = True
            except RuntimeError:
                pass  # The process has too many threads, or is about to end. The next connection tries again.


def _inode(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    if not stat.S_ISSOCK(status.st_mode):
        raise OSError
    return status.st_dev, status.st_ino


def _keep_alive(fd: int, heartbeat: float, ports: Container[int] | None) -> bool:
    """Whether it is a TCP connection that is meant."""
    sock = _borrow(fd, -1, -1)
    try:
        if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_STREAM:
            return False
        ends = sock.getsockname()[1], sock.getpeername()[1]
        if ports is not None and ends[0] not in ports and ends[1] not in ports:
            return False
        seconds = int(heartbeat)
        if _IDLE is not None:
            sock.setsockopt(socket.IPPROTO_TCP, _IDLE, seconds)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, seconds)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if sys.platform == "linux":
            # Else a network that heals in time may hear of us too late: each attempt waits twice as long as the last.
            with suppress(OSError):  # Linux below 6.15
                sock.setsockopt(socket.IPPROTO_TCP, _LONGEST_PAUSE, seconds * 1000)
        return True
    finally:
        sock.detach()


def _read(fd: int) -> Reading:
    sock = _borrow(fd)
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
    finally:
        sock.detach()
    retransmits, probes, data, answer = _INFO.unpack(info)
    return Reading(retransmits + probes, min(data, answer) / 1000)


def _ask_again(fd: int, heartbeat: float) -> None:
    """Have a quiet connection probe at once, not only after a heartbeat: on a bad line two in a row may well be lost.
    Linux does that when the time before the first probe is set anew, and is over."""
    sock = _borrow(fd)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, int(heartbeat))
    finally:
        sock.detach()


def _shut_down(fd: int) -> None:
    sock = _borrow(fd)
    try:
        sock.shutdown(socket.SHUT_RDWR)
    finally:
        sock.detach()


def _borrow(fd: int, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> socket.SocketType:
    """The caller has to `detach` it, lest it close the descriptor."""
    if socket.getdefaulttimeout() is None:
        return socket.SocketType(family, kind, 0, fd)  # The class above it takes longer.
    blocking = os.get_blocking(fd)
    sock = socket.SocketType(family, kind, 0, fd)
    os.set_blocking(fd, blocking)
    return sock


def _run() -> None:
    global _running
    while True:
        with _lock:
            pause = min((each.heartbeat for each in _watched.values()), default=0.0) / LOOKS
            if not pause:
                _running = False
                return
        time.sleep(pause)
        for fd, each in list(_watched.items()):
            if not _look(fd, each):
                with _lock:
                    if _watched.get(fd) is each:
                        del _watched[fd]


def _look(fd: int, each: _Watched) -> bool:
    """Whether it is to be watched further."""
    try:
        reading = _read(fd)
        if reading.attempts and _inode(fd) != each.inode:
            return False
        if not each.verdict.vanished(reading, time.monotonic()):
            if reading.attempts:
                _ask_again(fd, each.heartbeat)
            return True
        own = os.dup(fd)  # From here on it cannot become somebody else's.
        try:
            if _inode(own) == each.inode:
                _shut_down(own)
        finally:
            os.close(own)
    except (OSError, struct.error):
        pass
    return False


def _forget() -> None:
    """In a forked child, which has no such thread, and whose connections are its own."""
    global _lock, _running
    _lock = threading.Lock()
    _watched.clear()
    _running = False


os.register_at_fork(after_in_child=_forget)
