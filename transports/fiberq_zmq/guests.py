"""Who is connected to a server and has said nothing yet, and who of those was turned away, whence and why.

libzmq tells of connections by their descriptors, and of handshakes that failed or succeeded without saying whose. One
that broke the protocol, or just went, is told of directly before its connection's end. Of the others the outcomes are
counted, and one is put down to the next connection that ends without having said anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import zmq

from .greeting import other_end

__all__ = ["HANDSHAKE", "OUTCOMES", "Guests"]

HANDSHAKE: Final = 5.0
"""Seconds that a handshake may take."""

_SOON: Final = 0.5
"""Seconds by which the end of one that took longer may seem to be early."""

_SUCCEEDED, _DENIED, _WENT, _BROKEN = (
    int(zmq.EVENT_HANDSHAKE_SUCCEEDED),
    int(zmq.EVENT_HANDSHAKE_FAILED_AUTH),
    int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL),
    int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL),
)
OUTCOMES: Final = _SUCCEEDED | _DENIED | _WENT | _BROKEN
"""The monitor's events that `outcome` is for."""

_OTHER_KEY, _OTHER_PROTOCOL = "it has another key", "it speaks another protocol"
_BROKEN_OFF: Final = "it broke off its handshake: perhaps it has no key"
_BREACHES: dict[int, str] = {
    int(zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC): _OTHER_KEY,
    int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH): "it has no key",
}


class Guest(NamedTuple):
    since: float
    end: object
    """Where it comes from, as `getpeername` says; `None` if that is not known."""


class Guests:
    """By the numbers of their descriptors. `refused` is told of those that are turned away."""

    def __init__(self, refused: Callable[[object, str], None]) -> None:
        self._refused = refused
        self._guests: dict[int, Guest] = {}
        self._new: set[int] = set()
        self._found: dict[int, object] = {}
        self._why: str | None = None
        """Of the connection that is to end next."""
        self._succeeded = self._denied = 0

    def came(self, number: int, now: float) -> None:
        self._forget(number)
        self._guests[number] = Guest(now, None)
        self._new.add(number)

    def spoke(self, number: int) -> None:
        """A message came from there: it is no guest any more."""
        if self._forget(number) is not None:
            self._succeeded = max(0, self._succeeded - 1)

    def outcome(self, event: int, value: int) -> None:
        if event == _SUCCEEDED:
            self._succeeded += 1
        elif event == _DENIED:
            self._denied += 1
        else:
            self._why = _BROKEN_OFF if event == _WENT else _BREACHES.get(value, _OTHER_PROTOCOL)

    def went(self, number: int, now: float) -> None:
        guest, why = self._forget(number), self._why
        self._why = None
        if guest is not None:
            if why is None:
                why = self._counted()
            elif why is _BROKEN_OFF and now - guest.since >= HANDSHAKE - _SOON:
                why = f"its handshake took more than {HANDSHAKE:g} s"
            if why:
                self._refused(guest.end, why)
        if not self._guests:
            self._succeeded = self._denied = 0

    def turn_away(self, number: int, why: str) -> None:
        """The caller hangs up on it."""
        guest = self._forget(number)
        if guest is not None:
            self._refused(guest.end or other_end(number), why)

    def place(self) -> bool:
        """Look where the new ones come from; false if there are none. The descriptor of one that is gone may be
        somebody else's by now: so what was found counts from the next call on, if no report of its end came before."""
        for number, end in self._found.items():
            self._guests[number] = self._guests[number]._replace(end=end)
        self._found = {number: other_end(number) for number in self._new}
        self._new.clear()
        return bool(self._found)

    def _counted(self) -> str:
        """Why a connection ended of which nothing was told before its end."""
        if self._succeeded:
            self._succeeded -= 1
            return ""
        if self._denied:
            self._denied -= 1
            return _OTHER_KEY
        return _OTHER_PROTOCOL

    def _forget(self, number: int) -> Guest | None:
        self._new.discard(number)
        self._found.pop(number, None)
        return self._guests.pop(number, None)
