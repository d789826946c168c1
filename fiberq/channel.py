"""What a queue or connection needs of the thing behind it: one handle's grip on one or both sides of one channel.

This is the seam where another engine would fit. A channel attaches at its first use, in whichever process that is.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pickle import dumps, loads
from threading import get_ident
from time import monotonic
from typing import Any

from fiberq.abc import Buffer
from fiberq.codec import PICKLE, SIMPLE, decode, decode_bytes, encode, encode_bytes, sending
from fiberq.errors import ClosedError, ConnectionEnded, HandleError, NodeError, TransportError
from fiberq.lifeline import SpawnLifeline
from fiberq.link import MAX_GATHERED, Link
from fiberq.links import connect
from fiberq.protocol.reader import Reader
from fiberq.protocol.writer import SMALL, Writer
from fiberq.tree import Endpoint

GATHER = 15
"""A mask: of this many small items that gather, one looks at the clock."""

NOTHING: Any = object()
"""What `Channel.get` returns when there is no item in time."""


class Channel:
    """A grip on `sides` ("r", "w" or "rw") of channel `number` of the node at `endpoint`."""

    __slots__ = ("_link", "_pid", "_reader", "_rings", "_token", "_writer", "closed", "endpoint", "number", "sides")

    def __init__(self, endpoint: Endpoint, number: int, sides: str, token: str | None = None) -> None:
        self.endpoint = endpoint
        self.number = number
        self.sides = sides
        self.closed = False
        self._token = token  # what holds the channel while this handle is in flight
        self._pid = os.getpid()  # the process that it is for, and not one that is forked from that
        self._link: Link | None = None
        self._writer: Writer | None = None
        self._reader: Reader | None = None
        self._rings = False  # it asked for a descriptor

    @classmethod
    def create(cls, link: Link, number: int, kind: str, *sides: str) -> list[Channel]:
        """Make a channel on the node, and a handle for each of `sides`."""
        link.create(number, kind, sides)
        made = [cls(link.endpoint, number, side) for side in sides]
        for channel in made:
            channel._link = link
        return made

    def put(self, obj: object, sync: bool = False) -> None:
        item = dumps(obj, 5) if type(obj) in SIMPLE else encode(obj)
        writer = self._writer
        if writer is not None and writer.full and not sync and type(item) is bytes and len(item) < SMALL:
            items = writer.items
            items.append(item)
            # Whoever opens the way lowers `full` before he looks at `items`, and we look in the other order.
            count = len(items)
            if writer.full and (count & GATHER or (count < MAX_GATHERED and monotonic() < writer.look_at)):
                return
            self._link.relieve(writer)  # type: ignore[union-attr]
            return
        link = self.attach()
        if self._writer is None:
            self._writer = link.writer(self.number)
        link.put(self._writer, item)
        if sync:
            link.flush([self._writer], None)

    def get(self, timeout: float | None = None) -> Any:
        """The next object; `NOTHING` if there is none in `timeout` seconds."""
        reader = self._reader
        if reader is not None and reader.owner == (thread := get_ident()) and reader.ready:
            if monotonic() > reader.fresh_until:
                self._link.refresh(reader)  # type: ignore[union-attr]
            ready = reader.ready
            try:
                # Noted before it is removed: a report that another thread makes in between must call it held.
                reader.current = ready[0][0]
                number, item = ready.popleft()
            except IndexError:  # it was recalled
                pass
            else:
                reader.current = number
                if reader.owner != thread:  # another thread came between
                    self._link.keep(reader, thread, number)  # type: ignore[union-attr]
                if len(ready) < reader.low:
                    self._link.ask_ahead(reader)  # type: ignore[union-attr]
                return loads(item) if type(item) is bytes and item[0] == PICKLE else decode(item)
        item = self.attach().take(self._attached_reader(), _deadline(timeout))
        return NOTHING if item is None else decode(item)

    def put_bytes(self, message: bytes | memoryview) -> None:
        """Put what `get_bytes` returns as it is; a memoryview has the format "B"."""
        link = self.attach()
        if self._writer is None:
            self._writer = link.writer(self.number)
        link.put(self._writer, encode_bytes(message))

    def get_bytes(self) -> Buffer:
        """The next item as bytes: what `put_bytes` was given, or a pickle of what `put` was given."""
        return decode_bytes(self.attach().take(self._attached_reader(), None))

    def poll(self, timeout: float | None = 0.0) -> bool:
        """Whether `get` would return, or raise, at once; waits for that for `timeout` seconds."""
        return self.attach().poll(self._attached_reader(), _deadline(timeout))

    def fileno(self) -> int:
        """A descriptor that is readable exactly while `get` would return, or raise, at once."""
        link = self.attach()
        number = link.bell(self._attached_reader(), new=not self._rings)
        self._rings = True
        return number

    def qsize(self) -> int:
        """Items that no caller has got."""
        link = self.attach()
        self._flush(link, None)
        return link.qsize(self.number)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until the node has accepted what was put; return whether it has within `timeout` seconds."""
        link = self._link
        return link is None or link.forked or self._flush(link, timeout)

    def close(self) -> None:
        """Flush, and let go; idempotent. What this process got is finished."""
        if self.closed:
            return
        try:
            self._land()
            self.flush()
        except (ConnectionEnded, HandleError):
            pass  # nobody is left to take it
        finally:
            self.closed = True
            self._drop()
            if self._link is not None and not self._link.forked:
                self._link.settle_drops()
            self._link = self._writer = self._reader = None

    def attach(self) -> Link:
        """Return the link, attached in this process. Blocks while it attaches."""
        if self.closed:
            raise ClosedError("this handle is closed")
        link = self._link
        if link is None or link.forked:
            self._writer = self._reader = None
            self._rings = False
            ancestor, link = link, connect(self.endpoint)
            if ancestor is None or ancestor.latest() is not link:
                link.hold(self.number, self.sides, self._token if self._pid == os.getpid() else None)
            self._token = None
            self._link = link
        return link

    def _attached_reader(self) -> Reader:
        link = self.attach()
        if self._reader is None:
            self._reader = link.reader(self.number)
        return self._reader

    def _land(self) -> None:
        """Attach a handle that came from another process and was not used here: only so can it be let go of."""
        if self._token is not None or (self._link is not None and self._link.forked):
            try:
                self.attach()
            except (HandleError, NodeError, TransportError):
                pass  # there is nothing left to hold

    def _flush(self, link: Link, timeout: float | None) -> bool:
        writer = self._writer
        return writer is None or link.flush([writer], timeout)

    def _drop(self) -> None:
        if self._link is not None:
            self._link.latest().let_go(self.number, self.sides, self._reader if self._rings else None)

    def __del__(self) -> None:
        if not self.closed:
            self._drop()

    def __reduce__(self) -> tuple[Any, ...]:
        if self.closed:
            raise ClosedError("a closed handle cannot be passed to another process")
        token = None
        popen = _spawning()
        if popen is not None:
            token = os.urandom(8).hex()
            self.attach().fly(token, [(self.number, self.sides)], SpawnLifeline(popen))
        elif sending.flights is not None:  # this process holds the channel until whoever gets the item does
            token = os.urandom(8).hex()
            sending.flights.append(partial(self.attach().fly, token, [(self.number, self.sides)], None))
        return Channel, (self.endpoint, self.number, self.sides, token)


def _spawning() -> Any:
    """The child of multiprocessing that is being started and that this pickle is for, if there is one."""
    context = sys.modules.get("multiprocessing.context")
    return None if context is None else context.get_spawning_popen()


def new_number() -> int:
    """A channel's number that nobody else will choose; even, because a pipe takes the next one, too."""
    return int.from_bytes(os.urandom(8), "little") & ~1 or new_number()


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else monotonic() + max(timeout, 0.0)
