"""What is the stream transport's own, beyond the contract: framing, strangers in crowds, signals amid busy traffic."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import socket
import struct
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TypeVar

import pytest
from fiberq_stream import StreamTransport
from fiberq_stream.client import Client
from fiberq_stream.framing import CREDIT, Ended, Half, cut, frame
from fiberq_stream.server import STRANGERS, Server

from fiberq.abc import Credentials, Message, PeerLost
from fiberq.errors import ClosedError, ConnectionLost, TransportError

Made = TypeVar("Made")
PATIENCE = 20.0
STRIKES = 200


@pytest.fixture
def transport() -> Iterator[StreamTransport]:
    made = StreamTransport()
    yield made
    made.close()


def joined(transport: StreamTransport, address: str, secret: bytes | None = None) -> tuple[Server, Client]:
    """A server, which a thread drove for the greeting, and a client."""
    credentials = Credentials(secret) if secret else None
    server, client = transport.server(credentials), transport.client(credentials)
    address = server.bind(address)
    greeting = threading.Thread(target=client.connect, args=(address, PATIENCE))
    greeting.start()
    while greeting.is_alive():
        server.recv(0.01)
    greeting.join()
    return server, client


def message(server: Server) -> Message:
    event = server.recv(PATIENCE)
    assert isinstance(event, Message)
    return event


# -- framing --


@pytest.mark.parametrize("step", [1, 7, 65_536])
def test_a_stream_is_cut_into_the_same_messages_wherever_it_is_torn(step: int) -> None:
    chance = random.Random(step)
    lengths = [0, 1, 100, 16_384, 16_385, 70_000] if step > 1 else [0, 1, 100, 17_000]
    messages = [[chance.randbytes(chance.choice(lengths)) for _ in range(count)] for count in (0, 1, 3, 0, 64, 2)]
    stream = b"".join(bytes(each) for parts in messages for each in frame(parts))
    half, got = Half(), []
    for at in range(0, len(stream), step):
        whole, half = cut(half, stream[at : at + step])
        got += whole
    assert [[bytes(part) for part in parts] for parts in got] == messages
    assert half == Half()


def test_little_is_allocated_on_the_word_of_a_header() -> None:
    _, half = cut(Half(), struct.pack("!B64Q", 64, *[2**64 - 1] * 64) + b"x")
    assert half.large is not None
    assert len(half.large) <= CREDIT


def test_nonsense_ends_a_connection() -> None:
    with pytest.raises(Ended):
        cut(Half(), b"\xff")


# -- strangers --


def test_a_newcomer_is_served_at_once_though_many_mute_strangers_came_before(
    transport: StreamTransport, tmp_path: Path
) -> None:
    server = transport.server()
    address = server.bind(f"ipc://{tmp_path}/s")
    with contextlib.ExitStack() as stack:
        for _ in range(STRANGERS + 150):
            stranger = stack.enter_context(socket.socket(socket.AF_UNIX))
            stranger.connect(f"{tmp_path}/s")
        client, took = transport.client(), []

        def connect() -> None:
            started = time.monotonic()
            client.connect(address, PATIENCE)
            took.append(time.monotonic() - started)

        thread = threading.Thread(target=connect)
        thread.start()
        while thread.is_alive():
            server.recv(0.01)
        assert took
        assert took[0] < 1.0
        client.send([b"here"])
        assert message(server).parts == [b"here"]


def test_a_guest_who_speaks_when_he_is_dismissed_for_a_newcomer_disturbs_nobody(
    transport: StreamTransport, tmp_path: Path
) -> None:
    server = transport.server()
    server.bind(f"ipc://{tmp_path}/s")
    with contextlib.ExitStack() as stack:

        def stranger() -> socket.socket:
            made = stack.enter_context(socket.socket(socket.AF_UNIX))
            made.connect(f"{tmp_path}/s")
            return made

        guests = [stranger() for _ in range(STRANGERS)]
        while server.recv(0.05) is not None or len(server._guests) < STRANGERS:
            pass
        for _ in range(5):
            stranger()
        for each in guests:
            each.send(b"f")
        assert server.recv(0.2) is None
        assert len(server._guests) <= STRANGERS


# -- signals --


class Struck(Exception):
    pass


class Storm:
    """A signal whose handler raises, once, at a random moment of what is run."""

    def __init__(self) -> None:
        self.transport = StreamTransport()
        self.armed = False
        self.strikes = 0

    def handle(self, _number: int, _frame: FrameType | None) -> None:
        if self.armed:
            self.armed = False
            raise Struck

    def run(self, target: Callable[[], Made]) -> Made | None:
        """What `target` returns; `None` if the handler struck."""
        try:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00001, 0.001))
            self.armed = True
            result = target()
            self.armed = False
            return result
        except Struck:
            self.strikes += 1
            return None
        except BaseException:
            self.armed = False
            raise


@pytest.fixture
def storm() -> Iterator[Storm]:
    storm = Storm()
    before = signal.signal(signal.SIGALRM, storm.handle)
    gc.disable()  # What a handler raises in a callback of the collector (Hypothesis has one) is printed and dropped.
    yield storm
    gc.enable()
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
    storm.transport.close()
    alive = weakref.ref(storm.transport)
    del storm.transport
    deadline = time.monotonic() + PATIENCE
    with warnings.catch_warnings():  # See `Gate`: some descriptors are left to the garbage collector.
        warnings.simplefilter("ignore")
        while alive() and time.monotonic() < deadline:
            gc.collect()


def numbered(number: int) -> list[bytes]:
    size = (1, 100, 20_000, 300_000)[number % 4]
    return [struct.pack("!Q", number), b"%d" % number * size]


def echo(client: Client, echoed: list[int]) -> None:
    """In a thread: no handler runs here."""
    with contextlib.suppress(ClosedError, ConnectionLost):
        while (parts := client.recv(PATIENCE)) is not None:
            echoed.append(struct.unpack("!Q", parts[0])[0])
            assert parts[1] == numbered(echoed[-1])[1]
            client.send(parts)


@pytest.mark.parametrize("scheme", ["ipc", "tcp"])
def test_handlers_that_raise_amid_busy_traffic_neither_end_a_connection_nor_tear_a_message(
    tmp_path: Path, scheme: str, storm: Storm
) -> None:
    server, client = joined(storm.transport, f"ipc://{tmp_path}/s" if scheme == "ipc" else "tcp://127.0.0.1:0")
    client.send([b"hello"])
    peer = message(server).peer
    echoed: list[int] = []
    thread = threading.Thread(target=echo, args=(client, echoed))
    thread.start()
    sent, back = 0, [0]
    deadline = time.monotonic() + PATIENCE
    while storm.strikes < STRIKES and time.monotonic() < deadline:
        if sent - back[-1] < 20:
            sent += 1
            storm.run(partial(server.send, peer, numbered(sent)))
        event = storm.run(partial(server.recv, 0.01))
        if event is not None:
            assert isinstance(event, Message), "the connection ended"
            back.append(struct.unpack("!Q", event.parts[0])[0])
            assert event.parts[1] == numbered(back[-1])[1]
    sent += 1
    server.send(peer, numbered(sent))
    while back[-1] < sent:
        back.append(struct.unpack("!Q", message(server).parts[0])[0])
    client.close()
    thread.join()
    assert storm.strikes >= STRIKES
    assert len(back) > 20
    assert back == sorted(set(back))
    assert echoed == sorted(set(echoed))
    # What a call that was interrupted was just sending, or returning, may be lost: that is one message, and no more.
    assert sent - len(echoed) <= storm.strikes


@pytest.mark.parametrize("scheme", ["ipc", "tcp"])
def test_handlers_that_raise_in_a_client_that_sends_tear_no_message(tmp_path: Path, scheme: str, storm: Storm) -> None:
    server, client = joined(storm.transport, f"ipc://{tmp_path}/s" if scheme == "ipc" else "tcp://127.0.0.1:0")
    got: list[int] = []

    def receive() -> None:
        with contextlib.suppress(ClosedError):
            while isinstance(event := server.recv(PATIENCE), Message):
                got.append(struct.unpack("!Q", event.parts[0])[0])
                assert event.parts[1] == numbered(got[-1])[1]

    thread = threading.Thread(target=receive)
    thread.start()
    sent = 0
    deadline = time.monotonic() + PATIENCE
    while storm.strikes < STRIKES and time.monotonic() < deadline:
        if sent - (got[-1] if got else 0) < 50:
            sent += 1
            storm.run(partial(client.send, numbered(sent)))
    sent += 1
    client.send(numbered(sent))
    deadline = time.monotonic() + PATIENCE
    while not got or got[-1] < sent:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    client.close()
    thread.join()
    assert storm.strikes >= STRIKES
    assert got == sorted(set(got))
    assert sent - len(got) <= storm.strikes


def test_a_handlers_timeout_error_is_not_taken_for_the_systems(transport: StreamTransport, tmp_path: Path) -> None:
    server, client = joined(transport, f"ipc://{tmp_path}/s")
    client.send([b"hello"])
    message(server)

    def handler(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, handler)
    try:
        for socket_ in (server, client):
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(TimeoutError):
                socket_.recv(PATIENCE)
    finally:
        signal.signal(signal.SIGALRM, before)
    client.send([b"still here"])
    assert message(server).parts == [b"still here"]


# -- closing --


@pytest.mark.parametrize("address", ["ipc", "tcp"])
def test_the_address_of_a_server_that_was_closed_while_it_waited_can_be_bound_at_once(
    transport: StreamTransport, tmp_path: Path, address: str
) -> None:
    address = f"ipc://{tmp_path}/s" if address == "ipc" else "tcp://127.0.0.1:0"
    for _ in range(20):
        server = transport.server()
        address = server.bind(address)
        waiting = threading.Event()

        def wait(server: Server = server, waiting: threading.Event = waiting) -> None:
            waiting.set()
            with contextlib.suppress(ClosedError):
                server.recv(PATIENCE)

        thread = threading.Thread(target=wait)
        thread.start()
        waiting.wait()
        server.close()
        other = transport.server()
        assert other.bind(address) == address
        other.close()
        thread.join()


@pytest.mark.parametrize("secret", [None, bytes(32)], ids=["plain", "tls"])
def test_what_arrived_comes_before_the_loss_and_the_loss_once(
    transport: StreamTransport, tmp_path: Path, secret: bytes | None
) -> None:
    server, client = joined(transport, f"ipc://{tmp_path}/s", secret)
    for number in range(60):
        client.send([b"%d" % number, bytes(1000)])
    client.close()
    events = [server.recv(PATIENCE) for _ in range(61)]
    assert [int(bytes(event.parts[0])) for event in events if isinstance(event, Message)] == list(range(60))
    assert isinstance(events[-1], PeerLost)
    assert server.recv(0.05) is None


def test_a_client_connects_only_once(transport: StreamTransport, tmp_path: Path) -> None:
    server, client = joined(transport, f"ipc://{tmp_path}/s")
    with pytest.raises(TransportError, match="once"):
        client.connect(f"ipc://{tmp_path}/s", 1.0)
    client.send([b"still here"])
    assert message(server).parts == [b"still here"]


def test_a_child_forked_during_bind_does_not_keep_the_directory_locked(
    transport: StreamTransport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    children = []
    listen = socket.socket.listen

    def forking(sock: socket.socket, backlog: int) -> None:
        listen(sock, backlog)
        if not children:
            children.append(os.fork())
            if not children[0]:
                signal.pause()

    monkeypatch.setattr(socket.socket, "listen", forking)
    transport.server().bind(f"ipc://{tmp_path}/one")
    try:
        started = time.monotonic()
        transport.server().bind(f"ipc://{tmp_path}/two")
        assert time.monotonic() - started < 1.0
    finally:
        os.kill(children[0], signal.SIGKILL)
        os.waitpid(children[0], 0)


def test_a_forked_child_lets_go_of_a_client_whose_transport_nobody_holds_any_more(tmp_path: Path) -> None:
    server, client = joined(StreamTransport(), f"ipc://{tmp_path}/s")
    gc.collect()
    assert client._sock is not None
    child = os.fork()
    if not child:
        os._exit(int(client._sock.fileno() != -1))
    assert os.waitpid(child, 0)[1] == 0
    client.close()
    server.close()
