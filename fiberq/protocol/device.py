"""What sits between writers and readers: who owns which item until when. `pull` and `push` say who gets it.

A reader is one process on one queue. Items delivered to it are numbered 0, 1, 2, ... and leased; its reports say how
far it has started and which of the started ones it still holds. A lease ends when its item is finished (reported as
started and not held), is given back (`returned`), is taken back (a recall), or when its reader is lost: then the item
goes to another, in its old place, marked as redelivered. A reader whose connection broke is away: it keeps its leases
and gets nothing until it is back.

A bounded queue has `slots`: an item occupies one from its put until its reader tells that it has started it.

A reader can also deal with one of its leases by name: finish it, give it back as failed, or let it run out some time.

Poison: an item whose reader died is suspect, and delivered alone, to a reader that has nothing else (or whose other
threads hold all it has). It is condemned, and a dead letter, when a reader dies that has begun with it and has nothing
else, and that is its failure number `max_deliveries`; so no innocent is condemned. Failures are its readers' deaths, in
company, too, if it was near what that reader had told of, and what happens to one lease by name. But a process with
several threads that wait has never nothing else; so `IN_COMPANY` times as many deaths condemn, too.

Of the thousands that a fast reader was sent ahead, those far behind what it had told of are delivered in groups, the
larger the farther: a guilty one among them costs a few more deaths until it is alone, and the innocent do not cost a
round trip each.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Final, TypeAlias

from fiberq.abc import Buffer
from fiberq.address import printable
from fiberq.errors import ProtocolError
from fiberq.protocol.batch import Run, body, count, gather, small_lent
from fiberq.protocol.frames import (
    DELIVER,
    MAX_FRAME,
    NEAR_FRAME,
    TAKEN,
    Frame,
    Items,
    Ready,
    Want,
    pack_deliver,
    pack_ranges,
)
from fiberq.protocol.kinds import Kind
from fiberq.protocol.lent import Lent
from fiberq.protocol.ranges import without
from fiberq.protocol.slots import Slots

log = logging.getLogger("fiberq.node")

Key: TypeAlias = Hashable
Send: TypeAlias = Callable[[Key, Frame], None]

MAX_AHEAD: Final = 8 << 20
"""Bytes that are delivered ahead to a reader that is not waiting."""


IN_COMPANY: Final = 4
"""For one failure that condemns, so many deaths while the reader had other items, too."""


NEAR: Final = 16
"""Items behind what a reader told of that are delivered alone when it died."""


class Memory:
    """The bytes of all items that a node's devices hold."""

    def __init__(self) -> None:
        self.bytes = 0
        self.dead = 0  # of these, in dead letters


class Lease:
    """Items that a reader has: its numbers from `first` on. `alone`: one item, beside which it had no other."""

    __slots__ = ("alone", "at", "first", "run")

    def __init__(self, first: int, run: Run, at: float, alone: bool) -> None:
        self.first = first
        self.run = run
        self.at = at
        self.alone = alone

    @property
    def end(self) -> int:
        return self.first + len(self.run)

    def part(self, start: int, stop: int) -> Lease:
        """The items with the reader's numbers from `start` up to `stop`."""
        return Lease(start, self.run.part(start - self.first, stop - self.first), self.at, self.alone)

    def rest(self, start: int, stop: int) -> Lease:
        """The same, of which the others end."""
        part = self.part(start, stop)
        part.run = part.run.apart()
        return part


