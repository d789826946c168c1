"""How messages lie in a stream of bytes: the number of parts, the length of each, then the parts themselves.

Both functions are pure but for the large part that is being received: what they return says where to go on.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from fiberq.abc import MAX_PARTS, Buffer

SMALL = 16_384
"""Bytes up to which a copy is cheaper than one more buffer, or one more system call."""
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


class Half(NamedTuple):
    """A message that has not arrived whole."""

    parts: Sequence[Buffer] = ()
    due: Sequence[int] | None = None
    """The lengths of the parts that are still to come, the last one first; `None` before a header."""
    rest: bytes = b""
    """The beginning of a header, or of a small part."""
    large: bytearray | None = None
    """A large part is read into its final buffer, up to `filled` so far."""
    filled: int = 0


NOTHING = Half()


def make_room(large: bytearray, filled: int, length: int) -> None:
    """See to it that something fits in behind `filled`, for a part that has `length` bytes when it is whole."""
    if filled == len(large):
        large += bytes(min(filled, length - filled))


def cut(half: Half, data: bytes, most: float = float("inf")) -> tuple[list[list[Buffer]], Half]:
    """Return the messages that are whole when `data` has arrived after `half` of one, and what is left. Raises `Ended`
    for a message of more than `most` bytes."""
    messages: list[list[Buffer]] = []
    parts, due = list(half.parts), None if half.due is None else list(half.due)
    large, filled = half.large, half.filled
    data = half.rest + data if half.rest else data
    at, end = 0, len(data)
    while True:
        if due is None:
            if at == end:
                break
            if data[at] > MAX_PARTS:
                raise Ended("nonsense")
            header = HEADERS[data[at]]
            if end - at < header.size:
                break
            due = list(header.unpack_from(data, at)[:0:-1])
            if sum(due) > most:
                raise Ended("too long a message")
            at += header.size
        while due:
            if large is None and end - at >= due[-1]:
                parts.append(data[at : at + due[-1]])
                at += due.pop()
                continue
            if due[-1] <= SMALL:
                break
            large = bytearray(min(due[-1], CREDIT)) if large is None else large
            while at < end and filled < due[-1]:
                make_room(large, filled, due[-1])
                count = min(len(large) - filled, end - at)
                large[filled : filled + count] = data[at : at + count]
                filled, at = filled + count, at + count
            if filled < due[-1]:
                break
            parts.append(large)
            due.pop()
            large, filled = None, 0
        if due:
            break
        messages.append(parts)
        parts, due = [], None
    return messages, Half(parts, due, data[at:], large, filled) if due is not None or at < end else NOTHING
