"""What user code does with single items by name: `Lease`, an item that is held for a block, and `DeadLetter`, one that
is delivered no more."""

from __future__ import annotations

from queue import Empty
from types import TracebackType
from typing import Any, Final, Generic, NamedTuple, TypeVar

from fiberq.channel import Channel
from fiberq.errors import ClosedError, LeaseLost, NodeError
from fiberq.protocol.reader import Holder

__all__ = ["DeadLetter", "Lease"]

T = TypeVar("T")

MAX_WHY: Final = 500
"""Characters that are told of the exception for which an item goes back."""


class Lease(Generic[T]):
    """An item that is this block's, and nobody else's, until the block ends; made by the queue's `lease`.

        with queue.lease(timeout=5) as item:
            work(item.value)

    At the end of the block the item is acknowledged: the node has forgotten it when the block is left. If an exception
    ends the block, the item goes to another reader instead, or again to this one, in its old place among the items that
    no reader has been sent yet (in a push queue: among those dealt to whoever's turn it is). An `Exception` counts as a
    failure of the item (see `max_deliveries`), anything else, such as Ctrl-C, does not. If the process dies, the item
    goes to another reader, too. In asyncio, ``async with queue.lease()`` lets other coroutines run while it waits.
    """

    value: T
    """The object that was put."""
    deliveries: int
    """How often it was delivered, this time included; at most 256 are counted."""

    def __init__(self, channel: Channel, timeout: float | None, duration: float | None) -> None:
        if duration is not None and not 0 < duration < 1e9:
            raise ValueError(f"duration must be a number of seconds above 0, or None, not {duration}")
        self._channel = channel
        self._timeout = timeout
        self._duration = duration
        self._holder: Holder | None = None  # while it lasts
        self._number = -1

    @property
    def redelivered(self) -> bool:
        """Whether another reader had it before, and may have begun with it."""
        return self.deliveries > 1

    def acknowledge(self) -> None:
        """The item is finished, before the block ends; blocks until the node knows.

        Raises `LeaseLost` if the lease ran out meanwhile, so that another reader got the item, or will. Then, and after
        the first call, does nothing at the block's end.
        """
        self._end("finish")

    def give_back(self, why: str | None = None) -> None:
        """The item goes to another reader, as when the block raises, before it ends. With a reason `why`, that is a
        failure of the item. Blocks until the node knows; raises `LeaseLost` as `acknowledge` does."""
        self._end("give back", why)

    def extend(self, duration: float) -> None:
        """Let the lease run out `duration` seconds from now, and no sooner; raises `LeaseLost` if it has already."""
        if not 0 < duration < 1e9:
            raise ValueError(f"duration must be a number of seconds above 0, not {duration}")
        if self._holder is None or not self._channel.keep_lease(self._holder, self._number, duration):
            raise self._lost()

    def _end(self, what: str, why: str | None = None) -> None:
        holder, self._holder = self._holder, None
        if holder is None:
            raise LeaseLost("this lease has ended already")
        if not self._channel.end_lease(holder, self._number, what, why):
            raise self._lost()

    def _lost(self) -> LeaseLost:
        return LeaseLost("this lease ran out before the work was done: another reader got the item, or will")

    def __enter__(self) -> Lease[T]:
        holder = self._new_holder()
        return self._begin(holder, self._channel.take_lease(holder, self._timeout, self._duration))

    def _new_holder(self) -> Holder:
        if self._holder is not None:
            raise LeaseLost("this lease has begun already")
        return Holder()

    def _begin(self, holder: Holder, taken: tuple[int, int, Any] | None) -> Lease[T]:
        if taken is None:
            raise Empty
        self._number, self.deliveries, self.value = taken
        self._holder = holder
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._holder is None:
            return
        if kind is None:
            self.acknowledge()
            return
        try:
            self.give_back(f"{kind.__name__}: {error}"[:MAX_WHY] if issubclass(kind, Exception) else None)
        except (LeaseLost, NodeError, ClosedError):
            pass  # there is a worse error to raise

    async def __aenter__(self) -> Lease[T]:
        import asyncio

        if self._timeout is not None and self._timeout <= 0:
            return await asyncio.to_thread(self.__enter__)
        holder = self._new_holder()
        try:
            item = await asyncio.wait_for(self._channel.atake(holder), self._timeout)
        except asyncio.TimeoutError:
            raise Empty from None
        return self._begin(holder, self._channel.begin_lease(holder, item, self._duration))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import asyncio

        if self._holder is not None:
            await asyncio.shield(asyncio.to_thread(self.__exit__, kind, error, trace))

    def __repr__(self) -> str:
        state = "ended" if self._holder is None else f"delivery {self.deliveries} of {self.value!r}"
        return f"<Lease: {state}>"


class DeadLetter(NamedTuple):
    """An item that failed too often to be delivered again; see the queue's `dead_letters`."""

    channel: Channel
    place: int
    reason: str
    """How often it failed, and why the last time."""
    deliveries: int
    """How many readers had it."""
    size: int
    """Its bytes."""

    @property
    def value(self) -> Any:
        """The object that was put; asks the node, and unpickles it here. Raises `HandleError` if the letter is gone."""
        return self.channel.dead_letter(self.place)

    def put_back(self) -> None:
        """Deliver it again, from its old place, as if it had never failed, whatever the queue's bound. Blocks until the
        node has done it; raises `HandleError` if the letter is gone."""
        self.channel.settle_dead_letter(self.place, "put back")

    def drop(self) -> None:
        """Forget it. Blocks until the node has done it; raises `HandleError` if the letter is gone."""
        self.channel.settle_dead_letter(self.place, "drop")

    def __repr__(self) -> str:
        return f"<DeadLetter {self.place}, {self.size} bytes: {self.reason}>"
