"""What the contract does not ask: peers that do not pack. And the contract."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from fiberq_zip import Inner, ZipTransport

from fiberq.abc import Message, Transport
from fiberq.errors import ConnectionLost

SECONDS = 10.0


@pytest.fixture
def transports() -> Iterator[tuple[Transport, Transport]]:
    """A transport that packs, and one that does not."""
    zipped, plain = ZipTransport(), Inner()
    yield zipped, plain
    zipped.close()
    plain.close()


def test_a_message_that_was_not_packed_disturbs_no_server(transports: tuple[Transport, Transport]) -> None:
    zipped, plain = transports
    server, client, stranger = zipped.server(), zipped.client(), plain.client()
    address = server.bind("tcp://127.0.0.1:0")
    stop = threading.Event()
    received: list[Message] = []

    def serve() -> None:
        while not stop.is_set():
            if isinstance(event := server.recv(0.01), Message):
                received.append(event)
                server.send(event.peer, event.parts)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        stranger.connect(address, SECONDS)
        client.connect(address, SECONDS)
        for _ in range(10):
            stranger.send([b"garbage that is long enough", b"more"])
            client.send([b"honest"])
            assert [bytes(part) for part in client.recv(SECONDS) or ()] == [b"honest"]
    finally:
        stop.set()
        thread.join()
    assert len(received) == 10
    stranger.send([b"garbage"])
    started = time.monotonic()
    assert server.recv(0.3) is None
    assert 0.29 < time.monotonic() - started < SECONDS


def test_a_server_that_does_not_pack_counts_as_lost(transports: tuple[Transport, Transport]) -> None:
    zipped, plain = transports
    server, client = plain.server(), zipped.client()
    address = server.bind("tcp://127.0.0.1:0")
    connecting = threading.Thread(target=client.connect, args=(address, SECONDS))
    connecting.start()
    while connecting.is_alive():
        server.recv(0.01)
    client.send([b"hello"])
    event = server.recv(SECONDS)
    assert isinstance(event, Message)
    server.send(event.peer, [b"not packed"])
    for timeout in (SECONDS, 0, None):
        with pytest.raises(ConnectionLost, match=r"^zip: "):
            client.recv(timeout)


def test_the_transport_keeps_the_contract() -> None:
    assert subprocess.run([sys.executable, "-m", "fiberq_contract", "zip"], timeout=600).returncode == 0
