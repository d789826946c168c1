"""How many items a pull reader asks for ahead, by what its callers took for those before."""

from __future__ import annotations

import pickle
from array import array
from typing import Any

import pytest

from fiberq.protocol.bunch import LEAST, Bunch
from fiberq.protocol.frames import DELIVER, READY, Frame, decode, pack_deliver, pack_items, read_ready
from fiberq.protocol.kinds import Kind
from fiberq.protocol.reader import FRAMES_SINGLY, FRESH, GROWTH, HORIZON, MAX_AHEAD, MOST_FRESH, QUICK, Reader
from fiberq.protocol.session import Session, drain


class Worker:
    """Has an endless queue to itself: whatever it asks for is there at once."""

    def __init__(self, kind: str = "pull") -> None:
        self.reader = Reader(1, Kind(kind))
        self.session = Session(window=1 << 20)
        self.now = 1000.0
        self.session.connect(0, self.now)
        self.came = 0

    def work(self, *seconds: float) -> None:
        for each in seconds:
            if self.reader.take(1) is None:
                self.reader.waiting = 1
                self.reader.ask(self.session, self.now)
                self.send()
                self.reader.waiting = 0
                assert self.reader.take(1) is not None
                self.reader.arrived(self.now)
            elif len(self.reader.ready) < self.reader.low:
                self.reader.ask_ahead(self.session, self.now)
                self.send()
            self.now += each

    def send(self) -> None:
        limit = self.came
        for message in drain(self.session):
            frame = decode(message)
            if frame.kind == READY:
                limit = read_ready(frame.body).limit
        if limit > self.came:
            items = pack_items(b"\1\0\0\0" * (limit - self.came), [b"x" * (limit - self.came)])
            body = memoryview(b"".join(pack_deliver(self.came, 0, True, items)))
            self.came = limit
            self.reader.deliver(Frame(DELIVER, 1, (body,)), self.session, self.now)

    @property
    def ahead(self) -> int:
        return len(self.reader.ready)


def test_quick_items_are_asked_for_ahead_and_slow_ones_are_not() -> None:
    worker = Worker()
    worker.work(*[HORIZON / 1000] * 5000)
    assert 400 < worker.ahead <= 1500  # what it uses up in HORIZON, and what is left when it asks
    worker = Worker()
    worker.work(*[1e-9] * 50_000)
    assert 1000 < worker.ahead <= 1.5 * MAX_AHEAD
    worker = Worker()
    worker.work(*[2 * HORIZON] * 50)
    assert worker.ahead == 0


def test_nothing_is_asked_for_ahead_where_one_task_in_ten_takes_long() -> None:
    worker = Worker()
    worker.work(*[HORIZON / 4] * 5, *[25 * HORIZON] * 4)
    for _ in range(10):
        worker.work(*[HORIZON / 4] * 9, 25 * HORIZON)
        assert worker.ahead == 0, "it sits behind a long task"


@pytest.mark.parametrize("slow", [5 * HORIZON, 100 * HORIZON])
def test_who_gets_slow_asks_for_one_at_once(slow: float) -> None:
    worker = Worker()
    worker.work(*[HORIZON / 1000] * 5000)
    worker.work(*[slow] * (worker.ahead + 2))
    assert worker.ahead == 0
    assert not worker.reader.ready


