"""Strangers, who send bytes to a node that mean nothing."""

from __future__ import annotations

import os
import random
import socket
from typing import Any


class Strangers:
    """They connect, send, and go, or stay until the end."""

    def __init__(self, path: str, tcp: str, transport: str, rng: random.Random) -> None:
        self._path = path.removeprefix("ipc://")
        self._port = int(tcp.rpartition(":")[2])
        self._transport = transport
        self._rng = rng
        self._staying: list[socket.socket] = []

    def come(self) -> bool:
        for _ in range(self._rng.randint(1, 4)):
            self._send_bytes()
        if self._transport == "zmq":
            self._send_messages()
        return True

    def _send_bytes(self) -> None:
        over_tcp = self._rng.random() < 0.5
        stranger = socket.socket(socket.AF_INET if over_tcp else socket.AF_UNIX)
        stranger.settimeout(0.05)
        try:
            stranger.connect(("127.0.0.1", self._port) if over_tcp else self._path)
            stranger.sendall(self._rng.randbytes(self._rng.choice((1, 10, 64, 1000, 100_000))))
        except OSError:
            pass  # it was cut off, or is not read from
        if self._rng.random() < 0.7 or len(self._staying) > 20:
            stranger.close()
        else:
            self._staying.append(stranger)

    def _send_messages(self) -> None:
        """Well-formed messages that are no frames, and frames with nonsense behind a right beginning."""
        import zmq

        with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
            sender: Any = dealer
            sender.linger = 50
            sender.connect(f"ipc://{self._path}")
            for _ in range(20):
                sender.send_multipart([os.urandom(self._rng.choice((0, 1, 24, 5000))) for _ in range(3)])
                sender.send(bytes([0xF1, self._rng.randrange(26)]) + self._rng.randbytes(30))

    def leave(self) -> None:
        for each in self._staying:
            each.close()
