"""The client: whoever calls does the work, and a thread only what nobody calls for.

`recv` and `send` work on the socket themselves. A thread writes what the system did not take at once, until it is gone.
Another one reads from the first call of `fileno` on: what the caller polls is a bell that this thread rings for a whole
message, because the socket itself would ring for half of one, too.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from fiberq.abc import Buffer, ClientSocket
from fiberq.errors import ConnectError, ConnectionLost, TransportError

from .address import Where, no_delay, resolve
from .closing import Closable, daemon, drop, remaining
from .connection import NO_SIGNAL, Connection
from .framing import Ended
from .greeting import Greeting

READ, WRITE = select.POLLIN, select.POLLOUT
AHEAD = 64
"""Messages that wait to be received while the thread still reads on."""


def wait_for(seconds: float | None, *wanted: tuple[int, int]) -> bool:
    """Wait until one of these descriptors is ready for its event, or the time has passed; whether one is."""
    poll = select.poll()
    for fd, event in wanted:
        poll.register(fd, event)
    return bool(poll.poll(None if seconds is None else seconds * 1000))


class Client(Closable, ClientSocket):
    def __init__(self, secret: bytes | None, forget: Callable[[Closable], None]) -> None:
        super().__init__(forget)
        self._secret = secret
        self._address = "nowhere"
        self._connection: Connection | None = None
        self._inbox: deque[list[Buffer]] = deque()
        self._lost = False
        self._polled = False
        """Whether `fileno` was called: from then on a thread reads, and the bell rings for each message."""
        self._room = threading.Condition(self._lock)
        self._writing = threading.Lock()
        self._writer = False
        """Whether a thread writes; guarded by `_writing`, as all that writes is."""

    def connect(self, address: str, timeout: float | None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        self._enter()
        try:
            connection = self._reach(resolve(address), deadline)
        except TimeoutError as error:
            raise ConnectError(f"stream: no answer from {address} within {timeout} s") from error
        except Ended as error:
            raise ConnectError(f"stream: refused by {address}: other credentials, or another protocol") from error
        except OSError as error:
            self._check()
            raise ConnectError(f"stream: cannot connect to {address}: {error.strerror}") from error
        else:
            with self._lock:
                self._address, self._connection = address, connection
                self._check()
                if self._polled:
                    self._start(self._read)
        finally:
            self._leave()

    def send(self, parts: Sequence[Buffer]) -> None:
        self._enter()
        try:
            connection = self._connected()
            if self._lost:
                raise Ended
            with self._writing:
                if not connection.push(parts) and not self._writer:
                    self._start(self._write)
                    self._writer = True
        except Ended as error:
            raise self._loss() from error
        finally:
            self._leave()

    def recv(self, timeout: float | None) -> Sequence[Buffer] | None:
        with self._lock:
            message = self._take()
            if message is not None or (timeout == 0 and self._polled):
                return message
            self._inside += 1
        try:
            deadline = None if timeout is None else time.monotonic() + timeout
            while True:
                wait = remaining(deadline)
                self._wait(wait)
                with self._lock:
                    message = self._take()
                if message is not None or wait == 0:
                    return message
        finally:
            self._leave()

    def fileno(self) -> int:
        with self._lock:
            self._check()
            if not self._polled:
                self._polled = True
                if self._inbox or self._lost:
                    self._bell.ring()
                if self._connection is not None:
                    self._start(self._read)
            return self._bell.fd

    def _connected(self) -> Connection:
        if self._connection is None:
            raise TransportError("stream: the client is not connected")
        return self._connection

    def _loss(self) -> ConnectionLost:
        return ConnectionLost(f"stream: the connection to {self._address} is lost")

    def _reach(self, places: list[Where], deadline: float | None) -> Connection:
        """Connect to the first place that answers."""
        *others, last = places
        for place in others:
            with suppress(OSError, Ended):
                return self._try(*place, deadline)
        return self._try(*last, deadline)

    def _try(self, family: socket.AddressFamily, where: Any, deadline: float | None) -> Connection:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            self._dial(sock, where, deadline)
            no_delay(sock)
            return self._greet(sock, deadline)
        except BaseException:
            sock.close()
            raise

    def _dial(self, sock: socket.socket, where: Any, deadline: float | None) -> None:
        while (code := sock.connect_ex(where)) == errno.EAGAIN:
            # A UNIX listener's queue is full, and nothing tells when it is not any more.
            self._check()
            if remaining(deadline) == 0:
                raise TimeoutError
            time.sleep(0.01)
        if code == errno.EINPROGRESS:
            self._await(sock, WRITE, deadline)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))

    def _greet(self, sock: socket.socket, deadline: float | None) -> Connection:
        greeting = Greeting(self._secret, serving=False)
        say = greeting.feed()
        while True:
            if say and sock.send(say, NO_SIGNAL) < len(say):
                raise Ended
            if greeting.done:
                return Connection(sock, greeting.tls)
            self._await(sock, READ, deadline)
            data = sock.recv(4096)
            if not data:
                raise Ended
            say = greeting.feed(data)

    def _await(self, sock: socket.socket, event: int, deadline: float | None) -> None:
        """Wait for an event while connecting, until the deadline or `close`."""
        while True:
            left = remaining(deadline)
            ready = wait_for(left, (sock.fileno(), event), (self._bell.fd, READ))
            self._check()
            if ready:
                return
            if left == 0:
                raise TimeoutError

    def _take(self) -> list[Buffer] | None:
        """Return the next message that was read; with the lock held."""
        self._check()
        if self._inbox:
            message = self._inbox.popleft()
            if not self._inbox and not self._lost and self._bell.rings:
                self._bell.hush()
            if len(self._inbox) == AHEAD:
                self._room.notify()
            return message
        if self._lost:
            raise self._loss()
        self._connected()
        if self._bell.rings:
            self._bell.hush()
        return None

    def _wait(self, seconds: float | None) -> None:
        """Wait until something may have come."""
        if self._polled:
            wait_for(seconds, (self._bell.fd, READ))
        elif seconds == 0 or wait_for(seconds, (self._connected().sock.fileno(), READ), (self._bell.fd, READ)):
            with self._lock:
                self._pull()

    def _pull(self) -> None:
        """Read once; with the lock held."""
        if self._closed or self._lost:
            return
        try:
            self._inbox.extend(self._connected().pull())
        except Ended:
            self._lost = True
        if self._polled and (self._inbox or self._lost):
            self._bell.ring()

    def _start(self, target: Callable[[], None]) -> None:
        self._enter()
        try:
            daemon(target)
        except RuntimeError as error:  # The process has too many, or is about to end.
            self._leave()
            raise TransportError("stream: cannot start a thread") from error

    def _read(self) -> None:
        try:
            sock = self._connected().sock
            while not self._closed and not self._lost:
                wait_for(None, (sock.fileno(), READ))
                with self._lock:
                    self._pull()
                    while len(self._inbox) > AHEAD and not self._closed:
                        self._room.wait()
        finally:
            self._leave()

    def _write(self) -> None:
        connection = self._connected()
        try:
            done = False
            while not done:
                wait_for(None, (connection.sock.fileno(), WRITE))
                with self._writing:
                    done = self._closed or connection.flush()
                    self._writer = not done
        except Ended:
            pass  # Reading tells, after all that had arrived.
        finally:
            self._leave()

    def _withdraw(self) -> None:
        self._room.notify()
        if self._connection is not None:
            # Closing would not wake the threads that wait for the socket.
            with suppress(OSError):
                self._connection.sock.shutdown(socket.SHUT_RDWR)

    def let_go(self) -> None:
        if self._connection is not None:
            drop(self._connection.sock)
        self._bell.close()
