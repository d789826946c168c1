"""The listening side: a ROUTER, and who is behind each of its routing ids.

libzmq tells of a lost connection by its descriptor number alone, and numbers are reused at once. What makes the
answer exact: the monitor's events about one number are in order (accepted, disconnected, accepted, ...), a message
tells the number that it came from, and of several connections with one number only the newest can be alive. Where
this leaves a doubt, because a connection of that number never sent anything, a probe is sent.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import sys
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from math import inf
from time import monotonic
from typing import Any

import zmq
import zmq.backend

from fiberq.abc import Buffer, Message, PeerLost, ServerSocket
from fiberq.address import hidden
from fiberq.errors import AddressError, ClosedError, TransportError
from fiberq.vanished import watch

from .base import DONTWAIT, EVENTS, RCVMORE, SNDMORE, Base, parse
from .greeting import LONGEST, hang_up, progress
from .guests import HANDSHAKE, OUTCOMES, Guests
from .wire import PROBE, Malformed, decode, encode

__all__ = ["ZmqServer"]

LOOK = 0.005
"""Seconds between looks at the monitor while messages keep coming."""

LOOK_AGAIN = 1.0
"""Seconds after which messages are looked for although the descriptor is quiet. Amid connections that sent garbage and
went, libzmq has been seen not to tell of messages; rarely, and why is not known."""

STRANGERS = 256
"""Connections that may be at their handshake: one more, and the oldest has to go."""

PROBE_EVERY, PROBE_FOR = 0.01, 0.15
"""Seconds: libzmq needs a few turns of its own before a send to a dead peer fails."""


class Descriptor:
    """What is known of the connections that had one descriptor number."""

    __slots__ = ("open", "peer", "unseen")

    def __init__(self) -> None:
        self.open = False
        self.unseen = 0
        """Connections that were accepted and may yet turn out to be the one that a new peer's message came from."""
        self.peer: bytes | None = None
        """The newest peer that was seen, unless it is gone."""

    def doubt(self) -> None:
        """A report may have been missed."""
        self.open = True
        self.unseen = max(self.unseen, 2)


