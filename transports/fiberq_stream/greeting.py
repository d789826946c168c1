"""How a connection begins: each side says that it speaks this language, and, with credentials, proves who it is.

The client speaks first, and the server answers only a client that it accepts. Without credentials they exchange two
fixed words; with credentials TLS comes first, and then a keyed hash over the word and the TLS connection takes the
word's place, which nobody in between could pass on.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

from .framing import Ended

if TYPE_CHECKING:
    from .tls import Tls

CLIENT = b"fiberq_stream 1: here is a client"[:32]
SERVER = b"fiberq_stream 1: a server answers"[:32]
MOST = 16_384
"""Bytes that a stranger may send before he is known."""


class Greeting:
    """One side's part of it, without a socket: `feed` takes what arrived and returns what is to be sent."""

    def __init__(self, secret: bytes | None, *, serving: bool) -> None:
        self.tls: Tls | None = None
        self.done = False
        self._secret = secret
        self._mine, self._theirs = (SERVER, CLIENT) if serving else (CLIENT, SERVER)
        self._serving = serving
        self._spoken = False
        self._heard = b""
        self._allowed = MOST
        if secret is not None:
            from .tls import Tls  # Only now: it takes a while, and most processes need none.

            self.tls = Tls(serving)

    def feed(self, data: bytes = b"") -> bytes:
        """Raises `Ended`, with the reason, for one who is not welcome."""
        self._allowed -= len(data)
        if self._allowed < 0:
            raise Ended("it said too much before it showed a key")
        say = b""
        if self.tls is not None:
            if not self.tls.binding:
                say = self.tls.shake(data)
                if not self.tls.binding:
                    return say
                data = b""
            data = self.tls.open(data)
        if not self._serving and not self._spoken:
            say += self._word(self._mine)
            self._spoken = True
        self._heard += data
        if len(self._heard) >= len(self._theirs):
            if not hmac.compare_digest(self._heard, self._proof(self._theirs)):
                raise Ended("it speaks another protocol" if self.tls is None else "it has another key")
            self.done = True
            if self._serving:
                say += self._word(self._mine)
        return say

    def _proof(self, word: bytes) -> bytes:
        if self._secret is None or self.tls is None:
            return word
        return hmac.digest(self._secret, word + self.tls.binding, "sha256")

    def _word(self, word: bytes) -> bytes:
        proof = self._proof(word)
        return proof if self.tls is None else b"".join(self.tls.seal([proof]))
