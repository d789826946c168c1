"""The pull and the push device alone, against a model that knows for each item where it is."""

from __future__ import annotations

from array import array
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fiberq.abc import Buffer
from fiberq.errors import ProtocolError
from fiberq.protocol.batch import Run
from fiberq.protocol.device import IN_COMPANY, NEAR, Device, Key, Memory
from fiberq.protocol.frames import DELIVER, RECALL, TAKEN, Frame, Items, Ready, read_deliver, read_ranges, split
from fiberq.protocol.kinds import Kind
from fiberq.protocol.lent import Lent, Reference
from fiberq.protocol.pull import (
    LONGEST_PATIENCE,
    LONGEST_ROUND,
    RECALL_AFTER,
    RECALL_LATER,
    RECALL_PATIENCE,
    RECALL_ROUND_TRIPS,
    UNSEEN,
    PullDevice,
)
from fiberq.protocol.push import PushDevice

settings.register_profile("steady", deadline=None)  # a loaded machine is no failure
settings.load_profile("steady")

DEATHS = 2
PULL = Kind("pull")


def _items(contents: list[bytes]) -> Items:
    return Items(array("I", map(len, contents)), b"".join(contents), ())


def _contents(run: Run) -> list[bytes]:
    return [bytes(item) for item in split(Items(run.lengths(), run.payload(), ()))]


class Peer:
    """A reader as it sees itself: it has started all below `started`, and of these it works on `held`."""

    def __init__(self) -> None:
        self.items: dict[int, bytes] = {}  # neither finished nor given back
        self.next = 0
        self.started = 0
        self.told = 0  # what the device takes for started
        self.said = 0  # what this said that it had started
        self.limit = 0
        self.waiting = 0
        self.listening = False
        self.recalled = False
        self.recalled_at = 0.0
        self.away = False
        self.lone = False  # the last delivery was a suspect's
        self.alone = False  # it was of one item, beside which there was nothing

    @property
    def needs(self) -> int:
        return max(self.waiting, self.listening)

    def unstarted(self) -> list[int]:
        return [number for number in self.items if number >= self.started]


