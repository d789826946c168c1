"""`fileno`: what lets `select`, asyncio and `fiberq.wait` take a connection."""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .lab import Call, Hub, Lab, Link, plain, readable
from .rules import rule


@rule("READY-1")
def test_the_descriptor_is_the_same_for_the_sockets_whole_life(lab: Lab) -> None:
    hub = lab.hub()
    client = lab.client()
    fileno = client.fileno()
    assert fileno >= 0
    hub.connect(client)
    assert client.fileno() == fileno
    peer = lab.introduce(hub, client)
    hub.socket.send(peer, [b"x"])
    hub.hear(client)
    assert client.fileno() == fileno
    hub.socket.close()
    assert readable(fileno, 10)
    assert client.fileno() == fileno


class Model:
    """One connection, and what its client must still receive."""

    def __init__(self, hub: Hub, link: Link) -> None:
        self.hub, self.link = hub, link
        self.fileno = link.client.fileno()
        self.waiting: deque[int] = deque()
        self.sent = 0

    def reply(self) -> None:
        if len(self.waiting) < 60:
            self.hub.socket.send(self.link.peer, [b"%d" % self.sent])
            self.waiting.append(self.sent)
            self.sent += 1

    def reply_often(self) -> None:
        for _ in range(10):
            self.reply()

    def request(self) -> None:
        self.link.client.send([b"request"])
        self.hub.take_from(self.link.peer)

    def request_unread(self) -> None:
        self.hub.drain()
        self.link.client.send([b"request"])

    def receive(self, timeout: float = 0.0) -> None:
        ready = readable(self.fileno)
        parts = self.link.client.recv(timeout)
        if parts is None:
            assert not ready, "the descriptor was readable, and recv(0) had nothing"
        else:
            assert self.waiting, "a message came that nobody sent"
            assert plain(parts) == [b"%d" % self.waiting.popleft()]

    def receive_patiently(self) -> None:
        self.receive(0.001)

    def look(self) -> None:
        if not self.waiting:
            assert not readable(self.fileno), "the descriptor is readable, and there is nothing to receive"
            return
        self.hub.until(lambda: readable(self.fileno), "the descriptor is readable while a message waits", 3)
        for _ in range(3):
            assert readable(self.fileno), "the descriptor was readable only once"

    def look_for_long(self) -> None:
        if not self.waiting:
            assert not readable(self.fileno, 0.01), "the descriptor is readable, and there is nothing to receive"

    def finish(self) -> None:
        while self.waiting:
            self.look()
            self.receive()
        self.look()
        self.look_for_long()
        self.hub.drain()
        self.hub.inbox.clear()


STEPS: list[Callable[[Model], None]] = [
    Model.reply,
    Model.reply_often,
    Model.request,
    Model.request_unread,
    Model.receive,
    Model.receive_patiently,
    Model.look,
    Model.look_for_long,
]


@rule("READY-2", "READY-3")
def test_the_descriptor_is_readable_exactly_while_there_is_something_to_receive(lab: Lab) -> None:
    hub = lab.hub()
    model = Model(hub, lab.join(hub))

    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.sampled_from(STEPS), min_size=5, max_size=40))
    def check(steps: list[Callable[[Model], None]]) -> None:
        try:
            for step in steps:
                step(model)
            model.finish()
        except BaseException:
            # The next example starts afresh; else it would fail for this one's reason.
            model.__init__(hub, lab.join(hub))  # type: ignore[misc]
            raise

    check()


@rule("READY-2")
def test_the_descriptor_stays_quiet_while_the_client_only_sends(lab: Lab) -> None:
    hub = lab.hub()
    link = lab.join(hub)
    for _ in range(200):
        link.client.send([bytes(10_000)])
        hub.take_from(link.peer)
        assert not readable(link.client.fileno())
    assert not readable(link.client.fileno(), 0.2)


@rule("READY-2")
def test_half_a_message_does_not_keep_the_descriptor_readable(lab: Lab) -> None:
    hub = lab.hub()
    link = lab.join(hub)
    fileno = link.client.fileno()
    for size in (1_000_000, 20_000_000):
        hub.socket.send(link.peer, [bytes(size)])
        parts, wakes = None, 0
        while parts is None:
            if readable(fileno, 0.05):
                parts = link.client.recv(0)
                wakes += 1
            else:
                hub.drain()  # it may have to send the rest
            assert wakes <= size // 100, "the descriptor is readable again and again, and recv(0) has nothing"
        assert list(map(len, plain(parts))) == [size]
    assert not readable(fileno)


def by_select(fileno: int) -> bool:
    return bool(select.select([fileno], [], [], 0)[0])


@rule("READY-3")
def test_select_poll_and_epoll_see_the_message_until_it_is_received(lab: Lab) -> None:
    hub = lab.hub()
    link = lab.join(hub)
    fileno = link.client.fileno()
    ways: list[Callable[[], bool]] = [lambda: by_select(fileno), lambda: readable(fileno)]
    if hasattr(select, "epoll"):
        epoll = select.epoll()
        epoll.register(fileno, select.EPOLLIN)
        ways.append(lambda: bool(epoll.poll(0)))
    for number in range(20):
        assert not any(way() for way in ways)
        hub.socket.send(link.peer, [b"%d" % number])
        for way in ways:
            hub.until(way, "the descriptor is readable", 3)
        link.client.send([b"meanwhile"])
        for _ in range(3):
            assert all(way() for way in ways)
        hub.take_from(link.peer)
        assert all(way() for way in ways)
        assert plain(link.client.recv(0)) == [b"%d" % number]
    assert not any(way() for way in ways)
    if hasattr(select, "epoll"):
        epoll.close()


@rule("READY-4")
def test_a_wait_in_another_thread_ends_when_a_message_comes(lab: Lab) -> None:
    hub = lab.hub()
    link = lab.join(hub)
    for _ in range(20):
        waits = [Call(readable, link.client.fileno(), 10.0) for _ in range(2)]
        for _ in range(10):
            link.client.send([b"meanwhile"])
            hub.take_from(link.peer)
        assert not any(wait.done() for wait in waits)
        hub.socket.send(link.peer, [b"now"])
        link.client.send([b"meanwhile"])
        hub.take_from(link.peer)
        assert all(wait.result(5) for wait in waits)
        assert plain(link.client.recv(0)) == [b"now"]


@rule("READY-2")
@pytest.mark.parametrize("count", [1, 30])
def test_one_descriptor_says_nothing_of_another_client(lab: Lab, count: int) -> None:
    hub = lab.hub()
    links = [lab.join(hub) for _ in range(count + 1)]
    for link in links[1:]:
        hub.socket.send(link.peer, [b"yours"])
    for link in links[1:]:
        hub.until(partial(readable, link.client.fileno()), "the descriptor is readable")
    assert not readable(links[0].client.fileno())
