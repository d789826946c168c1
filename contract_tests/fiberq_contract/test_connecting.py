"""`connect` where there is no server, or none that answers; and strangers who connect to a server."""

from __future__ import annotations

import contextlib
import random
import time

import pytest

from fiberq.errors import ConnectError

from .lab import PATIENCE, Call, Lab, assert_within
from .rules import rule
from .strangers import dial, mute_listener, nobody

PROMPT = 2.0
"""Seconds that a stranger may at most delay others, on a busy machine."""


@rule("CONN-1")
@pytest.mark.parametrize("timeout", [5.0, None])
def test_connecting_where_nobody_listens_fails_at_once(lab: Lab, timeout: float | None) -> None:
    address = nobody(lab)

    def measure() -> float:
        started = time.monotonic()
        with pytest.raises(ConnectError):
            Call(lab.client().connect, address, timeout).result()
        return time.monotonic() - started

    assert_within(0.5, measure)


@rule("CONN-1")
@pytest.mark.scheme("ipc")
def test_connecting_to_a_missing_ipc_path_fails_at_once(lab: Lab) -> None:

    def measure() -> float:
        started = time.monotonic()
        with pytest.raises(ConnectError):
            lab.client().connect(f"ipc://{lab.path('missing')}", 5.0)
        return time.monotonic() - started

    assert_within(0.5, measure)


@rule("CONN-1")
def test_connecting_to_a_killed_server_fails_at_once(lab: Lab) -> None:
    child = lab.child("serve")
    address = child.expect("address")
    child.kill()

    def measure() -> float:
        started = time.monotonic()
        with pytest.raises(ConnectError):
            lab.client().connect(address, 5.0)
        return time.monotonic() - started

    assert_within(0.5, measure)


@rule("CONN-2")
def test_connecting_where_nobody_answers_fails_when_the_timeout_has_passed(lab: Lab) -> None:
    with mute_listener(lab) as address:

        def measure() -> float:
            started = time.monotonic()
            with pytest.raises(ConnectError):
                lab.client().connect(address, 0.5)
            took = time.monotonic() - started
            assert took > 0.45, "gave up before the timeout"
            return took

        assert_within(0.5 + 0.3, measure)


@rule("CONN-3")
def test_after_a_failed_connect_the_transport_connects_elsewhere(lab: Lab) -> None:
    hub = lab.hub()
    before = lab.join(hub)
    with pytest.raises(ConnectError):
        lab.client().connect(nobody(lab), 1.0)
    with mute_listener(lab) as address, pytest.raises(ConnectError):
        lab.client().connect(address, 0.1)
    after = lab.join(hub)
    for link in (before, after):
        hub.socket.send(link.peer, [b"here"])
        assert hub.hear(link.client) == [b"here"]


@rule("CONN-3")
def test_a_client_that_never_connected_can_be_closed(lab: Lab) -> None:
    lab.client().close()
    client = lab.client()
    with pytest.raises(ConnectError):
        client.connect(nobody(lab), 1.0)
    client.close()


@rule("CONN-4")
def test_strangers_who_are_mute_or_send_garbage_disturb_nobody(lab: Lab) -> None:
    hub = lab.hub()
    link = lab.join(hub)
    chance = random.Random(4)
    speeches = [
        b"",
        b"\0",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        bytes(65_536),
        b"\xff" * 65_536,
        *(chance.randbytes(chance.randrange(1, 2000)) for _ in range(10)),
    ]
    with contextlib.ExitStack() as stack:
        for speech in speeches:
            stranger = stack.enter_context(dial(hub.address))
            # A server that hangs up on garbage is right.
            with contextlib.suppress(OSError):
                stranger.sendall(speech)
            started = time.monotonic()
            hub.drive(0.01)
            link.client.send([b"ping"])
            assert hub.take_from(link.peer) == [b"ping"]
            assert time.monotonic() - started < PROMPT, "a stranger held up the server"
        newcomer = lab.join(hub)
        for each in (link, newcomer):
            hub.socket.send(each.peer, [b"pong"])
            assert hub.hear(each.client, PATIENCE) == [b"pong"]
    hub.drive(0.1)
    hub.drain()
    assert not hub.inbox
    assert not {link.peer, newcomer.peer} & set(hub.lost)
