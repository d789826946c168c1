"""Finds the kernel's sockets behind NNG's, which NNG does not tell: by their ends' addresses, and after their end."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import struct
from collections.abc import Iterator
from socket import AF_INET, AF_INET6, getdefaulttimeout, inet_ntop, socket

from .address import Endpoint

__all__ = ["KEPT", "descriptors_at", "ended_here"]

KEPT = 120.0
"""Seconds after which the kernel has forgotten a TCP connection that this side ended first."""

_MOST = 1 << 20
"""Bytes that are read of the kernel's list, with 150 for each connection: it may be very long when somebody attacks."""


def descriptors_at(endpoints: set[Endpoint]) -> Iterator[int]:
    """Yield this process's sockets of which one end is one of these. None where the system has no list of them."""
    try:
        names = os.listdir("/dev/fd")
    except OSError:  # as where /proc is not mounted
        return
    for name in names:
        try:
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode) and _ends(int(name)) & endpoints:
                yield int(name)
        except OSError:
            pass  # the descriptor of the listing itself, or one of a kind that has no address


def _ends(fd: int) -> set[Endpoint]:
    """Both ends, and each also as ``("", port)``, which stands for any host."""
    timeout, blocking = getdefaulttimeout(), os.get_blocking(fd)
    sock = socket(fileno=fd)
    try:
        names = [sock.getsockname()]
        with contextlib.suppress(OSError):  # it listens
            names.append(sock.getpeername())
    finally:
        sock.detach()
        if timeout is not None:  # which has just made it non-blocking
            os.set_blocking(fd, blocking)
    ends: set[Endpoint] = set()
    for name in names:
        host, port = (name, 0) if isinstance(name, str) else name[:2]
        ends |= {(host, port), ("", port)}
    return ends


def ended_here(port: int) -> set[Endpoint]:
    """Return the other ends of the TCP connections at this port that this side ended first, about a minute ago at
    most. None where the system has no list of them."""
    closing = re.compile(rb": [0-9A-F]+:%04X ([0-9A-F]+):([0-9A-F]{4}) (?:04|05|06|0B) " % port)
    ends: set[Endpoint] = set()
    for path, family in (("/proc/self/net/tcp", AF_INET), ("/proc/self/net/tcp6", AF_INET6)):
        with contextlib.suppress(OSError), open(path, "rb") as file:
            for host, other in closing.findall(file.read(_MOST)):
                words = [int(host[at : at + 8], 16) for at in range(0, len(host), 8)]
                ends.add((inet_ntop(family, struct.pack(f"={len(words)}I", *words)), int(other, 16)))
    return ends
