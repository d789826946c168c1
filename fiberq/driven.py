"""The socket of a process's one connection to a node, the lock around all that belongs to it, and who drives it.

Whoever waits for something drives: it polls the socket, and what comes for others it hands to them. So a lone item
costs no switch between threads. While nobody waits, one I/O thread drives. Nobody ever polls busily.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from errno import EPIPE
from math import ceil
from typing import Final, TypeVar

from fiberq.abc import ClientSocket, Credentials, Transport
from fiberq.address import parse
from fiberq.errors import (
    AccessError,
    ClosedError,
    ConnectError,
    ConnectionLost,
    HandleError,
    NodeError,
    ProtocolError,
    ReadEnded,
    ShutDown,
    TransportError,
    WriteEnded,
)
from fiberq.protocol.client import Client
from fiberq.protocol.frames import PUT
from fiberq.protocol.session import drain
from fiberq.protocol.writer import Writer
from fiberq.registry import make_client
from fiberq.settings import config
from fiberq.shield import ShieldedLock, block_signals
from fiberq.tree import Endpoint
from fiberq.wakeup import Wakeup

T = TypeVar("T")

HEARTBEAT: Final = 1.0
"""Seconds between two looks at the clocks of the protocol, whoever drives."""

LULL: Final = 0.01
"""Seconds without a waiting caller after which the I/O thread drives again."""

REFUSALS: Final = 0.8
"""Seconds for which a connection over a network is tried again although it is refused, or breaks at once. With the
pause between two attempts this is less than the second within which all are told that the node is gone."""

ATTEMPT: Final = 0.5
"""Seconds after which a connection over a network is tried for anew, if it did not take longer before."""

RETRY: Final = 0.01
"""Seconds before the second attempt to connect."""

STALE: Final = 2 * HEARTBEAT
"""Seconds after which a caller that drives, and does not look at anything, is taken for stopped or interrupted."""


class _Driver:
    """A caller that polls the socket, and what it waits for news of."""

    __slots__ = ("since", "target", "thread")

    def __init__(self, target: object, now: float) -> None:
        self.target = target
        self.thread = threading.get_ident()
        self.since = now


class _Parked:
    """A caller that waits while another one drives."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def wait(self, timeout: float) -> None:
        self._lock.acquire(timeout=timeout)

    def wake(self) -> None:
        try:
            self._lock.release()
        except RuntimeError:
            pass  # it was woken already


