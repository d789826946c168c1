"""The listening side: one socket, any number of peers. A peer is one connection."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from fiberq.abc import Buffer, Message, PeerLost, ServerSocket

from .address import parse
from .base import Base, not_written

__all__ = ["Server"]


class Server(Base, ServerSocket):
    """See `fiberq.abc.ServerSocket`, which says of each method what it must do."""

    def bind(self, address: str) -> str:
        """Listen at `address`, too, and return it with the port that was chosen (ADDR).

        An address in use is a `TransportError` (ADDR-4). The file of a killed server does
        not count (ADDR-8); that of a live one must stay (CLOSE-5).
        """
        self._check_open()
        parse(address)
        raise not_written("Server.bind", "ADDR")

    def recv(self, timeout: float | None) -> Message | PeerLost | None:
        """Return the next message or loss of a peer; `None` after `timeout` seconds (TIME).

        Here connections are accepted, greeted (CONN), read (MSG) and found lost (LOSS).
        Drop one that sends nonsense or says nothing, without an error (CONN-4).
        """
        self._check_open()
        raise not_written("Server.recv", "MSG, TIME, LOSS")

    def send(self, peer: Hashable, parts: Sequence[Buffer]) -> None:
        """Queue one message for `peer`; never block (MSG-6, ROUTE).

        What the system does not take at once leaves in `recv`. To a peer that is gone, a
        message is dropped without an error (ROUTE-4).
        """
        self._check_open()
        raise not_written("Server.send", "MSG, ROUTE")

    def close(self) -> None:
        """Also remove the files of ipc addresses, but only those of this server (CLOSE-5)."""
        super().close()
