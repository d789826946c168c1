"""What one client makes the node keep or send is bounded, whatever he says: the broker, without a socket."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable
from typing import Any

import pytest

from fiberq.access import Authority, Keys, Right
from fiberq.protocol import channels, frames, members, strangers
from fiberq.protocol.broker import Broker
from fiberq.protocol.frames import Frame, Ready, decode, encode, pack_items, pack_json, pack_ready, read_json

JOBS, OTHERS = 16, 17


class Peer:
    """A client that says what it likes, and acknowledges only if it is told to."""

    def __init__(self, broker: Broker, peer: Hashable, token: str = "") -> None:
        self.broker = broker
        self.peer = peer
        self.token = token
        self.sent = 0
        self.now = 0.0
        self.heard: list[frames.Received] = []

    def hello(self, number: int = 1, session: str | None = None, **more: Any) -> None:
        name = session or f"session {self.peer}"
        hello = {"protocol": frames.VERSION, "byteorder": sys.byteorder, "session": name, "hellos": number}
        self.say(Frame(frames.HELLO, 0, pack_json(hello | {"received": 0, "token": self.token} | more)), 0)

    def say(self, frame: Frame, seq: int | None = None, flags: int = 0, ack: int = 0) -> None:
        if seq is None:
            self.sent += 1
            seq = self.sent
        self.broker.message(self.peer, encode(frame, flags, seq, ack), self.now)

    def ask(self, **question: Any) -> None:
        self.say(Frame(frames.REQUEST, 0, pack_json({"id": self.sent + 1, **question})))

    def listen(self) -> list[frames.Received]:
        new = [decode(parts) for peer, parts in self.broker.output(self.now) if peer == self.peer]
        self.heard += new
        return new

    def refusal(self) -> str | None:
        """Why it was refused, if it was."""
        said = [read_json(each.body)["error"] for each in self.listen() if each.kind == frames.REFUSED]
        return said[0] if said else None


def until_refused(peer: Peer, act: Callable[[], object], most: int) -> str:
    for _ in range(most):
        act()
        why = peer.refusal()
        if why is not None:
            return why
    raise AssertionError(f"not refused within {most} times")


@pytest.fixture
def broker() -> Broker:
    authority = Authority(Keys(b"s" * 32, b"t" * 32))
    broker = Broker("node", max_bytes=10_000, authority=authority)
    owner = Peer(broker, "owner", authority.sign(Right()).hex())
    owner.hello()
    for number in (JOBS, OTHERS):
        owner.ask(op="create", channel=number, kind=["pull", 0], name={JOBS: "jobs", OTHERS: "others"}[number])
    return broker


def member(broker: Broker, *holds: tuple[str, str], number: int = 1) -> Peer:
    authority = Authority(Keys(b"s" * 32, b"t" * 32))
    peer = Peer(broker, f"peer {number}", authority.sign(Right(holds, 0, number)).hex())
    peer.hello()
    peer.listen()
    return peer


def test_who_says_no_hello_is_hung_up_on(broker: Broker) -> None:
    peer = Peer(broker, "stranger")
    for _ in range(1000):
        peer.say(Frame(frames.ACK), 0)
    assert [each.kind for each in peer.listen()] == [frames.HELLO_FIRST]
    assert broker.drops() == []
    peer.now = strangers.HELLO_WITHIN
    assert broker.due() <= peer.now
    peer.listen()
    assert broker.drops() == ["stranger"]
    assert not broker._strangers.known


@pytest.mark.parametrize("message", [[], [b"nonsense"], encode(Frame(frames.HELLO, 0, (b"{",)), 0, 0, 0)])
def test_who_sends_nonsense_is_hung_up_on(broker: Broker, message: Any) -> None:
    broker.message("stranger", message, 0.0)
    broker.output(strangers.HELLO_WITHIN)
    assert broker.drops() == ["stranger"]


def test_strangers_are_not_kept_without_end(broker: Broker) -> None:
    for number in range(3 * strangers.MAX_STRANGERS):
        Peer(broker, number).say(Frame(frames.ACK), 0)
    assert len(broker._strangers.known) == strangers.MAX_STRANGERS
    assert broker.drops() == list(range(2 * strangers.MAX_STRANGERS))
    for number in range(3 * strangers.MAX_STRANGERS):
        broker.lost(number, 0.0)
    assert not broker._strangers.known


def test_who_has_no_right_is_told_so_once_a_second(broker: Broker) -> None:
    peer = Peer(broker, "stranger", "00" * 40)
    for _ in range(1000):
        peer.hello()
    assert [each.kind for each in peer.listen()] == [frames.REFUSED]
    peer.hello(protocol=0)
    assert peer.listen() == []


def test_who_has_another_version_leaves_a_line_that_is_not_his_own(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    peer = Peer(broker, "stranger")
    for _ in range(2):
        peer.hello(protocol="1\n2", host="a\nb", pid="3\n4")
    (line,) = (each.getMessage() for each in caplog.records)
    assert line == r"a process on 'a\nb' was refused: it speaks another protocol"


def test_hellos_have_an_end(broker: Broker) -> None:
    peer = member(broker, ("jobs", "rw"))
    hellos = iter(range(2, 100))
    assert "again and again" in until_refused(peer, lambda: peer.hello(next(hellos)), strangers.MAX_HELLOS)


def test_a_connection_that_was_cut_off_is_not_listened_to(broker: Broker) -> None:
    peer = member(broker, ("jobs", "rw"))
    peer.say(Frame(frames.WELCOME, JOBS))
    assert peer.refusal()
    for number in range(100):
        peer.hello(number + 5, session=f"another {number}")
    assert peer.listen() == []
    peer.now = strangers.FAREWELL
    peer.listen()
    assert broker.drops() == [peer.peer]
    broker.lost(peer.peer, peer.now)
    assert list(broker._strangers.greetings) == ["owner"]


@pytest.mark.parametrize(
    "question",
    [
        {"op": "queues", "holds": []},
        {"op": "create", "channel": 99, "kind": ["pull", 0], "holds": []},
        {"op": "delete", "channel": OTHERS, "holds": []},
        {"op": "purge", "channel": OTHERS, "holds": [[JOBS, "rw"]]},
        {"op": "dead letters", "channel": OTHERS, "holds": []},
        {"op": "flight", "token": "t", "holds": [[JOBS, "rw"]], "within": OTHERS},
    ],
)
def test_what_is_beside_a_question_gives_no_right_to_it(broker: Broker, question: dict[str, Any]) -> None:
    peer = member(broker, ("jobs", "rw"))
    peer.ask(**question)
    (reply,) = (read_json(each.body) for each in peer.listen() if each.kind == frames.REPLY)
    assert reply["code"] == "denied"
    assert set(broker._channels.known) == {frames.DEFAULT_CHANNEL, JOBS, OTHERS}


def test_who_asks_and_does_not_read_is_cut_off(broker: Broker) -> None:
    peer = member(broker, ("jobs", "rw"))
    why = until_refused(peer, lambda: peer.ask(op="find", name="x"), members.MAX_UNREAD + 2)
    assert "does not read" in why
    peer = member(broker, ("jobs", "rw"), number=2)
    why = until_refused(peer, lambda: peer.say(Frame(frames.PUT, 99)), members.MAX_UNREAD + 2)
    assert "does not read" in why


def test_a_few_answers_of_any_size_are_no_breach(broker: Broker) -> None:
    peer = member(broker, ("jobs", "rw"))
    (target,) = (each for each in broker._members.values() if each.peer == peer.peer)
    target.answer(Frame(frames.REPLY, 0, (bytes(2 * members.MAX_UNREAD_BYTES),), (bytes(1 << 20),)), 0.0)
    for _ in range(members.FEW_UNREAD - 1):
        peer.ask(op="find", name="x")
    assert peer.refusal() is None
    peer.ask(op="find", name="x")
    assert "does not read" in str(peer.refusal())


def test_answers_that_are_read_are_given_without_end(broker: Broker) -> None:
    peer = member(broker, ("jobs", "rw"))
    for _ in range(3 * members.MAX_UNREAD):
        peer.sent += 1
        peer.say(
            Frame(frames.REQUEST, 0, pack_json({"id": 1, "op": "find", "name": "jobs"})), peer.sent, ack=peer.sent - 1
        )
        assert len([each for each in peer.listen() if each.kind == frames.REPLY]) == 1


def test_for_who_does_not_read_no_more_than_so_much_waits(broker: Broker) -> None:
    peer = member(broker, ("jobs", "r"))
    peer.ask(op="open", holds=[[JOBS, "r"]])
    putter = Peer(broker, "owner")
    putter.sent = 2
    target = next(each for each in broker._members.values() if each.peer == peer.peer)
    for _ in range(members.MAX_WAITING + 100):
        broker._outbox.send(target, Frame(frames.RESUME, JOBS))
    assert "too much waits" in str(peer.refusal())
    assert target.name not in broker._members


def test_who_puts_on_although_he_is_paused_is_cut_off(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "OVERDRAFT", 0)
    peer = member(broker, ("jobs", "w"))
    peer.ask(op="open", holds=[[JOBS, "w"]])
    item = Frame(frames.PUT, JOBS, pack_items((1000).to_bytes(4, sys.byteorder), (b"x" * 1000,)))
    why = until_refused(peer, lambda: peer.say(item), 100)
    assert "asked to pause" in why
    assert broker.memory.bytes <= (channels.UNDER_WAY + 2) * 10_000


@pytest.mark.parametrize(
    "question",
    [
        {"op": "flight", "token": "t" * 1000, "holds": []},
        {"op": "unused", "token": "t" * 1000},
        {"op": "lease", "channel": JOBS, "item": 0, "what": "keep", "seconds": float("nan")},
        {"op": "lease", "channel": JOBS, "item": 0, "what": "keep", "seconds": 1e300},
        {"op": "restrict", "holds": [[JOBS, "r"]], "seconds": 1e300},
        {"op": "find", "name": "x" * (frames.MAX_JSON + 1)},
    ],
)
def test_what_is_out_of_bounds_is_a_breach(broker: Broker, question: dict[str, Any]) -> None:
    peer = member(broker, ("jobs", "rw"))
    peer.ask(**question)
    assert peer.refusal()


def test_names_are_bounded(broker: Broker) -> None:
    owner = Peer(broker, "owner")
    owner.sent = 2
    owner.ask(op="create", channel=99, kind=["pull", 0], name="x" * 256)
    assert "1 to 255 characters" in read_json(owner.listen()[-1].body)["error"]
    owner.hello(session="x" * 256)
    assert owner.refusal()


def test_a_right_keeps_few_handles_in_flight(broker: Broker) -> None:
    peer = member(broker, ("jobs", "w"))
    numbers = iter(range(10 * channels.MAX_FLIGHTS))

    def fly() -> None:
        peer.ask(op="flight", token=str(next(numbers)), holds=[[JOBS, "w" * 1000], [12345, "rw"]])
        (target,) = (each for each in broker._members.values() if each.peer == peer.peer)
        assert target.flights[str(peer.sent - 1)] == {JOBS: "w"}

    for _ in range(channels.MAX_FLIGHTS):
        fly()
    peer.ask(op="flight", token="one more", holds=[[JOBS, "w"]])
    assert "in flight" in str(peer.refusal())
    assert not any(isinstance(each, str) for each in broker._channels.known[JOBS].holders)


def test_a_range_that_ends_before_it_begins_gives_nothing_back(broker: Broker) -> None:
    peer = member(broker, ("jobs", "rw"))
    peer.ask(op="open", holds=[[JOBS, "rw"]])
    peer.say(Frame(frames.PUT, JOBS, pack_items((1).to_bytes(4, sys.byteorder) * 9, (b"123456789",))))
    peer.say(Frame(frames.READY, JOBS, pack_ready(Ready(9, 0, 0))))
    peer.say(Frame(frames.RETURN, JOBS, frames.pack_ranges([(5, 2), (4, 4)])))
    device = broker._channels.known[JOBS].device
    (lease,) = next(iter(device.readers.values())).leases
    assert (len(lease.run), list(device.queued()), device.bytes) == (9, [], 9)


def test_a_report_names_so_many_ranges(broker: Broker) -> None:
    peer = member(broker, ("jobs", "r"))
    peer.ask(op="open", holds=[[JOBS, "r"]])
    held = [(2 * number, 2 * number + 1) for number in range(frames.MAX_RANGES + 1)]
    peer.say(Frame(frames.READY, JOBS, pack_ready(Ready(1, 1 << 40, 0, held))))
    assert "too long" in str(peer.refusal())


def test_who_was_taken_for_dead_is_told_so_at_once() -> None:
    """It is asked for its hello first, and may not wait for a second answer then."""
    late = Peer(Broker("node"), "late")
    late.say(Frame(frames.READY, JOBS, pack_ready(Ready(1, 0, 1))), 5)
    assert [each.kind for each in late.listen()] == [frames.HELLO_FIRST]
    late.hello(2, resume=True, node="node")
    assert "the session ended" in (late.refusal() or "")
