"""What a queue or connection needs of the thing behind it: one handle's grip on one or both sides of one channel.

This is the seam where another engine would fit. A channel attaches at its first use, in whichever process that is.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from marshal import dumps as marshal
from marshal import loads as unmarshal
from pickle import dumps, loads
from threading import RLock, Thread, get_ident
from time import monotonic
from typing import Any, NamedTuple, cast

from fiberq import aio
from fiberq.abc import Buffer
from fiberq.codec import (
    MARSHALLED,
    PICKLE,
    SIMPLE,
    Flight,
    Laden,
    decode,
    decode_all,
    decode_bytes,
    encode,
    encode_all,
    encode_bytes,
    encoded,
    is_shared,
    light,
    registry,
    sending,
    unladen,
)
from fiberq.errors import (
    ClosedError,
    ConnectError,
    ConnectionEnded,
    DirectionError,
    HandleError,
    NodeError,
    TransportError,
)
from fiberq.lifeline import SpawnLifeline
from fiberq.link import Link
from fiberq.links import connect, known
from fiberq.protocol.bunch import GLOBAL, Bunch
from fiberq.protocol.ints import FORMAT, LEAST, MOST
from fiberq.protocol.kinds import Kind
from fiberq.protocol.reader import Holder, Reader
from fiberq.protocol.writer import MAX_GATHERED, SMALL, Item, Writer
from fiberq.protocol.writer import size as size_of
from fiberq.settings import config
from fiberq.tree import Endpoint

GATHER = 15
"""A mask: of this many small items that gather, one looks at the clock."""

NOTHING: Any = object()
"""What `Channel.get` returns when there is no item in time."""

_joint = RLock()  # held for the steps of attaching and closing that two threads must not mix


class _Attempt(Thread):
    """Attaches a channel, for a caller who waits only for a while; it goes on when he does not wait any more."""

    def __init__(self, channel: Channel, ancestor: Link | None) -> None:
        super().__init__(name="fiberq attaches", daemon=True)
        self._channel = channel
        self._ancestor = ancestor  # its caller was told what is wrong with it
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._channel._attach(self._ancestor)
        except BaseException as error:
            self.error = error


class Recipe(NamedTuple):
    """How to find a queue with a name again after its node was started anew: without a kind, if another has made it."""

    name: str
    kind: Kind | None = None
    max_deliveries: int | None = None


class Channel:
    """A grip on `sides` ("r", "w" or "rw") of channel `number` of the node at `endpoint`. Errors call it `label`."""

    __slots__ = (
        "_attempt",
        "_last",
        "_lingers",
        "_link",
        "_pid",
        "_reader",
        "_recipe",
        "_rings",
        "_token",
        "_writer",
        "closed",
        "endpoint",
        "label",
        "number",
        "sides",
    )

    def __init__(
        self,
        endpoint: Endpoint,
        number: int,
        sides: str,
        token: str | None = None,
        label: str = "handle",
        recipe: Recipe | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.number = number
        self.sides = sides
        self.closed = False
        self.label = label
        self._recipe = recipe
        self._last: tuple[Link, Writer | None] | None = None  # what it used when it was closed, if it was used
        self._lingers = True
        self._token = token  # what holds the channel while this handle is in flight
        self._pid = os.getpid()  # the process that it is for, and not one that is forked from that
        self._link: Link | None = None
        self._writer: Writer | None = None
        self._reader: Reader | None = None
        self._rings = False  # it asked for a descriptor
        self._attempt: _Attempt | None = None  # to attach, which somebody waited for
        if token is not None and (link := known(endpoint)):
            link.arrived(token)

    @classmethod
    def create(
        cls,
        link: Link,
        kind: Kind,
        *sides: str,
        number: int = 0,
        name: str | None = None,
        max_deliveries: int | None = None,
    ) -> list[Channel]:
        """Make a channel on the node, or find the one with this `name`, and make a handle for each of `sides`.

        Raises `HandleError` when the one with this name is of another kind.
        """
        number = link.create(number or new_number(), kind, sides, name, max_deliveries)
        lasting = config.node is not None  # a program's own node is never started anew
        recipe = Recipe(name, kind, max_deliveries) if name is not None and lasting else None
        made = [cls(link.endpoint, number, side, recipe=recipe) for side in sides]
        for channel in made:
            channel._link = link
        return made

    def put(self, obj: object, sync: bool = False, timeout: float | None = None) -> bool:
        """Put an object; return whether a bounded queue had room for it within `timeout` seconds."""
        kind, writer = type(obj), self._writer
        item: Any
        if kind is int and LEAST <= obj <= MOST:  # type: ignore[operator]
            item, small = obj, True
        elif kind in light and len(registry.reducers) == registry.known and not registry.users:
            try:  # as `encode` does it: the call takes a tenth of what a small dict does
                item = dumps(obj, 5)
            except Exception:
                item = encode(obj)
            else:
                if GLOBAL in item or len(item) >= SMALL:
                    item = encoded(obj, item)
            small = type(item) is bytes and len(item) < SMALL
        else:
            item = marshal(obj, FORMAT) if kind in SIMPLE else encode(obj)  # type: ignore[arg-type]
            small = type(item) is bytes and len(item) < SMALL
        if writer is None or writer.permits is not None:
            return self._put(item, sync, timeout)
        if small and writer.full and not sync and timeout is None:
            items = writer.items
            items.append(item)
            # Whoever opens the way lowers `full` before he looks at `items`, and we look in the other order.
            count = len(items)
            if writer.full and (count & GATHER or (count < MAX_GATHERED and monotonic() < writer.look_at)):
                return True
            (self._link or self.attach()).relieve(writer)
            return True
        return self._put(item, sync, timeout)

    def _put(self, item: Item | Laden, sync: bool = False, timeout: float | None = None) -> bool:
        """`put` an item that need not only be added to those that gather, or into a bounded queue."""
        deadline = _deadline(timeout)
        link = self._attach_by(deadline)
        if link is None:
            return False
        writer = self._attached_writer(link)
        if not sync and timeout is None and self._gather(link, writer, item):
            return True
        item, flights = unladen(item)
        item = link.share(item, waits=timeout is None)
        if timeout is not None:
            item = _own(item)
        if not link.put(writer, item, deadline, flights):
            return False
        if sync:
            link.flush([writer], None)
        return True

    def _gather(self, link: Link, writer: Writer, item: Item | Laden) -> bool:
        """Add a small item of a bounded queue to those that gather, if there is a slot for it; whether it was added."""
        permits = writer.permits
        if permits is None or not writer.full:
            return False
        if type(item) is not int and (type(item) is not bytes or len(item) >= SMALL):
            return False
        if len(permits.free) <= permits.low or permits.waiting or writer.ended is not None or not permits.take():
            return False
        writer.items.append(item)  # a handler that raises between these two lines takes the slot away
        if not writer.full or monotonic() >= writer.look_at:
            link.relieve(writer)
        return True

    def put_many(self, objs: Iterable[object], timeout: float | None = None) -> int:
        """Put objects, all of which are pickled first; return how many a bounded queue had room for in `timeout`."""
        items, longest = encode_all(list(objs))
        deadline = _deadline(timeout)
        link = self._attach_by(deadline)
        if link is None:
            return 0
        writer = self._attached_writer(link)
        for size in (size_of(unladen(item)[0]) for item in items) if longest is None else (longest,):
            link.check_size(size)
        if writer.permits is None and longest is not None:
            return link.put_all(writer, cast("list[bytes]", items), deadline, small=longest < SMALL)
        for number, each in enumerate(items):
            if timeout is not None or not self._gather(link, writer, each):
                item, flights = unladen(each)
                item = link.share(item, waits=timeout is None)  # not all of them at once
                if not link.put(writer, item if timeout is None else _own(item), deadline, flights):
                    return number
        return len(items)

    async def aput(self, obj: object) -> None:
        """As `put`; while there is no room, other coroutines run."""
        item, flights = unladen(encode(obj))
        link = self.attach()
        link.check_size(size_of(item))
        await aio.put(link, self._attached_writer(link), _own(link.share(item, waits=False)), flights)

    async def aget(self) -> Any:
        """As `get`; while there is nothing, other coroutines run. What a task got is its own until it gets again."""
        link = self.attach()
        return decode(await aio.get(link, self._attached_reader(link)))

    def get(self, timeout: float | None = None) -> Any:
        """The next object; `NOTHING` if there is none in `timeout` seconds."""
        link, reader = self._link, self._reader
        if reader is not None and link is not None and reader.ready:
            thread, now = get_ident(), monotonic()
            if now > reader.fresh_until and reader.owner == thread:
                reader.current = -1  # what this thread had is finished: let the report say so
                link.refresh(reader)
            ready = reader.ready
            # Another thread may have come, and ended the ownership, during any of the calls above. From here to the end
            # of `popleft` nothing is called, so none comes in between.
            if reader.owner == thread and ready:
                # Noted before it is removed: a report that another thread makes afterwards must call it held.
                reader.current = ready[0][0]
                number, item = ready.popleft()
                if reader.owner != thread:  # another thread came after that
                    link.keep(reader, thread, number)
                if len(ready) < reader.low:
                    link.ask_ahead(reader)
                if type(item) is int:
                    return item
                if type(item) is Bunch:
                    objects = item.read() if item.objects is None else item.objects
                    if not objects:
                        return decode(item.item(number))
                    index = number - item.first
                    obj, objects[index] = objects[index], None
                    return obj
                if type(item) is bytes:
                    first = item[0]
                    if first == PICKLE:
                        return loads(item)
                    if first in MARSHALLED:
                        return unmarshal(item)
                return decode(item)  # type: ignore[arg-type]
        deadline = _deadline(timeout)
        link = self._attach_by(deadline)
        taken = None if link is None else link.take(self._attached_reader(link), deadline)
        return NOTHING if taken is None else decode(taken)

    def get_many(self, most: int, timeout: float | None = None) -> list[Any]:
        """As `get`, and what else is there at once, up to `most` objects in all; none if there is none in time."""
        deadline = _deadline(timeout)
        link = self._attach_by(deadline)
        if link is None:
            return []
        reader = self._attached_reader(link)
        item = link.take(reader, deadline, wanted=most)
        if item is None:
            return []
        objects, items = [decode(item)], link.take_more(reader, most - 1) if most > 1 else []
        try:
            decode_all(items, objects)
        except Exception:  # it is for the next call to raise, which has nothing else to return
            link.untake(reader, items[len(objects) - 1 :])
        except BaseException:  # Ctrl-C, say: the caller gets none of them
            link.untake(reader, items)
            raise
        return objects

    def take_lease(self, holder: Holder, timeout: float | None, duration: float | None) -> tuple[int, int, Any] | None:
        """The next object, for `holder`, with its number and how often it was delivered; `None` if there is none in
        time. It goes back, as failed, if it cannot be unpickled."""
        deadline = _deadline(timeout)
        link = self._attach_by(deadline)
        if link is None:
            return None
        item = link.take(self._attached_reader(link), deadline, holder)
        return None if item is None else self.begin_lease(holder, item, duration)

    async def atake(self, holder: Holder) -> Any:
        """The next item, for `holder`, who is to call `begin_lease` then."""
        link = self.attach()
        return await aio.take(link, self._attached_reader(link), holder)

    def begin_lease(self, holder: Holder, item: Any, duration: float | None) -> tuple[int, int, Any]:
        """What `take_lease` returns, for an item that was taken."""
        link = self.attach()
        reader = self._attached_reader(link)
        number, deliveries = link.held_by(reader, holder)
        try:
            if duration is not None:
                link.about_lease(reader, number, what="keep", seconds=duration)
            return number, deliveries, decode(item)
        except BaseException as error:
            why = f"{type(error).__name__}: {error}" if isinstance(error, Exception) else None
            link.end_lease(reader, holder, number, what="give back", why=why)
            raise

    def keep_lease(self, holder: Holder, number: int, duration: float) -> bool:
        """Let a lease run out `duration` seconds from now; return whether the item was still leased."""
        link = self.attach()
        reader = self._attached_reader(link)
        # A node that was started anew gives its items the same numbers: another may have this one.
        return holder in reader.held and link.about_lease(reader, number, what="keep", seconds=duration)

    def end_lease(self, holder: Holder, number: int, what: str, why: str | None) -> bool:
        """An item is finished, or goes back; return whether it was still leased."""
        link = self.attach()
        reader = self._attached_reader(link)
        return holder in reader.held and link.end_lease(reader, holder, number, what=what, why=why)

    def dead_letters(self) -> Iterator[dict[str, Any]]:
        """What the node tells of each dead letter."""
        first, more = 0, True
        while more:
            answer = self.attach().question(op="dead letters", channel=self.number, first=first)
            yield from answer["letters"]
            more = answer["more"]
            first = answer["letters"][-1]["place"] + 1 if more else first

    def dead_letter(self, place: int) -> Any:
        """The object in a dead letter."""
        return decode(self.attach().fetch(op="dead letter", channel=self.number, place=place, what="show"))

    def settle_dead_letter(self, place: int, what: str) -> None:
        """Put a dead letter back, or drop it."""
        self.attach().question(op="dead letter", channel=self.number, place=place, what=what)

    def done(self) -> bool:
        """The oldest item that this thread got, or else this process, is done; return whether there was one."""
        link = self.attach()
        return link.done(self._attached_reader(link), aio.current_task())

    def join(self, timeout: float | None) -> bool:
        """Wait until all items are finished; return whether they are in `timeout` seconds."""
        deadline = _deadline(timeout)
        link = self._attach_by(deadline)
        return link is not None and self.flush(_left(deadline)) and link.join(self.number, deadline)

    def shut_down(self, immediate: bool) -> None:
        """Let nothing more be put by anybody, or, if `immediate`, got."""
        self.attach().shut_down(self.number, immediate)

    def put_bytes(self, message: bytes | memoryview) -> None:
        """Put what `get_bytes` returns as it is; a memoryview has the format "B"."""
        self._put(encode_bytes(message))

    def get_bytes(self) -> Buffer:
        """The next item as bytes: what `put_bytes` was given, or a pickle of what `put` was given."""
        link = self.attach()
        return decode_bytes(link.take(self._attached_reader(link), None))

    def poll(self, timeout: float | None = 0.0) -> bool:
        """Whether `get` would return, or raise, at once; waits for that for `timeout` seconds."""
        deadline = _deadline(timeout)
        link = self._attach_by(deadline)
        return link is not None and link.poll(self._attached_reader(link), deadline)

    def fileno(self) -> int:
        """A descriptor that is readable exactly while `get` would return, or raise, at once."""
        link = self.attach()
        reader = self._attached_reader(link)
        with _joint:
            number = link.bell(reader, new=not self._rings)
            self._rings = True
        return number

    def qsize(self) -> int:
        """Items that no caller has got."""
        return self.attach().qsize(self.number)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until the node has accepted what was put; return whether it has within `timeout` seconds. A thread that
        was told that the node of a queue with a name is gone has put nothing into the next one."""
        link, writer = self._last or (self._link, self._writer)
        return link is None or writer is None or not self._usable(link) or link.flush([writer], timeout)

    def cancel_linger(self) -> None:
        """The end of this process does not wait for what was put."""
        self._lingers = False
        writer = self._last[1] if self._last else self._writer
        if writer is not None:
            writer.lingers = False

    def close(self, wait: bool = True) -> None:
        """Let go; idempotent. What this process got is finished. `wait` until the node has what was put, and knows."""
        if self.closed:
            return
        try:
            self._land()
            if wait:
                self.flush()
        except (ConnectionEnded, HandleError):
            pass  # nobody is left to take it
        except BaseException:  # Ctrl-C, say: who does not wait for the one does not wait for the other
            wait = False
            raise
        finally:
            with _joint:
                already, self.closed = self.closed, True
                link = self._link
            if not already:
                self._drop()
            if link is not None and not link.forked:
                if self._writer is not None or self._reader is not None:
                    self._last = link, self._writer
                if wait:
                    link.settle_drops()
                else:
                    link.collect()
            self._link = self._writer = self._reader = None

    @property
    def unused(self) -> bool:
        """Whether it was closed without having been used in this process."""
        return self.closed and self._last is None

    @property
    def maxsize(self) -> int:
        """How many items the queue holds at most; 0: any number."""
        return self.attach().kind(self.number).maxsize

    def attach(self) -> Link:
        """Return the link, attached in this process. Blocks while it attaches."""
        self._check_open()
        link = self._link
        return self._attach(link) if link is None or not self._usable(link) else link

    def _usable(self, link: Link) -> bool:
        """Whether this link still serves this handle. Raises what is wrong with it, for each thread once, if it is of a
        node after which another may have been started."""
        if link.forked:
            return False
        return link.error is None or self._recipe is None or not link.mourned()

    def _attach(self, ancestor: Link | None) -> Link:
        try:
            link = connect(self.endpoint)
        except ConnectError as error:
            if ancestor is None or not ancestor.forked or ancestor.grace:
                raise
            raise NodeError(ancestor.gone(error)) from error  # as the link itself says, had it been a moment sooner
        inherits = ancestor is not None and ancestor.latest() is link
        if not inherits:
            self._hold(link)
        with _joint:
            if self.closed or self._link is link:  # another thread was faster
                if not inherits:
                    link.let_go(self.number, self.sides, None)
                self._check_open()
            else:
                self._writer = self._reader = self._token = None
                self._rings = False
                self._link = link
        return link

    def _hold(self, link: Link) -> None:
        recipe = self._recipe
        try:
            link.hold(self.number, self.sides, self._token if self._pid == os.getpid() else None)
        except HandleError:
            if recipe is None:
                raise
            if recipe.kind is None:
                self.number = link.find(recipe.name).number
                link.hold(self.number, self.sides, None)
            else:
                self.number = link.create(new_number(), recipe.kind, (self.sides,), recipe.name, recipe.max_deliveries)

    def _attach_by(self, deadline: float | None) -> Link | None:
        """As `attach`, but return `None` if it takes longer than until `deadline`. The attempt goes on for the next
        call; so one that has time for nothing succeeds at last. Without any time at all, it blocks as `attach` does."""
        link = self._link
        if link is not None and not self.closed and self._usable(link):
            return link
        if deadline is None or deadline <= monotonic():
            return self.attach()
        attempt = self._attempt
        if attempt is None:
            self._check_open()
            attempt = self._attempt = _Attempt(self, link)
            attempt.start()
        attempt.join(max(0.0, deadline - monotonic()))
        if attempt.is_alive():
            return None
        self._attempt = None
        if attempt.error is not None:
            raise attempt.error
        return self.attach()

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedError(f"{self.label} {self.number:016x} is closed")

    def _attached_writer(self, link: Link) -> Writer:
        writer = self._writer
        if writer is None:
            if "w" not in self.sides:
                raise DirectionError(f"{self.label} {self.number:016x} may only be read from")
            writer = self._writer = link.writer(self.number)
            if not self._lingers:
                writer.lingers = False
        return writer

    def _attached_reader(self, link: Link) -> Reader:
        reader = self._reader
        if reader is None:
            if "r" not in self.sides:
                raise DirectionError(f"{self.label} {self.number:016x} may only be written to")
            reader = self._reader = link.reader(self.number)
        return reader

    def _land(self) -> None:
        """Attach a handle that came from another process and was not used here: only so can it be let go of."""
        if self._token is not None or (self._link is not None and self._link.forked):
            try:
                self.attach()
            except (HandleError, NodeError, TransportError):
                pass  # there is nothing left to hold

    def _drop(self) -> None:
        if self._link is not None:
            self._link.latest().let_go(self.number, self.sides, self._reader if self._rings else None)
        elif self._token is not None and self._pid == os.getpid() and (link := known(self.endpoint)):
            link.drop_unused(self._token)

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
            sending.flights.append(Flight(self.attach(), token, [(self.number, self.sides)]))
        return Channel, (self.endpoint, self.number, self.sides, token, self.label, self._recipe)

    def grip(self, sides: str) -> Channel:
        """Another handle on the same queue."""
        return Channel(self.endpoint, self.number, sides, recipe=self._recipe)

    def stats(self) -> dict[str, Any]:
        """What the node tells of it."""
        return self.attach().stats(self.number)

    @property
    def name(self) -> str:
        """What the node calls it: its name, or else its number."""
        return f"{self.number:016x}" if self._recipe is None else self._recipe.name

    def restrict(self, sides: str, seconds: float | None) -> Channel:
        """A handle that can do no more than this one, only with `sides`, and only for so long."""
        return self.under(self.restricted_key([(self.number, sides)], seconds), sides)

    def under(self, key: str, sides: str | None = None) -> Channel:
        """A handle with the rights that are in `key`."""
        recipe = None if self._recipe is None else Recipe(self._recipe.name)
        endpoint = self.endpoint._replace(key=key)
        return Channel(endpoint, self.number, sides or self.sides, label=self.label, recipe=recipe)

    def restricted_key(self, holds: list[tuple[int, str]], seconds: float | None) -> str:
        """What the node gives someone who is to do no more than that. Raises `AccessError` if it listens nowhere."""
        return str(self.attach().question(op="restrict", holds=holds, seconds=seconds)["key"])


def _spawning() -> Any:
    """The child of multiprocessing that is being started and that this pickle is for, if there is one."""
    context = sys.modules.get("multiprocessing.context")
    return None if context is None else context.get_spawning_popen()


def new_number() -> int:
    """A channel's number that nobody else will choose; even, because a pipe takes the next one, too."""
    return int.from_bytes(os.urandom(8), "little") & ~1 or new_number()


def _deadline(timeout: float | None) -> float | None:
    if timeout is None:
        return None
    if timeout != timeout:
        raise ValueError("timeout is not a number")
    return monotonic() + max(timeout, 0.0)


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - monotonic())


def _own(item: Item) -> Item:
    """`item` without memory that the caller may write to: nothing has to wait until the node has it."""
    return tuple(bytes(part) for part in item) if isinstance(item, tuple) and is_shared(item) else item


def _renew_lock() -> None:
    global _joint
    _joint = RLock()  # another thread may have held it


os.register_at_fork(after_in_child=_renew_lock)