class DeviceMachine(RuleBasedStateMachine):
    keeps = True

    def make(self) -> Device:
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.memory = Memory()
        self.device = self.make()
        self.peers: dict[Key, Peer] = {}
        self.places: dict[bytes, int] = {}
        self.finished: set[bytes] = set()
        self.moved: set[bytes] = set()  # were with a reader once, and came back
        self.suspects: set[bytes] = set()  # a reader died that had them
        self.failures: Counter[bytes] = Counter()  # deaths that it may be guilty of, and what happened to it by name
        self.deaths: Counter[bytes] = Counter()
        self.guilty: set[bytes] = set()
        self.ends: dict[tuple[Key, int], float] = {}  # when leases run out
        self.newest: dict[Key, int] = {}  # the place of the last item that was delivered for the first time
        self.keys = 0

    def send(self, key: Key, frame: Frame) -> None:
        peer = self.peers[key]
        if frame.kind == RECALL:
            assert not peer.recalled
            assert peer.unstarted(), "there was nothing to recall"
            peer.recalled, peer.recalled_at = True, self.now
            return
        if frame.kind == TAKEN:
            ranges = read_ranges(frame.body[0])  # type: ignore[arg-type]
            taken = [number for number in peer.items if any(first <= number < end for first, end in ranges)]
            if taken:  # it did not answer a recall, and what it has not started is no longer its own
                assert peer.recalled
                assert self.now >= peer.recalled_at + RECALL_PATIENCE
                assert taken == [number for number in peer.items if number >= peer.told]
                peer.recalled = False
                peer.limit = peer.next
                self.moved.update(peer.items.pop(number) for number in taken)
            return
        assert frame.kind == DELIVER
        assert not peer.away
        first, redelivered, _, items = read_deliver(memoryview(b"".join(frame.body)), frame.parts)
        assert first == peer.next
        got = split(items)
        alone = {item for item in map(bytes, got) if item in self.suspects}
        if alone:
            assert len(got) == 1, "a suspect had company"
            ahead = [number for number in peer.items if number >= peer.told]
            assert not peer.items or (peer.needs and not ahead), "a suspect came behind something else"
            assert redelivered
        assert not peer.lone or not peer.items or peer.needs, "something came to a reader that has a suspect"
        peer.lone = bool(alone) and not peer.items
        peer.alone = len(got) == 1 and not peer.items
        for item in map(bytes, got):
            peer.items[peer.next] = item
            peer.next += 1
            if item not in self.moved:
                line = key if isinstance(self.device, PushDevice) else None
                assert self.newest.get(line, -1) < self.places[item], "an item overtook another"
                self.newest[line] = self.places[item]
        assert peer.next <= peer.limit
        begun = min(peer.waiting, len(got))
        peer.waiting -= begun
        peer.told = max(peer.told, peer.started) + begun if begun else peer.told

    # -- events --

    @rule(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=12))
    def put(self, sizes: list[int]) -> None:
        contents = []
        for size in sizes:
            item = b"%d:" % len(self.places) + b"." * size
            self.places[item] = len(self.places)
            contents.append(item)
        self.device.put("writer", _items(contents), self.now)

    @initialize(readers=st.integers(0, 3))
    def begin(self, readers: int) -> None:
        for _ in range(readers):
            self.attach()

    @precondition(lambda self: len(self.peers) < 4)
    @rule()
    def attach(self) -> None:
        self.keys += 1
        self.peers[self.keys] = Peer()
        self.device.ready(self.keys, Ready(0, 0, 0), self.now)

    @precondition(lambda self: self.peers)
    @rule(
        data=st.data(),
        start=st.integers(0, 9),
        more=st.integers(0, 6),
        waiting=st.integers(0, 2),
        listening=st.booleans(),
    )
    def ready(self, data: Any, start: int, more: int, waiting: int, listening: bool) -> None:
        key = data.draw(st.sampled_from(list(self.peers)))
        peer = self.peers[key]
        if peer.away:
            return
        unstarted = peer.unstarted()
        if unstarted[start:]:
            peer.started, waiting = unstarted[start], 0
        else:
            peer.started = peer.next
        held = []
        for number in [number for number in peer.items if number < peer.started]:
            if self.keeps and data.draw(st.booleans()):
                held.append((number, number + 1))
            else:
                self.finished.add(peer.items.pop(number))
        peer.limit, peer.waiting, peer.listening = peer.next + more, waiting, listening
        peer.told = peer.said = peer.started
        self.device.ready(key, Ready(peer.limit, peer.started, waiting, held, listening), self.now)

    @precondition(lambda self: self.peers)
    @rule(data=st.data())
    def give_back(self, data: Any) -> None:
        """A reader answers a recall, or returns what came too late."""
        key = data.draw(st.sampled_from(list(self.peers)))
        peer = self.peers[key]
        if peer.away:
            return
        numbers = peer.unstarted()
        numbers = numbers[data.draw(st.integers(0, len(numbers))) :]
        for number in numbers:
            self.moved.add(peer.items.pop(number))
        peer.recalled = False
        peer.limit, peer.waiting = peer.next, 0
        self.device.returned(key, [(number, number + 1) for number in numbers], self.now)

    @precondition(lambda self: self.peers)
    @rule(data=st.data(), clean=st.booleans())
    def leave(self, data: Any, clean: bool) -> None:
        key = data.draw(st.sampled_from(list(self.peers)))
        peer = self.peers.pop(key)
        told = {number: item for number, item in peer.items.items() if number < peer.told}
        if not self.keeps and not clean:
            for number, item in told.items():
                self.finished.add(item)
                del peer.items[number]
        self.moved.update(peer.items.values())
        if isinstance(self.device, PushDevice):
            self.moved.update(item for run in self.device.readers[key].queue for item in _contents(run))
        if clean:
            self.device.left(key, self.now)
            return
        if self.keeps:
            self.suspects.update(peer.items.values())
            self.deaths.update(peer.items.values())
            alone = peer.alone and len(peer.items) == 1 and min(peer.items) < peer.told  # and it may have begun it
            self.failures.update(item for number, item in peer.items.items() if alone or number - peer.said < NEAR)
            if alone:
                self.judge(*peer.items.values())
            self.guilty.update(each for each, often in self.deaths.items() if often >= IN_COMPANY * DEATHS)
        self.device.lost(key, self.now)

    def judge(self, item: bytes) -> None:
        if self.failures[item] >= DEATHS:
            self.guilty.add(item)

    def one_leased(self, data: Any) -> tuple[Key, Peer, int] | None:
        leased = [(key, peer, number) for key, peer in self.peers.items() for number in peer.items]
        return data.draw(st.sampled_from(leased)) if leased else None

    @precondition(lambda self: self.keeps)
    @rule(data=st.data(), what=st.sampled_from(["finish", "give back", "fail"]))
    def name_one(self, data: Any, what: str) -> None:
        """A reader deals with one item by name; with one that it does not have, in vain."""
        if (one := self.one_leased(data)) is None:
            assert not self.device.finish("stranger", 0, self.now)
            assert not self.device.give_back(self.keys, 1 << 30, None, self.now)
            return
        key, peer, number = one
        item = peer.items.pop(number)
        if what == "finish":
            self.finished.add(item)
            assert self.device.finish(key, number, self.now)
        else:
            self.moved.add(item)
            if what == "fail":
                self.failures[item] += 1
                self.judge(item)
            assert self.device.give_back(key, number, "it failed" if what == "fail" else None, self.now)

    @precondition(lambda self: self.keeps)
    @rule(data=st.data(), seconds=st.sampled_from([0.0, 0.001, 1.0]))
    def let_one_run_out(self, data: Any, seconds: float) -> None:
        if (one := self.one_leased(data)) is not None:
            key, _, number = one
            self.ends[key, number] = self.now + seconds
            assert self.device.lease_until(key, number, self.now + seconds)

    @precondition(lambda self: self.device.dead_letters)
    @rule(data=st.data(), again=st.booleans())
    def settle_a_dead_letter(self, data: Any, again: bool) -> None:
        place = data.draw(st.sampled_from(sorted(self.device.dead_letters)))
        (item,) = [item for item, at in self.places.items() if at == place]
        del self.failures[item], self.deaths[item]
        self.suspects.discard(item)
        self.guilty.remove(item)
        if again:
            self.device.revive(place, self.now)
        else:
            self.finished.add(item)
            self.device.bury(place)

    @precondition(lambda self: self.peers)
    @rule(data=st.data())
    def come_and_go(self, data: Any) -> None:
        key = data.draw(st.sampled_from(list(self.peers)))
        peer = self.peers[key]
        peer.away = not peer.away
        if peer.away:
            self.device.away(key, self.now)
        else:
            peer.recalled_at = self.now
            self.device.back(key, self.now)

    @rule(seconds=st.sampled_from([0.001, RECALL_AFTER, RECALL_PATIENCE]))
    def tick(self, seconds: float) -> None:
        self.now += seconds
        for _ in range(10):
            alarm = self.device.alarm
            if alarm is None or alarm > self.now:
                return
            for (key, number), end in list(self.ends.items()):
                if end <= self.now:
                    del self.ends[key, number]
                    if key in self.peers and number in self.peers[key].items:
                        item = self.peers[key].items.pop(number)
                        self.moved.add(item)
                        self.failures[item] += 1
                        self.judge(item)
            self.device.tick(self.now)
        raise AssertionError("the alarm never falls silent")

    # -- what always holds --

    def leased(self, record: Any) -> set[bytes]:
        return {item for lease in record.leases for item in _contents(lease.run)}

    def dealt(self) -> list[bytes]:
        return [item for record in self.device.readers.values() for item in sorted(self.leased(record))]

    def queued(self) -> list[bytes]:
        return [item for run in self.device.queued() for item in _contents(run)]

    def condemned(self) -> list[bytes]:
        return [item for letter in self.device.dead_letters.values() for item in _contents(letter.run)]

    @invariant()
    def nothing_is_lost_or_invented(self) -> None:
        everything = [*self.queued(), *self.dealt(), *self.condemned(), *self.finished]
        assert sorted(everything) == sorted(self.places)
        for key, peer in self.peers.items():
            assert self.leased(self.device.readers[key]) == set(peer.items.values())

    @invariant()
    def sizes_are_right(self) -> None:
        there = sum(map(len, [*self.queued(), *self.dealt(), *self.condemned()]))
        assert self.device.bytes == self.memory.bytes == there
        assert self.memory.dead == sum(letter.run.size for letter in self.device.dead_letters.values())
        assert self.device.empty == (not self.device.qsize())
        for reader in self.device.readers.values():
            assert reader.bytes == sum(map(len, self.leased(reader)))

    @invariant()
    def counts_are_right(self) -> None:
        prefetched = sum(number >= peer.said for peer in self.peers.values() for number in peer.items)
        assert self.device.qsize() == len(self.queued()) + prefetched
        assert self.device.accepted == len(self.places)
        assert self.device.finished == len(self.finished)
        assert self.device.drained == (not self.queued() and not self.dealt())

    @invariant()
    def only_the_guilty_are_dead_letters(self) -> None:
        assert sorted(self.condemned()) == sorted(self.guilty)

    @invariant()
    def nothing_waits_for_a_reader_that_could_have_it(self) -> None:
        queued = self.queued()
        for key, peer in self.peers.items():
            mine = queued
            if isinstance(self.device, PushDevice):
                mine = [item for run in self.device.readers[key].queue for item in _contents(run)]
            able = peer.limit > peer.next and not (peer.away or peer.recalled or peer.items)
            if able and (peer.needs or isinstance(self.device, PushDevice)):
                assert not mine, "an idle reader with credit got nothing"

    def teardown(self) -> None:
        self.moved = set(self.places)
        for key, peer in self.peers.items():
            peer.away = True
            self.device.away(key, self.now)
        for key in list(self.peers):
            self.device.left(key, self.now)
            del self.peers[key]
        self.keys += 1
        last = self.peers[self.keys] = Peer()
        for _ in range(2 * len(self.places) + 2):
            last.limit, last.started, last.told = last.next + 5, last.next, last.next
            self.finished.update(last.items.values())
            last.items.clear()
            self.device.ready(self.keys, Ready(last.limit, last.started, 0), self.now)
        assert sorted([*self.finished, *self.condemned()]) == sorted(self.places)
        for place in list(self.device.dead_letters):
            self.device.bury(place)
        assert self.memory.bytes == 0


