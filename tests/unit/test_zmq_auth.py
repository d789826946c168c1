"""CURVE on ZeroMQ fails closed: libzmq by itself admits every key where the handler of its authentication protocol is
missing or has ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fiberq_zmq
import pytest
import zmq
import zmq.backend
from fiberq_zmq import ZmqTransport, auth

from fiberq.abc import Credentials, Message
from fiberq.errors import ConnectError, ConnectionLost

RIGHT, WRONG = Credentials(b"r" * 32), Credentials(b"w" * 32)


def nobody(context: zmq.backend.Context, credentials: Credentials) -> None:
    """There is no handler."""


def crashed(context: zmq.backend.Context, credentials: Credentials) -> None:  # noqa: ARG001
    """There was one."""
    socket = zmq.backend.Socket(context, zmq.REP)
    socket.bind("inproc://zeromq.zap.01")
    socket.close()


def mute(context: zmq.backend.Context, credentials: Credentials) -> None:  # noqa: ARG001
    """There is one, and it never answers."""
    socket = zmq.backend.Socket(context, zmq.REP)
    socket.set(zmq.LINGER, 0)
    socket.bind("inproc://zeromq.zap.01")
    kept.append(socket)


kept: list[Any] = []


def dies_at_once(context: zmq.backend.Context, credentials: Credentials) -> None:  # noqa: ARG001
    """There is one that fails at its first request."""
    import threading

    socket = zmq.backend.Socket(context, zmq.REP)
    socket.set(zmq.LINGER, 0)
    socket.bind("inproc://zeromq.zap.01")

    def answer() -> None:
        try:
            socket.recv()
        except zmq.ContextTerminated:
            pass
        finally:
            socket.close()

    threading.Thread(target=answer, daemon=True).start()


@pytest.mark.parametrize("credentials", [RIGHT, WRONG, None], ids=["right", "wrong", "none"])
@pytest.mark.parametrize("handler", [nobody, crashed, mute, dies_at_once])
def test_without_a_handler_that_works_nobody_is_admitted(
    handler: Callable[..., None], credentials: Credentials | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fiberq_zmq, "admit", handler)
    transport = ZmqTransport()
    server = transport.server(RIGHT)
    try:
        address = server.bind("tcp://127.0.0.1:0")
        client = transport.client(credentials)
        with pytest.raises(ConnectError):
            client.connect(address, 1.0)
        assert not isinstance(server.recv(0.1), Message)
    finally:
        while kept:
            kept.pop().close()
        transport.close()


def test_with_one_that_works_the_right_one_is() -> None:
    transport = ZmqTransport()
    server = transport.server(RIGHT)
    address = server.bind("tcp://127.0.0.1:0")
    client = transport.client(RIGHT)
    client.connect(address, 5.0)
    client.send((b"let me in",))
    event = server.recv(5.0)
    assert isinstance(event, Message)
    assert bytes(event.parts[0]) == b"let me in"
    transport.close()


def test_a_message_without_the_name_that_the_handler_gave_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Should libzmq, or a handler that is not ours, admit somebody."""
    monkeypatch.setattr(auth, "USER", "somebody else")  # what the handler says; the server expects the real one
    transport = ZmqTransport()
    server = transport.server(RIGHT)
    address = server.bind("tcp://127.0.0.1:0")
    client = transport.client(RIGHT)
    try:
        client.connect(address, 1.0)
        client.send((b"let me in",))
    except (ConnectError, ConnectionLost):
        pass  # it was hung up on
    assert not isinstance(server.recv(0.5), Message)
    transport.close()
