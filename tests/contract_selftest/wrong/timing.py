"""Wrong about timeouts and signals (TIME), and about readiness (READY)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import time
import weakref
from collections import Counter
from collections.abc import Hashable, Sequence

from fiberq.abc import Buffer, Message, PeerLost
from fiberq.errors import ConnectError, FiberqError

from .right import QUEUES, Client, FlagClient, Right, Server, in_main_thread, length

comers: Counter[str] = Counter()
"""How many clients of this process connected to an address."""


class CountingClient(Client):
    """Tells the server whom it connects to of itself, as the wake-up does that a server cannot hide from itself."""

    def connect(self, address: str, timeout: float | None) -> None:
        super().connect(address, timeout)
        comers[address] += 1


class CountingServer(Server):
    """Knows how many clients connected to it, and never reports the loss of one that sent nothing."""

    def set_up(self) -> None:
        self.heard: set[Hashable] = set()

    def comers(self) -> int:
        return sum(comers[each] for each in self.addresses)

    def look(self, seconds: float | None) -> Message | PeerLost | None:
        event = Server.recv(self, seconds)
        if isinstance(event, Message):
            self.heard.add(event.peer)
        return event if event is None or event.peer in self.heard else None


class BacksOffAtZero(Right):
    """A client whose timeout of 0 found nothing twenty times in a row waits a tick of a tenth of a second each time."""

    breaks = "TIME-1"
    also = QUEUES

    class Client(Client):
        def set_up(self) -> None:
            super().set_up()
            self.looks = 0

        def recv(self, timeout: float | None) -> Sequence[Buffer] | None:
            parts = super().recv(0.1 if timeout == 0 and self.looks >= 20 else timeout)
            self.looks = self.looks + 1 if parts is None else 0
            return parts


class LooksAgainAndAgain(Right):
    """A client that waits looks whether something has come, without a pause."""

    breaks = "TIME-8"

    class Client(Client):
        def recv(self, timeout: float | None) -> Sequence[Buffer] | None:
            deadline = None if timeout is None else time.monotonic() + timeout
            while (parts := super().recv(0)) is None and (deadline is None or time.monotonic() < deadline):
                pass
            return parts


class ConnectsByCounting(Right):
    """`connect` to somebody who does not answer counts the time that is left."""

    breaks = "TIME-8"

    class Client(Client):
        def connect(self, address: str, timeout: float | None) -> None:
            if timeout is None:
                super().connect(address, None)
                return
            started = time.monotonic()
            try:
                super().connect(address, timeout / 10)
            except ConnectError:
                if time.monotonic() > started + timeout / 10:  # it was not refused
                    while time.monotonic() < started + timeout:
                        pass
                raise


class BeginsAnewWithEachNewcomer(Right):
    """A server's wait begins anew whenever a client connects."""

    breaks = "TIME-2"
    Client = CountingClient

    class Server(CountingServer):
        def recv(self, timeout: float | None) -> Message | PeerLost | None:
            if timeout is None:
                return super().recv(None)
            if timeout == 0:
                return self.look(0)
            seen, deadline = self.comers(), time.monotonic() + timeout
            while (left := deadline - time.monotonic()) > 0:
                event = self.look(min(left, 0.01))
                if event is not None:
                    return event
                if self.comers() > seen:
                    seen, deadline = self.comers(), time.monotonic() + timeout
            return None


class ReturnsWhenSomebodyConnects(Right):
    """A server's wait ends, with nothing, when a client connects."""

    breaks = "TIME-2"
    Client = CountingClient

    class Server(CountingServer):
        def recv(self, timeout: float | None) -> Message | PeerLost | None:
            if timeout is None:
                return super().recv(None)
            if timeout == 0:
                return self.look(0)
            seen, deadline = self.comers(), time.monotonic() + timeout
            while (left := deadline - time.monotonic()) > 0 and self.comers() == seen:
                event = self.look(min(left, 0.01))
                if event is not None:
                    return event
            return None


class ReturnsATenthTooEarly(Right):
    """A client returns when nine tenths of the timeout have passed."""

    breaks = "TIME-2"
    also = frozenset({"TIME-6"})

    class Client(Client):
        def recv(self, timeout: float | None) -> Sequence[Buffer] | None:
            return super().recv(timeout and timeout * 0.9)


