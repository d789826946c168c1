"""How far a connection is with its CURVE handshake, as the system's own counters of its bytes tell.

libzmq takes a frame of any length that `ZMQ_MAXMSGSIZE` allows, and so memory, from a client that has not shown its
key yet; and it does not tell which connection has. But a server sends the last command of the handshake only to a
client that it admits, and a handshake is short. Without `TCP_INFO`, as on macOS, nothing is known.
"""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from struct import Struct
from typing import Final

__all__ = ["LONGEST", "hang_up", "other_end", "progress"]

LONGEST: Final = 16_384
"""Bytes that a client may send before it is admitted; a handshake has about 600."""

_ADMITTED: Final = 260
"""Bytes that a client must have had: greeting and welcome are 234, and what follows for one that is admitted, 60."""

_COUNTERS: Final = Struct("120xQQ")  # of Linux' struct tcp_info: bytes that were acknowledged, and that were received


def progress(number: int) -> bool | None:
    """Whether the client at this descriptor has sent too much before it was admitted; `None` when it was admitted, or
    nothing can be known."""
    if sys.platform != "linux":
        return None
    try:
        with socket.socket(fileno=os.dup(number)) as sock:
            had, sent = _COUNTERS.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _COUNTERS.size))
    except (OSError, ValueError):
        return None
    return None if had > _ADMITTED else sent > LONGEST


def other_end(number: int) -> object:
    """Where the connection at this descriptor comes from, as `getpeername` says; `None` if it is gone."""
    try:
        with socket.socket(fileno=os.dup(number)) as sock:
            return sock.getpeername()
    except OSError:
        return None


def hang_up(number: int) -> None:
    """End the connection at a descriptor of libzmq's, which has no call for that, and sees its end as any other."""
    with suppress(OSError), socket.socket(fileno=os.dup(number)) as sock:
        sock.shutdown(socket.SHUT_RDWR)
