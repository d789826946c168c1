"""What can be put to the test: fiberq's classes, and the controls. Each can be opened in a worker, in several ways.

A system is made by the driver, and pickled for the workers. `open` returns the end that a writer or a reader uses.
"""

from __future__ import annotations

import fcntl
import os
import queue
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import fiberq
from fiberq.errors import ConnectError, LeaseLost, NodeError, ReadEnded, ShutDown

KINDS = ("SimpleQueuePull", "SimpleQueuePush", "Queue", "JoinableQueue", "Pipe")

FLUSH_PATIENCE = 1.0

BULKY = 0x7F
"""An item whose number ends in these bits travels as 64 KiB, which processes of one host share memory for."""


class Ended(Exception):
    """Nothing will ever come again."""


class Expired(Exception):
    """The node has given this process up, and said so."""


class End(Protocol):
    """One process's end of what is under test."""

    joins: bool
    """Whether an item is the process's until `done`."""

    def put(self, items: Sequence[int]) -> None: ...

    def flush(self) -> bool:
        """Whether all that was put has been accepted."""

    def get(self, most: int, timeout: float | None) -> Sequence[int]:
        """At least one item, unless `timeout` passes. Raises `Ended`."""

    def done(self) -> None: ...


class System(Protocol):
    name: str

    @property
    def shares(self) -> bool:
        """Whether a reader that is free gets what others have not begun with."""

    def way(self, slot: int, rng: random.Random) -> str:
        """How the process in this slot is to reach it."""

    def open(self, way: str, reads: bool) -> End: ...


@dataclass
class Fiberq:
    """One of fiberq's classes on one transport. A process is handed the handle, or comes by TCP through the relay."""

    name: str
    kind: str
    transport: str
    node: str
    relay: str
    bound: int
    queue: Any = None

    @property
    def shares(self) -> bool:
        return self.kind != "SimpleQueuePush"

    def way(self, slot: int, rng: random.Random) -> str:
        """The first of the readers and of the writers always come by TCP."""
        return rng.choice(("handle", "handle", "path", "tcp")) if slot else "tcp"

    def make(self) -> Any:
        """Make, or find, the queue on the node that `fiberq.config` names."""
        if self.kind == "Pipe":
            return fiberq.Pipe()
        if self.kind in ("Queue", "JoinableQueue"):
            return getattr(fiberq, self.kind)(self.bound, name="faults")
        return getattr(fiberq, self.kind)(name="faults")

    def open(self, way: str, reads: bool) -> End:
        fiberq.config.transport = self.transport
        if self.kind == "Pipe":
            return PipeEnd(self._connection(way, reads))
        if way == "handle":
            return QueueEnd(self.queue, self.kind == "JoinableQueue")
        fiberq.config.node = self.relay if way == "tcp" else self.node
        try:
            return QueueEnd(self.make(), self.kind == "JoinableQueue")
        except NodeError as error:
            raise _told(error) from error

    def _connection(self, way: str, reads: bool) -> Any:
        """The pipe's end; the other one is closed here, lest it never ends."""
        left, right = self.queue
        mine, other = (right, left) if reads else (left, right)
        if way == "handle":
            other.close()
            return mine
        sort, address = mine.handle
        for each in self.queue:
            each.close()
        device = address.partition("?")[2]
        reached = f"{self.relay}/{device}" if way == "tcp" else f"{self.node}?{device}"
        return fiberq.ZConnection((sort, reached), readable=reads, writable=not reads)


def clothed(item: int) -> int | bytes:
    """What is put for an item."""
    return item if item & BULKY != BULKY else item.to_bytes(8, "little") * 8192


def bare(obj: int | bytes) -> int:
    """The item that this was put for. Raises `ValueError` if it has changed on the way."""
    if isinstance(obj, int):
        return obj
    item = int.from_bytes(obj[:8], "little")
    if obj != clothed(item):
        raise ValueError(f"item {item} has changed on the way")
    return item


def _told(error: NodeError) -> Exception:
    """A node's refusal to a process that it had given up is no fault of the node."""
    return Expired() if "session ended" in str(error) else error


