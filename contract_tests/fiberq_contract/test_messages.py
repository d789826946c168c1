"""Whole messages: their shapes, their order, and how many may be under way."""

from __future__ import annotations

import hashlib
import random
import signal
import time
from array import array
from collections import deque
from collections.abc import Sequence

import pytest

from fiberq.abc import MAX_PARTS, MIN_QUEUED, Buffer

from .lab import PATIENCE, Call, Hub, Lab, Link, plain, readable
from .rules import rule


def round_trip(hub: Hub, link: Link, parts: Sequence[Buffer]) -> None:
    """Send a message to the server and back, and see that it stays the same."""
    expected = [bytes(part) for part in parts]
    link.client.send(parts)
    message = hub.take()
    assert message.peer == link.peer
    assert plain(message.parts) == expected
    hub.socket.send(link.peer, message.parts)
    assert hub.hear(link.client) == expected


SHAPES: dict[str, list[bytes]] = {
    "no part": [],
    "one empty part": [b""],
    "two empty parts": [b"", b""],
    "empty parts around": [b"", b"x", b""],
    "one byte": [b"\0"],
    "every byte": [bytes(range(256))],
    "as many as allowed": [b"%d" % number for number in range(MAX_PARTS)],
    "as many empty ones as allowed": [b""] * MAX_PARTS,
    "large and small": [b"head", b"x" * 100_000, b"", b"tail"],
}


@rule("MSG-1")
@pytest.mark.parametrize("shape", SHAPES)
def test_a_message_arrives_with_the_same_parts(lab: Lab, shape: str) -> None:
    hub = lab.hub()
    round_trip(hub, lab.join(hub), SHAPES[shape])


@rule("MSG-1")
def test_parts_come_as_a_sequence_of_any_kind(lab: Lab) -> None:
    hub = lab.hub()
    link = lab.join(hub)
    round_trip(hub, link, (b"a", b"tuple"))
    round_trip(hub, link, [b"a", b"list"])


@rule("MSG-2")
def test_a_message_of_any_size_arrives_whole(lab: Lab) -> None:
    hub = lab.hub()
    link = lab.join(hub)
    edges = [2**power + step for power in (7, 8, 13, 16, 20) for step in (-1, 0, 1)]
    for size in (0, 1, *edges, 20_000_000):
        content = random.Random(size).randbytes(size)
        link.client.send([b"size", content])
        got = hub.take_from(link.peer)
        assert hashlib.sha256(got[1]).digest() == hashlib.sha256(content).digest(), f"{size} bytes to the server"
        hub.socket.send(link.peer, got)
        got = hub.hear(link.client)
        assert [got[0], len(got[1])] == [b"size", size]
        assert got[1] == content, f"{size} bytes to the client"


@rule("MSG-3")
def test_every_kind_of_buffer_can_be_sent(lab: Lab) -> None:
    hub = lab.hub()
    link = lab.join(hub)
    base = bytearray(b"0123456789")
    kinds: list[Buffer] = [
        b"bytes",
        bytearray(b"bytearray"),
        memoryview(b"view"),
        memoryview(base)[2:7],
        memoryview(b""),
    ]
    round_trip(hub, link, kinds)
    # Views whose items are larger than a byte: their `len` is not their size.
    for count in (5, 100_000):
        round_trip(hub, link, [memoryview(array("d", range(count))), memoryview(array("i", [-1] * count))])
    for size in (10, 300_000):
        round_trip(hub, link, [bytearray(size), memoryview(bytearray(size)), memoryview(bytes(size))[1:]])


@rule("MSG-4")
def test_a_received_buffer_stays_as_it_is(lab: Lab) -> None:
    hub = lab.hub()
    link = lab.join(hub)
    sizes = (10, 1000, 100_000)
    link.client.send([b"a" * size for size in sizes])
    at_server = hub.take().parts
    hub.socket.send(link.peer, [b"b" * size for size in sizes])
    hub.until(lambda: readable(link.client.fileno()), "the client's message arrives")
    at_client = link.client.recv(PATIENCE)
    assert at_client is not None
    for _ in range(20):
        round_trip(hub, link, [b"c" * size for size in sizes])
    link.client.close()
    hub.socket.close()
    lab.transport.close()
    assert plain(at_server) == [b"a" * size for size in sizes]
    assert plain(at_client) == [b"b" * size for size in sizes]


@rule("MSG-5")
def test_messages_arrive_in_order_and_once(lab: Lab) -> None:
    hub = lab.hub()
    links = [lab.join(hub) for _ in range(2)]
    chance = random.Random(5)
    sizes = [chance.choice((0, 1, 100, 5_000, 100_000)) for _ in range(400)]
    sent = 0
    received: dict[object, list[int]] = {link.peer: [] for link in links}
    while min(map(len, received.values())) < len(sizes):
        while sent < len(sizes) and sent - min(map(len, received.values())) < MIN_QUEUED // 2:
            for link in links:
                link.client.send([b"%d" % sent, bytes(sizes[sent])])
            sent += 1
        message = hub.take()
        number, content = plain(message.parts)
        assert len(content) == sizes[int(number)]
        received[message.peer].append(int(number))
        hub.socket.send(message.peer, [number, content])
        link = next(each for each in links if each.peer == message.peer)
        assert hub.hear(link.client)[0] == number
    hub.drain()
    assert not hub.inbox
    assert all(numbers == list(range(len(sizes))) for numbers in received.values())


