"""From handles to URLs and back: `fiberq.open`. A URL carries what is needed to connect, so it is a secret."""

from __future__ import annotations

from typing import Any

from fiberq.access import Url, read_url
from fiberq.address import ENDS, Address, hidden, parse
from fiberq.channel import Channel, Recipe
from fiberq.connection import ZConnection
from fiberq.errors import AccessError, AddressError
from fiberq.links import ask_anew, connect
from fiberq.queues import JoinableQueue, Queue, SimpleQueuePush
from fiberq.registry import name_of
from fiberq.tree import Endpoint, at

__all__ = ["open", "url"]

_QUEUES: dict[str, type[Queue[Any] | SimpleQueuePush[Any]]] = {
    "pull": Queue,
    "push": SimpleQueuePush,
    "joinable": JoinableQueue,
}


def open(url: str) -> Any:  # noqa: A001
    """Return the queue, or the `ZConnection` on a pipe's end or a queue's side, that a URL names: ``handle.url`` gives
    one. A pull queue comes as a `Queue`.

    Blocks until the node has answered, at most twice `config.connect_timeout` seconds. Raises
    `fiberq.errors.AddressError` for what names no queue and no end, `ConnectError` when no node listens there or it
    does not know the key, `AccessError` when the right that the URL carries expired or was revoked, `HandleError` when
    the queue or pipe is gone.
    """
    read = read_url(url.strip() if isinstance(url, str) else url)
    device, end = read.address.device, read.address.end
    if device is None:
        raise AddressError("the URL names a node, and no queue on it: /NAME must follow, or set config.node to it")
    endpoint = at(str(read._replace(address=read.address._replace(device=None, end=None))))
    found = ask_anew(lambda: connect(endpoint), lambda link: link.find(device))
    if end in ("a", "b"):
        if found.kind.name != "pipe":
            raise AddressError(f"the URL names the end of a pipe, and {device} is a queue: its sides are r and w")
        return _pipe_end(endpoint, found.number, end)
    recipe = None if found.name is None else Recipe(found.name)
    if end is None:
        if found.kind.name not in _QUEUES:
            raise AddressError(f"the URL names a pipe, and no end of it: one of {', '.join(ENDS)} must follow")
        made = _QUEUES[found.kind.name]
        return made._on(Channel(endpoint, found.number, found.sides, label=made.__name__, recipe=recipe))
    if end not in found.sides:
        raise AccessError(f"the URL gives no right to that side of {device}")
    channel = Channel(endpoint, found.number, end, recipe=recipe)
    return ZConnection._made(channel, None) if end == "r" else ZConnection._made(None, channel)


def _pipe_end(endpoint: Endpoint, number: int, end: str) -> ZConnection:
    """The channels of a pipe are neighbours: "a" reads the odd one and writes the even one, "b" the other way round."""
    even = number & ~1
    reads, writes = (even | 1, even) if end == "a" else (even, even | 1)
    return ZConnection._made(Channel(endpoint, reads, "r"), Channel(endpoint, writes, "w"))


def url(endpoint: Endpoint, device: str, end: str | None) -> str:
    """Return the URL of a queue, or of an end, for processes on any machine that reaches the node."""
    node = parse(endpoint.far or endpoint.address)
    address = Address(node.scheme, node.location, device, end)
    return str(Url(name_of(endpoint.target), address, endpoint.key))


def check_expires(expires: float | None) -> None:
    """Raises `ValueError`, or `TypeError`, unless `expires` is a number of seconds above 0, or `None`."""
    if expires is not None and not isinstance(expires, (int, float)):
        raise TypeError(f"expires must be a number of seconds, or None, not an object of type {type(expires).__name__}")
    if expires is not None and not 0 < expires < 1e9:
        raise ValueError(f"expires must be a number of seconds above 0, or None, not {expires}")


def check_right(right: str) -> str:
    """Return the side that "put" or "get" stands for. Raises `ValueError` for anything else."""
    try:
        return {"put": "w", "get": "r"}[right]
    except (KeyError, TypeError):
        raise ValueError(f'a right is "put" or "get", not {hidden(repr(right))}') from None
