"""Wrong about the loss of peers and servers (LOSS)."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import time
from collections import Counter, deque
from collections.abc import Hashable, Sequence

from fiberq.abc import Buffer, ClientSocket, Message, PeerLost
from fiberq.errors import ConnectionLost, FiberqError

from .right import Client, FlagClient, Right, Server

last_farewell = -1.0
"""When a client of this process closed: stands for the farewell that it would send."""


class FarewellClient(Client):
    """Says that it goes when it closes, which one that is killed cannot do."""

    def close(self) -> None:
        global last_farewell
        if not self.closed:
            last_farewell = time.monotonic()
        super().close()


def said_farewell() -> bool:
    return time.monotonic() - last_farewell < 0.1


class NoticesDeathAtTicks(Right):
    """A server that waits notices only clients that said farewell at once, and others 0.5 s later."""

    breaks = "LOSS-1"
    Client = FarewellClient

    class Server(Server):
        def recv(self, timeout: float | None) -> Message | PeerLost | None:
            event = super().recv(timeout)
            if isinstance(event, PeerLost) and (timeout is None or timeout > 1) and not said_farewell():
                time.sleep(0.5)
            return event


class LetsItsDescriptorsBeInherited(Right):
    """The programs that a client's process starts inherit the connection, and keep it open."""

    breaks = "LOSS-1"

    class Client(Client):
        def connect(self, address: str, timeout: float | None) -> None:
            super().connect(address, timeout)
            for each in os.listdir("/dev/fd"):
                with contextlib.suppress(OSError):
                    if stat.S_ISSOCK(os.fstat(int(each)).st_mode):
                        os.set_inheritable(int(each), True)


class NoticesFarewellsAtTicks(Right):
    """A server that waits notices that a client has closed 0.5 s later."""

    breaks = "LOSS-2"
    Client = FarewellClient

    class Server(Server):
        def recv(self, timeout: float | None) -> Message | PeerLost | None:
            event = super().recv(timeout)
            if isinstance(event, PeerLost) and (timeout is None or timeout > 1) and said_farewell():
                time.sleep(0.5)
            return event


class ReportsOneLossInThirtyTwice(Right):
    """A server reports every 30th loss again when the next one is reported."""

    breaks = "LOSS-3"

    class Server(Server):
        def set_up(self) -> None:
            self.lost: list[PeerLost] = []
            self.again: deque[PeerLost] = deque()

        def recv(self, timeout: float | None) -> Message | PeerLost | None:
            if self.again:
                return self.again.popleft()
            event = super().recv(timeout)
            if isinstance(event, PeerLost):
                self.lost.append(event)
                if len(self.lost) % 30 == 1 and len(self.lost) > 1:
                    self.again.append(self.lost[-2])
            return event


class LetsALossOvertakeTheLastMessage(Right):
    """A loss that comes while a message of the peer waits to be received overtakes it."""

    breaks = "LOSS-4"

    class Server(Server):
        def set_up(self) -> None:
            self.inbox: deque[Message | PeerLost] = deque()

        def recv(self, timeout: float | None) -> Message | PeerLost | None:
            event = super().recv(0 if self.inbox else timeout)
            while event is not None:
                last = self.inbox[-1] if self.inbox else None
                if isinstance(event, PeerLost) and isinstance(last, Message) and last.peer == event.peer:
                    self.inbox.insert(len(self.inbox) - 1, event)
                else:
                    self.inbox.append(event)
                event = super().recv(0)
            return self.inbox.popleft() if self.inbox else None


class ReportsAnother(Right):
    """A server with 25 peers and more reports every 20th loss of one as the loss of the one that came first."""

    breaks = "LOSS-5"

    class Server(Server):
        lost = 0

        def set_up(self) -> None:
            self.peers: dict[Hashable, None] = {}

        def recv(self, timeout: float | None) -> Message | PeerLost | None:
            event = super().recv(timeout)
            if isinstance(event, Message):
                self.peers[event.peer] = None
            elif event is not None:
                self.peers.pop(event.peer, None)
                self.lost += 1
                if self.lost % 20 == 0 and len(self.peers) >= 25:
                    return PeerLost(next(iter(self.peers)))
            return event


