"""Addresses, and listening at them: a UNIX socket's file is taken over from the dead, never from the living."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import stat
import time
from contextlib import suppress
from typing import Any, NamedTuple

from fiberq.address import hidden
from fiberq.errors import AddressError, TransportError

LONGEST_PATH = 103
"""Bytes of a UNIX socket's path: the least that any system takes."""
LOCK_SECONDS = 2.0
IPC = r"ipc://(?P<path>/[^\0]+)"
TCP = r"tcp://(?:\[(?P<six>[0-9A-Fa-f:.]+(?:%\w+)?)\]|(?P<host>[^\s:/\[\]\0]+)):(?P<port>[0-9]{1,5})"

Where = tuple[socket.AddressFamily, Any]
"""What Python's sockets want to know of an address."""


def resolve(address: str) -> list[Where]:
    """Return the places that an address stands for, the best first. Raises `OSError` for an unknown host.

    To look up a host's name takes as long as the system's resolver likes. A numeric host is not looked up.
    """
    try:
        if (ipc := re.fullmatch(IPC, address)) and len(os.fsencode(ipc["path"])) <= LONGEST_PATH:
            return [(socket.AF_UNIX, ipc["path"])]
        if (tcp := re.fullmatch(TCP, address)) and int(tcp["port"]) <= 65_535:
            host, port, stream = tcp["six"] or tcp["host"], int(tcp["port"]), socket.SOCK_STREAM
            try:
                found = socket.getaddrinfo(host, port, type=stream, flags=socket.AI_NUMERICHOST)
            except socket.gaierror:
                found = socket.getaddrinfo(host, port, type=stream)
            return [(family, where) for family, _, _, _, where in found]
    except UnicodeError:
        pass  # No such path, or no such host name, can be.
    raise AddressError(
        f"stream: neither tcp://host:port nor ipc:///path, of {LONGEST_PATH} bytes at most: {hidden(address)!r}"
    )


def drop(sock: socket.socket) -> None:
    """Close a socket's descriptor, and forget its number. In a forked child the core may have closed it before."""
    with suppress(OSError):
        os.close(sock.detach())


def no_delay(sock: socket.socket) -> None:
    """Let small messages leave at once."""
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class Listener(NamedTuple):
    """A socket that listens, and, for ipc, its file: the path, the device, the inode."""

    sock: socket.socket
    address: str
    file: tuple[str, int, int] | None

    @classmethod
    def at(cls, address: str) -> Listener:
        """Listen. Raises `OSError` or `TransportError` where that cannot be done."""
        family, where = resolve(address)[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            if isinstance(where, str):
                return cls(sock, address, _listen_at_path(sock, where))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(where)
            sock.listen(socket.SOMAXCONN)
            return cls(sock, f"{address.rpartition(':')[0]}:{sock.getsockname()[1]}", None)
        except BaseException:
            sock.close()
            raise

    def withdraw(self) -> None:
        """Listen no more, and remove the file, if it is still this listener's: the descriptor may be in use for now."""
        if self.file is not None:
            path, *mine = self.file
            try:
                now = os.lstat(path)
                if [now.st_dev, now.st_ino] == mine:
                    os.unlink(path)
            except OSError:
                pass  # Somebody removed it first.
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)


def _listen_at_path(sock: socket.socket, path: str) -> tuple[str, int, int]:
    # Between its `bind` and its `listen`, a living server looks like a dead one. The lock on the directory keeps others
    # from seeing that, and two from taking over the same file.
    directory = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        _lock(directory, path)
        try:
            sock.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _is_dead(path):
                raise
            os.unlink(path)
            sock.bind(path)
        sock.listen(socket.SOMAXCONN)
        file = os.lstat(path)
        return path, file.st_dev, file.st_ino
    finally:
        fcntl.flock(directory, fcntl.LOCK_UN)  # A child that another thread is just forking would keep it.
        os.close(directory)


def _lock(directory: int, path: str) -> None:
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            return fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TransportError(f"stream: somebody keeps the directory of ipc://{path} locked") from None
            time.sleep(0.005)


def _is_dead(path: str) -> bool:
    """Whether the file is a socket at which nobody listens."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        return probe.connect_ex(path) == errno.ECONNREFUSED
