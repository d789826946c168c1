"""`SimpleQueue`, in its two kinds. Queues with a bound or with `task_done` are not here yet."""

from __future__ import annotations

from queue import Empty
from threading import Lock
from typing import Any, Generic, TypeVar

from fiberq.channel import NOTHING, Channel, new_number
from fiberq.connection import ZConnection
from fiberq.links import connect_tree
from fiberq.settings import config

__all__ = ["SimpleQueue", "SimpleQueuePull", "SimpleQueuePush"]

T = TypeVar("T")


class SimpleQueue(Generic[T]):
    """A queue shared by processes: `SimpleQueuePush` if `config.use_push_queue`, else `SimpleQueuePull`.

    Making one starts the node of this process tree if there is none yet, and blocks until the queue exists (tens of
    milliseconds the first time). Raises `fiberq.errors.NodeError` or `fiberq.errors.UnknownTransport` when that is
    impossible. The queue lives while a process holds a handle on it.

        q = SimpleQueue()
        Process(target=work, args=(q,)).start()
        q.put({"any": "object that can be pickled"})

    What was put is kept until somebody has finished it. An item that `get` returned is the getting thread's until that
    thread gets again or ends; if its process dies before, another reader gets the item.
    """

    _kind = ""
    _channel: Channel

    def __new__(cls, *args: Any, **kwargs: Any) -> SimpleQueue[T]:  # noqa: ARG004
        if cls is SimpleQueue:
            cls = SimpleQueuePush if config.use_push_queue else SimpleQueuePull
        return object.__new__(cls)

    def __init__(self) -> None:
        (self._channel,) = Channel.create(connect_tree(), new_number(), self._kind, "rw")
        self._sides: dict[str, ZConnection] = {}

    def put(self, obj: T, *, sync: bool = False) -> None:
        """Put an object that can be pickled.

        Returns when the item is buffered, in order; with `sync` when the node has accepted it. Blocks only while much
        is buffered and the node takes no more. Raises `fiberq.errors.ItemError` when `obj` cannot be pickled or is
        larger than `config.max_bytes`; `NodeError` when the node is gone; `ClosedError` after `close`.
        """
        self._channel.put(obj, sync)

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        """Return the next item; blocks until there is one, or for `timeout` seconds, then raises `queue.Empty`.

        Raises `NodeError` when the node is gone, within a second, and `ClosedError` after `close`.
        """
        obj = self._channel.get(timeout if block else 0.0)
        if obj is NOTHING:
            raise Empty
        return obj  # type: ignore[no-any-return]

    def empty(self) -> bool:
        """Return whether no item waits that a `get` could return, in any process. Asks the node."""
        return self.qsize() == 0

    def qsize(self) -> int:
        """Return how many items wait that no `get` has returned, in any process. Asks the node."""
        return self._channel.qsize()

    def flush(self, timeout: float | None = None) -> bool:
        """Block until the node has accepted all that this process put; return whether it has in `timeout` seconds."""
        return self._channel.flush(timeout)

    def close(self) -> None:
        """Flush, and close this handle; idempotent. Other handles on the queue go on."""
        for connection in self._sides.values():
            connection.close()
        self._channel.close()

    def fileno(self) -> int:
        """Return a descriptor that `select` and the like see as ready exactly while `get` would not block.

        It stays the same until the queue is closed, or used in a forked child. Raises `NodeError`, `ClosedError`.
        """
        return self._channel.fileno()

    @property
    def writer(self) -> ZConnection:
        """A connection that puts into this queue."""
        return ZConnection._made(None, self._grip("w"))

    @property
    def reader(self) -> ZConnection:
        """A connection that gets from this queue."""
        return ZConnection._made(self._grip("r"), None)

    def _grip(self, sides: str) -> Channel:
        grip = Channel(self._channel.endpoint, self._channel.number, sides)
        grip.attach()
        return grip

    # -- what the standard library's pools use --

    @property
    def _writer(self) -> ZConnection:
        return self._side("w")

    @property
    def _reader(self) -> ZConnection:
        return self._side("r")

    @property
    def _rlock(self) -> Lock:
        """For whoever wants to be the only reader for a while. Here nobody need be; it is always free."""
        return Lock()

    def _side(self, side: str) -> ZConnection:
        """A connection that is always the same one, attached at its first use, and closed when the queue is."""
        connection = self._sides.get(side)
        if connection is None:
            grip = Channel(self._channel.endpoint, self._channel.number, side)
            connection = PoolReader._made(grip, None) if side == "r" else ZConnection._made(None, grip)
            if self._channel.closed:
                connection.close()
            connection = self._sides.setdefault(side, connection)
        return connection

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_sides": {}}

    def __enter__(self) -> SimpleQueue[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._channel.closed else f"{self._channel.number:016x}"
        return f"<{type(self).__name__} {state} at {self._channel.endpoint.address}>"


class PoolReader(ZConnection):
    """The reading side of a queue for the standard library's pools. They receive after a `poll` that said yes, under a
    lock which keeps the other readers away; here another may have got the item in between, and then `recv` says `None`
    instead of waiting for one more. What they receive so they throw away."""

    _polled = False

    def poll(self, timeout: float | None = 0.0) -> bool:
        self._polled = super().poll(timeout)
        return self._polled

    def recv(self) -> Any:
        polled, self._polled = self._polled, False
        obj = self._reading().get(0.0 if polled else None)
        return None if obj is NOTHING else obj


class SimpleQueuePush(SimpleQueue[T]):
    """Items go to the attached readers as they arrive, round-robin: with k readers and no fault, n * k items give each
    exactly n. A process attaches at its first `get`, and detaches when it closes the queue, exits or dies; items that
    came before wait for the first reader. The least overhead, for tasks that are alike."""

    _kind = "push"


class SimpleQueuePull(SimpleQueue[T]):
    """A reader says that it is ready, and gets an item: balanced by how fast each reader works."""

    _kind = "pull"
