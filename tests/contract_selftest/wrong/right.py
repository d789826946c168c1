"""A transport that passes every call on to another one, and so is as right as that; wrong ones override a method."""

from __future__ import annotations

import os
import re
import select
import threading
from collections.abc import Hashable, Sequence
from typing import Any, ClassVar

from fiberq import registry
from fiberq.abc import Buffer, Capabilities, ClientSocket, Credentials, Message, PeerLost, ServerSocket, Transport
from fiberq.errors import FiberqError
from fiberq.wakeup import Wakeup

__all__ = ["QUEUES", "WRAPPED", "Client", "FlagClient", "Right", "Server", "in_main_thread", "length", "path_of"]

WRAPPED = os.environ.get("FIBERQ__SELFTEST_TRANSPORT", "zmq")
"""The installed transport that does the work."""


class Naming:
    """Lets the errors of the wrapped transport name the wrapper."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, FiberqError) and not str(error).startswith(self._name):
            error.args = (f"{self._name}: {str(error).removeprefix(f'{WRAPPED}: ')}",)


class Server(ServerSocket):
    """Passes everything on to the server socket `inner`."""

    def __init__(self, transport: Right, inner: ServerSocket, credentials: Credentials | None) -> None:
        self.transport, self.inner, self.credentials = transport, inner, credentials
        self.naming = transport.naming
        self.addresses: list[str] = []
        self.closed = False
        self.set_up()

    def set_up(self) -> None:
        """What a wrong one adds to the constructor."""

    def bind(self, address: str) -> str:
        with self.naming:
            concrete = self.inner.bind(address)
        self.addresses.append(concrete)
        return concrete

    def recv(self, timeout: float | None) -> Message | PeerLost | None:
        with self.naming:
            return self.inner.recv(timeout)

    def send(self, peer: Hashable, parts: Sequence[Buffer]) -> None:
        with self.naming:
            self.inner.send(peer, parts)

    def close(self) -> None:
        self.closed = True
        with self.naming:
            self.inner.close()


class Client(ClientSocket):
    """Passes everything on to the client socket `inner`."""

    def __init__(self, transport: Right, inner: ClientSocket, credentials: Credentials | None) -> None:
        self.transport, self.inner, self.credentials = transport, inner, credentials
        self.naming = transport.naming
        self.address = ""
        self.closed = False
        self.set_up()

    def set_up(self) -> None:
        """What a wrong one adds to the constructor."""

    def connect(self, address: str, timeout: float | None) -> None:
        self.address = address
        with self.naming:
            self.inner.connect(address, timeout)

    def send(self, parts: Sequence[Buffer]) -> None:
        with self.naming:
            self.inner.send(parts)

    def recv(self, timeout: float | None) -> Sequence[Buffer] | None:
        with self.naming:
            return self.inner.recv(timeout)

    def fileno(self) -> int:
        with self.naming:
            return self.inner.fileno()

    def close(self) -> None:
        self.closed = True
        with self.naming:
            self.inner.close()


class FlagClient(Client):
    """A client with a descriptor of its own, readable while the wrapped one's is or `flag` is set."""

    def set_up(self) -> None:
        self.flag = Wakeup()
        self.either = select.epoll()
        self.inner_fileno = self.inner.fileno()
        self.either.register(self.inner_fileno, select.EPOLLIN)
        self.either.register(self.flag.fileno(), select.EPOLLIN)

    def fileno(self) -> int:
        return super().fileno() if self.closed else self.either.fileno()

    def close(self) -> None:
        already, self.closed = self.closed, True
        super().close()
        if not already:
            self.either.close()
            self.flag.close()


QUEUES = frozenset({"PUSH", "PULL", "PIPE", "QUEUE", "BOUND"})
"""The areas of queues and pipes, whose rules may break with anything that those are made of."""


class Right(Transport):
    """Wraps the transport `WRAPPED`. A wrong one says in its docstring what it does wrong."""

    breaks: ClassVar[str] = ""
    """The rule that it breaks."""
    also: ClassVar[frozenset[str]] = frozenset()
    """Rules, or areas, that may be broken with it, because they are the same promise seen from another side."""
    needs: ClassVar[frozenset[str]] = frozenset({"ipc"})
    """Capabilities and schemes that the wrapped transport must have for this one to be made of it."""
    name: ClassVar[str] = "right"
    """As which it is installed."""
    Server: ClassVar[type[Server]] = Server
    Client: ClassVar[type[Client]] = Client
    inner_class: ClassVar[type[Transport]] = registry.load(WRAPPED)
    capabilities: ClassVar[Capabilities] = inner_class.capabilities

    def __init_subclass__(cls) -> None:
        cls.name = "wrong-" + re.sub("(?<!^)(?=[A-Z])", "-", cls.__name__).lower()

    def __init__(self) -> None:
        self.naming = Naming(self.name)
        self.inner = self.inner_class()
        self.set_up()

    @classmethod
    def target(cls) -> str:
        """Of its entry point."""
        return f"{cls.__module__}:{cls.__qualname__}"

    @classmethod
    def fits(cls) -> bool:
        """Whether the wrapped transport has what this one needs."""
        wrapped = cls.inner_class.capabilities
        return all(getattr(wrapped, each, each in wrapped.schemes) for each in cls.needs)

    def set_up(self) -> None:
        """What a wrong one adds to the constructor."""

    def server(self, credentials: Credentials | None = None) -> Any:
        with self.naming:
            return self.Server(self, self.inner.server(credentials), credentials)

    def client(self, credentials: Credentials | None = None) -> Any:
        with self.naming:
            return self.Client(self, self.inner.client(credentials), credentials)

    def bind_any(self, directory: str) -> Sequence[str]:
        return self.inner.bind_any(directory)

    def close(self) -> None:
        with self.naming:
            self.inner.close()


def length(part: Buffer) -> int:
    """In bytes."""
    return memoryview(part).nbytes


def path_of(address: str) -> str | None:
    """The path of an ipc address."""
    return address.removeprefix("ipc://") if address.startswith("ipc://") else None


def in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
