"""TLS on buffers in memory: bytes in, bytes out, and no socket, so nothing here ever waits for one.

It encrypts without certificates (an anonymous key exchange). That both sides have the same secret is proved by the
greeting, which is tied to this very connection by `binding`.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterable, Iterator
from functools import cache

from fiberq.abc import Buffer
from fiberq.errors import TransportError

from .framing import Ended

PIECE = 65_536
"""Bytes that are encrypted or decrypted at once."""


@cache
def context(server_side: bool) -> ssl.SSLContext:
    """Raises `TransportError` where Python's OpenSSL cannot do this."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    # TLS 1.3 has no anonymous key exchange, and no "tls-unique".
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION
    try:
        context.set_ciphers("AECDH-AES256-SHA:@SECLEVEL=0")
    except ssl.SSLError as error:
        raise TransportError(f"stream: {ssl.OPENSSL_VERSION} has no anonymous cipher for credentials") from error
    return context


class Tls:
    """One side of one TLS connection. Reading and writing may be done by different threads."""

    def __init__(self, server_side: bool) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._ssl = context(server_side).wrap_bio(self._incoming, self._outgoing, server_side)
        self._lock = threading.RLock()  # OpenSSL's connection is not thread-safe.
        self.binding = b""
        """What only the two ends of this TLS connection have in common; empty before the handshake is done."""

    def shake(self, data: bytes) -> bytes:
        """Take the next bytes of the handshake; return those to send. Sets `binding` when it is done."""
        self._incoming.write(data)
        try:
            self._ssl.do_handshake()
            self.binding = self._ssl.get_channel_binding("tls-unique") or b""
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            raise Ended("it has no key, or speaks another protocol") from error
        return self._outgoing.read()

    def seal(self, buffers: Iterable[Buffer]) -> Iterator[bytes]:
        """Encrypt, piece by piece, so that the other side can decrypt the first while this one encrypts the next."""
        for buffer in buffers:
            left = memoryview(buffer)
            while left:
                with self._lock:
                    left = left[self._ssl.write(left[:PIECE]) :]
                    sealed = self._outgoing.read()
                yield sealed

    def open(self, data: bytes) -> bytes:
        """Decrypt all that is whole."""
        plain = []
        with self._lock:
            self._incoming.write(data)
            try:
                while piece := self._ssl.read(PIECE):
                    plain.append(piece)
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as error:
                farewell = isinstance(error, ssl.SSLZeroReturnError)
                raise Ended("" if farewell else "what it sent cannot be decrypted") from error
        return b"".join(plain)
