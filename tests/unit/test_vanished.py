"""`fiberq.vanished`: when a host is taken for vanished, from what the kernel counts; and what is watched at all."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from fiberq import vanished
from fiberq.vanished import LOOKS, Reading, Verdict, watch

HEARTBEAT = 1.0


def seconds_until_vanished(
    attempts: list[float], answers: list[float], until: float, looks: list[float] | None = None
) -> float | None:
    """When a verdict falls, if something is sent at these times, and something heard at these."""
    verdict = Verdict(HEARTBEAT, 0.0)
    for look in looks or [n / LOOKS for n in range(1, int(until * LOOKS) + 1)]:
        heard = max([0.0, *(each for each in answers if each <= look)])
        if verdict.vanished(Reading(sum(each <= look for each in attempts), look - heard), look):
            return look
    return None


def test_a_quiet_connection_whose_probes_are_not_answered_has_ended_within_three_heartbeats() -> None:
    after = seconds_until_vanished([1.0, 2.0], [], 10)
    assert after is not None
    assert 2 < after <= 3


def test_a_busy_connection_whose_retransmissions_are_not_answered_has_ended_within_three_heartbeats() -> None:
    after = seconds_until_vanished([0.2, 0.6, 1.4, 3.0, 6.2], [], 10)
    assert after is not None
    assert 2 < after <= 3


def test_one_unanswered_probe_is_no_proof() -> None:
    assert seconds_until_vanished([1.0, 2.0], [2.05], 10) is None


def test_a_quiet_connection_that_sends_nothing_is_not_judged() -> None:
    assert seconds_until_vanished([], [], 100) is None


def test_a_peer_that_answers_more_and_more_rarely_because_it_is_asked_so_is_alive() -> None:
    asked = [0.2, 0.6, 1.4, 3.0, 6.2, 12.6, 25.4, 51.0, 102.2]
    for round_trip in (0.001, 0.1, 1.0):
        assert seconds_until_vanished(asked, [each + round_trip for each in asked], 200) is None


def test_who_was_himself_stopped_does_not_judge_by_what_he_has_not_seen() -> None:
    asked = [1.0, 2.0, 40.0]
    assert seconds_until_vanished(asked, [1.1, 2.1, 40.1], 0, looks=[0.25, 40.05, 40.3, 41.0, 45.0]) is None


@pytest.fixture
def connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    with one, other:
        yield one, other
    vanished._watched.clear()


def test_a_tcp_connection_is_watched_until_its_descriptor_is_closed(
    connection: tuple[socket.socket, socket.socket],
) -> None:
    one, _ = connection
    watch(one.fileno(), HEARTBEAT)
    assert one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    fd, known = one.fileno(), vanished._watched[one.fileno()]
    assert vanished._look(fd, known)
    one.close()
    assert not vanished._look(fd, known)


def test_a_stranger_with_the_number_of_a_descriptor_that_was_closed_is_left_alone(
    connection: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = connection
    fd = one.fileno()
    watch(fd, HEARTBEAT)
    known = vanished._watched[fd]
    os.dup2(other.fileno(), fd)
    monkeypatch.setattr(Verdict, "vanished", lambda *_: True)
    monkeypatch.setattr(vanished, "_read", lambda _: Reading(1, 10.0))
    assert not vanished._look(fd, known)
    monkeypatch.setattr(vanished, "_read", lambda _: Reading(0, 10.0))
    assert not vanished._look(fd, known)
    assert other.send(b"alive") == 5


def test_whoever_reads_finds_the_end_when_the_verdict_has_fallen(
    connection: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = connection
    other.sendall(b"last words")
    watch(one.fileno(), HEARTBEAT)
    monkeypatch.setattr(Verdict, "vanished", lambda *_: True)
    vanished._look(one.fileno(), vanished._watched[one.fileno()])
    assert one.recv(100) == b"last words"
    assert one.recv(100) == b""


def test_only_tcp_connections_with_a_port_that_is_meant_are_watched(
    connection: tuple[socket.socket, socket.socket],
) -> None:
    one, other = connection
    pair = socket.socketpair()
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listener = socket.create_server(("127.0.0.1", 0))
    with pair[0], pair[1], datagrams, listener, open(os.devnull) as file:
        for fd in (pair[0].fileno(), datagrams.fileno(), listener.fileno(), file.fileno(), 10**6):
            watch(fd, HEARTBEAT)
            assert fd not in vanished._watched
    watch(one.fileno(), 0)
    watch(one.fileno(), HEARTBEAT, {1})
    assert one.fileno() not in vanished._watched
    watch(one.fileno(), HEARTBEAT, {one.getsockname()[1]})
    watch(other.fileno(), HEARTBEAT, {one.getsockname()[1]})
    assert {one.fileno(), other.fileno()} <= set(vanished._watched)


def test_a_default_timeout_of_the_program_leaves_a_blocking_descriptor_blocking(
    connection: tuple[socket.socket, socket.socket],
) -> None:
    one, _ = connection
    socket.setdefaulttimeout(1.0)
    try:
        watch(one.fileno(), HEARTBEAT)
        vanished._look(one.fileno(), vanished._watched[one.fileno()])
    finally:
        socket.setdefaulttimeout(None)
    assert os.get_blocking(one.fileno())