class PullMachine(DeviceMachine):
    def make(self) -> Device:
        return PullDevice(1, Kind("pull"), self.send, self.memory, DEATHS)


class PushMachine(DeviceMachine):
    def make(self) -> Device:
        return PushDevice(1, Kind("push"), self.send, self.memory, DEATHS)


class PipeMachine(DeviceMachine):
    keeps = False

    def make(self) -> Device:
        return PullDevice(1, Kind("pipe"), self.send, self.memory, DEATHS)


for _machine in (PullMachine, PushMachine, PipeMachine):
    _machine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestPull = PullMachine.TestCase
TestPush = PushMachine.TestCase
TestPipe = PipeMachine.TestCase


class Desk:
    """A device, and what it sent to each reader."""

    def __init__(self, device: type[PullDevice | PushDevice], kind: Kind = PULL, **options: Any) -> None:
        self.got: dict[Key, list[bytes]] = {}
        self.deliveries: list[tuple[Key, int]] = []
        self.recalls: list[Key] = []
        self.taken: dict[Key, list[tuple[int, int]]] = {}
        self.memory = Memory()
        self.device = device(1, kind, self._send, self.memory, **options)

    def _send(self, key: Key, frame: Frame) -> None:
        if frame.kind == RECALL:
            self.recalls.append(key)
            return
        if frame.kind == TAKEN:
            self.taken.setdefault(key, []).extend(read_ranges(frame.body[0]))  # type: ignore[arg-type]
            return
        read = read_deliver(memoryview(b"".join(frame.body)), frame.parts)[3]
        items = split(read) if len(read.lengths) else [b"".join(frame.parts)]
        self.got.setdefault(key, []).extend(map(bytes, items))
        self.deliveries.append((key, len(items)))

    def put(self, *contents: bytes) -> None:
        self.device.put("writer", _items(list(contents)), 0.0)