class ForgetsALossInACrowd(Right):
    """A server with 25 peers and more does not report every 20th loss."""

    breaks = "LOSS-5"

    class Server(Server):
        lost = 0

        def set_up(self) -> None:
            self.peers: set[Hashable] = set()

        def recv(self, timeout: float | None) -> Message | PeerLost | None:
            event = super().recv(timeout)
            if isinstance(event, Message):
                self.peers.add(event.peer)
            elif event is not None:
                self.peers.discard(event.peer)
                self.lost += 1
                if self.lost % 20 == 0 and len(self.peers) >= 25:
                    return super().recv(timeout)
            return event


class HasAHeartbeat(Right):
    """A client that is silent for 0.6 s after ten messages is reported lost."""

    breaks = "LOSS-6"

    class Server(Server):
        def set_up(self) -> None:
            self.unanswered: Counter[Hashable] = Counter()
            self.sent_at: dict[Hashable, float] = {}

        def send(self, peer: Hashable, parts: Sequence[Buffer]) -> None:
            super().send(peer, parts)
            self.unanswered[peer] += 1
            self.sent_at[peer] = time.monotonic()

        def recv(self, timeout: float | None) -> Message | PeerLost | None:
            event = super().recv(timeout)
            if event is not None:
                self.unanswered[event.peer] = 0
                return event
            for peer, count in self.unanswered.items():
                if count == 10 and time.monotonic() - self.sent_at[peer] > 0.6:
                    self.unanswered[peer] = 0
                    return PeerLost(peer)
            return None


class DropsTheLastMessageOfTheDead(Right):
    """A client that knows of its server's death drops the last message that had arrived."""

    breaks = "LOSS-7"

    class Client(FlagClient):
        held: Sequence[Buffer] | None = None

        def recv(self, timeout: float | None) -> Sequence[Buffer] | None:
            parts, self.held = self.held, None
            if parts is None or self.closed:
                parts = super().recv(timeout)
            if parts is not None:
                try:
                    self.held = super().recv(0)
                finally:
                    self.flag.clear()
                    if self.held is not None:
                        self.flag.set()
            return parts


class TellsThreeClientsOfItsEnd(Right):
    """The fourth client of a server and those after it are not told that it closed."""

    breaks = "LOSS-8"

    class Client(Client):
        order = 0

        def connect(self, address: str, timeout: float | None) -> None:
            super().connect(address, timeout)
            connected[address] += 1
            self.order = connected[address]

        def recv(self, timeout: float | None) -> Sequence[Buffer] | None:
            try:
                return super().recv(timeout)
            except ConnectionLost:
                if self.order < 4:
                    raise
                time.sleep(min(timeout or 0, 1))
                return None


connected: Counter[str] = Counter()
"""How many clients of this process connected to an address, which no two servers have."""


class RaisesOnlyOnceWhenItSends(Right):
    """What a client sends after the loss of its server is dropped without an error, but for the first message."""

    breaks = "LOSS-9"

    class Client(Client):
        told = False

        def send(self, parts: Sequence[Buffer]) -> None:
            try:
                super().send(parts)
            except ConnectionLost:
                if not self.told:
                    self.told = True
                    raise


class FallsSilentAfterTheLoss(Right):
    """The descriptor is no longer readable when `recv` has raised `ConnectionLost`."""

    breaks = "LOSS-9"

    class Client(FlagClient):
        told = False

        def recv(self, timeout: float | None) -> Sequence[Buffer] | None:
            try:
                return super().recv(timeout)
            except ConnectionLost:
                if not self.told:
                    self.told = True
                    self.either.unregister(self.inner_fileno)
                raise


class ConnectsAgain(Right):
    """A client that lost its server connects again, in the background, when somebody listens there."""

    breaks = "LOSS-10"

    class Client(Client):
        another: ClientSocket | None = None
        connected = False

        def again(self, another: ClientSocket) -> None:
            with contextlib.suppress(FiberqError):
                another.connect(self.address, 3.0)
                self.connected = True

        def recv(self, timeout: float | None) -> Sequence[Buffer] | None:
            if self.another is not None and self.connected:
                return self.another.recv(timeout)
            try:
                return super().recv(timeout)
            except ConnectionLost:
                if self.another is None:
                    self.another = self.transport.inner.client(self.credentials)
                    threading.Thread(target=self.again, args=[self.another], daemon=True).start()
                raise

        def close(self) -> None:
            super().close()
            if self.another is not None:
                self.another.close()
