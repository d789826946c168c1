"""How a node listens on a network: never without credentials unless that is allowed, and at an address to tell others.

`node` runs what this opens, for one program; ``fiberq serve`` does, standing alone.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from fiberq.abc import Credentials, ServerSocket, Transport
from fiberq.access import Authority, Keys
from fiberq.address import hidden, parse
from fiberq.errors import AddressError, TransportError
from fiberq.refused import Refusals
from fiberq.registry import make_server

if TYPE_CHECKING:
    from fiberq.memory import Vault

__all__ = ["Listening", "advertised", "listen", "near"]

ANYWHERE = ("0.0.0.0", "[::]")
"""Hosts that stand for all addresses of a machine, which are no use to others."""

FAR_AWAY = (("192.0.2.1", 9), "127.0.0.1")
"""An address to which no packet is sent (RFC 5737), and what to say of a machine that has no way there."""


AROUND = 1 << 20
"""Bytes of a message that are no items."""

KEPT = 128
"""Descriptors that are no connections."""


class Listening(NamedTuple):
    """A server socket that is bound, and what its clients need."""

    server: ServerSocket
    addresses: list[str]
    """Where it listens, in the order of what was asked for."""
    authority: Authority | None
    """`None` if whoever reaches it may do everything."""

    def vault(self, wanted: bool) -> Vault | None:
        """What holds shared memory, in half of the descriptors that no connection can need; `None` if there is none."""
        from fiberq.memory import make_vault

        return make_vault((_descriptors() - self.server.max_connections) // 2) if wanted else None


def listen(
    target: str,
    transport: Transport,
    addresses: list[str],
    keys: Keys | None,
    authority: Authority | None,
    allow_insecure: bool,
    max_connections: int = ServerSocket.max_connections,
    max_bytes: int | None = None,
) -> Listening:
    """Make a server of `transport`, an instance of `target`, and bind it; with `keys`, only for clients that have them.
    It takes at most so many connections, as far as this process's descriptors go, and items of at most `max_bytes`.

    Raises `TransportError` for a transport that cannot authenticate, unless that is allowed, and for an address that
    cannot be bound; `AddressError`.
    """
    schemes = {parse(address).scheme for address in addresses}
    if keys is not None and not transport.capabilities.authenticates:
        if not allow_insecure:
            raise TransportError(
                f"{type(transport).__qualname__} cannot authenticate its peers, so a node does not listen with it on a "
                f"network ({', '.join(sorted(schemes - {'ipc'}))}): choose another transport, or, where only friends "
                "reach the port, set config.allow_insecure"
            )
        keys = authority = None
    server = make_server(target, transport, None if keys is None else Credentials(keys.secret))
    server.refused = Refusals()
    server.max_connections = min(max_connections, _descriptors())
    if max_bytes is not None:
        server.max_message = max_bytes + AROUND
    try:
        return Listening(server, [server.bind(address) for address in addresses], authority)
    except BaseException:
        server.close()
        raise


def advertised(bound: str, advertise: str | None) -> str:
    """Return the address at which other machines reach what is bound to `bound`: `advertise`, which is ``host`` or
    ``host:port``, if it is given. Raises `AddressError` if it is neither."""
    address = parse(bound)
    if address.scheme != "tcp":
        return bound
    host, _, port = address.location.rpartition(":")
    if advertise is None:
        return f"tcp://{_own_host() if host in ANYWHERE else host}:{port}"
    given = parse(f"tcp://{advertise}")
    if given.device is not None:
        raise AddressError(f"what is advertised is a host, or host:port, not {hidden(advertise)!r}")
    tail = given.location.rpartition("]")[2]
    return given.node if ":" in tail else f"{given.node}:{port}"


def near(bound: str) -> str:
    """Return the address at which this machine reaches what is bound to `bound`."""
    for anywhere, here in zip(ANYWHERE, ("127.0.0.1", "[::1]"), strict=True):
        bound = bound.replace(f"tcp://{anywhere}:", f"tcp://{here}:")
    return bound


def _descriptors() -> int:
    """How many connections this process has descriptors for, when it has asked for all that it can have."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (ValueError, OSError):  # the system itself allows fewer
            pass
    return 1 << 30 if soft == resource.RLIM_INFINITY else max(1, soft - KEPT)


def _own_host() -> str:
    """The address of this machine from which packets to far away leave."""
    import socket

    somewhere, otherwise = FAR_AWAY
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(somewhere)
            return str(probe.getsockname()[0])
        except OSError:
            pass
    try:
        return socket.gethostbyname(os.uname().nodename)
    except OSError:
        return otherwise
