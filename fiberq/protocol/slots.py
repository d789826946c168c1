"""The bound of a queue: an item needs a slot before it may be put. `Slots` is the node's side, `Permits` a process's.

A slot is taken from its grant until a `get` returns the item for which it was used, or until it is given back. So there
are never more items than slots, and a `put` that finds none knows that the queue is full. A process that puts quickly
is granted slots ahead, so that it need not wait for the node each time; what it does not use at once goes back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import Final

from fiberq.errors import ProtocolError
from fiberq.protocol.frames import GRANT, WANT, Frame, Want, pack_grant, pack_want
from fiberq.protocol.session import Session

HORIZON: Final = 0.004
"""Seconds of putting for which a writer asks for slots ahead."""

MAX_AHEAD: Final = 4096
"""Slots that a writer asks for ahead."""

IDLE: Final = 0.01
"""Seconds without a put after which a writer gives back the slots that it has."""


class Putter:
    """What the node knows of one process that puts."""

    __slots__ = ("ahead", "granted", "need", "returned", "used")

    def __init__(self) -> None:
        self.granted = 0  # slots, ever
        self.returned = 0  # of these, given back unused
        self.used = 0  # items put
        self.need = 0  # callers that are blocked for want of a slot
        self.ahead = 0  # slots that it would like besides

    @property
    def hand(self) -> int:
        """Slots that it has and has not used, as far as the node knows."""
        return self.granted - self.returned - self.used


class Slots:
    """The slots of one queue. `send(key, frame)` sends to a process."""

    def __init__(self, channel: int, maxsize: int, send: Callable[[Hashable, Frame], None]) -> None:
        self.maxsize = maxsize
        self.putters: dict[Hashable, Putter] = {}  # those that wait longest come first
        self._channel = channel
        self._send = send

    def want(self, key: Hashable, want: Want) -> None:
        """A process says how many slots it can use."""
        putter = self.putters.setdefault(key, Putter())
        if not putter.returned <= want.returned <= putter.granted - putter.used or want.seen > putter.granted:
            raise ProtocolError("a slot is given back that was not there")
        putter.returned = want.returned
        under_way = putter.granted - want.seen
        putter.need = max(0, want.waiting - under_way)
        putter.ahead = max(0, want.ahead - under_way - putter.need)

    def used(self, key: Hashable, items: int) -> None:
        """A process has put so many items."""
        putter = self.putters.get(key)
        if putter is None or items > putter.hand:
            raise ProtocolError("an item was put into a bounded queue without a slot for it")
        putter.used += items

    def lost(self, key: Hashable) -> None:
        """A process puts no more; the slots that it had are free."""
        self.putters.pop(key, None)

    def grant(self, occupied: int) -> None:
        """Hand out what is free, where so many slots are `occupied` by items: first to those who wait for it, and then,
        of what is left, to each an equal part of a half, ahead."""
        free = self.maxsize - occupied - sum(putter.hand for putter in self.putters.values())
        if free <= 0:
            return
        granted: dict[Hashable, int] = {}
        while free and (waiting := [key for key, putter in self.putters.items() if putter.need]):
            share = max(1, free // len(waiting))
            for key in waiting[:free]:
                putter = self.putters.pop(key)
                self.putters[key] = putter  # behind the others
                number = min(share, putter.need, free)
                putter.need -= number
                free -= number
                granted[key] = granted.get(key, 0) + number
        share = free // (2 * len(self.putters)) if self.putters else 0
        for key, putter in self.putters.items():
            number = min(share, putter.ahead)
            if number:
                putter.ahead -= number
                granted[key] = granted.get(key, 0) + number
        for key, number in granted.items():
            putter = self.putters[key]
            putter.granted += number
            self._send(key, Frame(GRANT, self._channel, pack_grant(putter.granted)))


class Permits:
    """One process's slots of one queue. `free` may be popped by any thread at any time; all else is called by one at a
    time. Who waits for a slot sees of this what who waits for an item sees of a `Reader`."""

    recalls = 0
    giving = False

    def __init__(self, channel: int) -> None:
        self.free: deque[None] = deque()
        self.waiting = 0  # callers that are blocked for want of one
        self.low = 0  # ask ahead when fewer are free
        self._channel = channel
        self._seen = 0  # slots that came, ever
        self._returned = 0
        self._told = Want(0, 0, 0, 0)
        self._ahead = 0
        self._used_before = 0  # when last looked at
        self._used_at = 0.0

    @property
    def used(self) -> int:
        return self._seen - self._returned - len(self.free)

    def take(self) -> bool:
        """Use one; return whether there was one."""
        try:
            self.free.pop()
        except IndexError:
            return False
        return True

    def taken(self, session: Session, now: float, waited: bool) -> None:
        """One was used by a caller that may have `waited` for it: measure from here how fast callers put; or else ask
        ahead, in good time."""
        if waited:
            self._used_before, self._used_at = self.used - 1, now
        elif len(self.free) <= self.low:
            self.ask(session, now)

    def granted(self, total: int) -> None:
        """Slots have come."""
        self.free.extend([None] * (total - self._seen))
        self._seen = total
        self.low = min(self._ahead, len(self.free)) // 2

    def ask(self, session: Session, now: float, wanted: int = 1) -> None:  # noqa: ARG002
        """Callers wait, or fewer than `low` are free: make sure that the node knows."""
        self.low = 0
        used = self.used - self._used_before
        if used:
            each = max((now - self._used_at) / used, 1e-7)
            self._ahead = max(0, min(int(HORIZON / each), 2 * self._ahead + 1, MAX_AHEAD))
            self._used_before, self._used_at = self.used, now
        self._tell(session, now)

    def cancel(self, session: Session, now: float) -> None:
        """A caller waits no more."""
        if self._told.waiting > self.waiting:
            self._ahead = 0
            self._tell(session, now)

    def idle(self, session: Session, now: float) -> bool:
        """Give back what nobody has used for a while; return whether there may be more to do of this kind later."""
        if not self.free or self.waiting:
            return False
        if self.used != self._used_before:
            self._used_before, self._used_at = self.used, now
        elif now > self._used_at + IDLE:
            self.give_back(session, now)
            return False
        return True

    def give_back(self, session: Session, now: float) -> None:
        """Give back all that is free, unless callers wait for it."""
        while len(self.free) > self.waiting:
            try:
                self.free.pop()
            except IndexError:
                break
            self._returned += 1
        self.low = 0
        self._ahead = 0
        self._tell(session, now)

    def _tell(self, session: Session, now: float) -> None:
        want = Want(self._seen, self._returned, self._ahead, max(0, self.waiting - len(self.free)))
        if want != self._told:
            self._told = want
            session.send(Frame(WANT, self._channel, pack_want(want)), now, urgent=bool(want.waiting))