class Elsewhere(Lent):
    """An item in memory of another process, which can be `read`, or has gone."""

    def __init__(self, item: bytes, read: bool = True) -> None:
        self.reference = Reference(1, 2, 0, len(item), 3)
        self._item = item
        self._read = read

    def load(self) -> list[Buffer]:
        if not self._read:
            raise ProtocolError("it is gone")
        return [self._item[:1], self._item[1:]]


@pytest.mark.parametrize("device", [PullDevice, PushDevice])
def test_small_items_that_are_elsewhere_travel_together_to_who_is_far(device: type[PullDevice | PushDevice]) -> None:
    desk = Desk(device, max_deliveries=3)
    small = [b"%d" % number * 20_000 for number in range(4)]
    large = b"large" * 20_000
    desk.device.ready("far", Ready(10, 0, 1), 0.0)
    desk.device.put_large("writer", [*map(Elsewhere, small), Elsewhere(large), Elsewhere(small[0])], 0.0)
    assert desk.got["far"] == [*small, large, small[0]]
    assert [count for _, count in desk.deliveries] == [4, 1, 1]
    desk.device.ready("far", Ready(20, 6, 1), 0.0)
    desk.device.put_large("writer", [Elsewhere(small[1]), Elsewhere(small[2], read=False), Elsewhere(small[3])], 0.0)
    assert desk.got["far"][6:] == [small[1], small[3]], "what can be read is not lost for what cannot"
    (letter,) = desk.device.dead_letters.values()
    assert "it is gone" in letter.reason


def test_a_frame_for_who_is_far_looks_only_at_what_goes_into_it() -> None:
    looked = 0

    class Counted(Elsewhere):
        @property
        def size(self) -> int:
            nonlocal looked
            looked += 1
            return 20_000

    desk = Desk(PullDevice)
    desk.device.put_large("writer", [Counted(b"x" * 20_000) for _ in range(1000)], 0.0)
    looked = 0
    desk.device.ready("far", Ready(1000, 0, 1), 0.0)
    assert sum(count for _, count in desk.deliveries) > 100
    assert looked < 10 * 1000


