"""The client: its caller reads, and a thread writes what `send` could not; it is there only while the system does not
take what is sent.

What the caller polls is readable while the socket is, or the bell rings: for messages that came together with one that
was received, and for the end.
"""

from __future__ import annotations

import errno
import os
import select
import selectors
import signal
import socket
import threading
import time
from _thread import start_new_thread
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from fiberq.abc import Buffer, ClientSocket
from fiberq.address import hidden
from fiberq.errors import ClosedError, ConnectError, ConnectionLost, TransportError
from fiberq.vanished import watch

from .address import Where, drop, no_delay, resolve
from .closing import Gate, remaining
from .connection import AT_ONCE, Connection, of_handler
from .framing import Ended
from .greeting import Greeting

Link = Connection[tuple[Buffer, ...], None]
READ, WRITE = select.POLLIN, select.POLLOUT
READS = 64
"""The most reads of one look for a message: a long one that comes as fast as it is read must not hold up the caller."""


def wait_for(seconds: float | None, *wanted: tuple[int, int]) -> bool:
    """Wait until one of these descriptors is ready for its event, or the time has passed; whether one is."""
    poll = select.poll()
    for fd, event in wanted:
        poll.register(fd, event)
    return bool(poll.poll(None if seconds is None else seconds * 1000))


class Client(ClientSocket):
    def __init__(self, secret: bytes | None, heartbeat: float, forget: Callable[[Client], None]) -> None:
        self._secret = secret
        self._heartbeat = heartbeat
        self._forget = forget
        self._gate = Gate(self._withdraw, self.let_go)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._gate.bell, READ)
        self._address = "nowhere"
        self._sock: socket.socket | None = None
        self._connection: Link | None = None
        self._inbox: deque[tuple[Buffer, ...] | None] = deque()
        """The messages that have arrived, and `None` behind the last one."""
        self._rings = False
        """Whether the bell may be set."""
        self._writing = threading.Lock()
        self._writer = False
        """Whether a thread writes; guarded by `_writing`, as all that writes is."""

    def connect(self, address: str, timeout: float | None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._gate:
            if self._sock is not None:
                raise TransportError("stream: connect can be called only once")
            try:
                self._connection = self._reach(resolve(address), deadline)
            except TimeoutError as error:
                raise ConnectError(f"stream: no answer from {hidden(address)} within {timeout} s") from error
            except Ended as error:
                raise ConnectError(
                    f"stream: refused by {hidden(address)}: other credentials, or another protocol"
                ) from error
            except OSError as error:
                if of_handler(error):
                    raise
                raise ConnectError(f"stream: cannot connect to {hidden(address)}: {error.strerror}") from error
            self._address = address
            self._gate.check()

    def send(self, parts: Sequence[Buffer]) -> None:
        with self._gate:
            connection = self._connected()
            if connection.ended:
                raise self._loss()
            with self._writing:
                if not connection.push(parts) and not self._writer:
                    self._start(self._write)
                    self._writer = True

    def recv(self, timeout: float | None) -> Sequence[Buffer] | None:
        deadline = time.monotonic() + timeout if timeout else timeout
        with self._gate:
            try:
                while not self._arrived() and timeout != 0 and (wait := remaining(deadline)) != 0:
                    wait_for(wait, (self._selector.fileno(), READ))
                    self._gate.check()
                if len(self._inbox) > 1:
                    self._ring()
                elif self._rings:
                    self._gate.bell.clear()
                    self._rings = False
                return self._inbox.popleft() if self._inbox else None
            except BaseException:  # a signal's handler may have raised when the socket had been read
                self._ring()
                raise

    def fileno(self) -> int:
        self._gate.check()
        return self._selector.fileno()

    def close(self) -> None:
        self._gate.close()

    def _withdraw(self) -> None:
        if self._sock is not None:
            with suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)  # This ends the threads, which closing would not.

    def let_go(self) -> None:
        """Close this process's descriptors, and touch nothing else: a forked child does this to what it inherited."""
        self._forget(self)
        if self._sock is not None:
            drop(self._sock)
        self._selector.close()
        self._gate.bell.close()

    def _connected(self) -> Link:
        if self._connection is None:
            raise TransportError("stream: the client is not connected")
        return self._connection

    def _loss(self) -> ConnectionLost:
        return ConnectionLost(f"stream: the connection to {hidden(self._address)} is lost")

    def _arrived(self) -> bool:
        """Whether a message is there; reads what is to be had at once until one is."""
        connection, inbox = self._connected(), self._inbox
        inbox.extend(connection.whole)
        for _ in range(READS):
            if inbox or not connection.pull():
                break
            inbox.extend(connection.whole)
        if inbox and inbox[0] is None:
            raise self._loss()
        return bool(inbox)

    def _ring(self) -> None:
        if not self._rings:
            self._rings = True
            self._gate.bell.set()

    def _reach(self, places: list[Where], deadline: float | None) -> Link:
        """Connect to the first place that answers."""
        for family, where in places:
            sock = self._sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                sock.setblocking(False)
                self._dial(sock, where, deadline)
                no_delay(sock)
                tls = self._greet(sock, deadline)
                watch(sock.fileno(), self._heartbeat)
                self._selector.register(sock, READ)
                return Connection(sock, tls, tuple, None)
            except BaseException as error:
                sock.close()
                if not isinstance(error, (OSError, Ended)) or of_handler(error):
                    raise
                failure = error
        raise failure

    def _dial(self, sock: socket.socket, where: Any, deadline: float | None) -> None:
        while (code := sock.connect_ex(where)) == errno.EAGAIN:
            # A UNIX listener's queue is full, and nothing tells when it is not any more.
            self._gate.check()
            if remaining(deadline) == 0:
                raise TimeoutError(errno.ETIMEDOUT, "too late")
            time.sleep(0.01)
        if code == errno.EINPROGRESS:
            self._await(sock, WRITE, deadline)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))

    def _greet(self, sock: socket.socket, deadline: float | None) -> Any:
        greeting = Greeting(self._secret, serving=False)
        say = greeting.feed()
        while True:
            if say and sock.send(say, AT_ONCE) < len(say):
                raise Ended
            if greeting.done:
                return greeting.tls
            self._await(sock, READ, deadline)
            data = sock.recv(4096)
            if not data:
                raise Ended
            say = greeting.feed(data)

    def _await(self, sock: socket.socket, event: int, deadline: float | None) -> None:
        """Wait for an event while connecting, until the deadline or `close`."""
        while not wait_for(wait := remaining(deadline), (sock.fileno(), event), (self._gate.bell.fileno(), READ)):
            if wait == 0:
                raise TimeoutError(errno.ETIMEDOUT, "too late")
        self._gate.check()

    def _write(self) -> None:
        connection = self._connected()
        with suppress(ClosedError), self._gate:
            done = False
            while not done:
                wait_for(None, (connection.sock.fileno(), WRITE))
                with self._writing:
                    done = self._gate.closed or connection.flush()
                    self._writer = not done

    def _start(self, target: Callable[[], None]) -> None:
        """Run `target` in a thread that gets no signals, so that they wake the main thread."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            start_new_thread(target, ())  # `threading` does more in Python, where a handler may interrupt it.
        except RuntimeError as error:  # The process has too many, or is about to end.
            raise TransportError("stream: cannot start a thread") from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
