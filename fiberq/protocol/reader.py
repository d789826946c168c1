"""One process's side of getting from one queue: what it has, what it holds, and how many items it asks for.

All handles and threads of the process share one reader. It asks for one item when a caller waits; where callers empty
what they got quickly, it asks ahead, for as many as they use up in `HORIZON`; where they are slow, of late or on
average, it falls back to one, so that a slow reader seldom sits on items that another could have.

A queue's item is held by the thread that got it until that thread gets again or ends; one of a joinable queue until it
is reported done, or its process lets go of the queue.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Hashable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain, repeat, starmap
from typing import Any, Final, TypeAlias

from fiberq.abc import Buffer
from fiberq.errors import ProtocolError
from fiberq.protocol import frames, ints
from fiberq.protocol.bunch import SIZE, Bunch, bunches
from fiberq.protocol.frames import READY, RECALL, RETURN, Frame, Items, Ready, pack_ranges, pack_ready
from fiberq.protocol.kinds import Kind
from fiberq.protocol.ranges import Ranges, runs
from fiberq.protocol.session import LONGEST_LAG, Session

Got: TypeAlias = "Buffer | Sequence[Buffer] | int"
"""An item that has come: as it travels, or, if small ints came together, such."""

HORIZON: Final = 0.004
"""Seconds of work that a reader asks for ahead, or twice the round trip, where that is longer; where an item takes more
than half of it, lately or on average, none is asked for ahead."""

MEMORY: Final = 0.9
"""What a measurement of the callers' speed counts for after the next one. With the newest alone, where one task in ten
takes long, what is asked for ahead sits behind it."""

SLOWEST: Final = 10
"""Times `HORIZON` that an item counts for at most: what took long, or nobody came for, is not remembered for long."""

GROWTH: Final = 8
"""Times as many items that a reader asks for ahead, at most, after each measurement. With 2, each of 64 readers had had
its share of 300,000 items before it was at speed."""

HICCUP: Final = 4
"""Times its lag, at most `LONGEST_LAG`, that a measurement may take for a process that was kept from running meanwhile.
After one it asks for a part of what it asked for before, the `GROWTH`th, at least: else it were at single items again
each time. But not where items take long on average."""

MAX_AHEAD: Final = 8192
"""Items that a pull reader asks for ahead."""

PUSH_WINDOW: Final = 8192
"""Items under way to a push reader; it tells the node of its progress whenever half of them are used up."""

IDLE: Final = 0.01
"""Seconds without a caller after which a reader gives back what it was sent ahead: others would overtake it. As long as
a frame and its acknowledgement take, if that is longer: the caller may wait for a processor, too."""

LATE_LOOKS: Final = 3
"""So many times in a row it is looked in vain for a caller, if the last look was late."""

PROGRESS: Final = 0.005
"""Seconds after which a push reader tells what it has finished, where its window gives no cause to."""

FRESH: Final = 0.004
"""Seconds after which a reader with items in hand first looks whether they were recalled, and tells its progress. With
1 ms small items cost a third more processor time in all."""

QUICK: Final = 0.0005
MOST_FRESH: Final = 0.05
"""Where items take less than `QUICK`, that waits for half of a round trip, if it is longer, but not longer than
`MOST_FRESH`: 64 readers on two cores got a fifth less when each of them looked whenever it had a processor again."""


FRAMES_SINGLY: Final = 32
"""Frames whose items are unpickled one by one, after some that could not be unpickled together."""


def _cannot_borrow(_: Any, __: int) -> None:
    raise ProtocolError("the node shares memory with a process that did not offer it")


class Holder:
    """Holds items until it says that they are finished: it is neither a thread nor a task, and outlives both."""


class Reader:
    """`ready` may be popped from the left by the owning thread at any time; all else is called by one at a time."""

    def __init__(self, channel: int, kind: Kind) -> None:
        self.channel = channel
        self.kind = kind
        self.ready: deque[tuple[int, Got | Bunch]] = deque()  # numbered, not started
        self.low = 0  # ask ahead when fewer are ready
        self.ended: str | None = None  # why nothing will come any more
        self.waiting = 0  # callers that are blocked
        self.listening = False  # somebody wants to be told that there is an item
        self.owner: int | None = None  # the only thread that ever got, if there is only one
        self.current = -1  # what it holds
        self.held: dict[Hashable, list[int]] = {}  # what the callers hold, the oldest first, if no thread owns this
        self._numbers = Ranges()  # the same, whoever holds it
        self.earlier: dict[int, int] = {}  # how often those items were delivered before that were
        self.lost: set[int] = set()  # items that are held here, and were given to another process meanwhile
        self.fresh_until = 0.0
        self._came_at = 0.0  # when something came last for a caller that waited
        self.borrow: Callable[[Any, int], Any] = _cannot_borrow  # what is behind a reference to shared memory
        self.attached = False  # the node knows of this reader
        self.giving = False  # it has asked to be recalled
        self.recalls = 0  # how often it was
        self._shared = kind.joins  # no thread can own this
        self._left = False  # this process reads here no more, and tells nothing
        self._next = 0  # the number of the next item to come
        self._limit = 0  # the credit that the node has
        self._told_listening = False
        self._told_waiting = 0  # callers that, as the node sees it, still wait
        self._told_started = 0  # it takes the items below this for started
        self._eager = False  # the node waits for news of what it delivered: it is delivered alone
        self._bulky = False  # large items come: the node sends only so many bytes before it hears of their end
        self.others = False  # other processes read, too
        self.owes = False  # nobody has received what was sent because one polls or listens: who takes it must tell
        self._told_held: Sequence[tuple[int, int]] = ()  # the newest report said that these are held
        self._told_at = 0.0  # when that was
        self._reported = 0  # and that the items below this were started
        self._report_number = 0  # the frame of the newest report that may still be replaced
        self._prune_at = 64  # entries of `earlier`
        self._bunch: Bunch | None = None  # the first of the newest frame that was read in bunches
        self._singly = 0  # so many frames are not to be read in bunches
        self._bunches = False  # some were
        self._ahead = PUSH_WINDOW if kind.pushed else 1  # how many items it asks for
        self._slow = False  # items take so long that each end is told at once
        self._spent = 0.0  # seconds that callers took lately,
        self._spent_on = 0.0  # and for how many items
        self._measured_at = 0.0
        self._measured_from = 0
        self._looked_at = 0.0  # when `idle` was called last,
        self._looked_on = -1  # what callers had used then,
        self._unused = 0  # and how many such looks in a row found that they had used nothing since the one before

    # -- what comes --

    def deliver(self, frame: Frame, session: Session, now: float) -> None:
        body: memoryview = frame.body[0]  # type: ignore[assignment]
        first, deliveries, self.others, items = frames.read_deliver(body, frame.parts)
        if first < self._next:
            raise ProtocolError("the node delivers an item twice")
        self._eager = deliveries > 0
        self._bulky = not items.lengths
        if deliveries:
            count = len(items.lengths) or len(items.elsewhere) or 1
            self.earlier.update(dict.fromkeys(range(first, first + count), deliveries))
        if items.parts:
            self.ready.append((first, items.parts))
            self._next = first + 1
        elif items.elsewhere:
            self.ready.extend((number, self.borrow(each, number)) for number, each in enumerate(items.elsewhere, first))
            self._next = first + len(items.elsewhere)
        else:
            self._next = first + len(items.lengths)
            self.ready.extend(self._read(items, first))
        begun = min(self._told_waiting, self._next - first)
        if self.listening and begun < self._next - first and not self.kind.keeps:
            self._owe()
        self.low = len(self.ready) + 1 if self.owes else self._ahead // 2
        if self._bulky and self.kind.pushed:
            self.low = len(self.ready) // 2 + 1
        self._told_waiting -= begun
        self._told_started = max(self._told_started, first + begun)
        if begun > self.waiting:
            self._report(session, now)  # it crossed a cancel: nobody has started it, and the next caller may

    def _read(self, items: Items, first: int) -> Iterable[tuple[int, Got | Bunch]]:
        """Small items with their numbers."""
        small_ints = ints.unpack(items)
        if small_ints is not None:
            return zip(range(first, self._next), small_ints, strict=True)
        each = frames.split(items)
        made: list[Bunch] = []
        if self._bunch is not None and self._bunch.objects == []:
            self._bunch, self._singly = None, FRAMES_SINGLY
        elif self._singly:
            self._singly -= 1
        elif self.kind.keeps:  # a pipe's messages need not be pickled as here
            made = bunches(first, each)
        if not made:
            return zip(range(first, self._next), each, strict=True)
        self._bunch, self._bunches = made[0], True
        return zip(range(first, self._next), chain.from_iterable(map(repeat, made, repeat(SIZE))), strict=False)

    def recalled(self, session: Session, now: float) -> None:
        """The node wants back all that is not started."""
        self.giving = False
        self.recalls += 1
        numbers: list[int] = []
        while self.ready:
            try:
                numbers.append(self.ready.pop()[0])
            except IndexError:
                break
        self._measured_from += len(numbers)  # those were not used
        self._limit = self._next + self._needs
        self.low = 0
        self.owes = False
        if not self.kind.pushed:
            self._ahead = 1
        session.send(Frame(RETURN, self.channel, pack_ranges(runs(numbers[::-1]))), now)
        self._report_number = 0  # what went back must not be told of before
        self._report(session, now)

    # -- what leaves --

    def taken(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Items are this process's no more, though it did not give them back: it did not answer in time."""
        held = [number for numbers in self.held.values() for number in numbers]
        self.lost.update(number for number in held if any(first <= number < end for first, end in ranges))

    def idle(self, session: Session, now: float) -> bool:
        """If no caller has come in `IDLE` seconds, give back what is ready and tell how far this reader is; return
        whether there is more to do of this kind later. Nor may one have come since the last look, or since some more if
        this one is late: then the callers may have been kept from running, too."""
        gives = bool(self.ready) and not (self.giving or self.kind.pushed or self._needs)
        late = now > self._looked_at + 2 * IDLE
        unread = now > max(self.fresh_until, self._came_at) + max(IDLE, min(session.lag, LONGEST_LAG))
        self._unused = self._unused + 1 if self._used == self._looked_on else 0
        self._looked_at, self._looked_on = now, self._used
        behind = self._started() != self._reported
        if self.kind.keeps and self._told_held:  # a `get` that raised finished something, too
            behind |= self._held() != self._told_held
        if gives and unread and self._unused >= (LATE_LOOKS if late else 1):
            self.give_back(session, now)
            return False
        if behind and now > self.fresh_until + IDLE and session.acknowledged >= self._report_number:
            self._report(session, now)
            return False
        return gives or behind

    def give_back(self, session: Session, now: float) -> None:
        """Give back what is ready and what is on its way, unless it is for somebody: let the node recall it, for only
        the node's word comes after all that it has sent, and what came later would be taken by others first."""
        if self.attached and not (self.giving or self.kind.pushed or self._needs):
            self.giving = True
            session.send(Frame(RECALL, self.channel), now)

    def take(self, caller: Hashable) -> tuple[int, Got] | None:
        """Start the next item for `caller`, a thread's number or another object; what it held is finished."""
        self.finish(caller)
        if not self.ready:
            return None
        if self.owner is None and not self._shared and type(caller) is int:
            if self.held:  # others do; an owner's item is the only one that is held
                self._shared = True
            else:
                self.owner = caller
        try:
            number, item = self.ready.popleft()
        except IndexError:
            return None
        self.keep(caller, number)
        return number, item.item(number) if isinstance(item, Bunch) else item

    def take_more(self, caller: Hashable, most: int) -> list[Got]:
        """Start what is ready, at most `most` items, for a `caller` that has just taken one and holds that, too."""
        if self.owner is not None:
            self._disown()
        taken: list[tuple[int, Got | Bunch]] = []
        with suppress(IndexError):  # what was there before is in the list by then
            taken.extend(starmap(self.ready.popleft, repeat((), most)))
        if taken:
            self._hold(caller, [number for number, _ in taken])
        if self._bunches:
            return [item.item(number) if isinstance(item, Bunch) else item for number, item in taken]
        return [item for _, item in taken]  # type: ignore[misc]

    def untake(self, caller: Hashable, items: Sequence[Got]) -> None:
        """`caller` does not start the last `items` that it took."""
        mine = self.held[caller]
        numbers = mine[len(mine) - len(items) :]
        del mine[len(mine) - len(items) :]
        self._drop(numbers)
        self.ready.extendleft(reversed(list(zip(numbers, items, strict=True))))

    def keep(self, caller: Hashable, number: int) -> None:
        """`caller` holds item `number`."""
        if caller == self.owner:
            self.current = number
        else:
            self._hold(caller, [number])

    def _hold(self, caller: Hashable, numbers: list[int]) -> None:
        self.held.setdefault(caller, []).extend(numbers)
        for first, end in runs(numbers):
            self._numbers.add(first, end)

    def _drop(self, numbers: Sequence[int]) -> None:
        for first, end in runs(numbers):
            self._numbers.discard(first, end)

    def let_go(self, caller: Hashable) -> None:
        """`caller`, who does not own this, holds nothing any more."""
        self._drop(self.held.pop(caller, ()))

    def share(self) -> None:
        """No thread owns this reader: each item is taken by a call."""
        self._disown()
        self._shared = True

    def _owe(self) -> None:
        self.owes = True
        if not self._shared:
            self._disown()  # no thread takes it without telling

    def _disown(self) -> None:
        if self.owner is not None and self.current >= 0:
            self._hold(self.owner, [self.current])
        self.owner = None
        self.current = -1

    def finish(self, caller: Hashable) -> None:
        """What `caller` held is finished, if it need not be reported done."""
        if self.kind.joins:
            return
        if self.owner is not None and caller != self.owner:
            self.share()
        if self.owner is None:
            self.let_go(caller)
        else:
            self.current = -1

    def done(self, caller: Hashable) -> int | None:
        """The oldest item that `caller` holds is done, or else the oldest that anybody here holds, but for a `Holder`;
        return its number, if there was one."""
        others = (each for each in self.held if not isinstance(each, Holder))
        holder = caller if caller in self.held else min(others, key=lambda each: self.held[each][0], default=None)
        if holder is None:
            return None
        numbers = self.held[holder]
        number = numbers.pop(0)
        self._numbers.discard(number, number + 1)
        if not numbers:
            del self.held[holder]
        return number

    def outlived(self, threads: Container[int], session: Session, now: float) -> None:
        """What threads had got that are not among `threads` any more is finished."""
        if self.kind.joins:
            return
        gone: list[Hashable] = [each for each in self.held if type(each) is int and each not in threads]
        for thread in gone:
            self.let_go(thread)
        if self.owner is not None and self.owner not in threads:
            if self.current >= 0:
                gone.append(self.owner)
            self.owner = None
            self.current = -1
        if gone:
            self._report(session, now)

    def leave(self, session: Session, now: float) -> None:
        """This process reads here no more: what callers got is finished, or, if it was to be reported done, given back
        with the rest."""
        self.waiting, self.listening = 0, False
        if not self.kind.joins:
            for caller in [each for each in self.held if not isinstance(each, Holder)]:
                self.let_go(caller)
            self.owner, self.current = None, -1
        if self.attached:
            self.recalled(session, now)
        session.forget(self)
        self._left = True

    def clear(self, session: Session, now: float) -> None:
        """What is not started is finished, unread."""
        self.ready.clear()
        self.low = 0
        if self.attached:
            self._report(session, now)

    def ask(self, session: Session, now: float, wanted: int = 1) -> None:
        """Callers wait and nothing is ready: make sure that the node knows, and has credit to send. One of them has
        use for `wanted` items."""
        self._adapt(session, now)
        self.low = 0
        if self.kind.pushed:
            self._ask_pushed(session, now)
        elif (
            self._limit < self._next + self._needs
            or self._told_waiting != self.waiting
            or self._told_listening != self.listening
        ):
            self._limit = self._next + max(self._ahead, self._needs, wanted)
            self._report(session, now)

    def ask_ahead(self, session: Session, now: float) -> None:
        """Less than `low` is ready and the caller goes on working: ask for more, in good time."""
        if self.owes:
            self.owes = False
            self._report(session, now)
        self._adapt(session, now)
        if self.kind.pushed:
            self._ask_pushed(session, now)
        elif self._ahead > 1 and self._limit <= self._next + self._ahead // 2:
            self._limit = self._next + self._ahead
            self._report(session, now)
        self.low = 0  # enough is asked for, until something comes

    def arrived(self, now: float) -> None:
        """A caller that waited has got something: measure from here how fast callers are."""
        self._measured_at, self._measured_from = now, self._used - 1
        self.low = self._ahead // 2
        self._came_at = now

    def cancel(self, session: Session, now: float) -> None:
        """A caller waits no more. The last one takes the credit back; what is on its way is for the next caller."""
        if self._told_waiting > self.waiting or self._told_listening > self.listening:
            if not self.kind.pushed and not self.waiting and not self.ready:
                self._limit = self._next + self._needs
            self._report(session, now)
        elif self.ready and self.ready[0][0] < self._told_started:
            self._report(session, now)

    def progress(self, session: Session, now: float) -> None:
        """Tell the node how far this reader is."""
        self._report(session, now)

    def stays_fresh(self, session: Session, now: float) -> bool:
        """Whether that look can wait for another `FRESH`."""
        quick = now - self._told_at < QUICK * (self._used - self._reported)
        waits = quick and now < self._told_at + min(session.round_trip / 2, MOST_FRESH)
        if waits:
            self.fresh_until = now + FRESH
        return waits

    def progress_later(self, session: Session, now: float) -> bool:
        """Tell it soon, for all that happens until then; return whether that is news."""
        return not self._left and session.later(self, now + PROGRESS, partial(self._report, session))

    @property
    def _needs(self) -> int:
        """How many items there is somebody for."""
        return max(self.waiting, self.listening)

    @property
    def _used(self) -> int:
        return self._next - len(self.ready)

    def _adapt(self, session: Session, now: float) -> None:
        used = self._used - self._measured_from
        if used > 0:
            took = now - self._measured_at
            each = max(took / used, 1e-7)
            self._slow = each >= PROGRESS
            if not self.kind.pushed:
                horizon = max(HORIZON, 2 * session.round_trip)
                self._spent = MEMORY * self._spent + used * min(each, SLOWEST * horizon)
                self._spent_on = MEMORY * self._spent_on + used
                lately = self._spent / self._spent_on
                least = 1
                if lately > horizon / 8:  # else it may wait for the processor now and then, as all do
                    each = max(each, lately)
                elif took < min(HICCUP * session.lag, LONGEST_LAG):
                    least = self._ahead // GROWTH
                self._ahead = max(1, least, min(int(horizon / each), GROWTH * self._ahead, MAX_AHEAD))
            self._measured_at, self._measured_from = now, self._used

    def _ask_pushed(self, session: Session, now: float) -> None:
        """A push reader's credit is renewed by halves; what it has finished is told when it is slow, or at a lull."""
        renews = self._limit <= self._next + PUSH_WINDOW // 2
        # Each answer of the node wakes the caller, who asks again: it must not be told the same for ever.
        news = self._used > self._reported or self._held() != self._told_held or self._told_waiting != self.waiting
        at_once = self._eager or self._slow or self._bulky or now > self.fresh_until + PROGRESS
        if renews or (news and at_once):
            self._limit = self._next + PUSH_WINDOW
            self._report(session, now)
        elif news:
            self.progress_later(session, now)

    def _started(self) -> int:
        """The number of the first item that is not started."""
        try:
            return self.ready[0][0]
        except IndexError:
            return self._next

    def _held(self) -> Sequence[tuple[int, int]]:
        if self.owner is not None:
            return () if self.current < 0 else ((self.current, self.current + 1),)
        return tuple(self._numbers)

    def _report(self, session: Session, now: float) -> None:
        if self._left:
            return
        held: Sequence[tuple[int, int]] = ()
        if self.kind.keeps and session.before_report is not None:
            session.before_report(now)  # what a caller put while it had an item leaves before the item's end is told
        started = self._started()
        if self.kind.keeps:
            held = self._held()
        begun = min(self.waiting, self._next - started)  # callers that were woken, and have not run yet
        if started + begun < self._told_started and not self.kind.keeps:
            self._owe()
            self.low = len(self.ready) + 1
        self._told_waiting = self.waiting - begun
        self._told_listening = self.listening
        self._told_started = started + begun
        moves = started != self._reported
        self._reported = started
        self.attached = True
        self._told_held = held
        self._eager = False
        session.forget(self)
        if len(self.earlier) >= self._prune_at:
            self._forget_finished(started, held)
        frame = Frame(READY, self.channel, pack_ready(Ready(self._limit, started, self.waiting, held, self.listening)))
        if not session.replace(self._report_number, frame):
            self._report_number = session.send(frame, now)
        self._told_at = now
        self.fresh_until = now + FRESH
        if self.kind.maxsize and self.ready and moves:
            self.progress_later(session, now)  # somebody may wait for the room of what is taken meanwhile

    def _forget_finished(self, started: int, held: Sequence[tuple[int, int]]) -> None:
        """Of how often items were delivered, nobody asks any more when they are finished."""
        first = min(started, *(start for start, _ in held)) if held else started
        self.earlier = {number: often for number, often in self.earlier.items() if number >= first}
        self._prune_at = max(64, 2 * len(self.earlier))
