"""The server: one thread's `recv` accepts, greets, reads and writes for all peers, as their sockets get ready."""

from __future__ import annotations

import selectors
import socket
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from typing import NamedTuple

from fiberq.abc import Buffer, Message, PeerLost, ServerSocket
from fiberq.address import hidden
from fiberq.errors import TransportError
from fiberq.vanished import watch

from .address import Listener, drop, no_delay
from .closing import Gate, remaining
from .connection import AT_ONCE, Connection, of_handler
from .framing import Ended
from .greeting import Greeting

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
GREETING_SECONDS = 5.0
"""How long a stranger may take for his greeting."""
STRANGERS = 256
"""How many may be at it at once: one more, and the oldest has to go."""
PAUSE = 0.05
"""Seconds for which nobody is accepted when descriptors run out."""


class Guest(NamedTuple):
    """Somebody who has not finished his greeting."""

    sock: socket.socket
    end: object
    """Where he comes from, as `accept` says."""
    greeting: Greeting
    since: float


class Server(ServerSocket):
    def __init__(self, secret: bytes | None, heartbeat: float, forget: Callable[[Server], None]) -> None:
        self._secret = secret
        self._heartbeat = heartbeat
        self._forget = forget
        self._gate = Gate(self._withdraw, self.let_go)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._gate.bell, READ, lambda _: None)
        self._listeners: list[Listener] = []
        self._resume_at: float | None = None
        """When to accept again, while that is suspended."""
        self._guests: dict[int, Guest] = {}
        self._peers: dict[Hashable, Connection[Message, PeerLost]] = {}
        self._names = count()
        self._events: deque[Message | PeerLost] = deque()
        self._busy: set[Hashable] = set()
        """At whose connection something is being done, or was when a signal handler interrupted it."""

    def bind(self, address: str) -> str:
        with self._gate:
            try:
                listener = Listener.at(address)
            except OSError as error:
                if of_handler(error):
                    raise
                raise TransportError(f"stream: cannot listen at {hidden(address)}: {error.strerror}") from error
            with self._gate.lock:
                self._listeners.append(listener)
                if self._gate.closed:
                    listener.withdraw()
                elif self._resume_at is None:
                    self._listen(listener)
            self._gate.check()
            return listener.address

    def recv(self, timeout: float | None) -> Message | PeerLost | None:
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._gate:
            wait = None
            while not self._events and wait != 0:
                wait = remaining(deadline)
                self._turn(wait)
                self._gate.check()
        return self._events.popleft() if self._events else None

    def send(self, peer: Hashable, parts: Sequence[Buffer]) -> None:
        with self._gate:
            if self._busy:
                self._resume()
            connection = self._peers.get(peer)
            if connection is not None:
                self._busy.add(peer)
                if not connection.push(parts):
                    self._watch(connection, READ | WRITE)
                self._busy.discard(peer)

    def drop(self, peer: Hashable) -> None:
        connection = self._peers.get(peer)
        if connection is not None:
            with suppress(OSError):  # reading finds the end
                connection.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._gate.close()

    def _withdraw(self) -> None:
        for listener in self._listeners:
            listener.withdraw()
        for connection in list(self._peers.values()):
            with suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    def let_go(self) -> None:
        """Close this process's descriptors, and touch nothing else: a forked child does this to what it inherited."""
        self._forget(self)
        every: list[Listener | Guest | Connection[Message, PeerLost]] = [*self._listeners]
        for each in (*every, *self._guests.values(), *self._peers.values()):
            drop(each.sock)
        self._selector.close()
        self._gate.bell.close()

    def _turn(self, wait: float | None) -> None:
        """Wait until something can be done, and do it."""
        if self._busy:
            self._resume()
            return
        if self._guests or self._resume_at is not None:
            until_next = self._keep_order()
            wait = until_next if wait is None else min(wait, until_next)
        for key, mask in self._selector.select(wait):
            key.data(mask)

    def _keep_order(self) -> float:
        """Dismiss guests who take too long, accept again after a pause; return the seconds until the next such time."""
        now = time.monotonic()
        due = now + GREETING_SECONDS
        for name, guest in list(self._guests.items()):
            due = guest.since + GREETING_SECONDS
            if now < due:
                break
            self._dismiss(name, f"its handshake took more than {GREETING_SECONDS:g} s")
        if self._resume_at is not None and now >= self._resume_at:
            self._resume_at = None
            for listener in self._listeners:
                self._listen(listener)
        return max(0.0, min(due, self._resume_at or due) - now)

    def _listen(self, listener: Listener) -> None:
        self._selector.register(listener.sock, READ, partial(self._accept, listener))

    def _accept(self, listener: Listener, _mask: int) -> None:
        try:
            sock, end = listener.sock.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:  # No descriptor is left, or no memory: the listener stays readable.
            if of_handler(error):
                raise
            if self._guests:
                self._dismiss(next(iter(self._guests)), "no descriptor was left")
            else:
                self._pause()
            return
        if len(self._peers) >= self.max_connections:
            sock.close()
            self.refused(end, f"there are {self.max_connections} connections already")
            return
        name = next(self._names)
        sock.setblocking(False)
        self._guests[name] = Guest(sock, end, Greeting(self._secret, serving=True), time.monotonic())
        self._selector.register(sock, READ, partial(self._greet, name))
        if len(self._guests) > STRANGERS:
            self._dismiss(next(iter(self._guests)), f"more than {STRANGERS} were at their handshake")
        self._greet(name, READ)

    def _pause(self) -> None:
        if self._resume_at is None:
            self._resume_at = time.monotonic() + PAUSE
            for listener in self._listeners:
                self._selector.unregister(listener.sock)

    def _greet(self, name: int, _mask: int) -> None:
        if name not in self._guests:
            return  # He was dismissed for a newcomer in this very turn.
        sock, _, greeting, _ = self._guests[name]
        try:
            data = sock.recv(4096)
            if not data:
                raise Ended
            say = greeting.feed(data)
            if say and sock.send(say, AT_ONCE) < len(say):
                raise Ended("it does not read")
            if greeting.done:
                no_delay(sock)
                watch(sock.fileno(), self._heartbeat)
        except BlockingIOError:
            return
        except BaseException as error:
            self._dismiss(name, str(error) if isinstance(error, Ended) else "")
            if not isinstance(error, (Ended, OSError)) or of_handler(error):
                raise
            return
        if greeting.done:
            self._busy.add(name)
            del self._guests[name]
            connection = self._peers[name] = Connection(
                sock, greeting.tls, partial(Message, name), PeerLost(name), self.max_message
            )
            self._selector.modify(sock, READ, partial(self._serve, name, connection))
            self._busy.discard(name)

    def _dismiss(self, name: int, why: str) -> None:
        """Hang up on a guest. Who is to be told why has not left by himself."""
        guest = self._guests.pop(name)
        self._close(guest.sock)
        if why:
            self.refused(guest.end, why)

    def _close(self, sock: socket.socket) -> None:
        with suppress(KeyError, ValueError):
            self._selector.unregister(sock)
        sock.close()

    def _serve(self, name: Hashable, connection: Connection[Message, PeerLost], mask: int) -> None:
        self._busy.add(name)
        if mask & WRITE and connection.flush():
            self._watch(connection, READ)
        if mask & READ:
            self._events.extend(connection.whole)  # What a signal handler's exception kept from it.
            connection.pull()
            self._events.extend(connection.whole)
            if connection.ended:
                self._peers.pop(name, None)
                self._close(connection.sock)
        self._busy.discard(name)

    def _resume(self) -> None:
        """Go on where a signal handler interrupted us: the selector may not know any more what to wait for."""
        before, self._selector = self._selector, selectors.DefaultSelector()
        before.close()
        self._selector.register(self._gate.bell, READ, lambda _: None)
        self._resume_at = None
        for listener in self._listeners:
            self._listen(listener)
        for guest_name, guest in self._guests.items():
            self._selector.register(guest.sock, READ, partial(self._greet, guest_name))
        for name, connection in self._peers.items():
            self._selector.register(connection.sock, READ | WRITE, partial(self._serve, name, connection))
        for name in list(self._busy):
            if name in self._peers:
                self._serve(name, self._peers[name], READ)
            self._busy.discard(name)

    def _watch(self, connection: Connection[Message, PeerLost], events: int) -> None:
        self._selector.modify(connection.sock, events, self._selector.get_key(connection.sock).data)
