"""What users hold: `SimpleQueue` in its two kinds, `Queue` and `JoinableQueue`."""

from __future__ import annotations

import operator
from collections.abc import AsyncIterator, Iterable, Iterator
from queue import Empty, Full
from threading import Lock
from typing import Any, Generic, TypeVar

from fiberq.address import check_name
from fiberq.channel import NOTHING, Channel
from fiberq.connection import ZConnection
from fiberq.errors import ShutDown
from fiberq.leases import DeadLetter, Lease
from fiberq.links import ask_anew, connect_tree
from fiberq.protocol.kinds import MAX_BOUND, Kind
from fiberq.settings import config

__all__ = ["JoinableQueue", "Queue", "SimpleQueue", "SimpleQueuePull", "SimpleQueuePush"]

T = TypeVar("T")
Q = TypeVar("Q", bound="_Queue[Any]")


class _Queue(Generic[T]):
    """What all queues have in common."""

    _channel: Channel

    def _make(self, kind: Kind, name: str | None, max_deliveries: int | None) -> None:
        if name is not None and not isinstance(name, str):
            raise TypeError(f"a queue's name must be a string, not {type(name).__name__}")
        if name is not None:
            check_name(name)
        if max_deliveries is not None and operator.index(max_deliveries) < 1:
            raise ValueError(f"max_deliveries must be 1 or more, not {max_deliveries}")
        (self._channel,) = ask_anew(
            connect_tree,
            lambda link: Channel.create(link, kind, "rw", name=name, max_deliveries=max_deliveries),
        )
        self._channel.label = type(self).__name__
        self._sides: dict[str, ZConnection] = {}

    @classmethod
    def _on(cls: type[Q], channel: Channel) -> Q:  # noqa: PYI019 - Python 3.10 has no Self
        """A queue that exists."""
        self = cls.__new__(cls)
        self._channel = channel
        self._sides = {}
        return self

    @property
    def url(self) -> str:
        """What `fiberq.open` makes this queue of, on any machine that reaches its node: a secret, if that listens on a
        network, for it carries this handle's rights."""
        from fiberq.opening import url

        return url(self._channel.endpoint, self._channel.name, None)

    def restrict(self: Q, right: str, *, expires: float | None = None) -> Q:  # noqa: PYI019
        """Return a handle on this queue that can only "put", or only "get", and for no longer than `expires` seconds.

        What the other handle may do is signed, and checked, by the node: whoever gets only that handle, or its `url`,
        can do no more. `fiberq revoke` takes it back. Asks the node. Raises `AccessError` if that listens
        on no network, `ValueError` for what is no right and no time.
        """
        from fiberq.opening import check_expires, check_right

        check_expires(expires)
        return self._on(self._channel.restrict(check_right(right), expires))

    def stats(self) -> dict[str, Any]:
        """Return what the node knows of this queue: items that wait, and their bytes; how many are in flight, and were
        put, finished and delivered again since it was made; dead letters; the processes that read and write. Asks the
        node; what readers have not told it yet (10 ms, at most 50) it does not know."""
        return self._channel.stats()

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        """Return the next item; blocks until there is one, or for `timeout` seconds, then raises `queue.Empty`.

        Without `block` it still asks the node, and sees to it that an item comes that was only sent ahead to another
        process. Raises `ShutDown` when the queue was shut down and nothing is left, `NodeError` when the node is gone,
        within a second, and `ClosedError` (a `ValueError`) after `close`.
        """
        obj = self._channel.get(timeout if block else 0.0)
        if obj is NOTHING:
            raise Empty
        return obj  # type: ignore[no-any-return]

    def get_nowait(self) -> T:
        """Return the next item; raises `queue.Empty` if there is none. Otherwise as `get`."""
        return self.get(False)

    def get_many(self, max_items: int, block: bool = True, timeout: float | None = None) -> list[T]:
        """Return what is there, at least one item and at most `max_items`; blocks and raises as `get` does.

        All of them are this thread's until it gets again.
        """
        if max_items < 1:
            raise ValueError(f"max_items must be 1 or more, not {max_items}")
        objects = self._channel.get_many(max_items, timeout if block else 0.0)
        if not objects:
            raise Empty
        return objects

    def lease(self, block: bool = True, timeout: float | None = None, *, duration: float | None = None) -> Lease[T]:
        """Return a `Lease`, for a ``with`` block: an item that is held until the block ends, is acknowledged then, and
        goes to another reader if the block raises.

        The block begins when there is an item; that blocks, and raises `queue.Empty`, as `get` does. With a `duration`,
        in seconds, another reader gets the item if the block takes longer, and the acknowledgement raises `LeaseLost`.
        """
        return Lease(self._channel, timeout if block else 0.0, duration)

    def dead_letters(self) -> list[DeadLetter]:
        """Return the items that failed too often to be delivered again, the oldest first: each with the reason, to be
        looked at, put back or dropped. How often is `config.max_deliveries`, or the queue's own. Asks the node.

        A reader's death is a failure of what it had begun, and so is a `lease` that was ended by an `Exception`, or ran
        out. Where the reader had other items, too, one more death may be needed to find the guilty one.
        """
        return [DeadLetter(self._channel, **letter) for letter in self._channel.dead_letters()]

    def empty(self) -> bool:
        """Return whether no item waits that a `get` could return, in any process. Asks the node."""
        return self.qsize() == 0

    def qsize(self) -> int:
        """Return how many items wait that no `get` has returned, in any process.

        Asks the node, which asks the processes that may just have got some: so it is right at that moment. Blocks
        until it is known, at most half a second longer than a round trip if such a process does not answer.
        """
        return self._channel.qsize()

    def flush(self, timeout: float | None = None) -> bool:
        """Block until the node has accepted all that this process put; return whether it has in `timeout` seconds."""
        return self._channel.flush(timeout)

    def shutdown(self, immediate: bool = False) -> None:
        """Let nothing more be put, as `queue.Queue.shutdown` does since Python 3.13; blocks until all processes that
        put here know it.

        From then on `put` raises `ShutDown`, everywhere, and so does `get` once all that was put is got; if
        `immediate`, at once: what nobody got is dropped, and counts as finished for `join`.
        """
        self._channel.shut_down(immediate)

    def __iter__(self) -> Iterator[T]:
        """Get items until the queue is shut down and nothing is left."""
        while True:
            try:
                item = self.get()
            except ShutDown:
                return
            yield item

    async def aget(self) -> T:
        """Return the next item; while there is none, other coroutines run. Raises as `get` does.

        The item is the asyncio task's until that gets again or ends. To be cancelled, or timed out with
        `asyncio.wait_for`, loses nothing and takes nothing twice. No thread waits for it.
        """
        return await self._channel.aget()  # type: ignore[no-any-return]

    async def aput(self, obj: T) -> None:
        """Put an object; while the queue is full, other coroutines run. Raises as `put` does. Cancelled, it has put
        nothing."""
        await self._channel.aput(obj)

    async def __aiter__(self) -> AsyncIterator[T]:
        """Get items, as `aget` does, until the queue is shut down and nothing is left."""
        while True:
            try:
                item = await self.aget()
            except ShutDown:
                return
            yield item

    @property
    def writer(self) -> ZConnection:
        """A connection that puts into this queue."""
        return ZConnection._made(None, self._grip("w"))

    @property
    def reader(self) -> ZConnection:
        """A connection that gets from this queue."""
        return ZConnection._made(self._grip("r"), None)

    def _grip(self, sides: str) -> Channel:
        grip = self._channel.grip(sides)
        grip.attach()
        return grip

    def fileno(self) -> int:
        """Return a descriptor that `select` and the like see as ready exactly while `get` would not block.

        It stays the same until the queue is closed, or used in a forked child. Raises `NodeError`, `ClosedError`.
        """
        return self._channel.fileno()

    def close(self) -> None:
        """Flush, and close this handle; idempotent. Other handles on the queue go on."""
        for connection in self._sides.values():
            connection.close()
        self._channel.close()

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
            grip = self._channel.grip(side)
            connection = PoolReader._made(grip, None) if side == "r" else ZConnection._made(None, grip)
            if self._channel.closed:
                connection.close()
            connection = self._sides.setdefault(side, connection)
        return connection

    def __getstate__(self) -> dict[str, Any]:
        kept = {
            key: value for key, value in self.__dict__.items() if key != "__orig_class__"
        }  # which typing leaves there
        return {**kept, "_sides": {}}

    def __enter__(self: Q) -> Q:  # noqa: PYI019 - Python 3.10 has no Self
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


