"""The connecting side: a DEALER with one connection, behind one level-triggered descriptor.

libzmq's own descriptor is edge-triggered, and any call swallows the edge. So each call ends with a look at what is
there now, and the flag (see `base`) is kept set while something is.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

import zmq
import zmq.backend

from fiberq.abc import Buffer, ClientSocket
from fiberq.address import hidden
from fiberq.errors import AddressError, ClosedError, ConnectError, ConnectionLost, TransportError
from fiberq.vanished import watch

from .base import DONTWAIT, EVENTS, POLLIN, SNDMORE, Base, parse
from .wire import Malformed, decode, encode

__all__ = ["ZmqClient"]

NEVER = 86_400_000
"""Milliseconds until libzmq may connect again. With -1 it would drop what had arrived before the connection broke."""

FAILURES: dict[int, str] = {
    zmq.EVENT_CLOSED: "nobody listens there",
    zmq.EVENT_CONNECT_RETRIED: "nobody listens there",
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "it refused the credentials",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "it does not speak this protocol, or has other security settings",
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "it ended the handshake; does it have the same credentials?",
    zmq.EVENT_DISCONNECTED: "it ended the handshake; does it have the same credentials?",
}
WATCHED = sum(FAILURES) | zmq.EVENT_CONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED

_clients: weakref.WeakSet[ZmqClient] = weakref.WeakSet()


class ZmqClient(Base, ClientSocket):
    """See `fiberq.abc.ClientSocket`."""

    def __init__(
        self,
        context: zmq.backend.Context,
        closed: Callable[[ZmqClient], None],
        options: dict[int, bytes],
        heartbeat: float,
    ) -> None:
        super().__init__(context, zmq.DEALER, WATCHED)
        self._on_close = closed
        self._heartbeat = heartbeat
        self._socket.set(zmq.RECONNECT_IVL, NEVER)
        for option, value in options.items():
            self._socket.set(option, value)
        self._recv: Callable[..., Any] = self._socket.recv
        self._send: Callable[..., Any] = self._socket.send
        self._get: Callable[[int], Any] = self._socket.get
        self._address = "(not connected)"
        self._port = 0
        self._connected = False
        self._lost = False
        self._ready = False
        """Something can be received, as far as the last look told."""
        self._flagged = False
        self._inherited: tuple[int, os.stat_result] | None = None

    def connect(self, address: str, timeout: float | None) -> None:
        scheme, rest = parse(address)
        deadline = None if timeout is None else monotonic() + timeout
        with self._lock:
            self._check_open()
            if self._address != "(not connected)":
                raise TransportError("zmq: connect can be called only once")
            self._address = address
            self._port = int(rest.rpartition(":")[2]) if scheme == "tcp" else 0
            self._socket.set(zmq.IPV6, int("[" in rest))
            try:
                self._socket.connect(address)
            except zmq.ZMQError as error:
                raise AddressError(f"zmq: cannot connect to {hidden(address)}: {error.strerror}") from None
            while not self._connected:
                reason = self._look()
                self._get(EVENTS)  # silences the socket's descriptor, which would end each wait at once
                if not self._connected and reason is None and not self._wait(deadline):
                    reason = f"nobody answered within {timeout} s"
                if reason is not None and not self._connected:
                    self._lost = True
                    self._settle()
                    raise ConnectError(f"zmq: cannot connect to {hidden(address)}: {reason}")
            self._settle()

    def send(self, parts: Sequence[Buffer]) -> None:
        first, large = encode(parts)
        with self._lock:
            self._check_open()
            if self._lost or not self._connected:
                raise self._gone()
            try:
                if not large:
                    self._send(first, DONTWAIT)
                else:
                    self._send(first, SNDMORE)
                    last = large.pop()
                    for part in large:
                        self._send(part, SNDMORE)
                    self._send(last, DONTWAIT)
                if not self._ready:
                    self._settle()
            except BaseException as error:
                raise self._broken(error) from None

    def recv(self, timeout: float | None) -> Sequence[Buffer] | None:
        with self._lock:
            self._check_open()
            if not self._connected:
                raise self._gone()
            deadline = None
            while True:
                if (self._ready or self._poll.poll(0)) and (parts := self._next()) is not None:
                    return parts
                if self._lost:
                    raise self._gone()
                if timeout is None or timeout > 0:
                    if deadline is None and timeout is not None:
                        deadline = monotonic() + timeout
                    if self._wait(deadline):
                        continue
                return None

    def fileno(self) -> int:
        self._check_open()
        return self._selector.fileno()

    def close(self) -> None:
        super().close()
        self._on_close(self)

    def _next(self) -> Sequence[Buffer] | None:
        """The next message. `None` when there is none; then `_lost` is up to date."""
        try:
            while True:
                try:
                    first: bytes = self._recv(DONTWAIT)
                except zmq.Again:
                    if self._lost:
                        break
                    self._look()
                    if self._lost:  # what had arrived was there before the news
                        continue
                    break
                if first:
                    parts, large = decode(first)
                    for index in large:
                        parts[index] = self._recv(DONTWAIT, False).buffer
                    self._settle()
                    return parts
            self._settle()
            return None
        except BaseException as error:
            raise self._broken(error) from None

    def _remember(self, descriptor: int) -> None:
        """Note the connection's kernel socket, for `_drop_inherited`."""
        try:
            self._inherited = (descriptor, os.fstat(descriptor))
        except OSError:
            return
        _clients.add(self)

    def _look(self) -> str | None:
        """Take in what the monitor reports; return why the connection failed, if it did."""
        reason = None
        while (report := self._monitored()) is not None:
            event, value = report
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._connected = True
            elif event == zmq.EVENT_CONNECTED:
                self._remember(value)
                if self._port:
                    watch(value, self._heartbeat, {self._port})
            elif event in FAILURES:
                self._lost = True
                reason = reason or FAILURES[event]
        return reason

    def _settle(self) -> None:
        """Look whether something is there, and set the flag to that: the last step of whatever calls libzmq."""
        self._ready = bool(self._get(EVENTS) & POLLIN)
        flagged = self._ready or self._lost
        if flagged != self._flagged:
            self._flagged = flagged
            if flagged:
                self._flag.set()
            else:
                self._flag.clear()
                if self._closed:  # `close` uses the same flag
                    self._flag.set()

    def _gone(self) -> Exception:
        return ConnectionLost(f"zmq: there is no connection to {hidden(self._address)} any more")

    def _broken(self, error: BaseException) -> BaseException:
        """Give the connection up: a message may be half sent or half received, and only a new connection is sound."""
        if self._closed:
            return ClosedError("zmq: this socket is closed") if isinstance(error, zmq.ZMQError) else error
        self._lost = True
        self._connected = self._ready = False
        self._flagged = True
        self._flag.set()
        if isinstance(error, (zmq.ZMQError, Malformed)):
            return self._gone()
        return error


def _drop_inherited() -> None:
    """In a forked child, close its copy of each connection, which would hide the parent's death from the server."""
    for client in _clients:
        if client._inherited is not None:
            descriptor, known = client._inherited
            try:
                if os.path.samestat(os.fstat(descriptor), known):  # else libzmq closed it, and its number was reused
                    os.close(descriptor)
            except OSError:
                pass
    _clients.clear()


os.register_at_fork(after_in_child=_drop_inherited)
