"""`close`: at once, for good, and without a trace."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable

import pytest

from fiberq.abc import MIN_QUEUED
from fiberq.errors import ClosedError, ConnectError, TransportError

from .lab import PATIENCE, Call, Hub, Lab, assert_within, eventually
from .rules import rule
from .strangers import nobody

LARGE = bytes(256 * 1024)


@rule("CLOSE-1")
def test_closing_twice_is_closing_once(lab: Lab) -> None:
    hub = lab.hub()
    link = lab.join(hub)
    for _ in range(3):
        link.client.close()
    for _ in range(3):
        hub.socket.close()
    for socket in (lab.server(), lab.client()):
        socket.close()
        socket.close()
    transport = lab.new_transport()
    transport.close()
    transport.close()
    for _ in range(2):
        lab.transport.close()
    hub.socket.close()
    link.client.close()


@rule("CLOSE-2")
def test_a_closed_server_raises_closed_error(lab: Lab) -> None:
    hub = lab.hub()
    link = lab.join(hub)
    hub.socket.close()
    for timeout in (0, 1.0, None):
        with pytest.raises(ClosedError):
            hub.socket.recv(timeout)
    with pytest.raises(ClosedError):
        hub.socket.bind(lab.free_address())
    # Dropped, as for any peer that is gone, or refused.
    with contextlib.suppress(ClosedError):
        hub.socket.send(link.peer, [b"x"])


@rule("CLOSE-2")
def test_a_closed_client_raises_closed_error(lab: Lab) -> None:
    hub = lab.hub()
    link = lab.join(hub)
    link.client.close()
    for timeout in (0, 1.0, None):
        with pytest.raises(ClosedError):
            link.client.recv(timeout)
    with pytest.raises(ClosedError):
        link.client.send([b"x"])
    unused = lab.client()
    unused.close()
    with pytest.raises(ClosedError):
        unused.connect(hub.address, 1.0)


@rule("CLOSE-2")
def test_what_had_arrived_is_not_received_after_close(lab: Lab) -> None:
    hub = lab.hub()
    link = lab.join(hub)
    for _ in range(5):
        link.client.send([b"x"])
        hub.socket.send(link.peer, [b"x"])
    hub.hear(link.client)
    hub.socket.close()
    link.client.close()
    with pytest.raises(ClosedError):
        hub.socket.recv(0)
    with pytest.raises(ClosedError):
        link.client.recv(0)


@rule("CLOSE-3")
@pytest.mark.parametrize("side", ["server", "client"])
@pytest.mark.parametrize("timeout", [30.0, None])
def test_close_wakes_a_recv_that_is_blocked_in_another_thread(lab: Lab, side: str, timeout: float | None) -> None:
    def measure() -> float:
        hub = lab.hub()
        link = lab.join(hub)
        hub.drain()
        tested = hub.socket if side == "server" else link.client
        call = Call(tested.recv, timeout)
        assert not call.done(0.1)
        started = time.monotonic()
        tested.close()
        with pytest.raises(ClosedError):
            call.result(5)
        return call.ended_at - started

    assert_within(0.5, measure)


@rule("CLOSE-4")
def test_a_client_closes_at_once_with_much_unsent(lab: Lab) -> None:
    child = lab.child("serve")
    client = lab.client()
    client.connect(child.expect("address"), PATIENCE)
    child.signal(signal.SIGSTOP)
    for _ in range(MIN_QUEUED):
        client.send([LARGE])
    started = time.monotonic()
    Call(client.close).result()
    Call(lab.transport.close).result()
    assert time.monotonic() - started < 1


@rule("CLOSE-4")
def test_a_server_closes_at_once_with_much_unsent(lab: Lab) -> None:
    hub = lab.hub()
    child = lab.child("talk", address=hub.address, count=1)
    peer = hub.take(30).peer
    child.signal(signal.SIGSTOP)
    for _ in range(MIN_QUEUED):
        hub.socket.send(peer, [LARGE])
    started = time.monotonic()
    Call(hub.socket.close).result()
    Call(lab.transport.close).result()
    assert time.monotonic() - started < 1


@rule("CLOSE-5")
@pytest.mark.scheme("ipc")
def test_a_server_that_closes_removes_its_ipc_file(lab: Lab) -> None:
    hub = lab.hub()
    hub.socket.bind(lab.free_address())
    lab.join(hub)
    assert len(os.listdir(lab.directory)) == 2
    other = lab.hub()
    with pytest.raises(TransportError):
        lab.server().bind(hub.address)
    assert len(os.listdir(lab.directory)) == 3
    hub.socket.close()
    eventually(lambda: os.listdir(lab.directory) == [os.path.basename(other.address)], "the closed server's files go")


@rule("CLOSE-5")
@pytest.mark.scheme("ipc")
def test_a_server_that_failed_to_bind_takes_nobodys_ipc_file_away(lab: Lab) -> None:
    hub = lab.hub()
    second = lab.server()
    with lab.raises_ours(TransportError):
        second.bind(hub.address)
    lab.join(hub)
    second.close()
    lab.join(hub)


@rule("CLOSE-6")
def test_closing_a_transport_closes_its_sockets_and_no_others(lab: Lab) -> None:
    hub = lab.hub()
    link = lab.join(hub)
    mine = lab.transport
    other = lab.new_transport()
    their_server, their_client = other.server(lab.wire.credentials), other.client(lab.wire.credentials)
    theirs = Hub(their_server, their_server.bind(lab.free_address()))
    theirs.connect(their_client)
    peer = lab.introduce(theirs, their_client)
    mine.close()
    with pytest.raises(ClosedError):
        hub.socket.recv(0)
    with pytest.raises(ClosedError):
        link.client.recv(0)
    theirs.socket.send(peer, [b"unharmed"])
    assert theirs.hear(their_client) == [b"unharmed"]


@rule("CLOSE-7")
def test_a_process_that_closes_nothing_ends_at_once(lab: Lab) -> None:
    server = lab.child("serve")
    child = lab.child("abandon", address=server.expect("address"), count=MIN_QUEUED, size=len(LARGE))
    child.expect("connected")
    server.signal(signal.SIGSTOP)
    child.say("go")
    child.expect("leaving")
    child.expect_exit(5)


@rule("CLOSE-9")
def test_a_closed_servers_address_can_be_bound_again_at_once(lab: Lab) -> None:
    address = lab.free_address()
    for _ in range(5):
        hub = lab.hub(address)
        address = hub.address
        link = lab.join(hub)
        hub.socket.send(link.peer, [b"x"])
        assert hub.hear(link.client) == [b"x"]
        hub.socket.close()


def descriptors() -> int:
    return len(os.listdir("/dev/fd"))


def assert_leaks_nothing(cycle: Callable[[], None], count: int) -> None:
    """Run `cycle` often; fail when this process then has more descriptors than before."""
    for _ in range(5):
        cycle()
    before = descriptors()
    for _ in range(count):
        cycle()
    # A few may be on their way out in the transport's own threads.
    eventually(lambda: descriptors() <= before + 3, f"{before} descriptors as before, not {descriptors()}", 5)


@rule("CLOSE-8")
@pytest.mark.slow
def test_200_cycles_of_open_and_close_leak_no_descriptor(lab: Lab) -> None:
    def cycle() -> None:
        server, client = lab.transport.server(lab.wire.credentials), lab.transport.client(lab.wire.credentials)
        hub = Hub(server, server.bind(lab.free_address()))
        hub.connect(client)
        client.send([b"x"])
        hub.take()
        client.close()
        server.close()

    assert_leaks_nothing(cycle, 200)


@rule("CLOSE-8")
def test_new_transports_leak_no_descriptor(lab: Lab) -> None:
    def cycle() -> None:
        transport = lab.transport_class()
        server, client = transport.server(lab.wire.credentials), transport.client(lab.wire.credentials)
        hub = Hub(server, server.bind(lab.free_address()))
        hub.connect(client)
        client.send([b"x"])
        hub.take()
        # What is still open, closing the transport closes.
        transport.close()

    assert_leaks_nothing(cycle, 30)


@rule("CLOSE-8")
def test_lost_clients_leak_no_descriptor_of_the_server(lab: Lab) -> None:
    hub = lab.hub()

    def cycle() -> None:
        client = lab.transport.client(lab.wire.credentials)
        hub.connect(client)
        peer = lab.introduce(hub, client)
        client.close()
        hub.until_lost(peer)

    assert_leaks_nothing(cycle, 100)


@rule("CLOSE-8")
def test_failed_connects_leak_no_descriptor(lab: Lab) -> None:
    address = nobody(lab)

    def cycle() -> None:
        client = lab.transport.client(lab.wire.credentials)
        with pytest.raises(ConnectError):
            client.connect(address, 1.0)
        client.close()

    assert_leaks_nothing(cycle, 50)
