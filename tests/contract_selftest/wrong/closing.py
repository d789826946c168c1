"""Wrong about closing (CLOSE), and about processes (PROC)."""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import sys
import time
import weakref
from collections.abc import Hashable, Sequence
from typing import Any, ClassVar

from fiberq.abc import MIN_QUEUED, Buffer, Message, PeerLost
from fiberq.errors import ClosedError, ConnectError, TransportError

from .right import QUEUES, Client, FlagClient, Right, Server, length, path_of


class ClosesAnUnboundServerOnce(Right):
    """A server that never bound anything cannot be closed twice."""

    breaks = "CLOSE-1"

    class Server(Server):
        asked = False

        def bind(self, address: str) -> str:
            self.asked = True
            return super().bind(address)

        def close(self) -> None:
            if self.closed and not self.asked:
                raise TransportError(f"{self.transport.name}: there is nothing to close")
            super().close()


class ConnectsWhenClosed(Right):
    """`connect` of a closed client fails as if nobody listened."""

    breaks = "CLOSE-2"

    class Client(Client):
        def connect(self, address: str, timeout: float | None) -> None:
            if self.closed:
                raise ConnectError(f"{self.transport.name}: cannot connect to {address}: closed")
            super().connect(address, timeout)


class DropsWhatAClosedClientSends(Right):
    """What a closed client sends is dropped without an error."""

    breaks = "CLOSE-2"

    class Client(Client):
        def send(self, parts: Sequence[Buffer]) -> None:
            if not self.closed:
                super().send(parts)


class SaysNothingWhenWoken(Right):
    """`recv` of a client returns nothing when it is closed from another thread, instead of an error."""

    breaks = "CLOSE-3"

    class Client(Client):
        def recv(self, timeout: float | None) -> Sequence[Buffer] | None:
            started = time.monotonic()
            try:
                return super().recv(timeout)
            except ClosedError:
                if time.monotonic() - started < 0.05:
                    raise
                return None


class WakesALittleLater(Right):
    """`close` wakes a blocked `recv` of a server after 0.9 s."""

    breaks = "CLOSE-3"

    class Server(Server):
        receiving = False

        def recv(self, timeout: float | None) -> Message | PeerLost | None:
            self.receiving = True
            try:
                return super().recv(timeout)
            finally:
                self.receiving = False

        def close(self) -> None:
            if self.receiving:
                time.sleep(0.9)
            super().close()


class Lingers(Right):
    """A client that closes waits up to 1.5 s for what is unsent."""

    breaks = "CLOSE-4"

    class Client(Client):
        unanswered = 0

        def send(self, parts: Sequence[Buffer]) -> None:
            self.unanswered += sum(map(length, parts))
            super().send(parts)

        def recv(self, timeout: float | None) -> Sequence[Buffer] | None:
            self.unanswered = 0
            return super().recv(timeout)

        def close(self) -> None:
            if not self.closed and self.unanswered > 10_000_000:
                time.sleep(1.5)
            super().close()


class LeavesItsSecondFile(Right):
    """A server that closes removes the file of its first ipc address only."""

    breaks = "CLOSE-5"

    class Server(Server):
        def close(self) -> None:
            was_closed = self.closed
            super().close()
            paths = [path for each in self.addresses if (path := path_of(each))]
            for path in paths[1:] if not was_closed else ():
                with socket.socket(socket.AF_UNIX) as stale:
                    stale.bind(path)


class RemovesTheFileThatItCouldNotBind(Right):
    """A server that could not bind an ipc path removes the file all the same when it closes."""

    breaks = "CLOSE-5"

    class Server(Server):
        tried = ""

        def bind(self, address: str) -> str:
            try:
                return super().bind(address)
            except TransportError:
                self.tried = "" if self.closed or address in self.addresses else path_of(address) or ""
                raise

        def close(self) -> None:
            was_closed = self.closed
            super().close()
            if self.tried and not was_closed:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.tried)


class CleansUpAfterAFailedBind(Right):
    """A `bind` that fails removes the ipc file of the server that has the address."""

    breaks = "CLOSE-5"
    also = frozenset({"ADDR-4"})

    class Server(Server):
        def bind(self, address: str) -> str:
            try:
                return super().bind(address)
            except TransportError:
                path = path_of(address)
                if path and not self.closed:
                    with contextlib.suppress(OSError):
                        os.unlink(path)
                raise


class LeavesServersWithoutAnError(Right):
    """A server whose transport was closed receives nothing, without an error."""

    breaks = "CLOSE-6"

    class Server(Server):
        def recv(self, timeout: float | None) -> Message | PeerLost | None:
            try:
                return super().recv(timeout)
            except ClosedError:
                if self.closed:
                    raise
                return None


class KeepsItsSocketsInTheModule(Right):
    """Closing a transport closes the clients of all transports in the process."""

    breaks = "CLOSE-6"
    also = frozenset({"PROC-5"})
    all_clients: ClassVar[weakref.WeakSet[Any]] = weakref.WeakSet()

    class Client(Client):
        def set_up(self) -> None:
            self.transport.all_clients.add(self)

    def close(self) -> None:
        super().close()
        for each in list(self.all_clients):
            each.close()


class WaitsAtExit(Right):
    """A process that has much unsent waits for it before it ends, for up to 7 s."""

    breaks = "CLOSE-7"

    class Client(Client):
        sent = 0

        def send(self, parts: Sequence[Buffer]) -> None:
            super().send(parts)
            self.sent += 1
            if self.sent == MIN_QUEUED:
                atexit.register(time.sleep, 7)

        def recv(self, timeout: float | None) -> Sequence[Buffer] | None:
            if self.sent >= MIN_QUEUED:
                atexit.unregister(time.sleep)
            self.sent = 0
            return super().recv(timeout)


