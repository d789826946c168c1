"""`wait`: which of several things are ready to be read, as `multiprocessing.connection.wait` tells it."""

from __future__ import annotations

import select
from collections.abc import Iterable
from math import ceil
from time import monotonic
from typing import Any

from fiberq.links import settle

__all__ = ["wait"]


def wait(object_list: Iterable[Any], timeout: float | None = None) -> list[Any]:
    """Return those of `object_list` that are ready, in its order; blocks until one is, or for `timeout` seconds.

    Takes any mix of connections and queues of fiberq, `multiprocessing`'s connections, sockets and sentinels of
    processes: integers, and what has a `fileno`. A connection or queue is ready when reading from it would return or
    raise at once. Several may be ready at the same time; where several processes read from one end, another may have
    read by then what this one was told of. An empty list means that the time is over.

    Raises `fiberq.errors.ClosedError` for a closed connection, `DirectionError` for one that is write-only, and
    `NodeError` for one whose node is gone.
    """
    descriptors = [(each if isinstance(each, int) else each.fileno(), each) for each in object_list]
    poller = select.poll()
    for descriptor, _ in descriptors:
        poller.register(descriptor, select.POLLIN)
    ready = _poll(poller, timeout)
    return [each for descriptor, each in descriptors if descriptor in ready]


def _poll(poller: select.poll, timeout: float | None) -> set[int]:
    """The descriptors that are ready. What has been sent by now is found, though the node has not told of it yet."""
    settle()
    ready = {descriptor for descriptor, _ in poller.poll(0)}
    deadline = None if timeout is None else monotonic() + timeout
    while not ready and (timeout is None or timeout > 0):
        ready = {descriptor for descriptor, _ in poller.poll(None if timeout is None else ceil(timeout * 1000))}
        timeout = None if deadline is None else deadline - monotonic()
    return ready
