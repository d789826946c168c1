"""Wrong about what they declare (CAP), addresses (ADDR), connecting (CONN) and errors (ERR)."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence

from fiberq.abc import Message, PeerLost, Transport
from fiberq.errors import AddressError, ClosedError, ConnectError, FiberqError, TransportError

from .right import Client, Right, Server, path_of


class DeclaresMoreInTheInstance(Right):
    """The class declares that it cannot fork, each instance that it can."""

    breaks = "CAP-1"

    def set_up(self) -> None:
        self.capabilities = self.capabilities._replace(forks=not self.capabilities.forks)  # type: ignore[misc]


class OffersAnUndeclaredScheme(Right):
    """`bind_any` gives an address of a scheme that is not declared, too."""

    breaks = "CAP-2"

    def bind_any(self, directory: str) -> Sequence[str]:
        return [*super().bind_any(directory), "ws://127.0.0.1:0/"]


class OffersAnAddressThatCannotBeBound(Right):
    """The path that `bind_any` gives when it is asked for the first time cannot be bound beside the other schemes."""

    breaks = "CAP-2"
    also = frozenset({"ADDR-3"})

    class Server(Server):
        def bind(self, address: str) -> str:
            concrete = super().bind(address)
            if len({each.partition(":")[0] for each in self.addresses}) > 1:
                raise TransportError(f"{self.transport.name}: cannot bind to {address}: of another scheme")
            return concrete


class TakesATransportsOtherName(Right):
    """`tls+tcp` is taken for `tcp`, and is not declared."""

    breaks = "CAP-3"
    needs = frozenset({"tcp"})

    class Server(Server):
        def bind(self, address: str) -> str:
            return super().bind(address.removeprefix("tls+"))


class ConnectsToAnySchemeAndFails(Right):
    """`connect` to a scheme that is not declared fails as if nobody listened."""

    breaks = "CAP-3"

    class Client(Client):
        def connect(self, address: str, timeout: float | None) -> None:
            if address.startswith("udp:"):
                raise ConnectError(f"{self.transport.name}: cannot connect to {address}: nobody listens there")
            super().connect(address, timeout)


class ChoosesAnotherAddress(Right):
    """A server gets an address near by when a server of the same transport had the one that was asked for."""

    breaks = "ADDR-1"

    def set_up(self) -> None:
        self.used: set[str] = set()

    class Server(Server):
        def bind(self, address: str) -> str:
            if address in self.transport.used and path_of(address):
                return super().bind(address + "-2")
            return super().bind(address)

        def close(self) -> None:
            super().close()
            self.transport.used.update(self.addresses)


class ReturnsTheFirstPort(Right):
    """When a server binds to port 0 a second time, the first port comes back."""

    breaks = "ADDR-2"
    needs = frozenset({"tcp"})

    class Server(Server):
        first = ""

        def bind(self, address: str) -> str:
            concrete = super().bind(address)
            if address.endswith("127.0.0.1:0"):
                self.first = self.first or concrete
                return self.first
            return concrete


class ListensToThree(Right):
    """Nobody serves the fourth address that a server binds."""

    breaks = "ADDR-3"

    class Server(Server):
        def set_up(self) -> None:
            self.unserved = self.transport.inner.server(self.credentials)

        def bind(self, address: str) -> str:
            return self.unserved.bind(address) if len(self.addresses) == 3 else super().bind(address)

        def close(self) -> None:
            self.unserved.close()
            super().close()


class BindsItsOwnAddressAgain(Right):
    """A server that binds an address for the second time gets no error."""

    breaks = "ADDR-4"

    class Server(Server):
        def bind(self, address: str) -> str:
            return address if address in self.addresses and not self.closed else super().bind(address)


class TakesAnAddressAway(Right):
    """`bind` takes an ipc path from the server that has it."""

    breaks = "ADDR-4"
    also = frozenset({"CLOSE-5", "ERR-1"})

    class Server(Server):
        def bind(self, address: str) -> str:
            path = path_of(address)
            if path and not self.closed and address not in self.addresses and os.path.exists(path):
                os.unlink(path)
            return super().bind(address)


class IsUselessAfterARefusal(Right):
    """A server that was refused an address can bind no other."""

    breaks = "ADDR-4"

    class Server(Server):
        refused = False

        def bind(self, address: str) -> str:
            if self.refused:
                raise TransportError(f"{self.transport.name}: cannot bind to {address}: bind has failed before")
            try:
                return super().bind(address)
            except TransportError:
                self.refused = True
                raise


class MakesMissingDirectories(Right):
    """`bind` makes the directory of an ipc path that is missing."""

    breaks = "ADDR-4"

    class Server(Server):
        def bind(self, address: str) -> str:
            path = path_of(address)
            if path and "\0" not in path:
                os.makedirs(os.path.dirname(path), exist_ok=True)
            return super().bind(address)


class CountsPortsIn16Bits(Right):
    """Port 65536 is taken for 0."""

    breaks = "ADDR-5"
    needs = frozenset({"tcp"})

    class Server(Server):
        def bind(self, address: str) -> str:
            return super().bind(address.replace(":65536", ":0"))


class ConnectsToNoAddress(Right):
    """`connect` to a tcp address without a port fails as if nobody listened."""

    breaks = "ADDR-5"
    needs = frozenset({"tcp"})

    class Client(Client):
        def connect(self, address: str, timeout: float | None) -> None:
            if address == "tcp://127.0.0.1":
                raise ConnectError(f"{self.transport.name}: cannot connect to {address}: nobody listens there")
            super().connect(address, timeout)


class CutsALongPath(Right):
    """A path that is too long is cut to 100 characters."""

    breaks = "ADDR-6"

    class Server(Server):
        def bind(self, address: str) -> str:
            return super().bind(address[:106] if address.startswith("ipc:") else address)


class HasEightNames(Right):
    """`bind_any` counts to eight, and begins again."""

    breaks = "ADDR-7"
    count = 0

    def bind_any(self, directory: str) -> Sequence[str]:
        self.count += 1
        path = os.path.join(directory, f"{os.getpid()}-{self.count % 8}")
        return [f"ipc://{path}" if path_of(each) else each for each in super().bind_any(directory)]


class OffersPathsElsewhere(Right):
    """`bind_any` gives a path in a directory of its own choice."""

    breaks = "ADDR-7"
    also = frozenset({"CLOSE-5"})

    def bind_any(self, directory: str) -> Sequence[str]:
        return super().bind_any(os.path.dirname(directory))


class TakesAFileForAServer(Right):
    """An ipc path whose file is there is refused, without a look at whether its server lives."""

    breaks = "ADDR-8"
    also = frozenset({"LOSS-10"})

    class Server(Server):
        def bind(self, address: str) -> str:
            path = path_of(address)
            if path and not self.closed and "\0" not in path and os.path.exists(path):
                raise TransportError(f"{self.transport.name}: cannot bind to {address}: the address is in use")
            return super().bind(address)


class TriesAgain(Right):
    """Where nobody listens, `connect` pauses and tries once more if it has more than a second."""

    breaks = "CONN-1"

    class Client(Client):
        def connect(self, address: str, timeout: float | None) -> None:
            started = time.monotonic()
            try:
                super().connect(address, timeout)
            except ConnectError:
                if (timeout is None or timeout > 1) and time.monotonic() - started < 0.5:
                    time.sleep(0.8)
                raise


class TakesAMissingFileForAMistake(Right):
    """`connect` to an ipc path that is not there raises `AddressError`."""

    breaks = "CONN-1"

    class Client(Client):
        def connect(self, address: str, timeout: float | None) -> None:
            path = path_of(address)
            if path and path.endswith("missing"):
                raise AddressError(f"{self.transport.name}: {address} does not exist")
            super().connect(address, timeout)


class CountsTheTimeoutTwice(Right):
    """`connect` gives its timeout to the connection, and again to the handshake."""

    breaks = "CONN-2"

    class Client(Client):
        def connect(self, address: str, timeout: float | None) -> None:
            super().connect(address, timeout and timeout * 2)


class IsStuckAfterATimeout(Right):
    """The next `connect` after one whose timeout had passed fails, too."""

    breaks = "CONN-3"
    stuck = False

    class Client(Client):
        def connect(self, address: str, timeout: float | None) -> None:
            if self.transport.stuck:
                self.transport.stuck = False
                raise ConnectError(f"{self.transport.name}: cannot connect to {address}: still busy")
            started = time.monotonic()
            try:
                super().connect(address, timeout)
            except ConnectError:
                self.transport.stuck = timeout is not None and time.monotonic() - started > timeout * 0.9
                raise


strangers: Counter[str] = Counter()
"""How often something that is no client of ours connected from this process to a path."""
ours = threading.local()


def _watch_strangers() -> None:
    """Python tells of each plain socket that connects; so nothing of the wrapped transport has to be known."""

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if event == "socket.connect" and not getattr(ours, "connecting", False) and isinstance(arguments[1], str):
            strangers[arguments[1]] += 1

    if getattr(socket, "AF_UNIX", None):
        sys.addaudithook(note)


class HasATableOfTenHandshakes(Right):
    """The tenth stranger who connects holds up a server for three seconds."""

    breaks = "CONN-4"

    def set_up(self) -> None:
        if not strangers:
            _watch_strangers()
            strangers[""] += 1

    class Client(Client):
        def connect(self, address: str, timeout: float | None) -> None:
            ours.connecting = True
            try:
                super().connect(address, timeout)
            finally:
                ours.connecting = False

    class Server(Server):
        held_up = False

        def recv(self, timeout: float | None) -> Message | PeerLost | None:
            if not self.held_up and any(strangers[path_of(each) or ""] >= 10 for each in self.addresses):
                self.held_up = True
                time.sleep(3)
            return super().recv(timeout)


class LetsAClosedDescriptorThrough(Right):
    """`recv` of a closed client that never connected raises the system's own error."""

    breaks = "ERR-1"

    class Client(Client):
        def recv(self, timeout: float | None) -> object:  # type: ignore[override]
            try:
                return super().recv(timeout)
            except ClosedError as error:
                if self.address:
                    raise
                raise OSError(9, "Bad file descriptor") from error


class DoesNotNameTheAddress(Right):
    """When nobody listens, the error does not say where."""

    breaks = "ERR-2"

    class Client(Client):
        def connect(self, address: str, timeout: float | None) -> None:
            try:
                super().connect(address, timeout)
            except ConnectError as error:
                error.args = (str(error).replace(address, "the address"),)
                raise


class NamesTheLibraryOnly(Right):
    """The error of an address in use names what is underneath, and not the transport."""

    breaks = "ERR-2"

    class Server(Server):
        def bind(self, address: str) -> str:
            try:
                return super().bind(address)
            except FiberqError as error:
                if not isinstance(error, AddressError):
                    error.args = (str(error).replace(self.transport.name, Transport.__name__),)
                raise
