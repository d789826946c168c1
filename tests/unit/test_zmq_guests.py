"""Which of libzmq's reports belong together: who was turned away, and who only left."""

from __future__ import annotations

import socket
from typing import Any

import zmq
from fiberq_zmq.guests import HANDSHAKE, Guests

SUCCEEDED = int(zmq.EVENT_HANDSHAKE_SUCCEEDED)
DENIED = int(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
WENT = int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
BROKEN = int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
NONE = 1 << 20
"""No descriptor has this number."""


class Told:
    def __init__(self) -> None:
        self.lines: list[tuple[object, str]] = []
        self.guests = Guests(lambda *line: self.lines.append(line))
        for number in range(4):
            self.guests.came(NONE + number, 0.0)

    def why(self, number: int, now: float = 0.0) -> str | None:
        before = len(self.lines)
        self.guests.went(NONE + number, now)
        return self.lines[-1][1] if len(self.lines) > before else None


def test_a_breach_belongs_to_the_connection_that_ends_next() -> None:
    told = Told()
    for number, code in enumerate(
        (int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH), int(zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC), 1)
    ):
        told.guests.outcome(BROKEN, code)
        assert told.why(number) == ("it has no key", "it has another key", "it speaks another protocol")[number]


def test_who_goes_after_so_long_was_sent_away() -> None:
    told = Told()
    told.guests.outcome(WENT, 0)
    assert "broke off" in str(told.why(0, 1.0))
    told.guests.outcome(WENT, 0)
    assert "took more than" in str(told.why(1, HANDSHAKE))


def test_who_was_admitted_leaves_no_line_whether_it_spoke_or_not() -> None:
    told = Told()
    told.guests.outcome(SUCCEEDED, 0)
    told.guests.outcome(SUCCEEDED, 0)
    told.guests.spoke(NONE)
    assert told.why(0) is None
    assert told.why(1) is None
    assert told.why(2) == "it speaks another protocol"


def test_who_was_denied_had_another_key() -> None:
    told = Told()
    told.guests.outcome(DENIED, 400)
    assert told.why(0) == "it has another key"
    assert told.why(1) == "it speaks another protocol"


def test_who_is_turned_away_leaves_one_line() -> None:
    told = Told()
    told.guests.turn_away(NONE, "it was too much")
    told.guests.outcome(WENT, 0)
    assert told.why(0) is None
    assert told.lines == [(None, "it was too much")]


def test_an_address_counts_only_if_its_descriptor_was_that_connections_until_then() -> None:
    lines: list[Any] = []
    guests = Guests(lambda *line: lines.append(line))
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as one:
        accepted, end = server.accept()
        with accepted:
            number = accepted.fileno()
            guests.came(number, 0.0)
            assert guests.place()
            guests.went(number, 0.0)  # and so perhaps before it was looked at
            guests.came(number, 0.0)
            assert guests.place()
            assert not guests.place()
            guests.went(number, 0.0)
        assert end == one.getsockname()
    assert [each for each, _ in lines] == [None, end]
