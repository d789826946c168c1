"""`wait`: which of several things are ready to be read, as `multiprocessing.connection.wait` tells it."""

from __future__ import annotations

import select
from collections.abc import Iterable
from math import ceil
from time import monotonic
from typing import Any, Final

from fiberq.links import settle

__all__ = ["wait"]


LONG: Final = 86_400.0
"""Seconds for which `poll` waits at most at a time: it takes no more than 2**31 ms."""

PATIENCE: Final = 0.2
"""Seconds that a node has for its answer, whatever the timeout: it takes 0.1 ms."""


def wait(object_list: Iterable[Any], timeout: float | None = None) -> list[Any]:
    """Return those of `object_list` that are ready, in its order; blocks until one is, or for `timeout` seconds.

    Takes any mix of connections and queues of fiberq, `multiprocessing`'s connections, sockets and sentinels of
    processes: integers, and what has a `fileno`. A connection or queue is ready when reading from it would return or
    raise at once. Several may be ready at the same time; where several processes read from one end, another may have
    read by then what this one was told of. An empty list means that the time is over.

    Raises `fiberq.errors.ClosedError` for a closed connection, `DirectionError` for one that is write-only, and
    `NodeError` for one whose node is gone.
    """
    if timeout is not None and timeout != timeout:
        raise ValueError("timeout is not a number")
    for each in (objects := list(object_list)):
        if not (isinstance(each, int) or hasattr(each, "fileno")):
            raise ValueError(f"{each!r} cannot be waited for: it has no fileno()")
    descriptors = [(each if isinstance(each, int) else each.fileno(), each) for each in objects]
    poller = select.poll()
    for descriptor, _ in descriptors:
        poller.register(descriptor, select.POLLIN)
    ready = _poll(poller, timeout)
    return [each for descriptor, each in descriptors if descriptor in ready]


def _poll(poller: select.poll, timeout: float | None) -> set[int]:
    """The descriptors that are ready. What has been sent by now is found, though the node has not told of it yet."""
    deadline = None if timeout is None else monotonic() + timeout
    settle(monotonic() + PATIENCE)  # no longer: something else may be ready, and the bells ring for what comes later
    ready = {descriptor for descriptor, _ in poller.poll(0)}
    while not ready:
        left = LONG if deadline is None else min(deadline - monotonic(), LONG)
        if left <= 0:
            break
        ready = {descriptor for descriptor, _ in poller.poll(ceil(left * 1000))}
    return ready
