"""What a thread does with one channel: put, get, lease. It does what `fiberq.link` does, step by step."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, Final

from fiberq.driven import LULL
from fiberq.protocol.reader import FRESH, Holder, Reader
from fiberq.protocol.slots import Permits
from fiberq.protocol.writer import Item, Writer
from sim.ledger import Ledger, whole
from sim.processes import ROUNDING, Process, Steps, Thread

if TYPE_CHECKING:
    from sim.world import Channel

ENDED: Final = object()
"""What `get` and `put` return when nothing will ever come of it."""


class Grip:
    """One process's grip on one channel."""

    def __init__(self, process: Process, channel: Channel) -> None:
        self.process = process
        self.channel = channel
        self.client = process.client
        self.session = process.client.session
        self.ledger: Ledger = process.world.ledger
        self.number = channel.number

    @property
    def reader(self) -> Reader:
        return self.client.readers[self.number]

    @property
    def writer(self) -> Writer:
        return self.client.writers[self.number]

    # -- waiting --

    def obtain(
        self,
        target: Reader | Writer,
        waiter: Reader | Permits,
        deadline: float | None,
        look: Callable[[float, bool], Any],
        wanted: int = 1,
    ) -> Steps:
        """As `Link._obtain`."""
        process, session = self.process, self.session
        at_once = deadline is not None and deadline <= process.now
        wants = "item" if waiter is target else "slot"
        waits = late = False
        recalls = -1
        request = None
        while True:
            now = process.now
            found = look(now, waits)
            if found is not None:
                if waits:
                    waits = False
                    waiter.waiting -= 1
                break
            if not waits:
                waits = True
                waiter.waiting += 1
                if wants == "slot":
                    self.progress()
            if not at_once:
                waiter.ask(session, now, wanted)
            if (at_once or (deadline is not None and wants == "slot")) and recalls != waiter.recalls:
                recalls = waiter.recalls
                waiter.ask(session, now, wanted)
                request = self.client.request(now, op="stat", channel=self.number, **{"for": wants})
            if at_once and request is not None and request.answer is not None and not waiter.giving:
                break
            if late:
                break
            if at_once or deadline is None:
                yield None
            else:
                yield -max(deadline - now, 1e-9)
                late = process.now >= deadline
        process.look_by(process.now + LULL)
        if waits:
            waiter.waiting -= 1
            ready = target.ready or target.ended if isinstance(target, Reader) else waiter.free or target.ended  # type: ignore[union-attr]
            if not (waiter.waiting or ready):
                waiter.cancel(session, process.now)
        return found

    def progress(self) -> None:
        reader = self.client.readers.get(self.number)
        if reader is not None and reader.attached:
            reader.progress(self.session, self.process.now)

    # -- getting --

    def take(self, caller: Hashable, deadline: float | None, wanted: int = 1) -> Steps:
        """The next item, `None` at `deadline`, or `ENDED`."""
        reader, process, session = self.reader, self.process, self.session
        claimed = False
        if reader.owes and reader.others:
            reader.waiting += 1
            reader.progress(session, process.now)
            yield from process.granted(op="stat", channel=self.number, **{"for": "answer"})
            claimed = True

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
                    reader.progress_later(session, now)
                return self._got(got[1])
            return ENDED if reader.ended or self.channel.over else None

        while True:
            item = yield from self.obtain(reader, reader, deadline, look, wanted)
            if item is ENDED and reader.ended == "drained":
                answer = yield from process.granted(op="stat", channel=self.number, **{"for": "answer"})
                if answer["qsize"] and not self.channel.over:
                    reader.ended = None
                    continue
            return item

    def get(self, thread: Thread, timeout: float | None, most: int = 1) -> Steps:
        """Leave the next items in `thread.holds`, at most `most`; nothing after `timeout`. Return whether to go on."""
        reader, process = self.reader, self.process
        caller = self.caller(thread)
        if reader.owner == caller and reader.ready and most == 1:
            self.finish(thread)
            if process.now > reader.fresh_until and not reader.stays_fresh(self.session, process.now):
                reader.progress(self.session, process.now)
                reader.fresh_until = process.now + FRESH
                process.transmit()
            if reader.ready:
                reader.current, item = reader.ready.popleft()
                if len(reader.ready) < reader.low:
                    reader.ask_ahead(self.session, process.now)
                thread.holds.append(self._got(item))
                return True
        self.finish(thread)
        deadline = None if timeout is None else process.now + timeout
        item = yield from self.take(caller, deadline, most)
        if item is ENDED:
            return False
        if item is not None:
            thread.holds.append(item)
            if most > 1:
                thread.holds += map(self._got, reader.take_more(caller, most - 1))
                if len(reader.ready) < reader.low:
                    reader.ask_ahead(self.session, process.now)
        return True

    def poll(self, timeout: float | None) -> Steps:
        """Wait until there is something to get."""
        reader, process = self.reader, self.process
        deadline = None if timeout is None else process.now + timeout

        def look(*_: object) -> bool | None:
            return bool(reader.ready or reader.ended or self.channel.over) or None

        found = yield from self.obtain(reader, reader, deadline, look)
        if found and not reader.kind.keeps:
            reader.cancel(self.session, process.now)
        return bool(found)

    def listen(self) -> None:
        """Somebody looks at the descriptor from now on."""
        self.reader.share()
        self.reader.listening = True
        self.look_at_bell()

    def look_at_bell(self) -> None:
        reader = self.reader
        if (reader.waiting or reader.listening) and not (reader.ready or reader.ended):
            reader.ask(self.session, self.process.now)

    def silence(self) -> None:
        self.reader.listening = False
        self.reader.cancel(self.session, self.process.now)

    def finish(self, thread: Thread) -> None:
        """The thread is done with what it got."""
        for item in thread.holds:
            if self.reader.kind.joins:
                number = self.reader.done(self.caller(thread))
                assert number is not None
                self.reader.progress_later(self.session, self.process.now)
                self.reader.lost.discard(number)
            self.ledger.finishes(item, self.process.name)
        thread.holds.clear()

    def leave_undone(self, thread: Thread) -> None:
        """The program forgets what it got."""
        for item in thread.holds:
            self.ledger.gives_back(item, self.process.name)
        thread.holds.clear()

    def caller(self, thread: Thread) -> Hashable:
        return thread if self.reader.kind.joins else thread.number

    def _got(self, item: Any) -> bytes:
        data = whole(item)
        self.ledger.gets(self.number, data, self.process.name)
        return data

    # -- leases by name --

    def lease(self, timeout: float | None, duration: float | None, work: float, failing: bool) -> Steps:
        """Take one item by name, and end the lease; return whether to go on."""
        reader, process, ledger = self.reader, self.process, self.ledger
        holder = Holder()
        deadline = None if timeout is None else process.now + timeout
        item = yield from self.take(holder, deadline)
        if item is None or item is ENDED:
            return item is None
        number = reader.held[holder][0]
        key = item, process.name
        held = True
        surely_over = float("inf")
        if duration is not None:
            # What is not said in time for the node's clock does not shorten it.
            end = process.world.now + duration
            ledger.leased[key] = min(end, ledger.leased.get(key, end))  # the process may have had it before
            held = yield from self._about(number, what="keep", seconds=duration)
            surely_over = process.world.now + duration + ROUNDING
        yield work
        if failing:
            ledger.gives_back(item, process.name)
            held = yield from self._about(number, what="give back", why="it failed")
        else:
            ledger.ending.add(key)
            over = process.world.now > surely_over and not process.world.plan.stops
            held = yield from self._about(number, what="finish")
            assert not (held and over), f"{process.name} had a lease on {item!r} for {duration} s, and it did not end"
            if held:
                ledger.finishes(item, process.name)
                ledger.settled.setdefault(item, process.world.now)
        if not held and not failing:
            excused = key in ledger.taken or ledger.leased.get(key, float("inf")) <= process.world.now
            assert excused, f"{process.name} had a lease on {item!r}, and lost it"
        reader.let_go(holder)
        reader.lost.discard(number)
        reader.progress_later(self.session, process.now)
        return True

    def _about(self, number: int, **question: Any) -> Steps:
        request = self.client.about_lease(self.process.now, channel=self.number, item=number, **question)
        while request.answer is None:
            yield None
        assert "error" not in request.answer, request.answer
        return request.answer["held"]

    # -- putting --

    def put(self, item: Item, patience: float | None = None) -> Steps:
        """Return whether it was put; `None` if there was no room in time, `ENDED` if there never will be."""
        writer, process = self.writer, self.process
        while not (writer.ended or writer.has_room):
            self.client.pump(writer, process.now)
            if writer.has_room:
                break
            yield None
        if writer.ended:
            return ENDED
        permits = writer.permits
        if permits is None:
            self._add(writer, item)
            return True
        slots: Permits = permits

        def look(now: float, waited: bool) -> Any:
            if writer.ended:
                return ENDED
            if not slots.take():
                return None
            slots.taken(self.session, now, waited)
            self._add(writer, item)
            return True

        deadline = None if patience is None else process.now + patience
        return (yield from self.obtain(writer, slots, deadline, look))

    def _add(self, writer: Writer, item: Item) -> None:
        data = item if isinstance(item, bytes) else b"".join(item)
        self.ledger.puts(self.number, data, self.process.name)
        self.process.world.check_bound(self.channel)
        writer.add(item)
        if not writer.full:
            self.client.pump(writer, self.process.now)

    def flush(self) -> Steps:
        writer = self.writer
        while not (writer.ended and not writer.shut):
            self.client.pump(writer, self.process.now, urgent=True)
            if writer.settled(self.session):
                return
            yield None

    def release(self, side: str) -> Steps:
        """Let go of one side; return when the node knows."""
        if side == "w":
            yield from self.flush()
            self.client.writers.pop(self.number, None)
        if self.process.closed:
            return
        self.client.release(self.number, side, self.process.now)
        yield from self.process.arrived(self.session.last)
