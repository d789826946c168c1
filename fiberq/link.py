"""A process's one connection to a node, as its handles use it: holding, putting, getting, bells, questions.

`driven` has the socket, the lock, and the waiting. All handles and threads of the process share one link.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar, cast

from fiberq import codec, memory
from fiberq.abc import Buffer, Transport
from fiberq.driven import HEARTBEAT, Driven, ended
from fiberq.errors import (
    AccessError,
    ClosedError,
    HandleError,
    ItemError,
    LeaseLost,
    NodeError,
    ShutDown,
)
from fiberq.lifeline import Lifeline
from fiberq.protocol.client import Request
from fiberq.protocol.kinds import Kind
from fiberq.protocol.reader import FRESH, Holder, Reader
from fiberq.protocol.slots import Permits
from fiberq.protocol.writer import MAX_GATHERED, SMALL, Item, Writer
from fiberq.protocol.writer import size as size_of
from fiberq.settings import config
from fiberq.tree import Endpoint
from fiberq.wakeup import Wakeup

T = TypeVar("T")

DOUBT: Final = 1.0
"""Seconds without an answer of the node after which `task_done` asks whether it still takes this process for alive."""


class Found(NamedTuple):
    """A channel that the node knows by a name."""

    number: int
    kind: Kind
    name: str | None
    sides: str
    """Those that this process may use."""


class Link(Driven):
    """Made by `links.connect`. Every public method may be called from any thread; none is called again after a fork."""

    def __init__(self, endpoint: Endpoint, transport: Transport, on_end: Callable[[Link], None]) -> None:
        super().__init__(endpoint, transport)
        self.forked = False
        self.heir: Link | None = None  # what took over the handles in a process that was forked
        self._dropped: deque[tuple[int, str, Reader | None]] = deque()  # holds whose last handle was garbage collected
        self._unused: deque[str] = deque()  # tokens of handles that came in items and were garbage collected
        self._arrived: deque[str] = deque()  # tokens of handles that came in items
        self._handles: dict[tuple[int, str], int] = {}
        self._opening: list[tuple[int, str]] = []  # what the node is being asked for: not to be released meanwhile
        self._flights: dict[str, Lifeline] = {}  # of children that were given handles, by token
        self._bells: dict[object, Wakeup] = {}  # readable while that reader or writer is ready
        self._listeners: dict[object, int] = {}  # how many want to hear the bell
        self._polled: dict[Reader, int] = {}  # the handles that asked for a reader's bell
        self._on_end = on_end
        self._proof: object = None  # memory that shows the node that this process can share some
        self._near: Request | None = None  # the node's answer to that
        self._pool = memory.Pool()
        self._opened = memory.Opened()  # of the node's memory
        self._start()
        self._offer_memory()

    def __repr__(self) -> str:
        return f"<Link to {self.endpoint.address}>"

    # -- shared memory --

    def _offer_memory(self) -> None:
        """Tell the node that large items may be in shared memory, if this process can see its own."""
        if self._client.memory is None or not config.shared_memory:
            return
        try:
            node, descriptor = map(int, self._client.memory)
            proof = memory.prove(node, descriptor, self._client.name)
        except (OSError, ValueError, TypeError, OverflowError):
            return  # it runs on another host, in another container, or for another user
        self._proof = proof
        with self._lock:
            now = time.monotonic()
            self._client.used = self._pool.ended
            self._near = self._client.request(now, op="near", pid=os.getpid(), descriptor=proof.descriptor)
            self._transmit(now)

    def _bytes_of(self, channel: int, number: int) -> Sequence[Buffer]:
        """Those of a large item that this process has, from the node. Raises `HandleError` if it has not any more."""
        return cast("Sequence[Buffer]", self.fetch(op="leased", channel=channel, item=number))

    def _lose(self, error: Exception) -> None:
        self._pool.forget()
        super()._lose(error)

    def share(self, item: Item, waits: bool) -> Item:
        """`item`, in shared memory if it is large, and the node takes that. A caller who `waits` may be kept for a
        moment, for memory that was used before. Raises `ItemError` as `check_size`, and, who waits, as `put`."""
        if type(item) is not tuple:
            return item
        size, pool = size_of(item), self._pool
        self.check_size(size)
        if self._near is None or self._near.answer is None or not self._near.answer.get("near"):
            return codec.together(item, size)
        if waits and pool.lacks(size):
            now = time.monotonic()
            deadline = now + pool.patience(size, now)  # at least a look: it may have come already
            if self._until(lambda _: not pool.lacks(size) or None, self._client.used, deadline) is None:
                pool.expect_none(size)
        return pool.share(item, time.monotonic()) or codec.together(item, size)

    # -- for handles: holding --

    def create(
        self,
        channel: int,
        kind: Kind,
        handles: Sequence[str],
        name: str | None = None,
        max_deliveries: int | None = None,
    ) -> int:
        """Make a channel, with a handle for each of the given sides, and return its number: another one than `channel`
        if there is one with this `name`. Blocks until the node has made it.

        Raises `HandleError` if the one with this name is of another kind.
        """
        with self._opens():
            answer = self.question(op="create", channel=channel, kind=kind, name=name, max_deliveries=max_deliveries)
            number = int(answer["channel"])
            if name is not None:  # an older handle on it may just have been let go of
                for sides in handles:
                    self.hold(number, sides, None)
                return number
            with self._lock:
                self._learn({number: kind}, [number] if answer["shut"] else [])
                for sides in handles:
                    self._handles[number, sides] = 1
        return number

    @contextmanager
    def _opens(self) -> Iterator[None]:
        """Keep what the node says meanwhile of channels that are not known to be held yet."""
        with self._lock:
            self._client.opening += 1
        try:
            yield
        finally:
            with self._lock:
                self._client.opening -= 1
                if not self._client.opening and len(self._client.over) > len(self._client.kinds):
                    self._client.forget_others()

    def hold(self, channel: int, sides: str, token: str | None) -> None:
        """Count one more handle on these sides; the first one asks the node, and blocks until it answers.

        Raises `HandleError` when the queue or pipe is gone.
        """
        key = (channel, sides)
        with self._lock:
            if self._handles.get(key) and token is None:
                self._handles[key] += 1
                return
            self._opening.append(key)
        try:
            with self._opens():
                answer = self.question(op="open", holds=[[channel, sides]], token=token)
                with self._lock:
                    self._learn({channel: Kind.read(answer["kinds"][f"{channel:x}"])}, answer["shut"])
                    self._handles[key] = self._handles.get(key, 0) + 1
        finally:
            with self._lock:
                self._opening.remove(key)

    def find(self, name: str) -> Found:
        """Ask the node for a queue or pipe by its name, or its number; blocks until it answers.

        Raises `HandleError` if there is none.
        """
        answer = self.question(op="find", name=name)
        return Found(int(answer["channel"]), Kind.read(answer["kind"]), answer["name"], str(answer["sides"]))

    def mourned(self) -> bool:
        """Whether this thread knows already that the link is broken: `True`, or the error is raised."""
        if threading.get_ident() in self._mourners:
            return True
        self._check()
        return False

    def untold(self) -> None:
        """This thread does not know yet that the link is broken: what was raised was kept from it."""
        self._mourners.discard(threading.get_ident())

    def take_over(self, ancestor: Link, token: str) -> None:
        """Hold what the parent held when it forked this process: its handles were copied, used or not. Of a node that
        is gone there is nothing to hold, though another has its address."""
        if self._client.node != ancestor._client.node:
            return
        with self._opens():
            answer = self.ask(op="inherit", token=token, holds=ancestor.holds())
            with self._lock:
                self._learn(ancestor.kinds(), answer["shut"])
                self._handles.update(ancestor._handles)
                ancestor.heir = self
                self._dropped.extend(ancestor._dropped)

    def _learn(self, kinds: Mapping[int, Kind], shut: Iterable[int]) -> None:
        self._client.kinds.update(kinds)
        self._client.over.update(dict.fromkeys(shut, "shut"))

    def latest(self) -> Link:
        """This link, or the one which took over its handles in a process that was forked since."""
        link = self
        while link.heir is not None:
            link = link.heir
        return link

    def let_go(self, channel: int, sides: str, rang: Reader | None) -> None:
        """One handle less, which had asked for `rang`'s bell; safe in a destructor: it neither blocks nor locks."""
        self._dropped.append((channel, sides, rang))

    def drop_unused(self, token: str) -> None:
        """A handle that came under `token` is gone, and was never used; safe in a destructor."""
        self._unused.append(token)

    def arrived(self, token: str) -> None:
        """A handle has come under `token`, which is not used yet; neither blocks nor locks."""
        self._arrived.append(token)
        self._hurry_io_thread()

    def collect(self) -> None:
        """Begin to release what was let go of; never blocks."""
        with self._lock:
            if self.error is None and not self._closed:
                self._collect(time.monotonic())
                self._hurry_io_thread()

    def settle_drops(self) -> None:
        """Release at once what was let go of; blocks until the node knows, for a second at most."""
        client, session = self._client, self._client.session
        number = None

        def step(now: float) -> bool | None:
            nonlocal number
            self._collect(now)
            if number is None and not self._dropped and not client.giving:
                number = session.last
            return (number is not None and session.acknowledged >= number) or None

        try:
            self._until(step, session, time.monotonic() + HEARTBEAT)
        except (NodeError, ClosedError):
            pass  # then there is nothing left to let go of

    def fly(
        self,
        token: str,
        holds: list[tuple[int, str]],
        lifeline: Lifeline | None = None,
        within: int | None = None,
    ) -> None:
        """Announce handles that are on their way: to a process which is starting and whose end `lifeline` tells, or in
        an item that is put into the channel `within`."""
        with self._lock:
            self._check()
            if lifeline is not None:
                self._flights[token] = lifeline
            self._announce(token, holds, within, time.monotonic())
            self._transmit(time.monotonic())

    def _announce(self, token: str, holds: list[tuple[int, str]], within: int | None, now: float) -> None:
        self._client.tell(now, op="flight", token=token, holds=holds, within=within)

    def holds(self) -> list[tuple[int, str]]:
        return [key for key, handles in list(self._handles.items()) if handles > 0]

    def kinds(self) -> dict[int, Kind]:
        """Of the channels that are held."""
        return self._client.kinds

    def kind(self, channel: int) -> Kind:
        return self._client.kinds[channel]

    def writer(self, channel: int) -> Writer:
        with self._lock:
            return self._client.writer(channel, self._kind(channel))

    def reader(self, channel: int) -> Reader:
        with self._lock:
            reader = self._client.readers.setdefault(channel, Reader(channel, self._kind(channel)))
            if self._near is not None:
                # What a pipe's reader has told of may be gone before the caller comes to read it.
                borrow = memory.Borrowed if reader.kind.keeps else memory.fetch
                node = int(self._client.memory[0])
                reader.borrow = lambda each, number: borrow(
                    node, each, self._opened, partial(self._bytes_of, channel, number)
                )
            return reader

    def _kind(self, channel: int) -> Kind:
        try:
            return self._client.kinds[channel]
        except KeyError:  # another thread closed the last handle on it
            raise ended("closed") from None

    # -- for handles: putting --

    def put(
        self, writer: Writer, item: Item, deadline: float | None = None, flights: Sequence[codec.Flight] = ()
    ) -> bool:
        """Take `item`, which has handles that are to be in flight; return whether there was room for it by `deadline`,
        and in a bounded queue a slot. Blocks until then, and, for memory that the caller may change, until the node has
        accepted it. Raises `ItemError` for an item that is larger than the node takes.

        A caller that does not want to wait for a slot gets the node's answer all the same.
        """
        self.check_size(size_of(item))
        if not (writer.has_room or self._wait_for_room(writer, deadline)):
            return False
        for flight in flights:
            if flight.link is not self:
                flight.link.fly(flight.token, flight.holds)  # another node knows nothing of the item
        if writer.permits is None:
            with self._lock:
                self._add(writer, item, flights, time.monotonic())
        elif not self._put_with_slot(writer, writer.permits, item, deadline, flights):
            return False
        if codec.is_shared(item):
            self.flush([writer], None)
        return True

    def _put_with_slot(
        self, writer: Writer, permits: Permits, item: Item, deadline: float | None, flights: Sequence[codec.Flight]
    ) -> bool:
        """Take a slot and `item`, both or neither; return whether there was a slot by `deadline`."""

        def look(now: float, waited: bool) -> bool | None:
            self._check(writer)
            if not permits.take():
                return None
            permits.taken(self._client.session, now, waited)
            self._add(writer, item, flights, now)
            return True

        if permits.free and not permits.waiting:
            with self._lock:
                if look(time.monotonic(), False):
                    return True
        return self._obtain(writer, permits, deadline, look) is not None

    def _add(self, writer: Writer, item: Item, flights: Sequence[codec.Flight], now: float) -> None:
        """Let `item` gather, and leave if it can; under the lock."""
        self._check(writer)
        for flight in flights:
            if flight.link is self:
                self._announce(flight.token, flight.holds, writer.channel, now)
        writer.add(item)
        if writer.full and now < writer.look_at:
            self._io_needed(writer)
        else:
            self._move(writer, now)

    def _move(self, writer: Writer, now: float) -> None:
        """Let what has gathered leave if it can; under the lock."""
        if writer.full:
            self._receive(now)
        self._client.pump(writer, now)
        self._transmit(now)
        self._io_needed(writer)

    def put_all(self, writer: Writer, items: Sequence[bytes], deadline: float | None, small: bool) -> int:
        """Take items that are not large, and may all be known to be `small`; return how many there was room for by
        `deadline`. Blocks as `put` does."""
        for start in range(0, len(items), MAX_GATHERED):
            some = items[start : start + MAX_GATHERED]
            if not (writer.has_room or self._wait_for_room(writer, deadline)):
                return start
            with self._lock:
                self._check(writer)
                writer.items += some
                if not small:
                    writer.bulk += sum(filter(SMALL.__le__, map(len, some)))
                self._move(writer, time.monotonic())
        return len(items)

    def check_size(self, size: int) -> None:
        """Raise `ItemError` if an item of `size` bytes is larger than the node takes."""
        if size > self._client.max_bytes:
            raise ItemError(f"an item of {size} bytes cannot be put: the node holds {self._client.max_bytes} bytes")

    def relieve(self, writer: Writer) -> None:
        """Send what has gathered in `writer`, if it can leave; block while too much has."""
        with self._lock:
            self._check(None if writer.shut else writer)
            if writer.shut and writer.items:
                writer.items.pop()  # it was put after all that was there had been sent: each caller takes one back
                self._check(writer)
            self._move(writer, time.monotonic())
        if not writer.has_room:
            self._wait_for_room(writer, None)

    def flush(self, writers: list[Writer] | None, timeout: float | None) -> bool:
        """Block until the node has accepted all that was put; return whether it has within `timeout` seconds. Without
        `writers`: into all of them for which the end of the process waits."""
        session = self._client.session
        wanted = [each for each in list(self._client.writers.values()) if each.lingers] if writers is None else writers

        def step(now: float) -> bool | None:
            for writer in wanted:
                self._check(None if writers is None or writer.shut else writer)
                self._client.pump(writer, now, urgent=True)
            return all(writer.settled(session) for writer in wanted) or None

        deadline = None if timeout is None else time.monotonic() + timeout
        return all(self._until(step, writer, deadline) for writer in wanted)

    def _wait_for_room(self, writer: Writer, deadline: float | None) -> bool:
        """Block while more has gathered than is worth to gather; return whether there is room at `deadline`."""

        def step(now: float) -> bool | None:
            self._check(None if writer.shut else writer)  # what is there by then is on its way
            self._client.pump(writer, now)
            return writer.shut or writer.has_room or None

        return bool(self._until(step, writer, deadline))

    # -- for handles: getting --

    def take(self, reader: Reader, deadline: float | None, caller: Hashable = None, wanted: int = 1) -> Any:
        """Return the next item; `None` if there is none at `deadline`. Blocks until then. It is held by `caller`, by
        default by this thread, who has use for `wanted` items."""
        caller = caller or _here(reader)
        session = self._client.session
        claimed = reader.owes and reader.others and self._claim(reader)

        def look(now: float, waited: bool) -> Any:
            nonlocal claimed
            if claimed:
                reader.waiting -= 1
                claimed = False
            got = reader.take(caller)
            if got is not None:
                if waited and not reader.owes:
                    reader.arrived(now)
                elif len(reader.ready) < reader.low:
                    reader.ask_ahead(session, now)
                if reader.kind.maxsize:
                    self._progress_later(reader, now)  # somebody may wait for the room
            elif reader.ended:
                raise ended(reader.ended)
            return got

        while True:
            try:
                got = self._obtain(reader, reader, deadline, look, wanted)
                break
            except ShutDown:
                if not self._filled_again(reader):
                    raise
            finally:
                if claimed:
                    self._unclaim(reader)
        if reader in self._bells:
            self._answer_bell(reader)
        return None if got is None else got[1]

    def _claim(self, reader: Reader) -> bool:
        """Block until the node knows that a caller, who is one of those that wait then, is about to receive a message
        that somebody had only seen: else it would go to another, too, should this process die at once."""
        with self._lock:
            self._check()
            now = time.monotonic()
            reader.waiting += 1
            reader.progress(self._client.session, now)
            self._transmit(now)
        try:
            self.ask(op="stat", channel=reader.channel, **{"for": "answer"})
        except BaseException:  # Ctrl-C, say: the next caller receives it
            self._unclaim(reader)
            raise
        return True

    def _unclaim(self, reader: Reader) -> None:
        with self._lock:
            reader.waiting -= 1
            if not (self.error or self._closed):
                reader.cancel(self._client.session, time.monotonic())
                self._transmit(time.monotonic())

    def _filled_again(self, reader: Reader) -> bool:
        """Whether something has come into a queue that was drained after its shutdown: of a process that died, say."""
        if reader.ended != "drained":
            return False
        size = int(self.question(op="stat", channel=reader.channel, **{"for": "answer"})["qsize"])
        if size:
            reader.ended = None
        return size > 0

    def take_more(self, reader: Reader, most: int) -> list[Any]:
        """Return what else is there at once, at most `most` items, for a thread that has just taken one."""
        with self._lock:
            items = reader.take_more(_here(reader), most)
            now = time.monotonic()
            if len(reader.ready) < reader.low:
                reader.ask_ahead(self._client.session, now)
            self._transmit(now)
        if reader in self._bells:
            self._answer_bell(reader)
        return items

    def untake(self, reader: Reader, items: Sequence[Any]) -> None:
        """Put back the last `items` that this thread took: it could not read the first of them."""
        with self._lock:
            reader.untake(_here(reader), items)
            if reader in self._bells:
                self._ring(reader)

    def done(self, reader: Reader, caller: Hashable = None) -> bool:
        """An item is done: the oldest of this thread, or else of this process. Return whether there was one.

        Raises `LeaseLost` if it was given to another process meanwhile. Blocks for an answer of the node if it has been
        silent for so long that it may take this process for dead: only then it is sure to be known.
        """
        if time.monotonic() > self._client.session.answered_at + min(DOUBT, config.session_timeout / 2):
            self.ask(op="stat", channel=reader.channel)
        with self._lock:
            self._check()
            number = reader.done(caller or _here(reader))
            self._progress_later(reader, time.monotonic())
        if number in reader.lost:
            reader.lost.discard(number)
            raise LeaseLost("this process did not answer for so long that the task was given to another one")
        return number is not None

    def held_by(self, reader: Reader, holder: Holder) -> tuple[int, int]:
        """The number of the item that `holder` holds, and how often it was delivered."""
        with self._lock:
            number = reader.held[holder][0]
            return number, reader.earlier.get(number, 0) + 1

    def about_lease(self, reader: Reader, number: int, **question: Any) -> bool:
        """Let the node do something with an item that is held by name; return whether it was this process's still.
        Blocks until the node has answered."""

        def ask(now: float) -> Request:
            return self._client.about_lease(now, channel=reader.channel, item=number, **question)

        return _granted(self._answer(ask).answer)["held"] is True

    def end_lease(self, reader: Reader, holder: Holder, number: int, **question: Any) -> bool:
        """As `about_lease`, for what ends the lease."""
        finishes = question["what"] == "finish"
        try:
            held = self.about_lease(reader, number, **question)
            finishes = True
        finally:
            if finishes:
                with self._lock:
                    reader.let_go(holder)
                    reader.lost.discard(number)
                    if not (self.error or self._closed):
                        self._progress_later(reader, time.monotonic())
        return held

    def _progress_later(self, reader: Reader, now: float) -> None:
        if reader.progress_later(self._client.session, now):
            self._hurry_io_thread()

    def poll(self, reader: Reader, deadline: float | None) -> bool:
        """Return whether an item can be taken without waiting; blocks for one until `deadline`. `EOFError` is one."""
        found = bool(self._obtain(reader, reader, deadline, lambda *_: bool(reader.ready or reader.ended) or None))
        if found and not reader.kind.keeps:  # the node takes it for received, but this process may end before that
            with self._lock:
                if not (self.error or self._closed):
                    reader.cancel(self._client.session, time.monotonic())
                    self._transmit(time.monotonic())
        return found

    def _obtain(
        self,
        target: Reader | Writer,
        waiter: Reader | Permits,
        deadline: float | None,
        look: Callable[[float, bool], T | None],
        wanted: int = 1,
    ) -> T | None:
        """Call `look` until it returns something, and see to it that the node sends `waiter` an item, or a slot; `None`
        at `deadline`.

        A caller that does not want to wait gets the node's answer all the same: what is there is found.
        """
        session = self._client.session
        at_once = deadline is not None and deadline <= time.monotonic()
        wants = "item" if waiter is target else "slot"
        waits = False
        recalls = -1
        request: Request | None = None

        def step(now: float) -> tuple[T | None] | None:
            nonlocal waits, request, recalls
            got = look(now, waits)
            if got is not None:
                if waits:
                    waits = False
                    waiter.waiting -= 1
                return (got,)
            if not waits:
                waits = True
                waiter.waiting += 1
                if wants == "slot":
                    self._progress(target.channel, now)  # what this process got itself makes room
            if not at_once:
                waiter.ask(session, now, wanted)
            if (at_once or (deadline is not None and wants == "slot")) and recalls != waiter.recalls:
                # The node has not heard of this caller, or sent it nothing until it got what went back.
                recalls = waiter.recalls
                waiter.ask(session, now, wanted)
                request = self._client.request(now, op="stat", channel=target.channel, **{"for": wants})
            answered = at_once and request is not None and request.answer is not None
            return (None,) if answered and not waiter.giving else None

        try:
            found = self._answered(step, session) if at_once else self._until(step, target, deadline)
        finally:
            if waits:
                with self._lock:
                    self._withdraw(target, waiter)
        return None if found is None else found[0]

    def _withdraw(self, target: Reader | Writer, waiter: Reader | Permits) -> None:
        """A caller waits no more; under the lock."""
        waiter.waiting -= 1
        if not (waiter.waiting or _ready(target) or self.error or self.forked or self._closed):
            now = time.monotonic()
            waiter.cancel(self._client.session, now)
            self._transmit(now)

    def bell(self, reader: Reader, new: bool) -> int:
        """Return a descriptor that is readable exactly while `take` would return or raise at once.

        From now on one item is always asked for, and kept ready by the I/O thread while nobody else waits for it, until
        each handle that asked (one that asks for the first time is `new`) is closed.
        """
        with self._lock:
            self._check()
            if new:
                self._listen(reader)
                reader.listening = True
                self._polled[reader] = self._polled.get(reader, 0) + 1
            number = self._bells[reader].fileno()
        self._answer_bell(reader)
        return number

    def settle_bells(self, deadline: float) -> None:
        """If somebody listens to a bell, block until the node has answered: what it had for the bells has come then. A
        node that has not at `deadline` is left alone."""
        with self._lock:
            channel = next((reader.channel for reader in self._bells if isinstance(reader, Reader)), None)
        if channel is not None:
            try:
                question = {"op": "stat", "channel": channel, "for": "answer"}
                self._ask(deadline, lambda now: self._client.request(now, **question))
            except (NodeError, ClosedError):
                pass  # all bells ring

    def _silence(self, reader: Reader, now: float) -> None:
        """One handle less that asked for the bell."""
        if reader in self._polled:
            self._polled[reader] -= 1
            if not self._polled[reader]:
                del self._polled[reader]
                reader.listening = False
                reader.cancel(self._client.session, now)
            self._unlisten(reader)

    def _listen(self, target: Reader | Writer) -> None:
        if target not in self._bells:
            self._bells[target] = Wakeup()
            self._listeners[target] = 0
            if isinstance(target, Reader):
                target.share()
        self._listeners[target] += 1

    def _unlisten(self, target: Reader | Writer) -> None:
        self._listeners[target] -= 1
        if not self._listeners[target]:
            del self._bells[target], self._listeners[target]

    def _answer_bell(self, reader: Reader) -> None:
        """Somebody took what the bell rang for, or nobody has yet: set it right, and ask for the next item."""
        with self._lock:
            now = time.monotonic()
            self._receive(now)
            self._ring(reader)
            if (reader.waiting or reader.listening) and not (
                reader.ready or reader.ended or self.error or self._closed
            ):
                reader.ask(self._client.session, now)
                self._transmit(now)
            if self._nobody_drives:
                self._io_urgent = True
                self._wake_io_thread()

    def _ring(self, target: object) -> None:
        bell = self._bells.get(target)
        if bell is not None:
            if self.error or self._closed or _ready(target):
                bell.set()
            else:
                bell.clear()

    def _ring_all(self) -> None:
        for target in self._bells:
            self._ring(target)

    # -- for coroutines: nothing here waits --

    def begin_wait(self, target: Reader | Writer) -> int:
        """One more coroutine waits for an item, or for room and a slot; return a descriptor that is readable while
        there may be one, until `end_wait`. `ask_for` is to be called next, once for several."""
        with self._lock:
            self._check()
            self._listen(target)
            waiter = target if isinstance(target, Reader) else target.permits
            if waiter is not None:
                waiter.waiting += 1
            return self._bells[target].fileno()

    def ask_for(self, target: Reader | Writer) -> None:
        """Tell the node how many coroutines wait."""
        with self._lock:
            now, session = time.monotonic(), self._client.session
            if target.ended:
                pass
            elif isinstance(target, Reader):
                target.ask(session, now)
            elif target.permits is not None:
                self._progress(target.channel, now)
                target.permits.ask(session, now)
            self._transmit(now)
            self._ring(target)
            self._hurry_io_thread()

    def end_wait(self, target: Reader | Writer) -> None:
        """A coroutine waits no more."""
        if self.forked:
            return
        with self._lock:
            self._unlisten(target)
            waiter = target if isinstance(target, Reader) else target.permits
            if waiter is not None:
                self._withdraw(target, waiter)
            self._hurry_io_thread()

    def hear(self, target: Reader | Writer) -> int:
        """The bell rings: return for how many there is something, and silence it if there is nothing any more."""
        with self._lock:
            self._ring(target)
            if self.error or self._closed or target.ended:
                return sys.maxsize
            if not _ready(target):
                return 0
            if isinstance(target, Reader):
                return len(target.ready)
            return 1 if target.permits is None else len(target.permits.free)

    def take_now(self, reader: Reader, caller: Hashable, waited: bool) -> Any:
        """Return what is there for `caller`, which may have `waited` for it; `None` if nothing has come."""
        with self._lock:
            self._check()
            now = time.monotonic()
            self._receive(now)
            self._check()
            got = reader.take(caller)
            if got is None and reader.ended:
                raise ended(reader.ended)
            if got is not None and waited:
                reader.arrived(now)
            elif got is not None and len(reader.ready) < reader.low:
                reader.ask_ahead(self._client.session, now)
            self._progress_later(reader, now)
            self._transmit(now)
            self._ring(reader)
        return None if got is None else got[1]

    def finish(self, reader: Reader, caller: Hashable) -> None:
        """`caller`, which was no thread, has ended: what it held is finished."""
        if self.forked:
            return
        with self._lock:
            if not (self.error or self._closed):
                reader.finish(caller)
                self._progress_later(reader, time.monotonic())

    def put_now(self, writer: Writer, item: Item, flights: Sequence[codec.Flight] = (), waited: bool = False) -> bool:
        """Take `item`, which refers to nothing that may change, if there is room and a slot; return whether there was.
        The caller may have `waited` for that.

        Raises as `put` does.
        """
        with self._lock:
            self._check(writer)
            now = time.monotonic()
            self._receive(now)
            permits = writer.permits
            there_is = writer.has_room and (permits is None or permits.take())
            if there_is:
                if permits is not None:
                    permits.taken(self._client.session, now, waited)
                self._add(writer, item, flights, now)
            self._transmit(now)
            self._ring(writer)
        return there_is

    def refresh(self, reader: Reader) -> None:
        """Look whether items in hand were recalled, and tell the node how far this reader is."""
        with self._lock:
            now = time.monotonic()
            if reader.stays_fresh(self._client.session, now):
                return
            self._receive(now)
            if reader.ready:
                reader.progress(self._client.session, now)
            reader.fresh_until = now + FRESH
            self._transmit(now)

    def keep(self, reader: Reader, thread: int, number: int) -> None:
        """`thread` has got item `number`, and nothing else, while another thread came to get from the same reader."""
        with self._lock:
            reader.let_go(thread)  # what it was about to get, when the other came
            reader.keep(thread, number)

    def ask_ahead(self, reader: Reader) -> None:
        with self._lock:
            now = time.monotonic()
            reader.ask_ahead(self._client.session, now)
            self._transmit(now)

    # -- for handles: questions --

    def join(self, channel: int, deadline: float | None) -> bool:
        """Block until all items are finished; return whether they are at `deadline`, or, if that has passed, now."""
        if deadline is not None and deadline <= time.monotonic():
            with self._lock:
                self._check()
                self._progress(channel, time.monotonic())
            answer = self.ask(op="join", channel=channel, at_once=True)
            return _granted(answer)["finished"] is True
        with self._lock:
            self._check()
            now = time.monotonic()
            request = self._client.request(now, op="join", channel=channel)
            self._transmit(now)
        try:
            self._until(lambda _: request.answer, request, deadline)
        finally:
            if request.answer is None:
                with self._lock:
                    self._client.forget(request, time.monotonic())
        return request.answer is not None and _granted(request.answer)["finished"] is True

    def shut_down(self, channel: int, now: bool) -> None:
        """Let nothing more be put into a queue; `now`: nor got. Blocks until all who put know it."""
        with self._lock:
            self._check()
            self._client.shut_down(channel, time.monotonic())
        self.question(op="shutdown", channel=channel, drop=now)

    def ask(self, **question: Any) -> dict[str, Any]:
        """Ask the node and return its answer; blocks until it comes."""
        answer = self._answer(lambda now: self._client.request(now, **question)).answer
        assert answer is not None
        return answer

    def question(self, **question: Any) -> dict[str, Any]:
        """As `ask`, but raise `HandleError` if the node refuses."""
        return _granted(self.ask(**question))

    def fetch(self, **question: Any) -> Item:
        """Ask the node for an item. Raises `HandleError` if there is none."""
        request = self._answer(lambda now: self._client.request(now, **question))
        return tuple(request.parts) if _granted(request.answer)["large"] else bytes(request.parts[0])

    def _answer(self, ask: Callable[[float], Request]) -> Request:
        """Return what `ask` returns, with the node's answer; blocks until that comes."""
        request = self._ask(time.monotonic() + config.reconnect_timeout, ask)
        if request is None:
            raise self._silent()
        return request

    def _ask(self, deadline: float, ask: Callable[[float], Request]) -> Request | None:
        with self._lock:
            self._check()
            now = time.monotonic()
            request = ask(now)
            self._transmit(now)
        return self._until(lambda _: request if request.answer is not None else None, request, deadline)

    def qsize(self, channel: int) -> int:
        """Items that no caller has got: those that the node has, and those that have not left yet."""
        with self._lock:
            self._check()
            now = time.monotonic()
            self._progress(channel, now)
            writer = self._client.writers.get(channel)
            if writer is not None:
                self._client.pump(writer, now, urgent=True)
            gathered = 0 if writer is None else len(writer.items)
        return gathered + int(self.question(op="stat", channel=channel)["qsize"])

    def stats(self, channel: int) -> dict[str, Any]:
        """What the node tells of a queue."""
        with self._lock:
            self._check()
            self._progress(channel, time.monotonic())
        answer = self.question(op="stats", channel=channel)
        del answer["id"], answer["channel"]
        kind = Kind.read(answer.pop("kind"))
        return {"kind": kind.name, "maxsize": kind.maxsize, **answer}

    def _progress(self, channel: int, now: float) -> None:
        """Tell the node how far this process is with a channel, if it reads it."""
        reader = self._client.readers.get(channel)
        if reader is not None and reader.attached:
            reader.progress(self._client.session, now)

    # -- losing it --

    def abandon(self) -> None:
        """This process was forked from the one that the link belongs to: handles are to attach again."""
        self.forked = True
        self._flights.clear()
        self._cut_fast_paths()
        self._io_wakeup.close()
        self._caller_wakeup.close()

    def _broken(self) -> None:
        self._opened.forget()
        self._pool.forget()
        self._pool.tidy(float("inf"))
        self._on_end(self)
        self._cut_fast_paths()

    def _cut_fast_paths(self) -> None:
        """Make handles come here at their next use, where they are told what is wrong."""
        for writer in self._client.writers.values():
            writer.full = False
        for reader in self._client.readers.values():
            reader.owner = None

    # -- letting go --

    def _land_flights(self, now: float) -> None:
        """Tell the node of children that are gone: what they were given, and did not claim, is held no more."""
        for token in [token for token, lifeline in self._flights.items() if lifeline.broken()]:
            del self._flights[token]
            self._client.tell(now, op="landed", token=token)

    def _collect(self, now: float) -> None:
        """Release what handles let go of."""
        self._pool.tidy(now)
        self._opened.tidy(now)
        while self._arrived:
            self._client.tell(now, op="arrived", token=self._arrived.popleft())
        while self._unused:
            self._client.tell(now, op="unused", token=self._unused.popleft())
        for _ in range(len(self._dropped)):
            channel, sides, rang = self._dropped.popleft()
            key = channel, sides
            if rang is not None:
                self._silence(rang, now)
            if key not in self._handles:
                continue
            if self._handles[key] > 1:
                self._handles[key] -= 1
                self._client.give_back(channel, now)
            elif not self.error and not self._release(channel, sides, now):
                self._dropped.append((channel, sides, None))  # later: its items are not all on their way
            else:
                self._handles.pop(key, None)
        self._transmit(now)

    def _release(self, channel: int, sides: str, now: float) -> bool:
        """Tell the node that the last handle on `sides` is gone; return whether it could be told."""
        held = [kept for number, kept in self._handles if number == channel and kept != sides]
        held += [kept for number, kept in self._opening if number == channel]
        others = set("".join(held))
        gone = "".join(side for side in sides if side not in others)
        writer = self._client.writers.get(channel)
        if writer is not None and "w" in gone:
            self._client.pump(writer, now, urgent=True)
            if writer.items and not writer.ended:
                return False
            del self._client.writers[channel]
            if writer.ended is None:
                writer.shut_down(self._client.session, now, "closed")
                self._client.changed.append(writer)
        if gone:
            self._client.release(channel, gone, now)
            self._notify()
        if not others:
            self._client.kinds.pop(channel, None)
            self._client.over.pop(channel, None)
        return True

    # -- the end --

    def close(self, linger: float) -> None:
        """Flush for at most `linger` seconds, say goodbye to the node, and close."""
        session = self._client.session
        try:
            flushed = self.flush(None, linger)
            with self._lock:
                self._check()
                now = time.monotonic()
                self._collect(now)
                number = self._client.goodbye(now)
                self._transmit(now)
            patience = HEARTBEAT if flushed else 0.1
            self._until(lambda _: session.acknowledged >= number or None, session, now + patience)
            if not flushed and session.acknowledged < number:
                gathered = sum(len(writer.items) for writer in self._client.writers.values())
                text = f"{session.busy} frames and {gathered} items beside them"
                print(f"fiberq: the node did not accept {text} in {linger:g} s", file=sys.stderr)
        except (NodeError, ClosedError):
            pass  # who put something into a node that is gone was told so, or is told nothing more here
        with self._lock:
            self._closed = True
            self._cut_fast_paths()
            self._wake_everybody()
        self._on_end(self)
        self._thread.join(1.0)
        self._socket.close()


class _Here(threading.local):
    def __init__(self) -> None:
        self.me = object()


_thread = _Here()


def _here(reader: Reader) -> Hashable:
    """Who gets from `reader` in this thread: its number, with which it owns a reader and is looked for. That is given
    to another thread when it has ended; so a task, which outlives its thread, is held by an object."""
    return _thread.me if reader.kind.joins else threading.get_ident()


def _granted(answer: dict[str, Any] | None) -> dict[str, Any]:
    """What the node answered. Raises `HandleError`, or `AccessError`, if it refused what was asked."""
    assert answer is not None
    if "error" in answer:
        raise (AccessError if answer.get("code") == "denied" else HandleError)(answer["error"])
    return answer


def _ready(target: object) -> bool:
    """Whether a reader has something, or a writer room for something; an end is that, too."""
    if isinstance(target, Reader):
        return bool(target.ready or target.ended)
    if isinstance(target, Writer):
        return bool(target.ended or (target.has_room and (target.permits is None or target.permits.free)))
    return False
