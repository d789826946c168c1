"""Channels, and who holds them.

A channel is one device with a reading and a writing side. A process holds a side while it has an open handle on it. A
queue lives while somebody holds it. Of a pipe's channel each side ends by itself: when nobody is left to write and all
was read, readers are told so; when nobody is left to read, writers are.

A handle that is on its way to a process which is starting is in flight: it holds what it stands for, under a token,
until that process claims it, or either of the two ends.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from fiberq.errors import ProtocolError
from fiberq.protocol import frames
from fiberq.protocol.device import Device, Memory
from fiberq.protocol.frames import Frame
from fiberq.protocol.kinds import Kind
from fiberq.protocol.members import Member, Outbox

log = logging.getLogger("fiberq.node")

MAX_EARLY: Final = 1000
"""Claims that are remembered although no flight was announced for them."""

ROOM: Final = 0.9
"""How full the memory may be for writers to go on that were paused."""

UNDER_WAY: Final = 4
OVERDRAFT: Final = 64 << 20
"""What a paused writer may put all the same: so many of the largest items were under way, so many bytes gathered."""

TOLD_AGAIN: Final = 10.0
"""Seconds until the log says once more that writers wait."""

MAX_FLIGHTS: Final = 1000
"""Handles in flight of a process that may not do everything."""


GONE: Final = {
    "error": "the queue or pipe is gone: its last holder closed it or died, or it was deleted",
    "code": "gone",
}


class Channel:
    def __init__(self, number: int, device: Device, name: str | None = None, permanent: bool = False) -> None:
        self.number = number
        self.name = name
        self.names = (f"{number:016x}",) if name is None else (name, f"{number:016x}")
        self.device = device
        self.kind = device.kind
        self.is_pipe = self.kind.name == "pipe"
        self.permanent = permanent
        self.holders: dict[object, str] = {}  # members and tokens
        self.told: set[tuple[Member, str]] = set()  # who knows that this side of it ended
        self.joins: list[tuple[Member, Any]] = []  # who waits until all items are finished, and the request's id
        self.cargo: dict[str, None] = {}  # tokens of the handles in flight that are in its items
        self.warned = False  # the log says that its dead letters fill the memory
        self.shut = ""  # why nothing more is to be put: "shut", or "dropped" with what was there
        self.sealed = False  # and all who put know that

    def held(self, side: str) -> bool:
        return self.permanent or any(side in sides for sides in self.holders.values())

    def members(self, side: str = "") -> list[Member]:
        """The processes that hold it, or a side of it."""
        return [each for each, sides in self.holders.items() if isinstance(each, Member) and side in sides]


class Channels:
    """All channels of a node. `make` makes their devices, whose items `memory` counts."""

    def __init__(
        self,
        make: Callable[[int, Kind], Device],
        members: Mapping[str, Member],
        outbox: Outbox,
        memory: Memory,
        max_bytes: int,
    ) -> None:
        self.members = members
        self.outbox = outbox
        self.known: dict[int, Channel] = {}
        self.named: dict[str, Channel] = {}
        self.alarms: dict[int, Device] = {}  # they want to be woken
        self.unloading: list[Channel] = []  # their items are gone
        self.draining = False  # nothing more is taken
        self._make = make
        self._memory = memory
        self._max_bytes = max_bytes
        self._paused: dict[tuple[Member, int], int] = {}  # writers, by process and channel, and what they put since
        self._told_at = -TOLD_AGAIN  # when the log said last that writers wait
        self._early: dict[str, None] = {}  # tokens that were claimed before their flight was announced
        self._cargo: dict[str, Channel] = {}  # what the items are in that hold handles in flight, by token

    def add(self, number: int, kind: Kind, name: str | None = None, permanent: bool = False) -> Channel:
        channel = self.known[number] = Channel(number, self._make(number, kind), name, permanent or name is not None)
        if name is not None:
            self.named[name] = channel
            channel.device.label = name
        return channel

    def delete(self, channel: Channel) -> None:
        """End a channel, with what is in it, for all who use it."""
        del self.known[channel.number]
        if channel.name is not None:
            del self.named[channel.name]
        for member in channel.members():
            member.holds.pop(channel.number, None)
            self.outbox.tell_ended(member, channel.number, "gone")
        for member, request in channel.joins:
            self.outbox.reply(member, request, GONE)
        self._close(channel)

    def _close(self, channel: Channel) -> None:
        channel.device.close()
        self.unloading.append(channel)
        self.regulate()

    # -- processes that hold them --

    def hold(self, member: Member, channel: Channel, sides: str) -> None:
        both = _both(member.holds.get(channel.number, ""), sides)
        member.holds[channel.number] = channel.holders[member] = both
        if self.draining and "w" in sides:
            self._pause(member, channel)

    def held_by(self, member: Member) -> list[Channel]:
        return [self.known[number] for number in member.holds if number in self.known]

    def release(self, member: Member, channel: Channel, sides: str) -> None:
        """A process has no handle any more on these sides."""
        left = "".join(side for side in member.holds.get(channel.number, "") if side not in sides)
        if "r" in sides:
            channel.device.left(member, self.outbox.now)
            channel.told.discard((member, "r"))
        if "w" in sides:
            if self._paused.pop((member, channel.number), None) is not None:
                self.outbox.send(member, Frame(frames.RESUME, channel.number))  # which it may hold once more
            channel.device.left_putting(member)
        if left:
            member.holds[channel.number] = channel.holders[member] = left
        else:
            self._leave(member, channel)

    def _leave(self, member: Member, channel: Channel) -> None:
        member.holds.pop(channel.number, None)
        channel.holders.pop(member, None)
        channel.told -= {(member, "r"), (member, "w")}
        joins, channel.joins = channel.joins, []
        for waiter, request in joins:
            if waiter is member:
                closed = {"error": "this handle was closed meanwhile", "code": "closed"}
                self.outbox.reply(member, request, closed)
            else:
                channel.joins.append((waiter, request))
        channel.device.left_putting(member)
        channel.device.lost(member, self.outbox.now)
        self.check(channel)

    def lost(self, member: Member) -> None:
        """A process is gone, with all that it holds."""
        self._paused = {paused: size for paused, size in self._paused.items() if paused[0] is not member}
        for channel in self.held_by(member):
            self._leave(member, channel)
        for token in list(member.flights):
            self._land(member, token)

    def check(self, channel: Channel) -> None:
        """After an event: is the channel, or one of its sides, at its end? Does its device want to be woken?"""
        device = channel.device
        if device.alarm is not None:
            self.alarms[channel.number] = device
        device.grant()
        if channel.joins and not device.unfinished:
            joins, channel.joins = channel.joins, []
            for member, request in joins:
                self.outbox.reply(member, request, {"finished": True})
        if channel.sealed and device.empty:
            busy = device.busy() if channel.kind.joins else []  # what they have may have to go to others
            self.tell_all(channel, "r", "drained", lambda member: not any(each is not member for each in busy))
        if channel.permanent:
            return
        if not channel.holders:
            self.known.pop(channel.number, None)
            self._close(channel)
        elif channel.is_pipe:
            if not channel.held("r"):
                self.tell_all(channel, "w", "unread")
            elif not channel.held("w") and device.drained:
                self.tell_all(channel, "r", "eof")

    def tell_all(self, channel: Channel, side: str, code: str, whom: Callable[[Member], bool] = lambda _: True) -> None:
        """Tell those who hold a side, and do not know it yet, that this has ended."""
        for member in channel.members(side):
            if (member, side) not in channel.told and whom(member):
                channel.told.add((member, side))
                self.outbox.tell_ended(member, channel.number, code)

    # -- handles in flight --

    def announce(self, member: Member, token: str, holds: Iterable[tuple[int, str]], within: int) -> None:
        """A handle is in flight from a process: by itself, or in an item of channel `within`."""
        if member.right.holds is not None and len(member.flights) >= MAX_FLIGHTS:
            raise ProtocolError("too many handles of a process are in flight")
        sides: dict[int, str] = {}
        for number, side in holds:  # a process can have a handle on each side
            if number in self.known:
                sides[number] = _both(sides.get(number, ""), side)
        if self._early.pop(token, self) is None:
            return  # who it was for holds it already, or has let go of it since
        member.flights[token] = sides
        if within in self.known:
            self._cargo[token] = self.known[within]
            self.known[within].cargo[token] = None
        for number, side in sides.items():
            self.known[number].holders[token] = side

    def landed(self, member: Member, token: str) -> None:
        """A handle in flight came to nothing: the process that it was for has ended."""
        if token in member.flights:
            self._land(member, token)

    def arrived(self, member: Member, token: str) -> None:
        """A handle in flight has come to a process that has not used it yet. A pipe's message is never redelivered: so
        what it held ends with this process."""
        carrier, owner = self._take_out(token), self._owner(token)
        if carrier is not None and carrier.is_pipe and owner is not None:
            member.flights[token] = owner.flights.pop(token)

    def claim(self, token: str) -> None:
        """A handle in flight has come to a holder of its own, or was dropped where it arrived."""
        owner = self._owner(token)
        if owner is not None:
            self._land(owner, token)
            return
        self._early[token] = None
        if len(self._early) > MAX_EARLY:
            del self._early[next(iter(self._early))]

    def unload(self) -> None:
        """End the handles in items that are gone; what they were on may end, and have had items with handles, too."""
        while self.unloading:
            for token in list(self.unloading.pop().cargo):
                owner = self._owner(token)
                if owner is not None:
                    self._land(owner, token)

    def _owner(self, token: str) -> Member | None:
        """Who answers for a handle in flight."""
        return next((each for each in self.members.values() if token in each.flights), None)

    def _take_out(self, token: str) -> Channel | None:
        """A handle in flight is in no item any more; return what it was in."""
        carrier = self._cargo.pop(token, None)
        if carrier is not None:
            del carrier.cargo[token]
        return carrier

    def _land(self, owner: Member, token: str) -> None:
        self._take_out(token)
        for number in owner.flights.pop(token):
            channel = self.known.get(number)
            if channel is not None:
                channel.holders.pop(token, None)
                self.check(channel)

    # -- memory --

    def restrain(self, writer: Member, channel: Channel, size: int) -> None:
        """Pause a writer while the node holds too much, and the writer's queue more than its share: a queue that nobody
        empties does not stop the others. So the node holds at most twice the limit. Raises `ProtocolError` when the
        writer goes on regardless."""
        paused = (writer, channel.number)
        if paused in self._paused:
            self._paused[paused] += max(0, size)
            if self._paused[paused] > self._max_bytes * UNDER_WAY + OVERDRAFT:
                raise ProtocolError("a process puts on although it was asked to pause")
        if self._memory.bytes > self._max_bytes and self._share(channel) > 1:
            self._pause(writer, channel)

    def regulate(self) -> None:
        """Let writers go on when there is room again."""
        if self.draining:
            return
        room = self._memory.bytes <= self._max_bytes * ROOM
        for member, number in list(self._paused):
            channel = self.known.get(number)
            if room or channel is None or self._share(channel) <= ROOM or self._hungry(channel):
                del self._paused[member, number]
                self.outbox.send(member, Frame(frames.RESUME, number))

    def drain(self) -> None:
        """Pause all writers for ever."""
        self.draining = True
        for channel in self.known.values():
            for member in channel.members("w"):
                self._pause(member, channel)

    def _pause(self, writer: Member, channel: Channel) -> None:
        if (writer, channel.number) not in self._paused:
            if not self.draining and self.outbox.now >= self._told_at + TOLD_AGAIN:
                self._told_at = self.outbox.now
                log.info(
                    "the items here have %d bytes: who puts more into %s waits", self._memory.bytes, channel.names[0]
                )
            self._paused[writer, channel.number] = 0
            self.outbox.send(writer, Frame(frames.PAUSE, channel.number))

    def _hungry(self, channel: Channel) -> bool:
        """Whether a queue has nothing to give: then only what is put can get it going, and what it takes of the memory
        grows as its readers take and hold, not as writers put. Dead letters, which nobody may ever look at, have a
        limit."""
        if not channel.device.empty:
            return False
        if self._memory.dead <= self._max_bytes or not channel.device.dead_letters:
            return True
        if not channel.warned:
            channel.warned = True
            text = (
                "nothing more can be put into queue %s: this node's dead letters have %d bytes; put back or drop some"
            )
            log.warning(text, channel.names[0], self._memory.dead)
        return False

    def _share(self, channel: Channel) -> float:
        """What a queue takes of the memory, as a multiple of what each may have if all had the same."""
        return channel.device.bytes * len(self.known) / self._max_bytes


def _both(some: str, others: str) -> str:
    return "".join(sorted({*some, *others} & {"r", "w"}))
