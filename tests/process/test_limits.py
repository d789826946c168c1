"""What a transport's server bounds: connections, those that have not shaken hands, messages. And it hangs up."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from support import PATIENCE, until

from fiberq.abc import ClientSocket, Credentials, Message, PeerLost, ServerSocket
from fiberq.errors import ConnectError, ConnectionLost
from fiberq.registry import make, make_client, make_server, resolve

CREDENTIALS = Credentials(b"s" * 32)
FAR_AWAY = 1e10
"""Seconds; more than `poll` can count."""


class Served:
    """A server that is always received from, and what it received."""

    def __init__(self, name: str, server: ServerSocket) -> None:
        self._target = resolve(name)
        self._transport = make(self._target)
        self.server = server
        self.address = ""
        self.events: list[Message | PeerLost] = []
        self.refused: list[tuple[object, str]] = []
        server.refused = lambda *refusal: self.refused.append(refusal)
        self._drops: list[object] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self.address = self.server.bind("tcp://127.0.0.1:0")
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.is_set():
            while self._drops:
                self.server.drop(self._drops.pop())  # type: ignore[arg-type]
            event = self.server.recv(0.02)
            if event is not None:
                self.events.append(event)

    def client(self) -> ClientSocket:
        client = make_client(self._target, self._transport, CREDENTIALS)
        client.connect(self.address, PATIENCE)
        return client

    def greeted(self) -> tuple[ClientSocket, object]:
        """A client, and the peer that it is at the server."""
        client = self.client()
        before = len(self.events)
        client.send([b"here"])
        until(lambda: any(isinstance(each, Message) for each in self.events[before:]))
        return client, self.events[-1].peer

    def drop(self, peer: object) -> None:
        self._drops.append(peer)

    def raw(self) -> socket.socket:
        host, _, port = self.address.removeprefix("tcp://").rpartition(":")
        return socket.create_connection((host, int(port)), PATIENCE)

    def end(self) -> None:
        self._ended.set()
        self._thread.join()
        self.server.close()
        self._transport.close()


@pytest.fixture
def served(transport: str) -> Iterator[Served]:
    target = resolve(transport)
    maker = make(target)
    served = Served(transport, make_server(target, maker, CREDENTIALS))
    yield served
    served.end()
    maker.close()


def is_lost(client: ClientSocket) -> bool:
    try:
        client.recv(0)
    except ConnectionLost:
        return True
    return False


def test_one_connection_too_many_is_refused_and_the_others_go_on(served: Served) -> None:
    served.server.max_connections = 3
    served.start()
    clients = [served.greeted()[0] for _ in range(3)]
    for _ in range(3):
        with pytest.raises((ConnectError, ConnectionLost)):
            assert served.client().recv(PATIENCE)
    until(lambda: len([why for _, why in served.refused if "3 connections" in why]) >= 3)
    count = len(served.events)
    for client in clients:
        client.send([b"still here"])
    until(lambda: sum(isinstance(each, Message) for each in served.events[count:]) == 3)
    clients.pop().close()
    until(lambda: isinstance(served.events[-1], PeerLost))

    def another() -> bool:
        try:
            served.greeted()
        except (ConnectError, ConnectionLost):
            return False
        return True

    until(another)


def test_the_server_hangs_up_on_whom_it_is_told_to(served: Served) -> None:
    served.start()
    one, peer = served.greeted()
    other, _ = served.greeted()
    served.drop(peer)
    until(lambda: is_lost(one))
    until(lambda: PeerLost(peer) in served.events)  # type: ignore[arg-type]
    served.drop(peer)
    other.send([b"still here"])
    until(lambda: isinstance(served.events[-1], Message))
    assert not is_lost(other)


def test_a_message_that_is_too_long_ends_its_connection_only(served: Served) -> None:
    served.server.max_message = 100_000
    served.start()
    one, peer = served.greeted()
    other, _ = served.greeted()
    one.send([b"x" * 90_000])
    until(lambda: len(served.events) == 3)
    one.send([b"x" * 1_000_000])
    until(lambda: PeerLost(peer) in served.events)  # type: ignore[arg-type]
    other.send([b"still here"])
    until(lambda: isinstance(served.events[-1], Message))
    assert max(sum(map(len, each.parts)) for each in served.events if isinstance(each, Message)) == 90_000


def test_who_does_not_shake_hands_is_hung_up_on(served: Served) -> None:
    served.start()
    client, _ = served.greeted()
    with ExitStack() as stack:
        mutes = [stack.enter_context(served.raw()) for _ in range(20)]
        for mute in mutes:
            mute.settimeout(PATIENCE)
            try:
                while mute.recv(1000):
                    pass
            except ConnectionResetError:
                pass
        mine = {mute.getsockname() for mute in mutes}
        until(lambda: {end for end, why in served.refused if "handshake" in why} == mine)
    assert not is_lost(client)
    client.close()
    until(lambda: isinstance(served.events[-1], PeerLost))
    assert len(served.refused) == len(mine)


BEGINNINGS = {
    "zmq": b"\xff"
    + bytes(7)
    + b"\x01\x7f\x03\x01"
    + b"CURVE".ljust(20, b"\0")
    + bytes(32)
    + b"\6"
    + (1 << 29).to_bytes(8, "big"),
    "nng": b"\x16\x03\x03\xff\xff",
    "stream": b"\x16\x03\x03\xff\xff",
}
"""Of a handshake with one very long piece."""


@pytest.mark.skipif(sys.platform != "linux", reason="libzmq does not tell, and neither does this system")
def test_who_is_not_admitted_cannot_fill_the_memory(served: Served, transport: str) -> None:
    served.start()
    client, _ = served.greeted()
    sent = 0
    with served.raw() as stranger:
        try:
            stranger.sendall(BEGINNINGS[transport])
            for _ in range(500):
                stranger.sendall(bytes(1 << 20))
                sent += 1
        except OSError:
            pass
    assert sent < 400
    client.send([b"still here"])
    until(lambda: isinstance(served.events[-1], Message))


def test_it_can_be_waited_for_as_long_as_one_likes(served: Served) -> None:
    served.start()
    client, _ = served.greeted()
    threading.Timer(0.2, client.close).start()
    with pytest.raises(Exception, match="closed"):
        client.recv(FAR_AWAY)
