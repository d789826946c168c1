"""The end of a connection: seen soon, seen once, never seen where there was none."""

from __future__ import annotations

import signal
import time
from collections.abc import Hashable

import pytest

from fiberq.abc import ClientSocket
from fiberq.errors import ConnectionLost

from .lab import LOSS_LIMIT, PATIENCE, Call, Hub, Lab, Link, assert_within, plain, readable
from .processes import Child
from .rules import proving, rule


def talker(lab: Lab, hub: Hub, **args: object) -> tuple[Child, Hashable]:
    """A client in a process of its own that sent a message, which was received; and its peer."""
    child = lab.child("talk", address=hub.address, count=1, **args)
    peer = hub.take(30).peer
    child.expect("ready")
    return child, peer


def loss_after(hub: Hub, peer: Hashable, started: float) -> float:
    """Seconds from `started` until the loss of `peer` was reported."""
    deadline = time.monotonic() + PATIENCE
    while peer not in hub.lost and time.monotonic() < deadline:
        hub.drive(PATIENCE)
    assert peer in hub.lost, "the loss was never reported"
    return time.monotonic() - started


@rule("LOSS-1", "LOSS-3")
def test_a_killed_client_is_lost_within_100_ms(lab: Lab) -> None:
    hub = lab.hub()
    stays = lab.join(hub)

    def measure() -> float:
        child, peer = talker(lab, hub)
        started = time.monotonic()
        child.signal(signal.SIGKILL)
        return loss_after(hub, peer, started)

    with proving("LOSS-1"):
        assert_within(LOSS_LIMIT, measure)
        stays.client.send([b"still here"])
        assert hub.take_from(stays.peer) == [b"still here"]
        hub.drive(0.3)
        assert stays.peer not in hub.lost
        assert not hub.late
    with proving("LOSS-3"):
        assert len(hub.lost) == len(set(hub.lost))


@rule("LOSS-1")
def test_a_killed_client_is_lost_although_a_program_that_it_started_lives(lab: Lab) -> None:
    hub = lab.hub()

    def measure() -> float:
        child, peer = talker(lab, hub, helper=True)
        started = time.monotonic()
        child.signal(signal.SIGKILL)
        return loss_after(hub, peer, started)

    assert_within(LOSS_LIMIT, measure)


@rule("LOSS-2", "LOSS-3")
def test_a_client_that_closes_is_lost_within_100_ms(lab: Lab) -> None:
    hub = lab.hub()

    def measure() -> float:
        link = lab.join(hub)
        started = time.monotonic()
        link.client.close()
        return loss_after(hub, link.peer, started)

    with proving("LOSS-2"):
        for _ in range(5):
            assert_within(LOSS_LIMIT, measure)
    with proving("LOSS-3"):
        assert len(hub.lost) == len(set(hub.lost))


@rule("LOSS-1", "LOSS-4", "MSG-5")
def test_the_messages_of_a_killed_client_come_in_order_before_its_loss(lab: Lab) -> None:
    hub = lab.hub()
    child = lab.child("talk", address=hub.address, count=50)
    hub.until(lambda: hub.inbox, "the first message arrives", 30)
    child.expect("ready")
    child.kill()
    peer = hub.inbox[0].peer
    with proving("LOSS-1"):
        loss_after(hub, peer, time.monotonic())
    hub.drive(0.2)
    hub.drain()
    with proving("LOSS-4"):
        assert not hub.late, "a message came after its peer's loss"
    with proving("MSG-5"):
        numbers = [int(plain(message.parts)[0]) for message in hub.inbox]
        assert numbers == list(range(len(numbers)))


def _heard(hub: Hub, link: Link) -> int:
    return sum(each.peer == link.peer for each in hub.inbox)


