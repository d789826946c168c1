"""How a message becomes ZeroMQ frames. Not how frames travel: see `server` and `client`.

Reading a frame costs as much as ten small parts, so all small parts of a message share its first frame:

- an empty first frame: a probe, which the receiver ignores;
- ``0xFF`` and the bytes of the part: a message of one small part, by far the most common;
- otherwise the number of parts, one length (32 bits, big-endian) for each, and the bytes of the small parts. The
  length `OWN_FRAME` says that the part is large and follows in a frame of its own, uncopied.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Any

import zmq

from fiberq.abc import MAX_PARTS, Buffer

__all__ = ["PROBE", "Malformed", "decode", "encode"]

PROBE = b""
ONE_PART = b"\xff"
OWN_FRAME = 0xFFFFFFFF
INLINE = 8192
"""A part of so many bytes or more travels in its own frame: from about here on, copying costs more than a frame."""

_HEADERS = [Struct(f">B{n}I") for n in range(MAX_PARTS + 1)]


class Malformed(Exception):
    """The frames are not what `encode` makes: the peer is at fault."""


def encode(parts: Sequence[Buffer]) -> tuple[bytes, list[Any]]:
    """Return the first frame of a message, and the large parts that follow it, each as a frame of its own.

    libzmq copies what it sends, but for a part that is the whole of a received frame: that is passed on as it is.
    (pyzmq's zero-copy sends of other memory crash a process that ends while they are under way.)
    """
    if len(parts) == 1:
        part = parts[0]
        if (part.nbytes if type(part) is memoryview else len(part)) < INLINE:
            return ONE_PART + part, []
    if len(parts) > MAX_PARTS:
        raise ValueError(f"a message has at most {MAX_PARTS} parts, not {len(parts)}")
    lengths: list[int] = []
    small: list[Buffer] = [b""]
    large: list[Any] = []
    for part in parts:
        length = part.nbytes if type(part) is memoryview else len(part)
        if length < INLINE:
            lengths.append(length)
            small.append(part)
        else:
            if type(part) is memoryview and not part.contiguous:
                raise ValueError("a part must be contiguous")
            lengths.append(OWN_FRAME)
            frame = part.obj if type(part) is memoryview else None
            large.append(frame if isinstance(frame, zmq.Frame) and len(frame) == length else part)
    small[0] = _HEADERS[len(lengths)].pack(len(lengths), *lengths)
    return b"".join(small), large


def decode(first: bytes) -> tuple[list[Buffer], list[int]]:
    """Return the parts that a first frame announces, and the indices of those that follow as frames.

    Those hold an empty placeholder. Raises `Malformed`.
    """
    if not first:
        raise Malformed
    count = first[0]
    if count == 0xFF:
        return [first[1:]], []
    if count > MAX_PARTS or len(first) < (start := _HEADERS[count].size):
        raise Malformed
    parts: list[Buffer] = []
    large: list[int] = []
    for index, length in enumerate(_HEADERS[count].unpack_from(first)[1:]):
        if length == OWN_FRAME:
            large.append(index)
            parts.append(b"")
        else:
            parts.append(first[start : start + length])
            start += length
    if start != len(first):
        raise Malformed
    return parts, large
