"""Addresses and handle tuples: how ``"tcp://127.0.0.1:9000/QUEUE/r"`` is read and written. No secret is ever in one."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, TypeAlias

from .errors import AddressError

__all__ = [
    "ENDS",
    "SOCK_TYPES",
    "Address",
    "SockType",
    "check_name",
    "check_sock_type",
    "format",
    "hidden",
    "parse",
    "parse_handle",
    "printable",
]

SockType: TypeAlias = Literal["r", "w", "rw"]
SOCK_TYPES: tuple[SockType, ...] = ("r", "w", "rw")
ENDS = ("r", "w", "a", "b")
"""A queue's reader and writer, and a pipe's two ends."""

MAX_NAME = 255
"""Characters that a queue's name may have."""

MAX_LABEL = 63
"""Characters between two dots of a host's name (RFC 1035); a node's key has more."""

_EXAMPLE = '"tcp://127.0.0.1:9000" or "ipc:///run/fiberq/node.sock"'
# Not compiled before they are used: a process that starts needs few of them.
_TCP = r"(\[[0-9A-Fa-f:.]+(?:%[\w.-]+)?\]|[A-Za-z0-9_](?:[A-Za-z0-9._-]*))(?::([0-9]{1,5}))?"
_NUMBER = r"[0-9a-f]{16}"
_DEVICE = r"(?:[A-Za-z0-9._~-]|%[0-9A-Fa-f]{2})+"


class Address(NamedTuple):
    """Where a node listens (`scheme` and `location`) and, if `device` is set, which end of which device there."""

    scheme: str
    location: str
    """For tcp ``host`` or ``host:port``, an IPv6 host in brackets; for ipc an absolute path."""
    device: str | None = None
    """A device's id (16 lowercase hex digits) or name (see `check_name`); `None`: the node's default pipe."""
    end: str | None = None
    """One of `ENDS`, or `None` for a whole queue."""

    @property
    def node(self) -> str:
        """The bare address, which is what a transport binds and connects to."""
        return f"{self.scheme}://{self.location}"


def parse(address: str) -> Address:
    """Return the parts of `address`. Raises `AddressError`, which names it and gives an example.

    A device and its end follow a tcp location as ``/DEVICE/END``, or a whole queue as ``/DEVICE``. In an ipc
    address, and in those of all other schemes, they follow as ``?DEVICE/END``: a path has slashes of its own. What is
    in a device's name beside letters, digits and ``._~-`` is percent-encoded UTF-8.

        tcp://127.0.0.1:9000    tcp://[::1]:9000/jobs/r    ipc:///run/fiberq/node.sock?00c0ffee00c0ffee/w
    """
    scheme, separator, rest = address.partition("://") if isinstance(address, str) else ("", "", "")
    if not separator or not re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme):
        raise _error(address, "it must begin with a scheme such as tcp:// or ipc://")
    location, mark, suffix = rest.partition("/" if scheme == "tcp" else "?")
    device, end = _parse_suffix(address, suffix) if mark else (None, None)
    _check_location(address, scheme, location)
    return Address(scheme, location, device, end)


def format(address: Address) -> str:  # noqa: A001
    """Return the text from which `parse` makes `address`. Raises `AddressError` if there is none."""
    text = address.node
    if address.device is not None:
        from urllib.parse import quote

        name = quote(address.device, safe="", errors="replace")
        text += f"{'/' if address.scheme == 'tcp' else '?'}{name}{f'/{address.end}' if address.end else ''}"
    if parse(text) != address:
        raise _error(text, "it does not read back as the parts that it was made of")
    return text


def check_name(name: str) -> str:
    """Return a queue's name. Raises `AddressError`, which does not show it, for what a line of a log or of a table
    cannot hold, what would stand for another queue's number, and for a node's URL, which is a secret."""
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise AddressError(f"a queue's name must have 1 to {MAX_NAME} characters, all of which can be printed")
    if re.fullmatch(_NUMBER, name):
        raise AddressError(
            "a queue's name must not be 16 hexadecimal digits: those are the number of one without a name"
        )
    if "://" in name:
        raise AddressError("a queue's name must not be a URL: fiberq.open takes one, and config.node")
    return name


def parse_handle(handle: object) -> tuple[SockType, Address]:
    """Return the parts of a handle tuple such as ``("r", "tcp://127.0.0.1:9000")``. Raises `AddressError`."""
    if not (isinstance(handle, tuple) and len(handle) == 2):
        example = '("r", "tcp://127.0.0.1:9000")'
        raise AddressError(f"a handle is a tuple (sock_type, dest_addr) such as {example}, not {type(handle).__name__}")
    return check_sock_type(handle[0]), parse(handle[1])


def check_sock_type(sock_type: object) -> SockType:
    """Return `sock_type`. Raises `AddressError` unless it is one of `SOCK_TYPES`."""
    if sock_type not in SOCK_TYPES:
        raise AddressError(f'the socket type must be one of "r", "w" and "rw", not {hidden(repr(sock_type))}')
    return sock_type


def _parse_suffix(address: str, suffix: str) -> tuple[str, str | None]:
    device, slash, end = suffix.partition("/")
    if (slash and end not in ENDS) or not re.fullmatch(_DEVICE, device):
        raise _error(address, f"DEVICE or DEVICE/END must follow the location, with END one of {', '.join(ENDS)}")
    if "%" in device:
        from urllib.parse import unquote

        try:
            device = unquote(device, errors="strict")
        except UnicodeDecodeError:
            raise _error(address, "the device's name is not percent-encoded UTF-8") from None
    return device, end or None


def _check_location(address: str, scheme: str, location: str) -> None:
    if scheme == "tcp":
        match = re.fullmatch(_TCP, location, re.ASCII)
        if not match or (location[0] == "[" and not _is_ipv6(match[1])):
            raise _error(address, "tcp:// must be followed by HOST or HOST:PORT, an IPv6 host in brackets")
        if max(map(len, match[1].split("."))) > MAX_LABEL:
            raise _error(address, f"a host's name has at most {MAX_LABEL} characters between its dots")
        if match[2] and int(match[2]) > 65535:
            raise _error(address, "the port must be a number from 0 to 65535")
    elif scheme == "ipc" and not location.startswith("/"):
        raise _error(address, "ipc:// must be followed by an absolute path")
    elif scheme != "ipc" and "@" in location:
        raise _error(address, "a URL with a key is for fiberq.open, config.node and FIBERQ_NODE")
    elif not location or not location.isprintable() or "#" in location:
        raise _error(address, 'the location must be printable text without "#"')


def _is_ipv6(bracketed: str) -> bool:
    import socket

    try:
        socket.inet_pton(socket.AF_INET6, bracketed[1:-1].partition("%")[0])
    except OSError:
        return False
    return True


def hidden(text: str) -> str:
    """`text` without what may be a credential in it: a key is so long that what would be left of it is no use."""
    return re.sub(r"(//)[^/]*@|(#|\?.*=)(?s:.*)|[A-Za-z0-9_-]{32,}", r"\1...", text)


def printable(text: str) -> str:
    """`text` as one line: who wrote it is to write no others into logs and tables."""
    return text if text.isprintable() else ascii(text)


def _error(address: object, reason: str) -> AddressError:
    # Whoever passes a URL here by mistake is not to find its credential in a log.
    shown = repr(hidden(address)) if isinstance(address, str) else f"an object of type {type(address).__name__}"
    return AddressError(f"{shown} is no address: {reason}; examples: {_EXAMPLE}")