@rule("LOSS-4")
def test_a_loss_does_not_overtake_the_messages_before_it(lab: Lab) -> None:
    hub = lab.hub()
    for _ in range(25):
        link = lab.join(hub)
        observer = lab.join(hub)
        for number in range(50):
            link.client.send([b"%d" % number])
        # Once the first one is here and another client was served, what the client sent has left it.
        assert hub.take_from(link.peer) == [b"0"]
        for pings in range(1, 4):
            observer.client.send([b"ping"])
            hub.until(lambda: _heard(hub, observer) == pings, "the observer is heard")  # noqa: B023
        before = len(hub.inbox)
        link.client.close()
        loss_after(hub, link.peer, time.monotonic())
        numbers = [int(plain(each.parts)[0]) for each in hub.inbox if each.peer == link.peer]
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(hub.inbox) >= before
        hub.drive(0.02)
        assert not hub.late
        hub.inbox.clear()


@rule("LOSS-5", "LOSS-3")
def test_a_live_peer_is_never_lost_while_a_hundred_others_come_and_die(lab: Lab) -> None:
    hub = lab.hub()
    live = [lab.join(hub) for _ in range(3)]
    dead: list[Hashable] = []
    for round_number in range(3):
        child = lab.child("crowd", address=hub.address, count=20)
        hub.until(lambda: len(hub.inbox) == 20, "the crowd arrives", 30)
        child.expect("ready")
        dead += [message.peer for message in hub.inbox]
        hub.inbox.clear()
        child.kill()
        # At once, so that the numbers of descriptors that the dead held are taken again.
        newcomers = [lab.join(hub) for _ in range(15)]
        for link in newcomers:
            if round_number % 2:
                hub.socket.send(link.peer, [b"bye"])
            link.client.close()
            live.append(lab.join(hub))
            dead.append(link.peer)
        with proving("LOSS-5"):
            for link in live:
                link.client.send([b"alive"])
                assert hub.take_from(link.peer) == [b"alive"]
    with proving("LOSS-5"):
        hub.until(lambda: set(dead) <= set(hub.lost), "every dead peer is lost")
        hub.drive(0.3)
        assert not {link.peer for link in live} & set(hub.lost)
        assert set(map(repr, hub.lost)) == set(map(repr, dead))
        for link in live:
            hub.socket.send(link.peer, [b"alive"])
            assert hub.hear(link.client) == [b"alive"]
    with proving("LOSS-3"):
        assert len(hub.lost) == len(set(hub.lost))


@rule("LOSS-6")
def test_a_stopped_client_is_not_lost(lab: Lab) -> None:
    hub = lab.hub()
    child, peer = talker(lab, hub)
    child.signal(signal.SIGSTOP)
    for number in range(10):
        hub.socket.send(peer, [b"%d" % number])
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:
        hub.drive(0.1)
    assert hub.lost == []
    child.signal(signal.SIGCONT)
    for number in range(10):
        assert hub.take_from(peer) == [b"%d" % number]


@rule("LOSS-6")
@pytest.mark.slow
def test_a_stopped_server_is_not_lost(lab: Lab) -> None:
    child, client = served(lab)
    child.signal(signal.SIGSTOP)
    client.send([b"wait"])
    assert client.recv(1.0) is None
    child.signal(signal.SIGCONT)
    assert plain(client.recv(PATIENCE)) == [b"wait"]


def served(lab: Lab) -> tuple[Child, ClientSocket]:
    """A server in a process of its own, and a client of it."""
    child = lab.child("serve")
    client = lab.client()
    client.connect(child.expect("address"), PATIENCE)
    client.send([b"ping"])
    assert plain(client.recv(PATIENCE)) == [b"ping"]
    return child, client


def flood(lab: Lab, client: ClientSocket, address: str, count: int) -> ClientSocket:
    """Let the server send `count` messages to `client`, and return, when they have arrived, another client."""
    observer = lab.client()
    observer.connect(address, PATIENCE)
    client.send([b"flood", b"%d" % count])
    assert readable(client.fileno(), PATIENCE)
    # Only reading could prove that they are here. The server answers another client after it has queued all of them;
    # a while of that gives a transport's own threads the time to bring them.
    served_until = time.monotonic() + 0.2
    while time.monotonic() < served_until:
        observer.send([b"ping"])
        assert plain(observer.recv(PATIENCE)) == [b"ping"]
    return observer


