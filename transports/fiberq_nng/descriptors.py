"""Finds the kernel's sockets behind NNG's, which NNG does not tell: by their ends' addresses."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from socket import getdefaulttimeout, socket

from .address import Endpoint

__all__ = ["descriptors_at"]


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