class ZmqServer(Base, ServerSocket):
    """See `fiberq.abc.ServerSocket`. A peer is the routing id that libzmq made for the connection: a 32-bit counter."""

    def __init__(
        self,
        context: zmq.backend.Context,
        closed: Callable[[ZmqServer], None],
        options: dict[int, int | bytes],
        user: str | None,
        heartbeat: float,
    ) -> None:
        super().__init__(context, zmq.ROUTER, zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | OUTCOMES)
        self._context = context
        self._on_close = closed
        self._user = user
        self._heartbeat = heartbeat
        self._ports: set[int] = set()
        self._socket.set(zmq.ROUTER_MANDATORY, 1)
        self._socket.set(zmq.HANDSHAKE_IVL, int(HANDSHAKE * 1000))
        for option, value in options.items():
            self._socket.set(option, value)
        self._recv: Callable[..., Any] = self._socket.recv
        self._send: Callable[..., Any] = self._socket.send
        self._get: Callable[[int], Any] = self._socket.get
        self._files: list[tuple[str, int, int]] = []
        self._peers: set[bytes] = set()
        self._descriptors: dict[int, Descriptor] = {}
        self._settling: list[Descriptor] = []
        self._suspects: dict[bytes, float] = {}
        self._connections = 0
        self._greeting: dict[
            int, None
        ] = {}  # descriptors of connections that may not be admitted yet, the oldest first
        self._guests = Guests(lambda end, why: self.refused(end, why))
        self._leaving: dict[bytes, None] = {}
        self._round = 0
        self._idle = False
        self._look_at = 0.0
        self._probe_at = 0.0

    def bind(self, address: str) -> str:
        scheme, rest = parse(address)
        with self._lock:
            self._check_open()
            if scheme == "ipc":
                _check_free(address, rest)
            self._socket.set(zmq.IPV6, int(rest.startswith("[")))
            self._socket.set(zmq.MAXMSGSIZE, min(self.max_message, sys.maxsize))
            try:
                self._socket.bind(address)
            except zmq.ZMQError as error:
                kind = AddressError if error.errno == errno.EINVAL else TransportError
                raise kind(f"zmq: cannot bind to {hidden(address)}: {error.strerror}") from None
            if scheme == "ipc":
                status = os.stat(rest)
                self._files.append((rest, status.st_dev, status.st_ino))
            self._idle = False
            endpoint: bytes = self._get(zmq.LAST_ENDPOINT)
            if scheme == "tcp":
                self._ports.add(int(endpoint.rstrip(b"\0").rpartition(b":")[2]))
            return os.fsdecode(endpoint)

    def recv(self, timeout: float | None) -> Message | PeerLost | None:
        with self._lock:
            self._check_open()
            try:
                event = self._next()
                if event is not None or timeout == 0:
                    return event
                deadline = None if timeout is None else monotonic() + timeout
                while True:
                    soon = self._suspects or self._greeting
                    pause = monotonic() + (PROBE_EVERY if soon else LOOK_AGAIN)
                    if deadline is None or pause < deadline:
                        self._wait(pause)
                        self._idle = False
                    elif not self._wait(deadline):
                        return None
                    event = self._next()
                    if event is not None:
                        return event
            except zmq.ZMQError as error:
                raise self._closed_or(error) from None
            except BaseException:
                self._recover()
                raise

    def send(self, peer: Hashable, parts: Sequence[Buffer]) -> None:
        first, large = encode(parts)
        with self._lock:
            self._check_open()
            self._idle = False  # sending makes libzmq swallow the descriptor's edge
            try:
                self._send(peer, SNDMORE)
                if not large:
                    self._send(first, DONTWAIT)
                    return
                self._send(first, SNDMORE)
                last = large.pop()
                for part in large:
                    self._send(part, SNDMORE)
                self._send(last, DONTWAIT)
            except zmq.ZMQError as error:
                if error.errno != errno.EHOSTUNREACH:
                    raise self._closed_or(error) from None
            except BaseException:  # a signal's handler: end the message, or the next one would become its tail
                self._send(PROBE, DONTWAIT)
                raise

    def drop(self, peer: Hashable) -> None:
        with self._lock:
            if not self._closed:
                self._look()  # of those with one number, only the newest is alive
                for number, descriptor in self._descriptors.items():
                    if descriptor.peer == peer and descriptor.open:
                        hang_up(number)

    def close(self) -> None:
        super().close()
        with self._lock:
            self._context.term()
            while self._files:
                path, device, inode = self._files.pop()
                try:
                    status = os.stat(path)
                    if (status.st_dev, status.st_ino) == (device, inode):
                        os.unlink(path)
                except FileNotFoundError:
                    pass
        self._on_close(self)

    def _closed_or(self, error: zmq.ZMQError) -> Exception:
        return ClosedError("zmq: this socket is closed") if self._closed else TransportError(f"zmq: {error.strerror}")

    def _next(self) -> Message | PeerLost | None:
        """The next message or loss. `None` leaves both sockets empty, so that their descriptors can be waited for."""
        if self._idle and not self._suspects:
            if not self._poll.poll(0):
                return None
            self._idle = False
        while True:
            if self._leaving and self._round <= 0:
                return self._depart()
            now = monotonic()
            if now >= self._look_at:
                self._look()
            try:
                peer: bytes = self._recv(DONTWAIT)
            except zmq.Again:
                if self._leaving:  # found empty after they were lost: there is nothing more of them
                    return self._depart()
                if self._poll.poll(0):  # the monitor has news, or a message has just come
                    self._check_open()
                    self._look()
                    continue
                self._settle()
                self._idle = True
                return None
            message = self._read(peer)
            if message is not None:
                return message

    def _read(self, peer: bytes) -> Message | None:
        """Read the rest of the message that begins with this routing id; `None` when it is not one for the caller."""
        if peer in self._peers:
            first: bytes = self._recv(DONTWAIT)
        else:
            frame = self._recv(DONTWAIT, False)
            if not self._meet(peer, frame):
                self._skip()
                return None
            first = frame.bytes
        if self._leaving:
            self._round = self._full_round() if peer in self._leaving else self._round - 1
        whole = False
        try:
            parts, large = decode(first)
            for index in large:
                if not self._get(RCVMORE):
                    raise Malformed
                parts[index] = self._recv(DONTWAIT, False).buffer
            whole = True
        except Malformed:
            pass
        # Without this look, a peer could append the frames of a message that seems to come from another.
        if self._get(RCVMORE):
            self._skip()
            whole = False
        return Message(peer, parts) if whole else None

    def _skip(self) -> None:
        while self._get(RCVMORE):
            self._recv(DONTWAIT)

    def _recover(self) -> None:
        """A signal's handler raised, perhaps between two frames, or with a report of the monitor in hand."""
        with suppress(zmq.ZMQError):  # the handler closed the socket
            self._send(PROBE, DONTWAIT)  # ends what may be half sent
            self._skip()
            if self._monitor.get(RCVMORE):
                self._monitor.recv(DONTWAIT)
        self._idle = False
        for descriptor in self._descriptors.values():
            descriptor.doubt()
        self._suspects.update(dict.fromkeys(self._peers, monotonic() + PROBE_FOR))

    def _full_round(self) -> int:
        """After so many messages of others, libzmq's fair queue has nothing left of a peer that is gone."""
        return 2 * len(self._peers) + 16

    def _meet(self, peer: bytes, frame: zmq.backend.Frame) -> bool:
        """Note a peer of which nothing was heard before; false when it is to be ignored."""
        if peer[:1] != b"\0" or len(peer) != 5:
            return False  # an identity that the client chose
        if self._user is not None and not _admitted(frame, self._user):
            return False
        self._peers.add(peer)
        self._look()  # libzmq reported the connection before its first message
        try:
            number = int(frame.get(int(zmq.SRCFD)))
        except zmq.ZMQError:  # it was gone before libzmq could look at it
            self._suspects[peer] = inf
            return True
        if number not in self._descriptors:
            self._descriptors[number] = Descriptor()
            self._descriptors[number].doubt()
        self._guests.spoke(number)
        descriptor = self._descriptors[number]
        if not descriptor.open or not descriptor.unseen:
            self._lose(peer)
        elif descriptor.unseen == 1:
            descriptor.unseen = 0
            descriptor.peer = peer
        else:
            self._suspects[peer] = monotonic() + PROBE_FOR
            known = descriptor.peer
            descriptor.peer = peer
            if known is not None:
                newer, older = (peer, known) if _follows(peer, known) else (known, peer)
                descriptor.peer = newer
                self._lose(older)
        return True

    def _look(self) -> None:
        """Take in what the monitor reports, and probe the suspects."""
        now = monotonic()
        self._look_at = now + LOOK
        self._take_in(now)
        while self._guests.place():
            self._take_in(now)
        if self._greeting:
            self._look_at_greetings()
        if self._suspects and now >= self._probe_at:
            self._probe_at = now + PROBE_EVERY
            self._probe(now)

    def _take_in(self, now: float) -> None:
        while (report := self._monitored()) is not None:
            event, number = report
            if event & OUTCOMES:
                self._guests.outcome(event, number)
                continue
            descriptor = self._descriptors.setdefault(number, Descriptor())
            if descriptor.peer is not None:
                self._lose(descriptor.peer)
                descriptor.peer = None
            self._connections += (event == zmq.EVENT_ACCEPTED) - descriptor.open
            descriptor.open = event == zmq.EVENT_ACCEPTED
            self._greeting.pop(number, None)
            if not descriptor.open:
                self._guests.went(number, now)
                self._settling.append(descriptor)
                continue
            self._guests.came(number, now)
            if self._connections > self.max_connections:
                self._guests.turn_away(number, f"there are {self.max_connections} connections already")
                hang_up(number)
            elif self._user is not None:
                self._greeting[number] = None
            descriptor.unseen += 1
            if self._ports:
                watch(number, self._heartbeat, self._ports)

    def _look_at_greetings(self) -> None:
        """libzmq itself ends those that take too long."""
        for number in list(self._greeting):
            too_much = progress(number)
            if too_much is None:
                del self._greeting[number]
            elif too_much or len(self._greeting) > STRANGERS:
                del self._greeting[number]
                crowd = f"more than {STRANGERS} were at their handshake"
                self._guests.turn_away(number, f"it sent {LONGEST} bytes without a key" if too_much else crowd)
                hang_up(number)

    def _probe(self, now: float) -> None:
        for peer, until in list(self._suspects.items()):
            try:
                self._send(peer, SNDMORE)
                self._send(PROBE, DONTWAIT)
                if now >= until:
                    del self._suspects[peer]
            except zmq.ZMQError as error:
                if error.errno != errno.EHOSTUNREACH:
                    raise
                self._lose(peer)

    def _settle(self) -> None:
        """Nothing is unread, so a connection that is gone and was not seen will not be."""
        for descriptor in self._settling:
            if descriptor.peer is None:
                descriptor.unseen = int(descriptor.open)
        self._settling.clear()

    def _lose(self, peer: bytes) -> None:
        """Report the peer as lost once all its messages were received."""
        self._suspects.pop(peer, None)
        if peer in self._peers:
            self._leaving[peer] = None
            self._round = self._full_round()
            self._get(EVENTS)  # makes libzmq see all that has arrived

    def _depart(self) -> PeerLost:
        peer = next(iter(self._leaving))
        del self._leaving[peer]
        self._peers.discard(peer)
        return PeerLost(peer)


def _follows(newer: bytes, older: bytes) -> bool:
    """Whether one routing id was given out after the other; they count up, and wrap around."""
    return (int.from_bytes(newer, "big") - int.from_bytes(older, "big")) % 2**32 < 2**31


def _admitted(frame: zmq.backend.Frame, user: str) -> bool:
    try:
        return frame.get("User-Id") == user
    except zmq.ZMQError:
        return False


def _check_free(address: str, path: str) -> None:
    """Refuse a path that is in use: libzmq would take it away from whoever has it."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise TransportError(f"zmq: cannot bind to {hidden(address)}: the file exists and is not a socket")
    except FileNotFoundError:
        return
    except OSError as error:
        raise TransportError(f"zmq: cannot bind to {hidden(address)}: {error.strerror}") from None
    with socket.socket(socket.AF_UNIX) as trial:
        trial.settimeout(0)
        try:
            trial.connect(path)
        except ConnectionRefusedError:
            return
        except OSError as error:
            raise TransportError(f"zmq: cannot bind to {hidden(address)}: {error.strerror}") from None
    raise TransportError(f"zmq: cannot bind to {hidden(address)}: the address is in use")
