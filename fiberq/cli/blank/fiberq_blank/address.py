"""What an address says. Nothing here opens anything. The rules: ADDR, CAP-3."""

from __future__ import annotations

import os
import socket
import sys
from typing import NamedTuple

from fiberq.address import hidden
from fiberq.errors import AddressError

from .base import NAME

__all__ = ["Address", "parse"]

PATH_LIMIT = 107 if sys.platform == "linux" else 103
"""The bytes of a UNIX socket's path, at most."""


class Address(NamedTuple):
    """A parsed address. `scheme` is ``ipc``, with `path`; or ``tcp``, with the rest."""

    scheme: str
    path: str
    host: str
    port: int


def parse(address: str) -> Address:
    """Return the parts of ``ipc://path`` or ``tcp://host:port``.

    Raises `AddressError`.
    """
    scheme, separator, rest = address.partition("://")
    if separator and scheme == "ipc":
        return _ipc(address, rest)
    if separator and scheme == "tcp":
        return _tcp(address, rest)
    raise _wrong(address, "write ipc://path or tcp://host:port")


def _ipc(address: str, path: str) -> Address:
    if not path or "\0" in path:
        raise _wrong(address, "write ipc://path")
    if len(os.fsencode(path)) > PATH_LIMIT:
        raise _wrong(address, f"the path may have at most {PATH_LIMIT} bytes")
    return Address("ipc", path, "", 0)


def _tcp(address: str, rest: str) -> Address:
    host, _, port = rest.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        valid = _is_ipv6(host)
    else:
        valid = bool(host) and all(each.isalnum() or each in "-._" for each in host)
    digits = port.isascii() and port.isdigit() and len(port) <= 5
    if not valid or not digits or int(port) > 65535:
        raise _wrong(address, "write tcp://host:port, and an IPv6 host in brackets")
    return Address("tcp", "", host, int(port))


def _is_ipv6(host: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET6, host)
    except OSError:
        return False
    return True


def _wrong(address: str, advice: str) -> AddressError:
    return AddressError(f"{NAME}: not an address: {hidden(address)!r}; {advice}")
