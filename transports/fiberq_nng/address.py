"""What an address says: a socket path, or a host and a port. Nothing here opens anything."""

from __future__ import annotations

import os
import socket
import sys
from typing import NamedTuple

from fiberq.address import hidden
from fiberq.errors import AddressError

__all__ = ["Address", "Endpoint", "parse"]

Endpoint = tuple[str, int]
"""What identifies a connection's end: a path and 0, or an IP address and a port; ``""`` stands for any IP address."""

_PATH_LIMIT = 107 if sys.platform == "linux" else 103


class Address(NamedTuple):
    """A parsed address."""

    scheme: str
    path: str
    host: str
    port: int

    def url(self, encrypted: bool) -> bytes:
        """Return the address in NNG's notation."""
        if self.scheme == "ipc":
            return b"ipc://" + os.fsencode(self.path)
        scheme = "tls+tcp" if encrypted else "tcp"
        return f"{scheme}://{self._bracketed()}:{self.port}".encode()

    def endpoint(self) -> Endpoint:
        """Return what `getsockname` or `getpeername` says of this address."""
        if self.scheme == "ipc":
            return self.path, 0
        host = _ip(self.host)
        return "" if host in ("0.0.0.0", "::") else host, self.port

    def __str__(self) -> str:
        return f"ipc://{self.path}" if self.scheme == "ipc" else f"tcp://{self._bracketed()}:{self.port}"

    def _bracketed(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host


def parse(address: str) -> Address:
    """Return the parts of ``ipc://path`` or ``tcp://host:port``. Raises `AddressError`."""
    scheme, separator, rest = address.partition("://")
    if separator and scheme == "ipc":
        return _ipc(address, rest)
    if separator and scheme == "tcp":
        return _tcp(address, rest)
    raise AddressError(f"nng: an address is ipc://path or tcp://host:port, not {hidden(address)!r}")


def _ipc(address: str, path: str) -> Address:
    if not path or "\0" in path:
        raise AddressError(f"nng: no path in the address {hidden(address)!r}")
    length = len(os.fsencode(path))
    if length > _PATH_LIMIT:
        raise AddressError(
            f"nng: the path in {hidden(address)!r} has {length} bytes; a socket's has at most {_PATH_LIMIT}"
        )
    return Address("ipc", path, "", 0)


def _tcp(address: str, rest: str) -> Address:
    host, _, port = rest.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        valid = ":" in _ip(host)
    else:
        valid = bool(host) and all(letter.isalnum() or letter in "-._" for letter in host)
    if not valid or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise AddressError(f"nng: {hidden(address)!r} is not of the form tcp://host:port")
    return Address("tcp", "", host, int(port))


def _ip(host: str) -> str:
    """Return the IP address `host` as the system writes it; ``""`` if it is a name."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            return socket.inet_ntop(family, socket.inet_pton(family, host))
        except (OSError, ValueError):
            continue
    return ""