class Reader:
    """What a device knows of one reader."""

    __slots__ = (
        "away",
        "bytes",
        "frame",
        "held",
        "key",
        "leases",
        "limit",
        "listening",
        "near",
        "next",
        "queue",
        "recalled_at",
        "seen_at",
        "started",
        "told",
        "waiting",
    )

    def __init__(self, key: Key) -> None:
        self.key = key
        self.limit = 0  # it takes items numbered below this
        self.next = 0  # the number of the next item delivered to it
        self.started = 0  # items numbered below this are started, or will be when they arrive
        self.told = 0  # items numbered below this are started: it said so
        self.waiting = 0  # its callers that are blocked now
        self.listening = False  # somebody wants to be told that there is an item
        self.leases: list[Lease] = []  # by number
        self.held: Sequence[tuple[int, int]] = ()  # what is started and not finished: it said so
        self.bytes = 0  # of the leases
        self.near = bool(getattr(key, "near", False))  # it can read the node's shared memory
        self.away = False  # its connection is broken
        self.recalled_at: float | None = None
        self.frame = 0  # the number of the frame that brought it the newest items, which it has yet to acknowledge
        self.seen_at = 0.0  # when it has; infinity until then, 0 if that is not known
        self.queue: deque[Run] = deque()  # dealt to it, not delivered; only push queues use it

    @property
    def round_trip(self) -> float:
        """Seconds that a frame to it and its acknowledgement take."""
        return getattr(self.key, "round_trip", 0.0)

    @property
    def lag(self) -> float:
        """Seconds that it may need to answer, if it has to wait for a processor."""
        return getattr(self.key, "lag", 0.0)

    def unstarted(self) -> int:
        """How many leased items it has not started, and will not when they arrive."""
        return self._from(self.started)

    def untold(self) -> int:
        """How many leased items it has not said it has started."""
        return self._from(self.told)

    def _from(self, number: int) -> int:
        place = self.place_of(number)
        return sum(lease.end - max(lease.first, number) for lease in self.leases[place:])

    def place_of(self, number: int) -> int:
        """The place among the leases of the first that goes beyond `number`."""
        return bisect_right(self.leases, number, key=_end)

    @property
    def credit(self) -> int:
        """How many more items it takes now."""
        return 0 if self.away else self.limit - self.next

    @property
    def needs(self) -> int:
        """How many items there is somebody for."""
        return max(self.waiting, self.listening)

    def begin(self) -> None:
        """Callers that wait start theirs at once: such items are never recalled."""
        begun = min(self.waiting, self.next - self.started)
        self.waiting -= begun
        self.started += begun

    def settle(self, started: int, held: Sequence[tuple[int, int]]) -> int:
        """End the leases of what was started below `started`, except the ranges `held`; return how many items that
        finished. Looks only at what was held before, and what was started since."""
        before = [(first, min(end, started)) for first, end in self.held if first < started] if self.held else []
        if self.told < started:
            before.append((self.told, started))
        self.held = held
        finished = 0
        for gone in without(before, held) if held else before:
            for lease in self.take_back(*gone):
                finished += lease.run.end - lease.run.first
        return finished

    def take_back(self, first: int, end: int) -> list[Lease]:
        """Remove and return the leases on the numbers from `first` up to `end`."""
        place = last = self.place_of(first)
        taken: list[Lease] = []
        kept: list[Lease] = []
        while last < len(self.leases) and self.leases[last].first < end:
            lease = self.leases[last]
            if lease.first < first:
                kept.append(lease.rest(lease.first, first))
            taken.append(lease.part(max(first, lease.first), min(end, lease.end)))
            if end < lease.end:
                kept.append(lease.rest(end, lease.end))
            last += 1
        self.leases[place:last] = kept
        for lease in taken:
            self.bytes -= lease.run.size
        return taken


def _end(lease: Lease) -> int:
    return lease.end


class DeadLetter:
    """An item that is delivered no more, and why."""

    __slots__ = ("reason", "run")

    def __init__(self, run: Run, reason: str) -> None:
        self.run = run
        self.reason = reason