def drained(client: ClientSocket) -> list[int]:
    """The numbers of all messages that `client` receives before the connection is lost."""
    numbers: list[int] = []
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            parts = client.recv(PATIENCE)
        except ConnectionLost:
            return numbers
        numbers.append(int(plain(parts)[0]))
    raise AssertionError("the loss of the server was never reported")


@rule("LOSS-7")
def test_a_client_drains_what_arrived_before_it_hears_of_the_servers_death(lab: Lab) -> None:
    def measure() -> float:
        child = lab.child("serve")
        address = child.expect("address")
        client = lab.client()
        client.connect(address, PATIENCE)
        flood(lab, client, address, 50)
        started = time.monotonic()
        child.signal(signal.SIGKILL)
        assert drained(client) == list(range(50))
        return time.monotonic() - started

    assert_within(LOSS_LIMIT, measure)


@rule("LOSS-7")
def test_what_arrived_can_be_received_when_the_servers_death_is_known(lab: Lab) -> None:
    child = lab.child("serve")
    address = child.expect("address")
    client = lab.client()
    client.connect(address, PATIENCE)
    observer = flood(lab, client, address, 50)
    child.kill()
    with pytest.raises(ConnectionLost):
        observer.recv(PATIENCE)
    # The observer has heard of it, so the client's transport has had as long.
    assert drained(client) == list(range(50))


@rule("LOSS-7", "LOSS-9")
def test_the_descriptor_tells_of_the_servers_death_after_the_last_message(lab: Lab) -> None:
    def measure() -> float:
        child, client = served(lab)
        assert not readable(client.fileno())
        started = time.monotonic()
        child.signal(signal.SIGKILL)
        assert readable(client.fileno(), PATIENCE)
        took = time.monotonic() - started
        with proving("LOSS-9"):
            for _ in range(3):
                with lab.raises_ours(ConnectionLost):
                    client.recv(0)
                assert readable(client.fileno())
                with lab.raises_ours(ConnectionLost):
                    Call(client.recv, None).result()
                with lab.raises_ours(ConnectionLost):
                    client.send([b"too late"])
        return took

    with proving("LOSS-7"):
        assert_within(LOSS_LIMIT, measure)


@rule("LOSS-7")
def test_a_blocked_client_hears_of_the_servers_death(lab: Lab) -> None:
    def measure() -> float:
        child, client = served(lab)
        call = Call(client.recv, None)
        assert not call.done(0.05)
        started = time.monotonic()
        child.signal(signal.SIGKILL)
        with pytest.raises(ConnectionLost):
            call.result()
        return call.ended_at - started

    assert_within(LOSS_LIMIT, measure)


@rule("LOSS-8")
def test_a_client_whose_server_closes_hears_of_it(lab: Lab) -> None:
    def measure() -> float:
        hub = lab.hub()
        links = [lab.join(hub) for _ in range(4)]
        started = time.monotonic()
        hub.socket.close()
        for link in links:
            with lab.raises_ours(ConnectionLost):
                link.client.recv(PATIENCE)
        return time.monotonic() - started

    assert_within(LOSS_LIMIT, measure)


@rule("LOSS-10")
def test_a_lost_connection_is_never_renewed(lab: Lab) -> None:
    child = lab.child("serve")
    address = child.expect("address")
    client = lab.client()
    client.connect(address, PATIENCE)
    child.kill()
    hub = lab.hub(address)
    with pytest.raises(ConnectionLost):
        client.recv(PATIENCE)
    with pytest.raises(ConnectionLost):
        client.send([b"who is this for?"])
    hub.drive(0.5)
    assert not hub.inbox
    lab.join(hub)
    with pytest.raises(ConnectionLost):
        client.recv(0)