class Driven(ABC):
    """What `link.Link` is made on: it knows nothing of handles."""

    def __init__(self, endpoint: Endpoint, transport: Transport) -> None:
        self.endpoint = endpoint
        self.address = parse(endpoint.from_here())
        self.error: NodeError | None = None
        self._mourners: set[int] = set()  # threads that were told of the error
        self._took = 0.0  # seconds that it took to connect
        self._transport = transport
        self._lock = ShieldedLock()
        self.grace = self.address.scheme != "ipc"  # who is away may come back: it is not known to be dead
        self._credentials, token = _split(endpoint.key)
        self._client = Client(os.urandom(16).hex(), self.grace, token)
        self._driver: _Driver | None = None  # the caller that drives
        self._io_drives = False
        self._polling: list[_Driver] = []  # who polls: the driver, and who was taken for stopped
        self._drove_at = 0.0  # when a caller last drove
        self._parked: dict[object, list[_Parked]] = {}
        self._io_parked = threading.Lock()
        self._io_parked.acquire()
        self._io_urgent = False
        self._io_rests = False  # it waits for more than a lull
        self._io_wakeup = Wakeup()
        self._caller_wakeup = Wakeup()
        self._pollers: list[select.poll] = []  # for callers, which nobody uses now
        self._down = False
        self._closed = False

    def _start(self) -> None:
        """Connect, and let the I/O thread begin."""
        self._meet()
        self._thread = threading.Thread(target=self._io_main, name="fiberq I/O", daemon=True)
        self._thread.start()

    # -- what a link adds --

    @abstractmethod
    def _collect(self, now: float) -> None:
        """Release what handles let go of."""

    @abstractmethod
    def _land_flights(self, now: float) -> None:
        """Tell the node of children that are gone: what they were given, and did not claim, is held no more."""

    @abstractmethod
    def _ring(self, target: object) -> None:
        """Set the bell of a reader or writer right, if it has one."""

    @abstractmethod
    def _ring_all(self) -> None:
        """There is an end of waiting for all."""

    @abstractmethod
    def _broken(self) -> None:
        """Nothing will come of this connection any more."""

    # -- waiting --

    def _answered(self, step: Callable[[float], T | None], target: object) -> T:
        """Wait for what the node always answers, for at most `config.reconnect_timeout` seconds of silence."""
        found = self._until(step, target, time.monotonic() + config.reconnect_timeout)
        if found is None:
            raise self._silent()
        return found

    def _silent(self) -> NodeError:
        return NodeError(f"the node at {self.endpoint.address} is silent")

    def _until(self, step: Callable[[float], T | None], target: object, deadline: float | None) -> T | None:
        """Call `step` under the lock until it returns something; between two calls wait for news of `target`.

        Returns `None` once `deadline` has passed, after one last call.
        """
        late = False
        mine: _Driver | None = None
        parked = None
        try:
            while True:
                with self._lock:
                    now = time.monotonic()
                    if mine is not None:
                        self._stop_driving(mine, now)
                        mine = None
                    if parked is not None:
                        self._unpark(parked, target)
                        parked = None
                    self._check()
                    last = late or (deadline is not None and deadline <= now)
                    self._receive(now, None if last else target)
                    self._check()
                    try:
                        result = step(now)
                    finally:
                        self._transmit(now)
                    left = HEARTBEAT if deadline is None else min(deadline - now, HEARTBEAT)
                    if result is not None or last:
                        self._hand_over()
                        return result
                    if self._may_drive(now):
                        mine = _Driver(target, now)
                        self._drive(mine)
                    else:
                        parked = _Parked()
                        self._parked.setdefault(target, []).append(parked)
                    left = min(left, max(0.0, self._client.session.due() - now))
                if parked is None:
                    self._poll(left)
                else:
                    parked.wait(left)
                late = deadline is not None and time.monotonic() >= deadline
        except BaseException:  # an error, or Ctrl-C: somebody else must drive now
            with self._lock:
                if mine is not None:
                    self._stop_driving(mine, time.monotonic())
                if parked is not None:
                    self._unpark(parked, target)
                self._hand_over()
            raise

    @property
    def _nobody_drives(self) -> bool:
        return self._driver is None and not self._io_drives

    def _may_drive(self, now: float) -> bool:
        """Whether no other caller drives, but for one that was stopped, or whose thread runs a signal's handler now."""
        driver = self._driver
        return driver is None or now - driver.since > STALE or driver.thread == threading.get_ident()

    def _drive(self, driver: _Driver) -> None:
        if self._io_drives:
            self._io_drives = False
            self._io_wakeup.set()
        self._driver = driver
        self._polling.append(driver)

    def _stop_driving(self, driver: _Driver, now: float) -> None:
        if driver in self._polling:
            self._polling.remove(driver)
        if self._driver is driver:
            self._driver = None
            self._drove_at = now

    def _poll(self, left: float) -> None:
        """Wait for the socket; called by the thread that drives."""
        pollers = self._pollers
        try:
            poller = pollers.pop()  # one that nobody uses: a poll object serves one thread at a time
        except IndexError:
            poller = self._make_poller(self._caller_wakeup)
        for descriptor, _ in poller.poll(ceil(left * 1000)):
            if descriptor == self._caller_wakeup.fileno():
                self._caller_wakeup.clear()
        pollers.append(poller)

    def _unpark(self, parked: _Parked, target: object) -> None:
        waiters = self._parked.get(target, [])
        if parked in waiters:
            waiters.remove(parked)
        if not waiters:
            self._parked.pop(target, None)

    def _hand_over(self) -> None:
        """The caller stops waiting: see that somebody drives."""
        if self._nobody_drives:
            for waiters in self._parked.values():
                waiters[0].wake()
                return
            if self._io_rests:
                self._wake_io_thread()

    def _notify(self) -> None:
        changed, self._client.changed = self._client.changed, []
        for target in changed:
            self._ring(target)
            for driver in self._polling:
                if driver.target is target:  # another thread took from the socket what that one polls for
                    self._caller_wakeup.set()
            for parked in self._parked.get(target, ()):
                parked.wake()

    def _io_needed(self, writer: Writer) -> None:
        """Items have gathered and nobody drives: let the I/O thread wait for the acknowledgement."""
        if (writer.items or writer.full) and self._nobody_drives:
            self._io_urgent = True
            self._wake_io_thread()

    def _hurry_io_thread(self) -> None:
        """Something is due before the I/O thread means to look again, if it is to look at all."""
        if self._io_drives:
            self._io_wakeup.set()
        elif self._driver is not None:
            self._caller_wakeup.set()
        else:
            self._wake_io_thread()

    def _wake_io_thread(self) -> None:
        try:
            self._io_parked.release()
        except RuntimeError:
            pass  # it is awake

    # -- the I/O thread --

    def _io_main(self) -> None:
        block_signals()
        poller: select.poll | None = None
        socket: ClientSocket | None = None
        while True:
            with self._lock:
                if self._closed or self.error:
                    return
                now = time.monotonic()
                if self._io_drives:
                    self._io_drives = False
                    self._io_wakeup.clear()
                elif self._driver is not None and now - self._driver.since > STALE:
                    self._driver = None  # it was interrupted, and did not come to say so
                if self._driver is None:
                    self._receive(now)
                self._collect(now)
                pause = LULL if self._client.idle(now) else HEARTBEAT
                self._client.outlived(sys._current_frames(), now)
                self._land_flights(now)
                self._transmit(now)
                self._notify()
                down = self._down
                if self.error:
                    return
                mine = self._driver is None and not down and (self._io_urgent or now - self._drove_at >= LULL)
                self._io_urgent = False
                if mine:
                    self._io_drives = True
                    if socket is not self._socket:
                        poller, socket = self._make_poller(self._io_wakeup), self._socket
                    timeout = min(pause, max(0.0, self._client.session.due() - now))
                elif self._driver is None:
                    timeout = LULL
                else:
                    timeout = pause
                self._io_rests = not mine and timeout > LULL
            if down:
                self._reconnect()
            elif mine:
                assert poller is not None
                poller.poll(ceil(timeout * 1000))
            else:
                self._io_parked.acquire(timeout=timeout)

    # -- the socket; all under the lock --

    def _receive(self, now: float, target: object = None) -> None:
        """Take in what has come, or so much of it that there is news of `target`, without blocking."""
        if self._down or self.error:
            return
        client, recv = self._client, self._socket.recv
        came = False
        try:
            for _ in range(64):
                parts = recv(0)
                if parts is None:
                    break
                came = True
                client.message(parts, now)
                if target in client.changed:
                    break
        except (ConnectionLost, ClosedError) as error:
            self._lose(error)
        except (NodeError, ProtocolError) as error:
            self._die(str(error), AccessError if isinstance(error, AccessError) else NodeError)
        if came:
            self._transmit(now)
        if client.changed:
            self._notify()

    def _transmit(self, now: float) -> None:
        session = self._client.session
        if session.due() <= now:
            session.tick(now)
        if not session.out or self._down:
            return
        try:
            for message in drain(session):
                self._socket.send(message)
        except (ConnectionLost, ClosedError) as error:
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        """The connection is gone. Where the node waits for us, the I/O thread makes another."""
        self._client.session.disconnect()
        if not self.grace or self._closed:
            self._die(self.gone(error))
            return
        self._down = True
        self._pollers = []  # callers wait for the next connection, and do not look at this one
        self._wake_everybody()

    def gone(self, error: Exception) -> str:
        """What to say of the node when it cannot be reached any more: its memory is not durable."""
        return f"the node at {self.endpoint.address} is gone, with its queues and the items in them ({error})"

    def _die(self, text: str, kind: type[NodeError] = NodeError) -> None:
        """Nothing will come of this link any more; all that wait raise."""
        if self.error is not None:
            return
        gathered = any(writer.items for writer in self._client.writers.values())
        if (gathered or self._client.session.carries(PUT)) and not self._closed:
            text += "; not all that this process put had been accepted"
        self.error = kind(text)
        self._broken()
        self._socket.close()
        self._wake_everybody()

    def _wake_everybody(self) -> None:
        for waiters in self._parked.values():
            for parked in waiters:
                parked.wake()
        self._ring_all()
        self._caller_wakeup.set()
        self._io_wakeup.set()
        self._wake_io_thread()

    def _check(self, writer: Writer | None = None) -> None:
        if self.error is not None:
            self._mourners.add(threading.get_ident())
            raise type(self.error)(str(self.error))
        if self._closed:
            if threading.current_thread().daemon:
                raise SystemExit  # it ends with the process, and without a word
            raise ClosedError("this process is ending: its connection to the node was closed")
        if writer is not None and writer.ended:
            raise ended(writer.ended)

    # -- connecting --

    def _connect(self, timeout: float) -> ClientSocket:
        socket = make_client(self.endpoint.target, self._transport, self._credentials)
        began = time.monotonic()
        try:
            socket.connect(self.address.node, timeout)
            self._took = time.monotonic() - began
        except BaseException:
            socket.close()
            raise
        return socket

    def _make_poller(self, wakeup: Wakeup) -> select.poll:
        poller = select.poll()
        if not self._down:
            poller.register(self._socket.fileno(), select.POLLIN)
        poller.register(wakeup.fileno(), select.POLLIN)
        return poller

    def _meet(self) -> None:
        """Connect and greet the node. Where a network is between, a connection that is refused, or breaks amid this, is
        made again, for `REFUSALS` seconds."""
        now = time.monotonic()
        deadline = now + config.connect_timeout
        refused = min(now + REFUSALS, deadline) if self.grace else now
        while True:
            try:
                self._socket = self._connect(max(0.0, deadline - time.monotonic()))
                try:
                    self._greet(time.monotonic() + config.connect_timeout)
                    return
                except BaseException:
                    self._socket.close()
                    raise
            except ConnectError:
                if time.monotonic() >= refused:
                    raise
            self._client.session.disconnect()
            time.sleep(RETRY)

    def _greet(self, deadline: float) -> None:
        """Say hello and wait for the welcome; the only time that a thread waits with nobody else about."""
        client = self._client
        client.hello()
        try:
            while not client.welcomed:
                for message in drain(client.session):
                    self._socket.send(message)
                parts = self._socket.recv(max(0.0, deadline - time.monotonic()))
                if parts is None:
                    raise ConnectError(f"nobody answered at {self.endpoint.address} in time")
                client.message(parts, time.monotonic())
        except ConnectionLost as error:
            raise ConnectError(f"the node at {self.endpoint.address} closed the connection") from error
        except ProtocolError as error:
            raise NodeError(f"what answered at {self.endpoint.address} is no node: {error}") from error
        self._transmit(time.monotonic())

    def _reconnect(self) -> None:
        """Connect again, within `config.reconnect_timeout` seconds of silence or `REFUSALS` seconds of refusals."""
        self._socket.close()
        began = lost_at = time.monotonic()
        deadline, refused_since = began + config.reconnect_timeout, began
        pause = RETRY
        while True:
            longest = max(0.05, deadline - began)
            if self.grace:
                # A packet that is lost is sent again after 1 s at first: the node's grace may be over by then.
                longest = min(longest, max(ATTEMPT, 3 * self._took, (began - lost_at) / 2))
            try:
                socket = self._connect(longest)
                break
            except Exception as error:
                now = time.monotonic()
                if now - began >= min(longest, REFUSALS):
                    refused_since = now  # this was silence
                known = isinstance(error, TransportError)
                if not known or self._closed or now >= deadline or now - refused_since >= REFUSALS:
                    with self._lock:
                        self._die(self.gone(error))
                    return
            time.sleep(pause)
            pause = min(2 * pause, 0.1)
            began = time.monotonic()
        with self._lock:
            self._socket = socket
            self._down = False
            self._pollers = []
            self._client.hello()
            self._transmit(time.monotonic())
            self._wake_everybody()


def _split(key: str | None) -> tuple[Credentials | None, bytes]:
    """What a transport needs of a node's key, and what the node wants to see."""
    if key is None:
        return None, b""
    from fiberq.access import split_key  # which costs time, and few processes need

    secret, token = split_key(key)
    return Credentials(secret), token


def ended(code: str) -> Exception:
    """The error for a reader or writer that came to its end, by the node's word for that."""
    if code in ("shut", "drained", "dropped"):
        return ShutDown("the queue was shut down")
    if code == "eof":
        return ReadEnded("the other end of the pipe is closed, and all that it sent was read")
    if code == "unread":
        return WriteEnded(EPIPE, "the other end of the pipe is closed: nobody will read this")
    if code == "closed":
        return ClosedError("this handle was closed meanwhile")
    return HandleError("the queue or pipe is gone: its last holder closed it or died, or it was deleted")
