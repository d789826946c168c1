"""The server: one thread's `recv` accepts, greets, reads and writes for all peers, as their sockets get ready."""

from __future__ import annotations

import selectors
import socket
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from itertools import count
from typing import NamedTuple

from fiberq.abc import Buffer, Message, PeerLost, ServerSocket
from fiberq.errors import TransportError

from .address import Listener, no_delay
from .closing import Closable, drop, remaining
from .connection import NO_SIGNAL, Connection
from .framing import Ended
from .greeting import Greeting

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
GREETING_SECONDS = 5.0
"""How long a stranger may take for his greeting,"""
CROWDED_SECONDS = 0.5
"""and how long while as many as allowed are at it."""
STRANGERS = 256
"""How many may be at it at once."""
PAUSE = 0.05
"""Seconds for which nobody is accepted when there are too many, or when descriptors run out."""


class Guest(NamedTuple):
    """Somebody who has not finished his greeting."""

    sock: socket.socket
    greeting: Greeting
    since: float


class Server(Closable, ServerSocket):
    def __init__(self, secret: bytes | None, forget: Callable[[Closable], None]) -> None:
        super().__init__(forget)
        self._secret = secret
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._bell.fd, READ, lambda _: None)
        self._listeners: list[Listener] = []
        self._resume_at: float | None = None
        """When to accept again, while that is suspended."""
        self._guests: dict[int, Guest] = {}
        self._peers: dict[Hashable, Connection] = {}
        self._names = count()
        self._events: deque[Message | PeerLost] = deque()

    def bind(self, address: str) -> str:
        self._enter()
        try:
            listener = Listener.at(address)
            self._listeners.append(listener)
            if self._resume_at is None:
                self._listen(listener)
            return listener.address
        except TransportError:
            raise
        except OSError as error:
            raise TransportError(f"stream: cannot listen at {address}: {error.strerror}") from error
        finally:
            self._leave()

    def recv(self, timeout: float | None) -> Message | PeerLost | None:
        deadline = None if timeout is None else time.monotonic() + timeout
        self._enter()
        try:
            while not self._events:
                wait = remaining(deadline)
                self._turn(wait)
                self._check()
                if wait == 0:
                    break
            return self._events.popleft() if self._events else None
        finally:
            self._leave()

    def send(self, peer: Hashable, parts: Sequence[Buffer]) -> None:
        self._enter()
        try:
            connection = self._peers.get(peer)
            if connection is not None and not connection.push(parts):
                self._watch(connection, READ | WRITE)
        except Ended:
            pass  # Reading will tell, after all that had arrived.
        finally:
            self._leave()

    def _turn(self, wait: float | None) -> None:
        """Wait until something can be done, and do it."""
        if self._guests or self._resume_at is not None:
            until_next = self._keep_order()
            wait = until_next if wait is None else min(wait, until_next)
        for key, mask in self._selector.select(wait):
            key.data(mask)

    def _keep_order(self) -> float:
        """Dismiss guests who take too long, accept again after a pause; return the seconds until the next such time."""
        now = time.monotonic()
        patience = GREETING_SECONDS if len(self._guests) < STRANGERS else CROWDED_SECONDS
        due = now + patience
        for name, guest in list(self._guests.items()):
            if now < guest.since + patience:
                due = guest.since + patience
                break
            self._dismiss(name)
        if self._resume_at is not None and now >= self._resume_at:
            self._resume_at = None
            for listener in self._listeners:
                self._listen(listener)
        return min(due, self._resume_at or due) - now

    def _listen(self, listener: Listener) -> None:
        self._selector.register(listener.sock, READ, partial(self._accept, listener))

    def _accept(self, listener: Listener, _mask: int) -> None:
        try:
            if len(self._guests) >= STRANGERS:
                self._pause()
                return
            sock, _ = listener.sock.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError:  # No descriptor is left, or no memory: the listener stays readable.
            self._pause()
            return
        name = next(self._names)
        self._guests[name] = Guest(sock, Greeting(self._secret, serving=True), time.monotonic())
        sock.setblocking(False)
        self._selector.register(sock, READ, partial(self._greet, name))

    def _pause(self) -> None:
        if self._resume_at is None:
            self._resume_at = time.monotonic() + PAUSE
            for listener in self._listeners:
                self._selector.unregister(listener.sock)

    def _greet(self, name: int, _mask: int) -> None:
        sock, greeting, _ = self._guests[name]
        try:
            data = sock.recv(4096)
            if not data:
                raise Ended
            say = greeting.feed(data)
            if say and sock.send(say, NO_SIGNAL) < len(say):
                raise Ended
            if greeting.done:
                no_delay(sock)
        except BlockingIOError:
            return
        except (Ended, OSError):
            self._dismiss(name)
            return
        if greeting.done:
            del self._guests[name]
            self._peers[name] = Connection(sock, greeting.tls)
            self._selector.modify(sock, READ, partial(self._serve, name, self._peers[name]))

    def _dismiss(self, name: int) -> None:
        guest = self._guests.pop(name)
        self._selector.unregister(guest.sock)
        guest.sock.close()

    def _serve(self, name: int, connection: Connection, mask: int) -> None:
        try:
            if mask & WRITE and connection.flush():
                self._watch(connection, READ)
        except Ended:
            self._watch(connection, READ)
        if mask & READ:
            try:
                self._events.extend([Message(name, parts) for parts in connection.pull()])
            except Ended:
                del self._peers[name]
                self._selector.unregister(connection.sock)
                connection.sock.close()
                self._events.append(PeerLost(name))

    def _watch(self, connection: Connection, events: int) -> None:
        self._selector.modify(connection.sock, events, self._selector.get_key(connection.sock).data)

    def _withdraw(self) -> None:
        for listener in self._listeners:
            listener.remove_file()

    def let_go(self) -> None:
        every: list[Listener | Guest | Connection] = [*self._listeners, *self._guests.values(), *self._peers.values()]
        for each in every:
            drop(each.sock)
        self._selector.close()
        self._bell.close()