class HasALimitOfItsOwn(Right):
    """A server that is to wait without a limit waits for 0.2 s."""

    breaks = "TIME-3"

    class Server(Server):
        def recv(self, timeout: float | None) -> Message | PeerLost | None:
            return super().recv(0.2 if timeout is None else timeout)


class LooksAtTicks(Right):
    """A message that a server waited for comes out at the next tick of 0.2 s."""

    breaks = "TIME-4"

    class Server(Server):
        def recv(self, timeout: float | None) -> Message | PeerLost | None:
            started = time.monotonic()
            event = super().recv(timeout)
            waited = time.monotonic() - started
            if isinstance(event, Message) and waited > 0.02:
                time.sleep(0.2 - waited % 0.2)
            return event


class HoldsBackAnException(Right):
    """What a signal's handler raises comes out of a client's `recv` 0.4 s later."""

    breaks = "TIME-5"

    class Client(Client):
        def recv(self, timeout: float | None) -> Sequence[Buffer] | None:
            try:
                return super().recv(timeout)
            except FiberqError:
                raise
            except Exception:
                time.sleep(0.4)
                raise


class LosesAMessageToAnException(Right):
    """The message after an exception of a signal's handler is lost to a server."""

    breaks = "TIME-5"

    class Server(Server):
        interrupted = False

        def recv(self, timeout: float | None) -> Message | PeerLost | None:
            try:
                event = super().recv(timeout)
                if self.interrupted and isinstance(event, Message):
                    self.interrupted = False
                    event = super().recv(timeout)
                return event
            except FiberqError:
                raise
            except Exception:
                self.interrupted = True
                raise


class HearsSignals:
    """Says whether a signal was handled since it was made; for the main thread."""

    def __enter__(self) -> HearsSignals:  # noqa: PYI034  (typing has Self from 3.11 on)
        self._read, self._write = os.pipe()
        for each in (self._read, self._write):
            os.set_blocking(each, False)
        self._before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._before)
        os.close(self._read)
        os.close(self._write)

    def heard(self) -> bool:
        try:
            return bool(os.read(self._read, 100))
        except BlockingIOError:
            return False


class ReturnsAfterASignal(Right):
    """A client's wait ends, with nothing, when a signal's handler has returned."""

    breaks = "TIME-6"

    class Client(Client):
        def recv(self, timeout: float | None) -> Sequence[Buffer] | None:
            if not timeout or timeout < 0.3 or not in_main_thread():
                return super().recv(timeout)
            deadline = time.monotonic() + timeout
            with HearsSignals() as signals:
                while (left := deadline - time.monotonic()) > 0 and not signals.heard():
                    parts = super().recv(min(left, 0.01))
                    if parts is not None:
                        return parts
            return None


class BeginsAnewAfterASignal(Right):
    """A server's wait begins anew when a signal's handler has returned."""

    breaks = "TIME-6"

    class Server(Server):
        def recv(self, timeout: float | None) -> Message | PeerLost | None:
            if not timeout or timeout < 0.3 or not in_main_thread():
                return super().recv(timeout)
            deadline = time.monotonic() + timeout
            with HearsSignals() as signals:
                while (left := deadline - time.monotonic()) > 0:
                    event = super().recv(min(left, 0.01))
                    if event is not None:
                        return event
                    if signals.heard():
                        deadline = time.monotonic() + max(timeout, 0.8)
            return None


class HoldsBackAnExceptionInConnect(Right):
    """What a signal's handler raises comes out of `connect` 0.7 s later."""

    breaks = "TIME-7"

    class Client(Client):
        def connect(self, address: str, timeout: float | None) -> None:
            try:
                super().connect(address, timeout)
            except FiberqError:
                raise
            except Exception:
                time.sleep(0.7)
                raise


class HasADescriptorOnlyOnceConnected(Right):
    """`fileno` gives a placeholder until the client is connected."""

    breaks = "READY-1"

    class Client(FlagClient):
        connected = False

        def fileno(self) -> int:
            return super().fileno() if self.connected else self.flag.fileno()

        def connect(self, address: str, timeout: float | None) -> None:
            super().connect(address, timeout)
            self.connected = True


