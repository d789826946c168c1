"""Wrong about credentials (AUTH)."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

from fiberq.abc import Buffer, Credentials, Message, PeerLost
from fiberq.errors import ConnectError, TransportError

from .right import Client, Right, Server


class IgnoresCredentials(Right):
    """It declares that it cannot authenticate, takes credentials, and ignores them."""

    breaks = "AUTH-1"
    capabilities = Right.capabilities._replace(authenticates=False)

    def server(self, credentials: Credentials | None = None) -> Any:  # noqa: ARG002
        return super().server()

    def client(self, credentials: Credentials | None = None) -> Any:  # noqa: ARG002
        return super().client()


class ProtectsNoTcp(Right):
    """With credentials it refuses TCP."""

    breaks = "AUTH-2"
    needs = frozenset({"authenticates", "tcp"})

    class Server(Server):
        def bind(self, address: str) -> str:
            if self.credentials and address.startswith("tcp:") and not self.closed:
                raise TransportError(f"{self.transport.name}: cannot protect {address}")
            return super().bind(address)


class IgnoresTheLastByte(Right):
    """Secrets that differ in the last byte only are the same."""

    breaks = "AUTH-3"
    needs = frozenset({"authenticates"})

    def server(self, credentials: Credentials | None = None) -> Any:
        return super().server(credentials and Credentials(credentials.secret[:-1] + b"\0"))

    def client(self, credentials: Credentials | None = None) -> Any:
        return super().client(credentials and Credentials(credentials.secret[:-1] + b"\0"))


class FallsBackToNone(Right):
    """A client that is refused with its credentials tries without."""

    breaks = "AUTH-4"
    needs = frozenset({"authenticates"})

    class Client(Client):
        def connect(self, address: str, timeout: float | None) -> None:
            try:
                super().connect(address, timeout)
            except ConnectError:
                if not self.credentials or self.closed:
                    raise
                self.inner.close()
                self.inner = self.transport.inner.client(None)
                super().connect(address, timeout)


class ARefusalCostsAMessage(Right):
    """When a server has refused a client, its next message to another one is lost."""

    breaks = "AUTH-5"
    needs = frozenset({"authenticates"})

    class Client(Client):
        def connect(self, address: str, timeout: float | None) -> None:
            try:
                super().connect(address, timeout)
            except ConnectError:
                refusals[address] += 1
                raise

    class Server(Server):
        refused = 0

        def send(self, peer: Hashable, parts: Sequence[Buffer]) -> None:
            if self.refused < sum(refusals[each] for each in self.addresses):
                self.refused += 1
            else:
                super().send(peer, parts)


refusals: Counter[str] = Counter()
"""How many clients of this process failed to connect to an address."""


class AuthenticatesWithoutEncrypting(Right):
    """Each side proves that it has the secret, and then all is sent as it is."""

    breaks = "AUTH-6"
    needs = frozenset({"authenticates"})

    def server(self, credentials: Credentials | None = None) -> Any:
        return self.Server(self, self.inner.server(), credentials)

    def client(self, credentials: Credentials | None = None) -> Any:
        return self.Client(self, self.inner.client(), credentials)

    class Client(Client):
        def connect(self, address: str, timeout: float | None) -> None:
            deadline = time.monotonic() + (10 if timeout is None else timeout)
            super().connect(address, timeout)
            self.send([_proof(self.credentials, b"client")])
            parts = self.recv(max(0, deadline - time.monotonic()))
            if parts is None or bytes(parts[0]) != _proof(self.credentials, b"server"):
                self.inner.close()
                self.inner = self.transport.inner.client()
                raise ConnectError(f"{self.transport.name}: {address} refused the credentials")

    class Server(Server):
        def set_up(self) -> None:
            self.admitted: set[Hashable] = set()

        def recv(self, timeout: float | None) -> Message | PeerLost | None:
            deadline = None if timeout is None else time.monotonic() + timeout
            while True:
                event = super().recv(deadline and max(0, deadline - time.monotonic()))
                if event is None or event.peer in self.admitted:
                    return event
                if isinstance(event, Message):
                    self.check(event)

        def check(self, event: Message) -> None:
            if [bytes(each) for each in event.parts] == [_proof(self.credentials, b"client")]:
                self.admitted.add(event.peer)
                self.send(event.peer, [_proof(self.credentials, b"server")])
            else:
                self.send(event.peer, [b"refused"])


def _proof(credentials: Credentials | None, role: bytes) -> bytes:
    return hmac.digest(credentials.secret if credentials else b"none", role, hashlib.sha256)


class ShowsTheSecretInItsRepr(Right):
    """The `repr` of a client shows all of its attributes."""

    breaks = "AUTH-7"
    needs = frozenset({"authenticates"})

    class Client(Client):
        def __repr__(self) -> str:
            return f"Client(address={self.address!r}, secret={self.credentials and self.credentials.secret!r})"


class ShowsTheSecretToTheRefused(Right):
    """The error of a client that is refused quotes its secret, for whoever has to find the mistake."""

    breaks = "AUTH-7"
    needs = frozenset({"authenticates"})

    class Client(Client):
        def connect(self, address: str, timeout: float | None) -> None:
            try:
                super().connect(address, timeout)
            except ConnectError as error:
                if self.credentials:
                    error.args = (f"{error} (the secret was {self.credentials.secret.hex()})",)
                raise
