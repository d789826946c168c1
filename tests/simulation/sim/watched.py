"""The node's broker and devices, which write into a ledger what they take over and take away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fiberq.protocol.batch import Run, count
from fiberq.protocol.broker import Broker
from fiberq.protocol.device import Device, Key, Memory, Send
from fiberq.protocol.device import Reader as Lessee
from fiberq.protocol.frames import Items
from fiberq.protocol.kinds import Kind
from fiberq.protocol.members import Member
from fiberq.protocol.pull import PullDevice
from fiberq.protocol.push import PushDevice
from sim.ledger import Ledger, contents


class Watched(Device):
    """What both kinds of devices write down."""

    ledger: Ledger

    def put(self, key: Key, items: Items, now: float) -> None:
        fresh = contents(Run.of(items))
        self.ledger.accepted.update(fresh)
        self.ledger.log[self.channel] += fresh
        super().put(key, items, now)

    def lost(self, key: Key, now: float) -> None:
        reader = self.readers.get(key)
        if reader is not None and not self.kind.keeps:
            for lease in reader.leases:
                self.ledger.perished.update(contents(lease.run))
        super().lost(key, now)

    def _put_back(self, reader: Lessee | None, runs: list[Run], now: float) -> None:
        for run in runs:
            self.ledger.moved.update(contents(run))
        super()._put_back(reader, runs, now)

    def _deliver(self, reader: Lessee, runs: list[Run], now: float) -> None:
        self.ledger.deliveries += 1
        super()._deliver(reader, runs, now)

    def close(self) -> None:
        """The accounts of a queue that ends are exact."""
        queued = list(self.queued())
        letters = [letter.run for letter in self.dead_letters.values()]
        assert not self.readers, f"a queue without holders has readers: {self.readers}"
        assert self.unfinished == count(queued), f"{self.unfinished} items are unfinished, {count(queued)} are queued"
        size = sum(run.size for run in (*queued, *letters))
        assert self.bytes == size, f"{self.bytes} bytes are accounted for, there are {size}"
        super().close()


class WatchedPull(Watched, PullDevice):
    def _take_all_back(self, reader: Lessee, now: float) -> None:
        assert isinstance(reader.key, Member)
        for lease in reader.leases:
            for number, item in enumerate(contents(lease.run), lease.first):
                if number >= reader.started:
                    self.ledger.taken.setdefault((item, reader.key.name), self.ledger.now)
        super()._take_all_back(reader, now)


class WatchedPush(Watched, PushDevice):
    pass


class WatchedBroker(Broker):
    def __init__(self, ledger: Ledger, **settings: Any) -> None:
        self.ledger = ledger
        self.on_end: Callable[[Member], None] = lambda _: None
        self.given_up: set[Member] = set()
        super().__init__("node", **settings)

    def _device(self, number: int, kind: Kind) -> Device:
        make: Callable[[int, Kind, Send, Memory, int], WatchedPull | WatchedPush]
        make = WatchedPush if kind.pushed else WatchedPull
        device = make(number, kind, self._outbox.send, self.memory, self._max_deliveries)
        device.ledger = self.ledger
        return device

    def _give_up(self, member: Member) -> None:
        self.given_up.add(member)
        super()._give_up(member)

    def _end(self, member: Member) -> None:
        self.on_end(member)
        super()._end(member)

    def expire(self, name: str) -> None:
        """Give a process up at once that lost its connection."""
        self._end(self._members[name])

    def device(self, channel: int) -> Device | None:
        found = self._channels.known.get(channel)
        return None if found is None else found.device

    def left_of(self, names: set[str]) -> list[str]:
        """What is kept although only processes with these `names` are there."""
        left = [f"member {name}" for name in self._members if name not in names]
        there = [*self._by_peer.values(), *self._outbox.touched, *self._timers]
        there += [member for member, _ in self._channels._paused]
        for number, channel in self._channels.known.items():
            left += [f"token {holder} holds {number}" for holder in channel.holders if not isinstance(holder, Member)]
            left += [f"cargo {token} in {number}" for token in channel.cargo]
            there += [member for member in channel.holders if isinstance(member, Member)]
            there += [member for member, _ in channel.told]
            there += [member for member, _ in channel.joins]
            device: Any = channel.device
            there += device.readers
            there += [key for key, _ in device._ends]
            there += [] if device.slots is None else device.slots.putters
            for place in ("_waiting", "_listening", "_asking", "_ahead", "_ring"):
                there += getattr(device, place, ())
        left += [f"somewhere {member.name}" for member in there if member.name not in names]
        left += [f"token {token} of {member.name}" for member in self._members.values() for token in member.flights]
        left += [f"early {token}" for token in self._channels._early]
        left += [f"cargo {token}" for token in self._channels._cargo]
        left += [f"stranger {peer}" for peer in self._strangers.known]
        left += [f"survey {number}" for number in self._surveys.running]
        left += [f"what was in {channel.device.channel}" for channel in self._channels.unloading]
        return left