class IsReadableWhileMuchLeaves(Right):
    """Every 100th larger message that a client sends makes its descriptor readable until it receives."""

    breaks = "READY-2"

    class Client(FlagClient):
        sent = 0

        def send(self, parts: Sequence[Buffer]) -> None:
            super().send(parts)
            self.sent += 10_000 <= sum(map(length, parts)) < 1_000_000
            if self.sent == 100:
                self.sent = 0
                self.flag.set()

        def recv(self, timeout: float | None) -> Sequence[Buffer] | None:
            parts = super().recv(timeout)
            if not self.closed:
                self.flag.clear()
            return parts


class StaysReadableAfterMany(Right):
    """The descriptor is still readable when the last of ten messages that a client received in a row was taken."""

    breaks = "READY-2"
    also = frozenset({"READY-3"})

    class Client(FlagClient):
        received = 0

        def send(self, parts: Sequence[Buffer]) -> None:
            self.received = 0
            super().send(parts)

        def recv(self, timeout: float | None) -> Sequence[Buffer] | None:
            parts = super().recv(timeout)
            self.received += parts is not None
            if parts is None:
                self.received = 0
                self.flag.clear()
            elif self.received == 10:
                self.flag.set()
            return parts


class StaysReadableForHalf(Right):
    """The client's descriptor stays readable while half of a large message has come."""

    breaks = "READY-2"

    class Server(Server):
        def set_up(self) -> None:
            super().set_up()
            self.rest: list[tuple[Hashable, Sequence[Buffer]]] = []

        def send(self, peer: Hashable, parts: Sequence[Buffer]) -> None:
            large = sum(map(length, parts)) >= 500_000
            if large:
                super().send(peer, [ANNOUNCEMENT])
            if large or self.rest:
                self.rest.append((peer, parts))
            else:
                super().send(peer, parts)

        def recv(self, timeout: float | None) -> Message | PeerLost | None:
            rest, self.rest = self.rest, []
            for peer, parts in rest:
                super().send(peer, parts)
            return super().recv(timeout)

    class Client(FlagClient):
        def recv(self, timeout: float | None) -> Sequence[Buffer] | None:
            deadline = time.monotonic() + (timeout or 0)
            parts = super().recv(timeout)
            if parts and len(parts) == 1 and bytes(parts[0]) == ANNOUNCEMENT:
                self.flag.set()
                parts = super().recv(timeout and max(0, deadline - time.monotonic()))
            if parts and not self.closed:
                self.flag.clear()
            return parts


ANNOUNCEMENT = b"half of a message"


class SendingSwallowsTheEdge(Right):
    """When a client sends while a message waits, its descriptor is no longer readable."""

    breaks = "READY-3"
    also = frozenset({"READY-2", "READY-4"})

    class Client(FlagClient):
        def set_up(self) -> None:
            super().set_up()
            self.arm()

        def arm(self) -> None:
            with contextlib.suppress(OSError, ValueError):  # it is closed
                self.either.modify(self.inner_fileno, select.EPOLLIN | select.EPOLLET)

        def send(self, parts: Sequence[Buffer]) -> None:
            if not self.closed:
                self.either.poll(0)
            try:
                super().send(parts)
            except FiberqError:
                self.arm()
                raise

        def recv(self, timeout: float | None) -> Sequence[Buffer] | None:
            try:
                return super().recv(timeout)
            finally:
                self.arm()


class HasADescriptorThatSelectDoesNotTake(Right):
    """`fileno` is so large a number that `select` refuses it."""

    breaks = "READY-3"

    class Client(FlagClient):
        def set_up(self) -> None:
            super().set_up()
            self.high = fcntl.fcntl(self.either.fileno(), fcntl.F_DUPFD_CLOEXEC, 1100)
            self.close_high = weakref.finalize(self, os.close, self.high)

        def fileno(self) -> int:
            return super().fileno() if self.closed else self.high

        def close(self) -> None:
            self.close_high()
            super().close()


class MakesTheDescriptorAnew(Right):
    """Every 50th message that a client sends puts another descriptor under the same number; who waits, waits on."""

    breaks = "READY-4"
    also = frozenset({"QUEUE-9"})

    class Client(FlagClient):
        sent = 0

        def send(self, parts: Sequence[Buffer]) -> None:
            super().send(parts)
            self.sent += 1
            if self.sent % 50:
                return
            self.either.unregister(self.inner_fileno)
            with select.epoll() as another:
                another.register(self.inner_fileno, select.EPOLLIN)
                os.dup2(another.fileno(), self.either.fileno(), inheritable=False)