class SimpleQueue(_Queue[T]):
    """A queue shared by processes: `SimpleQueuePush` if `config.use_push_queue`, else `SimpleQueuePull`.

    Making one starts the node of this process tree if there is none yet, and blocks until the queue exists (tens of
    milliseconds the first time). With a `name`, it is the same queue for all processes that use this node, and lives as
    long as the node; without, while a process holds a handle on it. Raises `fiberq.errors.NodeError` or
    `fiberq.errors.UnknownTransport` when that is impossible, `HandleError` if the name stands for another kind,
    and `AddressError`, a `ValueError`, for what is no name: an empty one, say, or a URL.

        q = SimpleQueue()
        Process(target=work, args=(q,)).start()
        q.put({"any": "object that can be pickled"})

    What was put is kept until somebody has finished it. An item that `get` returned is the getting thread's until that
    thread gets again or ends; if its process dies before, another reader gets the item. An item that fails
    `max_deliveries` times (by default `config.max_deliveries`) becomes a dead letter: see `dead_letters`.
    """

    _kind = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> SimpleQueue[T]:  # noqa: ARG004
        if cls is SimpleQueue:
            cls = SimpleQueuePush if config.use_push_queue else SimpleQueuePull
        return object.__new__(cls)

    def __init__(self, name: str | None = None, *, max_deliveries: int | None = None) -> None:
        kind = self._kind or ("push" if config.use_push_queue else "pull")  # none: of a class derived from this one
        self._make(Kind(kind), name, max_deliveries)

    def put(self, obj: T, *, sync: bool = False) -> None:
        """Put an object that can be pickled.

        Returns when the item is buffered, in order; with `sync` when the node has accepted it. Blocks only while much
        is buffered and the node takes no more. Raises `fiberq.errors.ItemError` when `obj` cannot be pickled or is
        larger than `config.max_bytes`; `ShutDown` after `shutdown`; `NodeError` when the node is gone; `ClosedError`
        after `close`.
        """
        self._channel.put(obj, sync)

    def put_many(self, objs: Iterable[T]) -> None:
        """Put objects, in order; faster than one by one. If one cannot be pickled, none is put. Otherwise as `put`."""
        self._channel.put_many(objs)


