"""The connecting side: one connection, which is never renewed."""

from __future__ import annotations

from collections.abc import Sequence

from fiberq.abc import Buffer, ClientSocket

from .address import parse
from .base import Base, not_written

__all__ = ["Client"]


class Client(Base, ClientSocket):
    """See `fiberq.abc.ClientSocket`, which says of each method what it must do."""

    def connect(self, address: str, timeout: float | None) -> None:
        """Connect, and return when the server has answered (CONN). Called once.

        `ConnectError` where nobody listens, at once (CONN-1), and where nobody answers
        within `timeout` seconds (CONN-2). A listener's backlog is no answer.
        """
        self._check_open()
        parse(address)
        raise not_written("Client.connect", "CONN")

    def send(self, parts: Sequence[Buffer]) -> None:
        """Queue one message; never block (MSG-6). It leaves without a further call (MSG-8).

        `ConnectionLost` when the connection is known to be gone (LOSS-9).
        """
        self._check_open()
        raise not_written("Client.send", "MSG")

    def recv(self, timeout: float | None) -> Sequence[Buffer] | None:
        """Return the parts of the next message; `None` after `timeout` seconds (TIME).

        `ConnectionLost` after the last message that arrived, and for ever (LOSS-7, LOSS-9).
        """
        self._check_open()
        raise not_written("Client.recv", "MSG, TIME, LOSS")

    def fileno(self) -> int:
        """Return a descriptor that is readable exactly while `recv(0)` has something to
        return or to raise; the same one, also before `connect` (READY).
        """
        self._check_open()
        raise not_written("Client.fileno", "READY")

    def close(self) -> None:
        """Also close the connection, and the descriptor of `fileno` (CLOSE-8)."""
        super().close()
