"""Sessions: every frame arrives exactly once and in order, whatever the connection drops, repeats or cuts off."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fiberq.abc import Buffer
from fiberq.errors import ProtocolError
from fiberq.protocol.frames import ACK, PUT, READY, RESEND, Frame, decode, encode
from fiberq.protocol.session import ACK_DELAY, PATIENT, RETRANSMIT, WINDOW, Session, drain

settings.register_profile("steady", deadline=None)  # a loaded machine is no failure
settings.load_profile("steady")


class Line:
    """Two sessions, and what is on its way between them."""

    def __init__(self, window: int = WINDOW) -> None:
        self.now = 0.0
        self.ends = [Session(window), Session(window)]
        self.ways: list[deque[tuple[Buffer, ...]]] = [deque(), deque()]  # from end 0, from end 1
        self.sent: list[list[bytes]] = [[], []]
        self.got: list[list[bytes]] = [[], []]
        self.connect()

    def connect(self) -> None:
        first, second = self.ends
        for end in self.ends:
            end.disconnect()
        first.connect(second.received, self.now)
        second.connect(first.received, self.now)

    def cut(self) -> None:
        for way in self.ways:
            way.clear()

    def send(self, end: int) -> None:
        data = b"%d" % len(self.sent[end])
        self.sent[end].append(data)
        assert self.ends[end].send(Frame(PUT, 7, (data,), (data,)), self.now) == len(self.sent[end])

    def leave(self) -> None:
        for end, way in zip(self.ends, self.ways, strict=True):
            way.extend(drain(end))

    def arrive(self, end: int, repeat: bool = False) -> None:
        """The oldest message on its way to `end` arrives."""
        way = self.ways[1 - end]
        if way:
            message = way[0] if repeat else way.popleft()
            frame = self.ends[end].accept(decode(message), self.now)
            if frame is not None and frame.kind != ACK:
                assert list(frame.parts) == [bytes(frame.body[0])]
                assert frame.channel == 7
                self.got[end].append(bytes(frame.body[0]))

    def settle(self) -> None:
        """Let everything arrive, and the timers run."""
        for _ in range(1000):
            self.leave()
            if not any(self.ways):
                due = min(end.due() for end in self.ends)
                if due == float("inf"):
                    return
                self.now = max(self.now, due)
                for end in self.ends:
                    end.tick(self.now)
                continue
            self.arrive(0)
            self.arrive(1)
        raise AssertionError("the sessions never fall silent")


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["send", "send", "leave", "arrive", "arrive", "repeat", "drop", "cut", "tick"]), st.booleans()
    ),
    max_size=120,
)


@settings(max_examples=300)
@given(STEPS, st.sampled_from([4, WINDOW]))
def test_every_frame_arrives_once_and_in_order(steps: list[tuple[str, bool]], window: int) -> None:
    line = Line(window)
    for step, side in steps:
        number = int(side)
        if step == "send":
            line.send(number)
        elif step == "leave":
            line.leave()
        elif step == "arrive":
            line.arrive(number)
        elif step == "repeat":
            line.arrive(number, repeat=True)
        elif step == "drop":
            if line.ways[number]:
                line.ways[number].popleft()
        elif step == "cut":
            line.cut()
            line.connect()
        else:
            line.now += 0.5
            for one in line.ends:
                one.tick(line.now)
        for mine, other in ((0, 1), (1, 0)):
            assert line.got[mine] == line.sent[other][: len(line.got[mine])]
            assert len(line.ends[mine].unacknowledged) <= window
    line.settle()
    assert line.got == [line.sent[1], line.sent[0]]
    assert [end.busy for end in line.ends] == [0, 0]


def test_frames_wait_while_there_is_no_connection() -> None:
    line = Line()
    for end in line.ends:
        end.disconnect()
    line.send(0)
    line.leave()
    assert not line.ways[0]
    assert line.ends[0].due() == float("inf")
    line.connect()
    line.settle()
    assert line.got[1] == [b"0"]


def test_a_lone_frame_is_acknowledged_after_the_delay_and_a_burst_at_once() -> None:
    line = Line()
    line.send(0)
    line.leave()
    line.arrive(1)
    assert line.ends[1].due() == ACK_DELAY
    for _ in range(WINDOW // 4):
        line.send(0)
    line.leave()
    while line.ways[0]:
        line.arrive(1)
    assert line.ends[1].due() == line.now


def test_an_acknowledgement_rides_on_the_next_frame() -> None:
    line = Line()
    line.send(0)
    line.leave()
    line.arrive(1)
    line.send(1)
    line.leave()
    line.arrive(0)
    assert line.ends[0].busy == 0
    assert line.ends[1].ack_at is None


def test_a_gap_is_asked_for_once() -> None:
    line = Line()
    for _ in range(5):
        line.send(0)
    line.leave()
    line.ways[0].popleft()
    while line.ways[0]:
        line.arrive(1)
    line.leave()
    assert [decode(message).flags for message in line.ways[1]] == [RESEND]
    line.settle()
    assert line.got[1] == line.sent[0]
    assert line.now < RETRANSMIT, "the gap waited for the timer"


def test_a_stalled_stream_recovers_after_one_timeout() -> None:
    line = Line()
    for _ in range(WINDOW):
        line.send(0)
    line.leave()
    line.cut()
    line.settle()
    assert line.got[1] == line.sent[0]
    assert line.now < 2 * RETRANSMIT


def test_a_reconnect_sends_old_frames_before_new_ones() -> None:
    line = Line(window=2)
    for _ in range(4):
        line.send(0)
    line.leave()
    line.arrive(1)
    line.cut()
    line.connect()
    line.leave()
    assert [decode(message).seq for message in line.ways[0]] == [2, 3]


def test_a_waiting_frame_can_be_replaced_and_one_that_left_cannot() -> None:
    line = Line(window=1)
    line.send(0)
    line.send(0)
    session = line.ends[0]
    assert not session.replace(1, Frame(PUT, 7, (b"x",), (b"x",)))
    assert session.replace(2, Frame(PUT, 7, (b"y",), (b"y",)))
    line.settle()
    assert line.got[1] == [b"0", b"y"]


def test_a_frame_is_not_replaced_once_items_wait_behind_it() -> None:
    session = Line(window=1).ends[0]
    for kind in (READY, READY, READY, PUT):
        session.send(Frame(kind, 7), 0.0)
    assert not session.replace(3, Frame(READY, 7))
    session.send(Frame(READY, 7), 0.0)
    assert session.replace(5, Frame(READY, 8))
    assert [frame.channel for frame in session.waiting] == [7, 7, 7, 8]


def test_an_acknowledgement_of_what_was_never_sent_is_refused() -> None:
    with pytest.raises(ProtocolError):
        Session().accept(decode(encode(Frame(ACK), 0, 0, 1)), 0.0)
    with pytest.raises(ProtocolError):
        Session().connect(1, 0.0)


def test_frames_keep_their_bodies_when_they_are_sent_again() -> None:
    line = Line()
    body: Any = memoryview(b"body")
    line.ends[0].send(Frame(PUT, 7, (body, b"!")), 0.0)
    first = drain(line.ends[0])
    line.ends[0].resend(0.0)
    again = drain(line.ends[0])
    assert [bytes(decode(message).body) for message in (*first, *again)] == [b"body!"] * 2


def _message(seq: int, flags: int = 0, ack: int = 0) -> Any:
    return decode(encode(Frame(PUT, 7, (b"x",)), flags, seq, ack))


def test_who_asks_for_the_same_frames_again_and_again_gets_them_once_a_second() -> None:
    end = Session()
    end.connect(0, 0.0)
    for _ in range(3):
        end.send(Frame(PUT, 7, (b"large",)), 0.0)
    drain(end)
    for _ in range(1000):
        end.accept(_message(0, RESEND), 0.5)
    assert len(drain(end)) == 3
    end.accept(_message(0, RESEND), 0.5 + RETRANSMIT)
    assert len(drain(end)) == 3
    end.accept(_message(0, RESEND, ack=1), 0.5 + RETRANSMIT)
    assert len(drain(end)) == 2


def test_who_sends_and_acknowledges_nothing_breaks_the_protocol() -> None:
    end = Session()
    end.connect(0, 0.0)
    end.send(Frame(PUT, 7, (b"unread",)), 0.0)
    for seq in range(1, PATIENT + 1):
        end.accept(_message(seq), 0.0)
    with pytest.raises(ProtocolError, match="acknowledges none"):
        end.accept(_message(PATIENT + 1), 0.0)


def test_who_repeats_himself_without_end_breaks_the_protocol() -> None:
    end = Session()
    end.connect(0, 0.0)
    end.accept(_message(1), 0.0)
    for _ in range(PATIENT):
        end.accept(_message(1), 0.0)
    with pytest.raises(ProtocolError, match="again and again"):
        end.accept(_message(1), 0.0)
    assert end.received == 1