class SimpleQueuePush(SimpleQueue[T]):
    """Items go to the attached readers as they arrive, round-robin: with k readers and no fault, n * k items give each
    exactly n. A process attaches at its first `get`, and detaches when it closes the queue, exits or dies; items that
    came before wait for the first reader. The least overhead, for tasks that are alike."""

    _kind = "push"


class SimpleQueuePull(SimpleQueue[T]):
    """A reader says that it is ready, and gets an item: balanced by how fast each reader works."""

    _kind = "pull"


class Queue(_Queue[T]):
    """`multiprocessing.Queue`, shared by all processes that use the node: a pull queue that can have a bound.

    At most `maxsize` items are in it that no `get` has returned, exactly, however many processes put and get; 0 or less
    means any number. ``Queue("jobs")`` is ``Queue(name="jobs")``. `name`, `max_deliveries`, and what making one blocks
    for and raises, as for `SimpleQueue`.
    """

    _kind = "pull"

    def __init__(self, maxsize: int | str = 0, *, name: str | None = None, max_deliveries: int | None = None) -> None:
        if isinstance(maxsize, str):
            if name is not None:
                raise TypeError("a queue has one name")
            name, maxsize = maxsize, 0
        bound = operator.index(maxsize)
        if bound > MAX_BOUND:
            raise ValueError(f"maxsize must be at most {MAX_BOUND}, or 0 for any number, not {bound}")
        self._make(Kind(self._kind, max(0, bound)), name, max_deliveries)

    def put(self, obj: T, block: bool = True, timeout: float | None = None, *, sync: bool = False) -> None:
        """Put an object that can be pickled.

        While the queue is full, blocks until it is not, or for `timeout` seconds; then, or without `block` at once,
        raises `queue.Full`. Returns when the item is buffered, in order; with `sync` when the node has accepted it, for
        which there is no timeout: the item is put by then.
        Raises `fiberq.errors.ItemError` when `obj` cannot be pickled or is larger than `config.max_bytes`; `ShutDown`
        after `shutdown`; `NodeError` when the node is gone; `ClosedError` (a `ValueError`) after `close`.
        """
        if not self._channel.put(obj, sync, timeout if block else 0.0):
            raise Full

    def put_nowait(self, obj: T) -> None:
        """Put an object; raises `queue.Full` if the queue is full, and otherwise as `put`."""
        self.put(obj, False)

    def put_many(self, objs: Iterable[T], block: bool = True, timeout: float | None = None) -> int:
        """Put objects, in order; return how many were put: all, if the queue was not full for longer than `timeout`.

        Faster than one by one. If one cannot be pickled, none is put. Otherwise as `put`.
        """
        return self._channel.put_many(objs, timeout if block else 0.0)

    def empty(self) -> bool:
        """Return whether no item waits that a `get` could return, in any process. Asks the node; a queue that this
        process closed without ever having used it is empty, as in the standard library."""
        return self._channel.unused or self.qsize() == 0

    def full(self) -> bool:
        """Return whether `maxsize` items wait that no `get` has returned, in any process. Asks the node."""
        size = self.qsize()
        return 0 < self._channel.maxsize <= size

    def close(self) -> None:
        """Close this handle: no more is put or got with it here. Never blocks; idempotent.

        What was put is still delivered: `join_thread`, and the end of the process, wait for that.
        """
        for connection in self._sides.values():
            connection.close()
        self._channel.close(wait=False)

    def join_thread(self) -> None:
        """Block until the node has accepted all that was put here. Raises `ValueError` before `close`."""
        if not self._channel.closed:
            raise ValueError(f"{self!r} is not closed: call close() first")
        self._channel.flush()

    def cancel_join_thread(self) -> None:
        """Let this process end without waiting until the node has accepted all that was put here: it may be lost."""
        self._channel.cancel_linger()

    def __exit__(self, *_: object) -> None:
        self.close()
        self.join_thread()


class JoinableQueue(Queue[T]):
    """A `Queue` of tasks: an item that was got is a process's until `task_done`.

    If the process dies, or closes the queue, before it has called that, another reader gets the item.
    """

    _kind = "joinable"

    def task_done(self) -> None:
        """The oldest item that this thread got is done; if it has none, the oldest that its process got.

        Raises `ValueError` if its process has none, whatever others have: a `LeaseLost`, if the item was given to
        another meanwhile; and `NodeError` if the node took the process for dead. Asks the node if that has been silent
        for a second.
        """
        if not self._channel.done():
            raise ValueError("task_done() called too many times: no item that this process got is unfinished")

    def join(self, timeout: float | None = None) -> bool:
        """Block until all items ever put are done, or for `timeout` seconds; return whether they are."""
        return self._channel.join(timeout)