class LeaksWhenConnectFails(Right):
    """A `connect` that fails leaves a descriptor open."""

    breaks = "CLOSE-8"

    class Client(Client):
        def connect(self, address: str, timeout: float | None) -> None:
            try:
                super().connect(address, timeout)
            except ConnectError:
                os.open(os.devnull, os.O_RDONLY)
                raise


class LeaksADescriptorForEachLoss(Right):
    """A server keeps a descriptor of every tenth peer that it lost."""

    breaks = "CLOSE-8"

    class Server(Server):
        lost = 0

        def recv(self, timeout: float | None) -> Message | PeerLost | None:
            event = super().recv(timeout)
            if isinstance(event, PeerLost):
                self.lost += 1
                if self.lost % 10 == 0:
                    os.open(os.devnull, os.O_RDONLY)
            return event


class WaitsForOldConnections(Right):
    """The address of a closed server that had peers cannot be bound for a second."""

    breaks = "CLOSE-9"
    closed_at: ClassVar[dict[str, float]] = {}

    class Server(Server):
        heard: Hashable = None

        def recv(self, timeout: float | None) -> Message | PeerLost | None:
            event = super().recv(timeout)
            if event is not None:
                self.heard = event.peer
            return event

        def bind(self, address: str) -> str:
            if not self.closed and time.monotonic() - self.transport.closed_at.get(address, -1.0) < 1:
                raise TransportError(f"{self.transport.name}: cannot bind to {address}: the address is in use")
            return super().bind(address)

        def close(self) -> None:
            if not self.closed and self.heard is not None:
                self.transport.closed_at.update(dict.fromkeys(self.addresses, time.monotonic()))
            super().close()


BORN_IN = os.getpid()
generation = 0


def _count_generation() -> None:
    global generation
    generation += 1


os.register_at_fork(after_in_child=_count_generation)


class ConnectsWhereItWasImported(Right):
    """In a forked child nothing connects."""

    breaks = "PROC-1"
    also = frozenset({"PROC-2", "PROC-6"}) | QUEUES
    needs = frozenset({"forks"})

    class Client(Client):
        def connect(self, address: str, timeout: float | None) -> None:
            if os.getpid() != BORN_IN:
                raise ConnectError(f"{self.transport.name}: cannot connect to {address}: the parent does that")
            super().connect(address, timeout)


class RemovesTheParentsFiles(Right):
    """A forked child that ends removes the files of its parent's servers."""

    breaks = "PROC-1"
    also = frozenset({"PROC-2"})
    needs = frozenset({"forks", "ipc"})

    class Server(Server):
        def bind(self, address: str) -> str:
            concrete = super().bind(address)
            path = path_of(concrete)
            if path:
                atexit.register(_unlink, path)
            return concrete


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


flags: weakref.WeakSet[FlagClient] = weakref.WeakSet()


def set_flags() -> None:
    for client in flags:
        client.flag.set()


os.register_at_fork(after_in_child=set_flags)


class WakesTheParent(Right):
    """A forked child sets the flags of the clients that it inherited, which are the parent's, too."""

    breaks = "PROC-6"
    needs = frozenset({"forks"})

    class Client(FlagClient):
        def set_up(self) -> None:
            super().set_up()
            flags.add(self)


class ForksOnce(Right):
    """In a child of a forked child nothing connects."""

    breaks = "PROC-2"
    also = frozenset({"QUEUE-6"})
    needs = frozenset({"forks"})

    class Client(Client):
        def connect(self, address: str, timeout: float | None) -> None:
            if generation > 1:
                raise ConnectError(f"{self.transport.name}: cannot connect to {address}: forked twice")
            super().connect(address, timeout)


class ForksAlthoughItDoesNotSaySo(Right):
    """It declares that it cannot fork, and can."""

    breaks = "PROC-3"
    needs = frozenset({"forks"})
    capabilities = Right.capabilities._replace(forks=False)


class AbortsInAForkedChild(Right):
    """It cannot fork, as it declares, and aborts in the child."""

    breaks = "PROC-3"
    capabilities = Right.capabilities._replace(forks=False)

    class Client(Client):
        def connect(self, address: str, timeout: float | None) -> None:
            if generation:
                os._exit(134)
            super().connect(address, timeout)


class EndsBadlyWhenSpawned(Right):
    """A spawned child ends with an error, because of an exit handler that needs what only the parent has."""

    breaks = "PROC-4"
    also = frozenset({"PIPE-3", "PULL-4", "QUEUE-4", "QUEUE-6"})

    class Client(Client):
        def connect(self, address: str, timeout: float | None) -> None:
            super().connect(address, timeout)
            if any("spawn_main" in each for each in sys.orig_argv):
                atexit.register(os._exit, 3)


class SharesAContextAmongThree(Right):
    """Every second transport of a process uses the same context, which the first that closes takes away."""

    breaks = "PROC-5"
    live: ClassVar[list[Any]] = []

    def set_up(self) -> None:
        self.live.append(self)
        self.slot = len(self.live) % 2
        self.clients: weakref.WeakSet[Any] = weakref.WeakSet()

    def client(self, credentials: Any = None) -> Any:
        client = super().client(credentials)
        self.clients.add(client)
        return client

    def close(self) -> None:
        if self in self.live:
            self.live.remove(self)
            for each in self.live:
                for client in list(each.clients) if each.slot == self.slot else ():
                    client.close()
        super().close()