def test_what_is_left_of_large_batches_does_not_keep_them() -> None:
    desk = Desk(PullDevice)
    frames, items = 5, [bytes(100)] * 9_000
    for number in range(frames):
        desk.put(*items)
        end = (number + 1) * len(items)
        desk.device.ready(
            "reader", Ready(end, end, 1, [(each * len(items), each * len(items) + 1) for each in range(number)]), 0.0
        )
    end = frames * len(items)
    held = [(number * len(items), number * len(items) + 1) for number in range(frames)]
    desk.device.ready("reader", Ready(end, end, 1, held), 0.0)
    leases = desk.device.readers["reader"].leases
    assert [len(lease.run) for lease in leases] == [1] * frames
    assert sum(len(lease.run.batch.payload) for lease in leases) < 10_000
    desk.device.ready("reader", Ready(end, end, 1, held), 0.0)
    desk.put(*items)
    desk.device.ready("reader", Ready(end + len(items) - 1, end, 1, held), 0.0)
    (left,) = desk.device.queued()
    assert len(left) == 1
    assert len(left.batch.payload) < 120_000


@given(st.integers(1, 5), st.integers(0, 10), st.data())
def test_push_deals_exactly_round_robin(readers: int, rounds: int, data: Any) -> None:
    desk = Desk(PushDevice)
    for key in range(readers):
        desk.device.ready(key, Ready(1000, 0, 0), 0.0)
    left = [b"%d" % number for number in range(readers * rounds)]
    everything = list(left)
    while left:
        taken = data.draw(st.integers(1, len(left)))
        desk.put(*left[:taken])
        del left[:taken]
    for key in range(readers):
        assert desk.got.get(key, []) == everything[key::readers]


def test_what_came_before_the_first_reader_waits_for_it() -> None:
    desk = Desk(PushDevice)
    desk.put(b"a", b"b")
    desk.put(b"c")
    desk.device.ready("reader", Ready(10, 0, 0), 0.0)
    assert desk.got == {"reader": [b"a", b"b", b"c"]}


def test_readers_that_wait_come_before_those_that_ask_ahead() -> None:
    desk = Desk(PullDevice)
    desk.device.ready("ahead", Ready(10, 0, 0), 0.0)
    desk.device.ready("waits", Ready(1, 0, 1), 0.0)
    desk.put(b"a")
    assert desk.got == {"waits": [b"a"]}


def test_scarce_items_are_shared_out() -> None:
    desk = Desk(PullDevice)
    for key in "abc":
        desk.device.ready(key, Ready(100, 0, 1), 0.0)
    desk.put(*(b"%d" % number for number in range(9)))
    assert sorted(map(len, desk.got.values())) == [3, 3, 3]


def test_a_reader_that_sits_on_items_is_asked_and_then_loses_them() -> None:
    desk = Desk(PullDevice)
    desk.device.ready("slow", Ready(4, 0, 1), 0.0)
    desk.put(b"a", b"b", b"c")
    desk.device.ready("idle", Ready(1, 0, 1), 0.0)
    assert desk.device.alarm == RECALL_AFTER
    desk.device.tick(RECALL_AFTER)
    assert desk.recalls == ["slow"]
    desk.device.tick(RECALL_AFTER + RECALL_PATIENCE)
    assert desk.got["idle"] == [b"b"], "not what a waiting caller had started, and in order"
    desk.device.returned("slow", [(1, 3)], 1.0)
    desk.device.ready("idle", Ready(9, 1, 0), 1.0)
    assert desk.got["idle"] == [b"b", b"c"], "a late answer changes nothing"


class Distant(str):
    """A reader that a frame reaches after a while."""

    round_trip = 0.0
    lag = 0.0


@pytest.mark.parametrize(("round_trip", "longer"), [(0.1, RECALL_ROUND_TRIPS * 0.1), (9.0, LONGEST_PATIENCE)])
def test_a_distant_reader_has_longer_to_answer(round_trip: float, longer: float) -> None:
    desk = Desk(PullDevice)
    far = Distant("far")
    far.round_trip = far.lag = round_trip
    desk.device.ready(far, Ready(4, 0, 1), 0.0)
    desk.put(b"a", b"b", b"c")
    desk.device.ready("idle", Ready(1, 0, 1), 0.0)
    asked = RECALL_AFTER + min(RECALL_LATER * round_trip, LONGEST_ROUND)
    assert desk.device.alarm == pytest.approx(asked)
    desk.device.tick(asked - 0.001)
    assert desk.recalls == []
    desk.device.tick(asked)
    assert desk.recalls == [far]
    end = asked + min(RECALL_PATIENCE + longer, LONGEST_PATIENCE)
    assert desk.device.alarm == pytest.approx(end)
    desk.device.tick(end - 0.01)
    assert "idle" not in desk.got
    desk.device.tick(end + 0.01)
    assert desk.got["idle"] == [b"b"]