@rule("MSG-5")
def test_replies_arrive_in_order_and_once(lab: Lab) -> None:
    hub = lab.hub()
    link = lab.join(hub)
    chance = random.Random(6)
    under_way: deque[int] = deque()
    for number in range(400):
        hub.socket.send(link.peer, [b"%d" % number, bytes(chance.choice((0, 100, 50_000)))])
        under_way.append(number)
        while under_way and (len(under_way) == MIN_QUEUED - 1 or chance.random() < 0.5):
            assert int(hub.hear(link.client)[0]) == under_way.popleft()
    while under_way:
        assert int(hub.hear(link.client)[0]) == under_way.popleft()
    assert link.client.recv(0) is None


@rule("MSG-6")
@pytest.mark.parametrize("size", [16, 256 * 1024])
def test_the_promised_number_of_messages_waits_in_each_direction(lab: Lab, size: int) -> None:
    hub = lab.hub()
    link = lab.join(hub)
    started = time.monotonic()
    for number in range(MIN_QUEUED):
        link.client.send([b"%d" % number, bytes(size)])
        hub.socket.send(link.peer, [b"%d" % number, bytes(size)])
    assert time.monotonic() - started < 5, "send blocked"
    for number in range(MIN_QUEUED):
        assert [int(part) if index == 0 else len(part) for index, part in enumerate(hub.hear(link.client))] == [
            number,
            size,
        ]
    for number in range(MIN_QUEUED):
        assert [int(part) if index == 0 else len(part) for index, part in enumerate(hub.take_from(link.peer))] == [
            number,
            size,
        ]


@rule("MSG-6")
def test_a_client_sends_the_promised_number_to_a_stopped_server(lab: Lab) -> None:
    child = lab.child("serve")
    client = lab.client()
    client.connect(child.expect("address"), PATIENCE)
    child.signal(signal.SIGSTOP)

    def send_all() -> None:
        for number in range(MIN_QUEUED):
            client.send([b"%d" % number, bytes(256 * 1024)])

    Call(send_all).result(5)
    child.signal(signal.SIGCONT)
    for number in range(MIN_QUEUED):
        got = plain(client.recv(PATIENCE))
        assert [int(got[0]), len(got[1])] == [number, 256 * 1024]


@rule("MSG-6")
def test_a_server_sends_the_promised_number_to_a_stopped_client(lab: Lab) -> None:
    hub = lab.hub()
    child = lab.child("talk", address=hub.address, count=1)
    peer = hub.take(30).peer
    child.expect("ready")
    child.signal(signal.SIGSTOP)

    def send_all() -> None:
        for number in range(MIN_QUEUED):
            hub.socket.send(peer, [b"%d" % number, bytes(256 * 1024)])

    Call(send_all).result(5)
    child.signal(signal.SIGCONT)
    for number in range(MIN_QUEUED):
        got = hub.take_from(peer)
        assert [int(got[0]), len(got[1])] == [number, 256 * 1024]


@rule("MSG-6")
def test_a_client_that_does_not_read_does_not_hold_up_another(lab: Lab) -> None:
    hub = lab.hub()
    deaf, other = lab.join(hub), lab.join(hub)
    for _ in range(MIN_QUEUED):
        hub.socket.send(deaf.peer, [bytes(256 * 1024)])
    for _ in range(20):
        round_trip(hub, other, [b"still served"])


@rule("MSG-7")
def test_many_clients_at_once_each_get_their_own(lab: Lab) -> None:
    hub = lab.hub()
    links = [lab.join(hub) for _ in range(50)]
    assert len({link.peer for link in links}) == 50
    for number in range(10):
        for which, link in enumerate(links):
            link.client.send([b"%d" % which, b"%d" % number])
    counts = dict.fromkeys((link.peer for link in links), 0)
    peers = [link.peer for link in links]
    for _ in range(500):
        message = hub.take()
        which, number = map(int, plain(message.parts))
        assert peers[which] == message.peer
        assert counts[message.peer] == number
        counts[message.peer] += 1
        hub.socket.send(message.peer, message.parts)
    for which, link in enumerate(links):
        for number in range(10):
            assert hub.hear(link.client) == [b"%d" % which, b"%d" % number]


@rule("MSG-7")
def test_many_clients_in_several_processes_are_served_at_once(lab: Lab) -> None:
    hub = lab.hub()
    children = [lab.child("chatter", address=hub.address, clients=5, rounds=40) for _ in range(3)]
    for _ in range(3 * 5 * 40):
        message = hub.take(30)
        hub.socket.send(message.peer, message.parts)
    for child in children:
        child.expect("done")


@rule("MSG-8")
def test_what_a_client_sent_leaves_without_a_further_call(lab: Lab) -> None:
    hub = lab.hub()
    link = lab.join(hub)
    link.client.send([bytes(20_000_000)])
    link.client.send([b"and a small one"])
    assert len(hub.take_from(link.peer)[0]) == 20_000_000
    assert hub.take_from(link.peer) == [b"and a small one"]
    hub.socket.send(link.peer, [b"thanks"])
    hub.until(lambda: readable(link.client.fileno()), "the reply makes the client readable")
    assert plain(link.client.recv(0)) == [b"thanks"]
