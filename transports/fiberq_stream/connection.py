"""One connected socket after the greeting: whole messages in and out.

A signal handler may raise between any two instructions of Python. But none runs while a function written in C does, and
so `list.extend(map(system call, its arguments))` has either not happened, or has noted its result. All that follows
works on copies, and takes effect by one assignment. So a call that was interrupted can be made again, and its place in
the stream is not lost. OpenSSL's state cannot be copied: with TLS, a call that is interrupted ends the connection.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Generic, TypeVar

from fiberq.abc import Buffer

from .framing import NOTHING, Ended, Half, cut, frame, make_room

if TYPE_CHECKING:
    from .tls import Tls

Made = TypeVar("Made")
End = TypeVar("End")

CHUNK = 65_536
"""Bytes that one read asks for."""
GATHERED = 128
"""The most buffers that one call sends; the system's own limit is 1024."""
# A process that wants to be killed by SIGPIPE does not mean this socket.
AT_ONCE = socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0)


class Connection(Generic[Made, End]):
    """Reading, by one thread at a time, does not disturb writing, by one thread at a time."""

    def __init__(
        self,
        sock: socket.socket,
        tls: Tls | None,
        make: Callable[[list[Buffer]], Made],
        end: End,
        most: float = float("inf"),
    ) -> None:
        """A message of more than `most` bytes ends the connection."""
        self.sock = sock
        self._most = most
        self._tls = tls
        self._make, self._end = make, end
        self._in: tuple[Half | None, list[bytes | int], Iterator[Made | End]] = NOTHING, [], iter(())
        """Half a message (`None` after the end), what was read after it, and what is whole and was not fetched."""
        self._out: tuple[list[bytes | memoryview], list[int]] = [], []
        """What is to be sent, and how many bytes of it were."""
        self._decrypting = self._encrypting = False

    @property
    def whole(self) -> Iterator[Made | End]:
        """What `pull` brought, for one `extend`: messages, each of them once, and after the last one the end."""
        return self._in[2]

    @property
    def ended(self) -> bool:
        return self._in[0] is None

    def pull(self) -> bool:
        """Read once, without blocking; return whether something had come."""
        half, arrived, _ = self._in
        if half is None:
            return False
        try:
            if self._decrypting:
                raise Ended
            if not arrived:
                self._read(half, arrived)
            messages, half = self._understand(half, arrived[0])
            self._in = half, [], iter([self._make(parts) for parts in messages])
            self._decrypting = False
        except BlockingIOError:
            return False
        except (Ended, OSError, MemoryError) as error:
            if of_handler(error):
                raise
            self._in = None, [], iter([self._end])
        return True

    def _read(self, half: Half, arrived: list[bytes | int]) -> None:
        if half.large is None or half.due is None or self._tls is not None:
            arrived.extend(map(self.sock.recv, (CHUNK,)))
        else:
            make_room(half.large, half.filled, half.due[-1])
            with memoryview(half.large) as view, view[half.filled :] as room:  # What is in view cannot grow.
                arrived.extend(map(self.sock.recv_into, (room,), (len(room),), (socket.MSG_WAITALL,)))

    def _understand(self, half: Half, got: bytes | int) -> tuple[list[list[Buffer]], Half]:
        if not got:
            raise Ended
        if isinstance(got, int):
            return cut(half._replace(filled=half.filled + got), b"", self._most)
        if self._tls is None:
            return cut(half, got, self._most)
        self._decrypting = True
        return cut(half, self._tls.open(got), self._most)

    def push(self, parts: Sequence[Buffer]) -> bool:
        """Send a message, or keep what the system does not take now, for `flush`; whether nothing is kept."""
        buffers = frame(parts)
        if self._tls is None:
            self._out[0].extend(buffers)
            return self.flush()
        if self._encrypting:
            self._hang_up()
            return True
        self._encrypting = True
        for sealed in self._tls.seal(buffers):
            self._out[0].append(sealed)
            done = self.flush()
        self._encrypting = False
        return done

    def flush(self) -> bool:
        """Send what was kept, as far as the system takes it; whether nothing is kept any more.

        What cannot reach the other side any more is dropped: reading tells, after all that arrived from there.
        """
        while self._out[0]:
            kept, sent = self._out
            try:
                if not sent:
                    sent.extend(map(self.sock.sendmsg, (kept[:GATHERED],), ((),), (AT_ONCE,)))
                self._out = _after(kept, sent[0]), []
            except BlockingIOError:
                return False
            except OSError as error:
                if of_handler(error):
                    raise
                self._hang_up()
        return True

    def _hang_up(self) -> None:
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)
        self._out = [], []


def of_handler(error: BaseException) -> bool:
    """Whether this is no error of the system's: a signal handler may raise a `TimeoutError`, say."""
    return isinstance(error, OSError) and error.errno is None


def _after(buffers: list[bytes | memoryview], count: int) -> list[bytes | memoryview]:
    """What is left of them without their first `count` bytes."""
    for at, buffer in enumerate(buffers):
        if count < len(buffer):
            return [memoryview(buffer)[count:], *buffers[at + 1 :]]
        count -= len(buffer)
    return []