@pytest.mark.parametrize(
    ("seen_at", "begins", "trips"),
    [(float("inf"), UNSEEN, RECALL_LATER - 1), (0.05, 0.05, RECALL_LATER - 1), (0.0, 0.0, RECALL_LATER)],
    ids=["it has not seen them", "it has", "it is not known"],
)
def test_a_reader_sits_on_items_from_when_it_has_seen_them(seen_at: float, begins: float, trips: int) -> None:
    desk = Desk(PullDevice)
    crowded = Distant("crowded")
    crowded.lag = 0.03
    desk.device.ready(crowded, Ready(4, 0, 1), 0.0)
    desk.put(b"a", b"b", b"c")
    desk.device.readers[crowded].seen_at = seen_at
    desk.device.ready("idle", Ready(1, 0, 1), 0.0)
    recalled = begins + RECALL_AFTER + trips * crowded.lag
    assert desk.device.alarm == pytest.approx(recalled)
    desk.device.tick(recalled - 0.001)
    assert desk.recalls == []
    desk.device.tick(recalled + 0.001)
    assert desk.recalls == [crowded]


def test_who_gets_none_of_what_others_were_sent_ahead_is_waited_for_from_the_put_on() -> None:
    desk = Desk(PullDevice)
    for key in "abc":
        desk.device.ready(key, Ready(2, 0, 1), 0.0)
    desk.put(b"1", b"2", b"3", b"4")
    assert sorted(map(len, desk.got.values())) == [2, 2]
    assert desk.device.alarm == RECALL_AFTER


def test_a_distant_reader_does_not_delay_the_recall_from_another() -> None:
    desk = Desk(PullDevice)
    far = Distant("far")
    far.round_trip = far.lag = 0.1
    desk.device.ready(far, Ready(4, 0, 1), 0.0)
    desk.put(*[b"far"] * 4)
    desk.device.ready("near", Ready(3, 0, 1), 0.0)
    desk.put(*[b"near"] * 3)
    desk.device.ready("idle", Ready(1, 0, 1), 0.0)
    assert desk.device.alarm == pytest.approx(RECALL_AFTER)
    desk.device.tick(RECALL_AFTER)
    assert desk.recalls == ["near"]
    desk.device.tick(RECALL_AFTER + RECALL_LATER * 0.1)
    assert desk.recalls == ["near", far]


def test_a_reader_that_gives_items_back_late_loses_them_only_when_another_waits() -> None:
    desk = Desk(PullDevice)
    desk.device.ready("slow", Ready(4, 0, 1), 0.0)
    desk.put(b"a", b"b", b"c")
    desk.device.recall("slow", 1.0)
    desk.device.recall("slow", 1.1)
    assert desk.recalls == ["slow"]
    assert desk.device.alarm is None, "nobody else wants it, and it may have started it by now"
    desk.device.tick(9.0)
    desk.device.ready("idle", Ready(1, 0, 1), 9.0)
    desk.device.tick(9.0)
    assert desk.got["idle"] == [b"b"]


def test_a_message_of_a_pipe_is_never_taken_back_unasked() -> None:
    desk = Desk(PullDevice, Kind("pipe"))
    desk.device.ready("slow", Ready(4, 0, 1), 0.0)
    desk.put(b"a", b"b", b"c")
    desk.device.ready("idle", Ready(1, 0, 1), 0.0)
    desk.device.tick(RECALL_AFTER)
    assert desk.recalls == ["slow"]
    desk.device.tick(100.0)
    assert "idle" not in desk.got
    desk.device.returned("slow", [(1, 3)], 100.0)
    assert desk.got["idle"] == [b"b"]


@pytest.mark.parametrize("stay", [0, 1])
def test_what_push_readers_leave_behind_comes_in_its_old_order(stay: int) -> None:
    desk = Desk(PushDevice)
    everything = [b"%d" % number for number in range(20)]
    for key in range(3):
        desk.device.ready(key, Ready(0, 0, 0), 0.0)
    desk.put(*everything)
    for key in range(stay, 3):
        desk.device.left(key, 0.0)
    desk.device.ready(0, Ready(100, 0, 0), 0.0)
    assert desk.got[0] == everything


def test_a_reader_that_is_away_is_neither_recalled_nor_robbed() -> None:
    desk = Desk(PullDevice)
    desk.device.ready("slow", Ready(4, 0, 1), 0.0)
    desk.put(b"a", b"b", b"c")
    desk.device.ready("idle", Ready(1, 0, 1), 0.0)
    desk.device.tick(RECALL_AFTER)
    desk.device.away("slow", RECALL_AFTER)
    assert desk.device.alarm is None
    desk.device.tick(100.0)
    assert "idle" not in desk.got
    desk.device.back("slow", 100.0)
    assert desk.device.alarm == 100.0 + RECALL_PATIENCE
    desk.device.tick(100.0 + RECALL_PATIENCE)
    assert desk.got["idle"] == [b"b"]


