"""How messages lie in a stream of bytes: the number of parts, the length of each, then the parts themselves."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from fiberq.abc import MAX_PARTS, Buffer

SMALL = 16_384
"""Bytes up to which a copy is cheaper than one more buffer, or one more system call."""
CHUNK = 65_536
"""Bytes that one read asks for."""
CREDIT = 1_048_576
"""Bytes that are allocated on the word of a header alone; beyond, at most as many as have arrived already."""
HEADERS = [struct.Struct(f"!B{count}Q") for count in range(MAX_PARTS + 1)]


class Ended(Exception):
    """The connection is over, or the other side does not speak this language."""


def frame(parts: Sequence[Buffer]) -> list[bytes | memoryview]:
    """Return the bytes that stand for a message: one buffer when it is small, else its own parts, not copied."""
    lengths = [len(part) if type(part) is bytes else memoryview(part).nbytes for part in parts]
    header = HEADERS[len(lengths)].pack(len(lengths), *lengths)
    if sum(lengths) <= SMALL:
        return [b"".join((header, *parts))]
    return [header, *(_flat(part) for part, length in zip(parts, lengths, strict=True) if length)]


def _flat(part: Buffer) -> memoryview:
    view = memoryview(part)
    try:
        return view.cast("B")
    except TypeError:  # A format that `cast` does not know, such as those of ctypes.
        return memoryview(view.tobytes())


class Reader:
    """Cuts what arrives into messages."""

    def __init__(self) -> None:
        self._rest = b""
        self._parts: list[Buffer] = []
        self._due: list[int] | None = None
        """The lengths of the parts that are still to come, the last one first; `None` before a header."""
        self._large = bytearray()
        """The part that is being received, if it is a large one: it is read into its final buffer."""
        self._filled = 0

    def room(self) -> memoryview | None:
        """Return the place for what arrives next, for `fill`; `None` when it is for `feed`."""
        if not self._large:
            return None
        assert self._due is not None
        if self._filled == len(self._large):
            self._large += bytes(min(self._filled, self._due[-1] - self._filled))
        return memoryview(self._large)[self._filled :]

    def fill(self, count: int) -> list[list[Buffer]]:
        """Know that `count` bytes have arrived in `room()`; return the messages that are whole now."""
        assert self._due is not None
        self._filled += count
        if self._filled < self._due[-1]:
            return []
        self._due.pop()
        self._parts.append(self._large)
        self._large, self._filled = bytearray(), 0
        return self.feed(b"")

    def feed(self, data: bytes) -> list[list[Buffer]]:
        """Take what has arrived; return the messages that are whole now."""
        messages: list[list[Buffer]] = []
        while data and (room := self.room()) is not None:
            count = min(len(room), len(data))
            room[:count] = data[:count]
            del room  # A buffer in view cannot grow.
            data = data[count:]
            messages += self.fill(count)
        if self._large:
            return messages
        if self._rest:
            data = self._rest + data
        at, end = 0, len(data)
        while True:
            if self._due is None:
                if at == end:
                    break
                if data[at] > MAX_PARTS:
                    raise Ended("nonsense")
                header = HEADERS[data[at]]
                if end - at < header.size:
                    break
                self._due = list(header.unpack_from(data, at)[:0:-1])
                at += header.size
            while self._due and end - at >= self._due[-1]:
                length = self._due.pop()
                self._parts.append(data[at : at + length])
                at += length
            if self._due:
                if self._due[-1] > SMALL:
                    self._large = bytearray(min(self._due[-1], CREDIT))
                    self._filled = end - at
                    self._large[: self._filled] = data[at:]
                    at = end
                break
            messages.append(self._parts)
            self._parts, self._due = [], None
        self._rest = data[at:]
        return messages
