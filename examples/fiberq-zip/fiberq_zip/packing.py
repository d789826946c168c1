"""How a message is packed into another one of as many parts, and unpacked. Not how it travels.

In front of the first part stand 8 bytes: bit n says that part n is deflated. To mark the parts in a part of their own
would be simpler, but a message of `MAX_PARTS` has no room for it. So the first part is copied; it is small, as a rule.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from fiberq.abc import Buffer

__all__ = ["LARGEST", "SMALLEST", "Malformed", "pack", "unpack"]

SMALLEST = 4096
"""A smaller part travels as it is: there is little to save."""

LARGEST = 64 * 1024 * 1024
"""The bytes that the deflated parts of one message have together, at most, when they are inflated.

Zlib inflates a byte to a thousand, so without a limit some megabytes of a stranger's would fill a server's memory. What
does not fit under the limit travels as it is.
"""

LEVEL = 1
"""Zlib's fastest: a better one takes several times as long for some per cent."""


class Malformed(Exception):
    """Not what `pack` makes: the peer is at fault."""


def pack(parts: Sequence[Buffer]) -> list[Buffer]:
    packed: list[Buffer] = []
    flags, left = 0, LARGEST
    for index, part in enumerate(parts):
        size = memoryview(part).nbytes
        if SMALLEST <= size <= left:
            deflated = zlib.compress(part, LEVEL)
            if len(deflated) < size:
                flags |= 1 << index
                left -= size
                part = deflated
        packed.append(part)
    if packed:
        packed[0] = flags.to_bytes(8, "big") + packed[0]
    return packed


def unpack(packed: Sequence[Buffer]) -> list[Buffer]:
    """Raises `Malformed`, whatever the peer sent, and needs no more than `LARGEST` bytes."""
    if not packed:
        return []
    first = memoryview(packed[0]).cast("B")
    flags = int.from_bytes(first[:8], "big")
    if len(first) < 8 or flags >> len(packed):
        raise Malformed
    parts = [first[8:], *packed[1:]]
    left = LARGEST
    for index, part in enumerate(parts):
        if flags >> index & 1:
            parts[index] = inflated = _inflate(part, left)
            left -= len(inflated)
    return parts


def _inflate(part: Buffer, limit: int) -> bytes:
    inflater = zlib.decompressobj()
    try:
        # One byte more than is allowed, which shows that there is more; and 0 would mean that there is no limit.
        inflated = inflater.decompress(part, limit + 1)
    except zlib.error as error:
        raise Malformed from error
    if len(inflated) > limit or not inflater.eof or inflater.unused_data:
        raise Malformed
    return inflated