class QueueEnd:
    def __init__(self, handle: Any, joins: bool) -> None:
        self._queue = handle
        self.joins = joins

    def put(self, items: Sequence[int]) -> None:
        try:
            if len(items) > 8 and items[0] % 2:
                self._queue.put_many(map(clothed, items))
            else:
                for item in items:
                    self._queue.put(clothed(item))
        except NodeError as error:
            raise _told(error) from error

    def flush(self) -> bool:
        try:
            return bool(self._queue.flush(FLUSH_PATIENCE))
        except NodeError as error:
            raise _told(error) from error

    def get(self, most: int, timeout: float | None) -> Sequence[int]:
        try:
            if most > 1:
                return list(map(bare, self._queue.get_many(most, timeout=timeout)))
            return (bare(self._queue.get(timeout=timeout)),)
        except queue.Empty:
            return ()
        except ShutDown:
            raise Ended from None
        except NodeError as error:
            raise _told(error) from error

    def done(self) -> None:
        try:
            self._queue.task_done()
        except LeaseLost:
            pass  # it was stopped for so long that another process got the task: it is told so, and goes on
        except NodeError as error:
            raise _told(error) from error


class PipeEnd:
    joins = False

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def put(self, items: Sequence[int]) -> None:
        try:
            for item in items:
                self._connection.send(clothed(item))
        except NodeError as error:
            raise _told(error) from error

    def flush(self) -> bool:
        try:
            return bool(self._connection.flush(FLUSH_PATIENCE))
        except NodeError as error:
            raise _told(error) from error

    def get(self, most: int, timeout: float | None) -> Sequence[int]:  # noqa: ARG002
        try:
            if timeout is not None and not self._connection.poll(timeout):
                return ()
            return (bare(self._connection.recv()),)
        except ReadEnded:
            raise Ended from None
        except NodeError as error:
            raise _told(error) from error

    def done(self) -> None:
        pass


# -- controls --


@dataclass
class Multiprocessing:
    """`multiprocessing.Queue`. What `put` took is all that it ever acknowledges."""

    queue: Any
    name: str = "multiprocessing.Queue"
    shares: bool = True

    def way(self, slot: int, rng: random.Random) -> str:  # noqa: ARG002
        return "handle"

    def open(self, way: str, reads: bool) -> End:  # noqa: ARG002
        return MultiprocessingEnd(self.queue)


class MultiprocessingEnd:
    joins = False

    def __init__(self, handle: Any) -> None:
        self._queue = handle

    def put(self, items: Sequence[int]) -> None:
        for item in items:
            self._queue.put(item)

    def flush(self) -> bool:
        return True

    def get(self, most: int, timeout: float | None) -> Sequence[int]:  # noqa: ARG002
        try:
            return (self._queue.get(timeout=timeout),)
        except queue.Empty:
            return ()

    def done(self) -> None:
        pass


@dataclass
class RawZmq:
    """pyzmq's PUSH and PULL: readers bind, writers connect to all of them. What `send` took is acknowledged."""

    directory: str
    readers: int
    name: str = "raw pyzmq PUSH/PULL"
    shares: bool = False

    def way(self, slot: int, rng: random.Random) -> str:  # noqa: ARG002
        return "handle"

    def open(self, way: str, reads: bool) -> End:  # noqa: ARG002
        return RawZmqEnd(self.directory, self.readers, reads)


class RawZmqEnd:
    joins = False

    def __init__(self, directory: str, readers: int, reads: bool) -> None:
        import zmq

        self._socket: Any = zmq.Context.instance().socket(zmq.PULL if reads else zmq.PUSH)
        places = [os.path.join(directory, f"raw{number}") for number in range(readers)]
        if reads:
            self._bind(places)
        else:
            for place in places:
                self._socket.connect(f"ipc://{place}")

    def _bind(self, places: Sequence[str]) -> None:
        """Take a place that is free, or whose reader is dead."""
        for place in places:
            holder = os.open(f"{place}.lock", os.O_RDWR | os.O_CREAT, 0o600)  # locked as long as this process lives
            try:
                fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(holder)
                continue
            self._socket.bind(f"ipc://{place}")
            return
        raise ConnectError("all places are taken")

    def put(self, items: Sequence[int]) -> None:
        for item in items:
            self._socket.send(item.to_bytes(8, "little"))

    def flush(self) -> bool:
        return True

    def get(self, most: int, timeout: float | None) -> Sequence[int]:  # noqa: ARG002
        if timeout is not None and not self._socket.poll(int(timeout * 1000)):
            return ()
        return (int.from_bytes(self._socket.recv(), "little"),)

    def done(self) -> None:
        pass