@pytest.mark.parametrize("device", [PullDevice, PushDevice])
def test_held_items_keep_their_leases(device: type[PullDevice | PushDevice]) -> None:
    desk = Desk(device)
    desk.put(b"0", b"1", b"2", b"3")
    desk.device.ready("a", Ready(5, 0, 0), 0.0)
    desk.device.ready("a", Ready(5, 3, 0, [(0, 1), (2, 3)]), 0.0)
    assert (desk.device.finished, desk.memory.bytes) == (1, 3)
    desk.device.lost("a", 0.0)
    for _ in range(4):
        desk.device.ready("b", Ready(9, len(desk.got.get("b", [])), 0), 0.0)
    assert desk.got["b"] == [b"0", b"2", b"3"]


def test_a_clean_end_condemns_nothing() -> None:
    desk = Desk(PullDevice, max_deliveries=2)
    desk.put(b"a")
    desk.device.ready("killed", Ready(1, 0, 1), 0.0)
    desk.device.lost("killed", 0.0)
    for key in range(5):
        desk.device.ready(key, Ready(1, 0, 1), 0.0)
        desk.device.left(key, 0.0)
    assert not desk.device.dead_letters
    assert desk.device.qsize() == 1
    desk.device.ready("killed", Ready(1, 0, 1), 0.0)
    desk.device.lost("killed", 0.0)
    assert len(desk.device.dead_letters) == 1


def test_an_item_for_which_nobody_comes_goes_round_more_and_more_slowly() -> None:
    desk, now = Desk(PullDevice), 0.0
    for key in ("a", "b"):
        desk.device.ready(key, Ready(1, 0, 0, (), True), now)
    desk.put(b"item")
    stays = []
    for number in range(20):
        holder = desk.deliveries[-1][0]
        assert desk.device.alarm is not None
        stays.append(desk.device.alarm - now)
        now = desk.device.alarm
        desk.device.tick(now)
        assert desk.recalls[-1] == holder
        first = desk.device.readers[holder].next - 1
        desk.device.returned(holder, [(first, first + 1)], now)
        desk.device.ready(holder, Ready(first + 2, first + 1, 0, (), True), now)
        assert len(desk.deliveries) == number + 2
        assert desk.deliveries[-1][0] != holder
    assert stays[0] == pytest.approx(RECALL_AFTER)
    assert stays[-1] == pytest.approx(LONGEST_ROUND)
    desk.device.ready("waits", Ready(1, 0, 1), now)
    assert desk.device.alarm == pytest.approx(now + RECALL_AFTER)


def test_what_the_only_one_who_listens_was_sent_stays_there() -> None:
    desk = Desk(PullDevice)
    desk.device.ready("a", Ready(1, 0, 0, (), True), 0.0)
    desk.put(b"item")
    assert desk.got == {"a": [b"item"]}
    assert desk.device.alarm is None


def test_another_thread_gets_items_while_one_holds_a_suspect() -> None:
    for device in (PullDevice, PushDevice):
        desk = Desk(device)
        desk.device.ready("killed", Ready(1, 0, 1), 0.0)
        desk.put(b"suspect")
        desk.device.lost("killed", 0.0)
        desk.device.ready("threads", Ready(1, 0, 1), 0.0)
        desk.put(b"next")
        desk.device.ready("threads", Ready(2, 1, 1, [(0, 1)]), 0.0)
        assert desk.got["threads"] == [b"suspect", b"next"]


@pytest.mark.parametrize("device", [PullDevice, PushDevice])
@pytest.mark.parametrize("limit", [1, 2, 3])
@pytest.mark.parametrize("others", [0, 1, 3])
def test_an_item_that_kills_its_readers_is_a_dead_letter_after_so_many_deaths(
    device: type[PullDevice | PushDevice], limit: int, others: int
) -> None:
    desk = Desk(device, max_deliveries=limit)
    desk.put(b"deadly", *(b"%d" % number for number in range(others)))
    deaths = 0
    while not desk.device.dead_letters:
        desk.device.ready(deaths, Ready(10, 0, 1), 0.0)
        assert desk.got[deaths][0] == b"deadly"
        desk.device.lost(deaths, 0.0)
        deaths += 1
    assert deaths == (max(limit, 2) if others else limit)  # the others may be guilty, too, of the first
    (letter,) = desk.device.dead_letters.values()
    assert bytes(letter.run.payload()) == b"deadly"
    assert not read_all(desk, "heir", b"deadly")
    assert desk.got.get("heir", []) == [b"%d" % number for number in range(others)]
    assert len(desk.device.dead_letters) == 1


