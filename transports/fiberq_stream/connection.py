"""One connected socket after the greeting: whole messages in and out, and nothing that blocks."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING

from fiberq.abc import Buffer

from .framing import CHUNK, Ended, Reader, frame

if TYPE_CHECKING:
    from .tls import Tls

GATHERED = 128
"""The most buffers that one call sends; the system's own limit is 1024."""
# A process that wants to be killed by SIGPIPE does not mean this socket.
NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)


class Connection:
    """Reading, by one thread at a time, does not disturb writing, by one thread at a time.

    Each method raises `Ended` when the connection is over. One that a signal handler's exception cut short may have
    lost its place in the stream, so that is its end, too.
    """

    def __init__(self, sock: socket.socket, tls: Tls | None) -> None:
        self.sock = sock
        self._tls = tls
        self._reader = Reader()
        self._outbox: deque[bytes | memoryview] = deque()
        self._torn = False

    def pull(self) -> list[list[Buffer]]:
        """Read once; return the messages that are whole now."""
        if self._torn:
            raise Ended
        try:
            if self._tls is None and (room := self._reader.room()) is not None:
                count = self.sock.recv_into(room)
                del room
                if count:
                    return self._reader.fill(count)
                raise Ended
            data = self.sock.recv(CHUNK)
            if not data:
                raise Ended
            return self._reader.feed(data if self._tls is None else self._tls.open(data))
        except BlockingIOError:
            return []
        except OSError as error:
            raise Ended from error
        except BaseException:
            self._tear()
            raise

    def push(self, parts: Sequence[Buffer]) -> bool:
        """Send a message, or keep what the system does not take now, for `flush`; whether nothing is kept."""
        buffers = frame(parts)
        idle = not self._outbox
        if self._tls is None:
            self._outbox.extend(buffers)
            return idle and self.flush()
        try:
            for sealed in self._tls.seal(buffers):
                self._outbox.append(sealed)
                idle = idle and self.flush()
        except Ended:
            raise
        except BaseException:
            self._tear()
            raise
        return idle

    def flush(self) -> bool:
        """Send what was kept, as far as the system takes it; whether nothing is kept any more."""
        outbox = self._outbox
        try:
            while outbox:
                sent = self.sock.sendmsg(list(islice(outbox, GATHERED)), (), NO_SIGNAL)
                while outbox and sent >= len(outbox[0]):
                    sent -= len(outbox.popleft())
                if sent:
                    outbox[0] = memoryview(outbox[0])[sent:]
        except BlockingIOError:
            return False
        except OSError as error:
            outbox.clear()
            raise Ended from error
        except BaseException:
            self._tear()
            raise
        return True

    def _tear(self) -> None:
        self._torn = True
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