class Device(ABC):
    """One queue. Events come in as method calls, frames go out through `send(reader's key, frame)`."""

    def __init__(
        self, channel: int, kind: Kind, send: Send, memory: Memory | None = None, max_deliveries: int = 5
    ) -> None:
        self.channel = channel
        self.label = f"{channel:016x}"
        self.kind = kind
        self.slots = Slots(channel, kind.maxsize, send) if kind.maxsize else None
        self.readers: dict[Key, Reader] = {}
        self.dead_letters: dict[int, DeadLetter] = {}  # by place
        self.max_deliveries = max_deliveries
        self.accepted = 0  # items ever put
        self.finished = 0  # items ever finished
        self.redelivered = 0  # deliveries of items that had been delivered before
        self.bytes = 0  # of the items that are not finished
        self.dropped = False  # what would go back to the queue is finished instead
        self.alarm: float | None = None  # when `tick` is to be called next
        self._send = send
        self._memory = memory or Memory()
        self._ends: dict[tuple[Key, int], float] = {}  # when leases run out, by reader and its number

    # -- events --

    def put(self, key: Key, items: Items, now: float) -> None:
        """Take items over from a writer. Raises `ProtocolError` if it has no slots for them."""
        self._take_over(key, [Run.of(items, self.accepted)], now)

    def put_large(self, key: Key, items: Iterable[Lent | Sequence[Buffer]], now: float) -> None:
        """As `put`, for large items: in shared memory, or in parts."""
        places = enumerate(items, self.accepted)
        self._take_over(key, [Run.large(item, place) for place, item in places], now)

    def _take_over(self, key: Key, runs: list[Run], now: float) -> None:
        items = count(runs)
        if self.slots is not None:
            self.slots.used(key, items)
        self.accepted += items
        for run in runs:
            self._occupy(run.size)
        self._add(runs, now)

    def ready(self, key: Key, report: Ready, now: float) -> None:
        """A reader reports. Its first report attaches it."""
        reader = self.readers.get(key)
        if reader is None:
            reader = self.readers[key] = Reader(key)
            self._attached(reader, now)
        started = min(report.started, reader.next)
        self._finish(reader, started, report.held)
        reader.started = reader.told = started
        reader.limit = report.limit
        reader.waiting, reader.listening = report.waiting, report.listening
        reader.begin()
        self._serve(reader, now)

    def want(self, key: Key, want: Want) -> None:
        """A writer says how many slots it can use. Raises `ProtocolError` if it may not say so."""
        if self.slots is None:
            raise ProtocolError("slots of a queue that has no bound are asked for")
        self.slots.want(key, want)

    def grant(self) -> None:
        """Hand out the slots that are free; to be called after each event."""
        if self.slots is not None:
            self.slots.grant(self.qsize())

    def left_putting(self, key: Key) -> None:
        """A writer puts no more: its slots are free."""
        if self.slots is not None:
            self.slots.lost(key)

    def returned(self, key: Key, ranges: Iterable[tuple[int, int]], now: float) -> None:
        """A reader gives back items that it did not start, or that came after it had stopped waiting."""
        reader = self.readers.get(key)
        if reader is None:
            return
        reader.recalled_at = None
        reader.limit = reader.next  # its credit was for items that it could start
        runs = [lease.run for first, end in ranges if first < end for lease in reader.take_back(first, end)]
        self._put_back(reader, runs, now)

    def recall(self, key: Key, now: float) -> None:  # noqa: B027 - where nothing is sent ahead, nothing goes back
        """A reader wants to give back what it has not started: what is on its way included."""

    def lost(self, key: Key, now: float) -> None:
        """A reader is gone; what it had goes to others."""
        reader = self._forget(key)
        if reader is None:
            return
        runs = []
        if not self.kind.keeps:
            self._finish(reader, reader.started, ())  # a pipe's message ends when it is received
        for lease in reader.leases:
            alone = lease.alone and len(reader.leases) == len(lease.run) == 1 and lease.first < reader.started
            for run in _grouped(lease, reader.told) if self.kind.keeps else (lease.run,):
                if self.kind.keeps:
                    run.deliveries += 1
                    run.deaths += 1
                    run.failures += alone or run.group == 1
                if not self._condemned(run, alone):
                    runs.append(run)
        self._detached(reader, now)
        for run in reader.queue:  # it had not begun these, but now they are late, and whoever gets them can know it
            run.deliveries += 1
        self._put_back(None, [*runs, *reader.queue], now)

    def left(self, key: Key, now: float) -> None:
        """A reader detaches. It has told what it finished; what it started and did not finish is redelivered, and what
        else it was sent goes back as if it never had been."""
        reader = self._forget(key)
        if reader is not None:
            self._detached(reader, now)
            begun = reader.take_back(0, reader.told)
            for lease in begun:
                lease.run.deliveries += 1
            self._put_back(None, [*(lease.run for lease in (*begun, *reader.leases)), *reader.queue], now)

    def away(self, key: Key, now: float) -> None:
        """A reader's connection is broken; it may come back."""
        reader = self.readers.get(key)
        if reader is not None:
            reader.away = True
            self._serve(reader, now)

    def back(self, key: Key, now: float) -> None:
        """A reader that was away is connected again."""
        reader = self.readers.get(key)
        if reader is not None:
            reader.away = False
            if reader.recalled_at is not None:
                reader.recalled_at = now
            self._serve(reader, now)

    def serve(self, key: Key, now: float) -> None:
        """A reader has acknowledged more of what was sent to it, which its queue wanted to know."""
        reader = self.readers.get(key)
        if reader is not None:
            self._serve(reader, now)

    def tick(self, now: float) -> None:
        """The alarm went off."""
        for (key, number), end in list(self._ends.items()):
            if end <= now and self.give_back(key, number, "its lease ran out", now):
                self._send(key, Frame(TAKEN, self.channel, pack_ranges([(number, number + 1)])))
        self._set_alarm()

    # -- one lease, by its reader's number --

    def finish(self, key: Key, number: int, now: float) -> bool:
        """An item is finished; return whether it was still leased to this reader."""
        run = self._take(key, number)
        if run is not None:
            self._discard([run])
            self._serve(self.readers[key], now)
        return run is not None

    def give_back(self, key: Key, number: int, why: str | None, now: float) -> bool:
        """An item goes to another reader; with `why`, because it failed. Return whether it was still leased."""
        run = self._take(key, number)
        if run is not None:
            run.deliveries += 1
            if why is None or not self._failed(run, why):
                self._put_back(None, [run], now)
            self._serve(self.readers[key], now)
        return run is not None

    def lease_until(self, key: Key, number: int, end: float) -> bool:
        """Let a lease run out at `end`; return whether the item is still leased."""
        reader = self.readers.get(key)
        place = 0 if reader is None else reader.place_of(number)
        if reader is None or place == len(reader.leases) or reader.leases[place].first > number:
            return False
        self._ends[key, number] = end
        self._set_alarm()
        return True

    def _take(self, key: Key, number: int) -> Run | None:
        self._ends.pop((key, number), None)
        reader = self.readers.get(key)
        leases = reader.take_back(number, number + 1) if reader is not None else []
        return leases[0].run if leases else None

    # -- dead letters, by their place in the queue --

    def revive(self, place: int, now: float) -> None:
        """A dead letter returns to its old place, as if it had never been delivered."""
        run = self._exhume(place)
        run.deliveries = run.deaths = run.failures = 0
        self._put_back(None, [run], now)

    def bury(self, place: int) -> None:
        """A dead letter is forgotten."""
        self._discard([self._exhume(place)])

    def _entomb(self, run: Run, reason: str) -> None:
        """An item is a dead letter. It may lie for long, so it does not keep the frame that it came in."""
        self.dead_letters[run.place] = DeadLetter(run.copy(), reason)
        letters = len(self.dead_letters)
        if not letters & (letters - 1):  # else who has a thousand would have a thousand lines
            log.warning("queue %s has %d dead letters, now that %s", self.label, letters, printable(reason))
        self._memory.dead += run.size

    def _exhume(self, place: int) -> Run:
        run = self.dead_letters.pop(place).run
        self._memory.dead -= run.size
        return run

    def _failed(self, run: Run, why: str) -> bool:
        """A delivery of one item failed; return whether it is a dead letter now."""
        run.failures += 1
        return self._gave_out(run, why)

    def _gave_out(self, run: Run, why: str) -> bool:
        """Whether an item failed as often as it may: then it is a dead letter now."""
        if run.failures < self.max_deliveries:
            return False
        deliveries = "the only delivery" if run.failures == 1 else f"{run.failures} deliveries"
        self._entomb(run, f"{deliveries} failed, the last one because {why}")
        return True

    def _condemned(self, run: Run, alone: bool) -> bool:
        """A reader died that had these items; return whether they are dead letters now. Who was there once comes alone
        from then on, so this is one item."""
        if alone and self._gave_out(run, "its reader died"):
            return True
        if run.deaths < IN_COMPANY * self.max_deliveries or len(run) > 1:
            return False
        self._entomb(run, f"{run.deaths} readers died while they had it among others")
        return True

    def close(self) -> None:
        """The queue is gone, and its items with it."""
        self._memory.dead -= sum(letter.run.size for letter in self.dead_letters.values())
        self._occupy(-self.bytes)

    def drop_queued(self) -> None:
        """What no reader has is finished, unread, and so is what comes back from now on."""
        self.dropped = True
        self.purge()

    def purge(self) -> int:
        """What no reader has is finished, unread; return how many items that was."""
        runs = self._take_queued()
        self._discard(runs)
        return count(runs)

    # -- questions --

    @abstractmethod
    def queued(self) -> Iterator[Run]:
        """The runs that no reader has."""

    def qsize(self) -> int:
        """Items that no caller has got, as far as readers have told: queued, dealt out or only prefetched."""
        return count(self.queued()) + sum(reader.untold() for reader in self.readers.values())

    @property
    def unfinished(self) -> int:
        """Items that are neither finished nor dead letters."""
        return self.accepted - self.finished - len(self.dead_letters)

    @property
    def empty(self) -> bool:
        """Whether there is nothing that a `get` could return, as far as readers have told."""
        return next(self.queued(), None) is None and not any(reader.untold() for reader in self.readers.values())

    def behind(self) -> list[Key]:
        """Who may have started what it did not tell, or has items or slots that it does not use."""
        readers = [key for key, reader in self.readers.items() if reader.untold()]
        putters = [key for key, putter in self.slots.putters.items() if putter.hand] if self.slots else []
        return [*dict.fromkeys([*readers, *putters])]

    def leased(self, key: Key) -> int:
        """How many items a reader has."""
        return sum(len(lease.run) for lease in self.readers[key].leases) if key in self.readers else 0

    def leased_item(self, key: Key, number: int) -> Run | None:
        """What a reader has under a number."""
        reader = self.readers.get(key)
        if reader is None:
            return None
        lease = next(iter(reader.leases[reader.place_of(number) :]), None)
        return lease.part(number, number + 1).run if lease is not None and lease.first <= number else None

    def busy(self) -> list[Key]:
        """The readers that have items which are not finished."""
        return [key for key, reader in self.readers.items() if reader.leases]

    def starved(self, key: Key) -> bool:
        """Whether this reader's callers are blocked."""
        return key in self.readers and self.readers[key].waiting > 0

    def blocked(self, key: Key) -> bool:
        """Whether this writer's callers are blocked for want of a slot."""
        return self.slots is not None and key in self.slots.putters and self.slots.putters[key].need > 0

    @property
    def drained(self) -> bool:
        """Whether nothing is queued, and no reader has anything that it could give back."""
        return next(self.queued(), None) is None and not any(reader.leases for reader in self.readers.values())

    # -- what pull and push differ in --

    @abstractmethod
    def _take_queued(self) -> list[Run]:
        """Remove and return the runs that no reader has."""

    @abstractmethod
    def _add(self, runs: list[Run], now: float) -> None:
        """New items have come."""

    @abstractmethod
    def _serve(self, reader: Reader, now: float) -> None:
        """A reader may have become able to take items."""

    @abstractmethod
    def _requeue(self, reader: Reader | None, runs: list[Run], now: float) -> None:
        """Items return to their old places; `reader` gave them back, if it still lives."""

    def _alarms(self) -> list[float]:
        """When this kind of queue wants to be woken."""
        return []

    def _attached(self, reader: Reader, now: float) -> None:  # noqa: B027
        """A reader is new."""

    def _detached(self, reader: Reader, now: float) -> None:  # noqa: B027
        """A reader has gone."""

    # -- shared by both --

    def _forget(self, key: Key) -> Reader | None:
        if self._ends:
            self._ends = {each: end for each, end in self._ends.items() if each[0] != key}
        return self.readers.pop(key, None)

    def _set_alarm(self) -> None:
        alarms = self._alarms()
        self.alarm = min([*alarms, *self._ends.values()]) if alarms or self._ends else None

    def _put_back(self, reader: Reader | None, runs: list[Run], now: float) -> None:
        """Items that readers had come back; `reader` gave them back, if it still lives."""
        if self.dropped:
            self._discard(runs)
            runs = []
        self._requeue(reader, runs, now)

    def _discard(self, runs: Iterable[Run]) -> None:
        for run in runs:
            self.finished += len(run)
            self._occupy(-run.size)

    def _occupy(self, size: int) -> None:
        self.bytes += size
        self._memory.bytes += size

    def _finish(self, reader: Reader, started: int, held: Sequence[tuple[int, int]]) -> None:
        before = reader.bytes
        self.finished += reader.settle(started, held)
        self._occupy(reader.bytes - before)

    def _may_take(self, reader: Reader, head: Run) -> int:
        """How many items `reader` can take now, where `head` is the first of them."""
        if reader.credit <= 0 or reader.recalled_at is not None:
            return 0
        if head.returned and reader.unstarted():
            return 0  # it would come after later items, such as the sentinel that ends this reader
        if reader.leases and reader.leases[0].alone and reader.leases[0].run.suspect and not reader.needs:
            return 0
        if head.suspect:
            return 0 if reader.unstarted() or (reader.leases and not reader.needs) else min(reader.credit, head.group)
        if reader.bytes >= MAX_AHEAD:
            return 1 if reader.needs else 0
        if not self.kind.keeps and len(self.readers) > 1:
            return min(reader.credit, reader.needs)  # of what is only sent ahead, a death would repeat some
        return reader.credit

    def _gather(self, queue: deque[Run], reader: Reader, wanted: int) -> list[Run]:
        """Remove from the head of `queue` what makes one frame for `reader`, at most `wanted` items."""
        if queue[0].batch.lent is None:
            return gather(queue, wanted, NEAR_FRAME if reader.near else MAX_FRAME)
        if reader.near:
            return gather(queue, wanted, MAX_AHEAD)
        return gather(queue, max(1, small_lent(islice(queue, wanted), MAX_FRAME)), MAX_FRAME)

    def _deliver(self, reader: Reader, runs: list[Run], now: float) -> None:
        """Send items, which `gather` made one frame of, to a reader, and lease them to it."""
        try:
            pieces, parts = body(runs, reader.near)
        except (OSError, MemoryError) as error:  # of large items, in memory that another process has
            for run in runs if len(runs) > 1 else ():
                self._deliver(reader, [run], now)
            if len(runs) == 1:
                self._entomb(runs[0], f"it cannot be read: {error}")
            return
        first = reader.next
        deliveries = runs[0].deliveries
        if deliveries:
            self.redelivered += count(runs)
        alone = not reader.leases and len(runs) == len(runs[0]) == 1
        if reader.leases:
            reader.leases[0].alone = False
        for run in runs:
            reader.leases.append(Lease(reader.next, run.apart(), now, alone))
            reader.next += len(run)
            reader.bytes += run.size
        reader.begin()
        delivery = pack_deliver(first, deliveries, len(self.readers) > 1, pieces)
        self._send(reader.key, Frame(DELIVER, self.channel, delivery, parts))


def _grouped(lease: Lease, told: int) -> Iterator[Run]:
    """The items of a reader that died, with how many of them are to be delivered together. It said that those below
    `told` were started; so it died of the first behind these, or of one of those that it held."""
    number = lease.first
    while number < lease.end:
        distance = number - told
        octave = NEAR if distance < NEAR else 1 << distance.bit_length()
        end = min(lease.end, told + octave)
        run = lease.part(number, end).run
        run.group = 1 if distance < NEAR else octave // 4
        yield run
        number = end