def test_an_item_that_kills_process_after_process_in_company_is_a_dead_letter_at_last() -> None:
    desk = Desk(PullDevice, max_deliveries=2)
    desk.put(b"deadly")
    for number in range(IN_COMPANY * 2):
        assert not desk.device.dead_letters
        desk.device.ready(number, Ready(1, 0, 1), 0.0)
        desk.put(b"%d" % number)
        desk.device.ready(number, Ready(2, 1, 1, [(0, 1)]), 0.0)
        desk.device.ready(number, Ready(2, 2, 0, [(0, 1)]), 0.0)  # the other one is done with
        assert desk.got[number] == [b"deadly", b"%d" % number]
        desk.device.lost(number, 0.0)
    assert [letter.reason for letter in desk.device.dead_letters.values()] == [
        f"{IN_COMPANY * 2} readers died while they had it among others"
    ]


@given(st.integers(2, 6), st.integers(1, 12), st.integers(1000, 3000))
@settings(max_examples=30, deadline=None)
def test_what_many_dead_push_readers_were_dealt_stays_in_large_pieces(readers: int, deaths: int, items: int) -> None:
    desk = Desk(PushDevice)
    desk.device.ready("first", Ready(0, 0, 0), 0.0)
    desk.put(*(b"%d" % number for number in range(items * readers)))
    keys = ["first", *range(readers - 1)]
    for key in range(readers - 1):
        desk.device.ready(key, Ready(0, 0, 0), 0.0)
    for number in range(deaths):
        desk.device.lost(keys.pop(0), 0.0)
        if not keys or number < deaths - readers:
            keys.append(f"new {number}")
            desk.device.ready(keys[-1], Ready(0, 0, 0), 0.0)
    queues = [desk.device.readers[key].queue for key in keys]
    assert sum(len(run) for queue in queues for run in queue) == items * readers
    assert sum(map(len, queues)) <= 1 + deaths * readers


def read_all(desk: Desk, key: Key, until: bytes | None = None) -> bool:
    """Let a reader take what it is given, and tell of it, until it is given `until`; return whether it is."""
    told = 0
    while True:
        got = desk.got.get(key, [])
        if until in got:
            return True
        desk.device.ready(key, Ready(10_000, len(got), 1), 0.0)
        if len(desk.got.get(key, [])) == told:
            return False
        told = len(desk.got[key])


@pytest.mark.parametrize("device", [PullDevice, PushDevice])
def test_what_a_dead_reader_was_sent_ahead_does_not_come_one_by_one(device: type[PullDevice | PushDevice]) -> None:
    desk = Desk(device)
    everything = [b"%d" % number for number in range(8000)]
    desk.put(*everything)
    desk.device.ready("dead", Ready(10_000, 0, 0), 0.0)
    desk.device.ready("dead", Ready(10_000, 100, 0, [(99, 100)]), 0.0)
    desk.deliveries.clear()
    desk.device.lost("dead", 0.0)
    assert not read_all(desk, "heir")
    assert desk.got["heir"] == everything[99:]
    counts = [count for _, count in desk.deliveries]
    assert counts[: NEAR + 1] == [1] * (NEAR + 1)
    assert len(counts) < 60


@pytest.mark.parametrize("device", [PullDevice, PushDevice])
@given(place=st.integers(0, 7999))
@settings(max_examples=30, deadline=None)
def test_a_poisoned_item_is_found_wherever_it_is(device: type[PullDevice | PushDevice], place: int) -> None:
    desk = Desk(device, max_deliveries=3)
    everything = [b"%d" % number for number in range(8000)]
    desk.put(*everything)
    desk.device.ready(0, Ready(10_000, 0, 0), 0.0)
    deaths = 1
    desk.device.lost(0, 0.0)
    while read_all(desk, deaths, everything[place]):
        desk.device.lost(deaths, 0.0)
        deaths += 1
    assert [bytes(letter.run.payload()) for letter in desk.device.dead_letters.values()] == [everything[place]]
    assert deaths <= 1 + 6 + 3


def test_the_items_of_a_closed_queue_are_forgotten() -> None:
    desk = Desk(PullDevice)
    desk.put(b"abc")
    desk.device.close()
    assert desk.memory.bytes == 0


def test_a_dead_letter_does_not_keep_the_frame_that_it_came_in() -> None:
    desk = Desk(PullDevice, max_deliveries=1)
    desk.put(*(b"%d" % number for number in range(1000)))
    desk.device.ready("reader", Ready(1, 0, 1), 0.0)
    assert desk.device.give_back("reader", 0, "it is wrong", 0.0)
    (letter,) = desk.device.dead_letters.values()
    assert bytes(letter.run.batch.payload) == b"0"
    desk.device.close()
    assert desk.memory.dead == 0