@pytest.mark.parametrize(
    ("lag", "took", "hiccup"),
    [(0.05, 0.1, True), (0.0, 0.1, False), (0.05, 0.3, False), (9.0, 0.3, False)],
    ids=["it waited for a processor", "there is no reason to wait", "it took longer", "nothing excuses that"],
)
def test_who_was_kept_from_running_goes_on_asking_for_many(lag: float, took: float, hiccup: bool) -> None:
    worker = Worker()
    worker.work(*[HORIZON / 1000] * 5000)
    reader = worker.reader
    reader._adapt(worker.session, worker.now)
    before = reader._ahead
    worker.session._newest_trip = lag
    worker.work(took)
    reader._adapt(worker.session, worker.now)
    assert reader._ahead == (before // GROWTH if hiccup else 1)


def test_a_hiccup_is_no_excuse_where_items_take_long_on_average() -> None:
    worker = Worker()
    worker.session._newest_trip = 0.05
    worker.work(*[HORIZON] * 30)
    worker.reader._ahead = 64
    worker.work(0.1)
    worker.reader._adapt(worker.session, worker.now)
    assert worker.reader._ahead == 1


def test_a_look_for_a_recall_waits_for_half_a_round_trip_while_items_are_quick() -> None:
    worker = Worker()
    worker.work(*[HORIZON / 1000] * 5000)
    reader, session = worker.reader, worker.session
    reader.progress(session, worker.now)
    told, session.round_trip = worker.now, 8 * FRESH
    reader.take(1)
    assert not reader.stays_fresh(session, told + 2 * QUICK), "it takes long"
    for _ in range(100):
        assert reader.take(1) is not None
    assert reader.stays_fresh(session, told + 3 * FRESH)
    assert reader.fresh_until == pytest.approx(told + 4 * FRESH)
    assert not reader.stays_fresh(session, told + 5 * FRESH), "half a round trip is over"
    session.round_trip = 9.0
    assert reader.stays_fresh(session, told + 0.99 * MOST_FRESH)
    assert not reader.stays_fresh(session, told + MOST_FRESH)


@pytest.mark.parametrize("pause", [HORIZON, 1.0, 1e6])
def test_a_pause_is_soon_forgotten(pause: float) -> None:
    worker = Worker()
    worker.work(pause, *[HORIZON / 1000] * 100)
    assert worker.ahead > 10


def test_what_goes_back_was_not_used() -> None:
    worker = Worker()
    worker.work(*[HORIZON / 100] * 500)
    left = worker.ahead
    assert left > 10
    worker.work(50 * HORIZON)
    worker.reader.recalled(worker.session, worker.now)
    worker.send()
    worker.work(50 * HORIZON)
    assert worker.ahead == 0


@pytest.mark.parametrize("kind", ["pull", "push"])
@pytest.mark.parametrize("seconds", [HORIZON / 1000, 5 * HORIZON])
def test_who_waits_says_so_once(kind: str, seconds: float) -> None:
    """The node's answer wakes the caller, who asks again."""
    worker = Worker(kind)
    reader, session = worker.reader, worker.session
    reader.waiting = 1
    reader.ask(session, worker.now)
    drain(session)
    items = pack_items(b"\1\0\0\0", [b"x"])
    body = memoryview(b"".join(pack_deliver(0, 0, True, items)))
    reader.deliver(Frame(DELIVER, 1, (body,)), session, worker.now)
    assert reader.take(1) is not None
    reader.waiting = 0
    reader.arrived(worker.now)
    worker.now += seconds
    assert reader.take(1) is None
    reader.waiting = 1
    sent = 0
    for _ in range(100):
        reader.ask(session, worker.now)
        session.tick(worker.now)
        sent += sum(decode(message).kind == READY for message in drain(session))
        worker.now += 0.001
    assert sent <= 2


def _delivered(reader: Reader, obj: object) -> list[Any]:
    """What is ready when a frame of pickles has come."""
    pickles = [pickle.dumps([number, obj, obj], 5) for number in range(LEAST)]
    lengths = array("I", map(len, pickles)).tobytes()
    first = reader._next
    body = memoryview(b"".join(pack_deliver(first, 0, True, pack_items(lengths, pickles))))
    reader.deliver(Frame(DELIVER, 1, (body,)), Session(), 0.0)
    assert [number for number, _ in reader.ready] == list(range(first, first + LEAST))
    return [item for _, item in reader.ready]


def test_small_pickles_that_come_together_are_read_together_unless_that_failed() -> None:
    reader = Reader(1, Kind("pull"))
    (*_, one) = _delivered(reader, "text that is there twice")
    assert isinstance(one, Bunch)
    assert one.read() == []
    taken = reader.take(1)
    assert taken is not None
    assert pickle.loads(taken[1])[0] == 0, "who takes gets pickles"  # type: ignore[arg-type]
    assert [pickle.loads(item)[0] for item in reader.take_more(1, LEAST)] == list(range(1, LEAST))  # type: ignore[arg-type]
    for _ in range(1 + FRAMES_SINGLY):
        assert {type(item) for item in _delivered(reader, 1)} == {bytes}
        reader.ready.clear()
    (*_, one) = _delivered(reader, 1)
    assert isinstance(one, Bunch)
    assert one.read() == [[number, 1, 1] for number in range(LEAST)]
    reader.ready.clear()
    assert {type(item) for item in _delivered(reader, 1)} == {Bunch}


def test_messages_of_a_pipe_stay_as_they_are() -> None:
    assert {type(item) for item in _delivered(Reader(1, Kind("pipe")), 1)} == {bytes}
