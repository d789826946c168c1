"""Small ints, many in one go: what one put after the other is marshalled, and read, as a list.

In version 2 of `marshal`'s format a list is a head and its items one after the other, and an int of 32 bits is `INT`
and its four bytes. So what such a list makes are the very items that its ints make, and the node parts them as others.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from marshal import dumps, loads
from struct import Struct
from typing import Final

from fiberq.protocol.frames import Items

LEAST: Final = -(1 << 31)
MOST: Final = (1 << 31) - 1
"""Ints between these, them included, are small."""

SIZE: Final = 5
"""Bytes of each."""

FORMAT: Final = 2
"""The version of `marshal`'s format: the newest that neither interns texts nor refers to what came before."""

INT: Final = b"i"
_HEAD: Final = Struct("<ci")
"""Of a list: its type, and how many items follow."""
_LIST: Final = b"["


def are_small(ints: list[int]) -> bool:
    """Whether all these ints are."""
    return len(dumps(ints, FORMAT)) == _HEAD.size + SIZE * len(ints)  # others take more


def pack(ints: list[int]) -> tuple[bytes, tuple[memoryview]]:
    """The items for small ints: the bytes of an array of their lengths, and theirs."""
    return (array("I", [SIZE]) * len(ints)).tobytes(), (memoryview(dumps(ints, FORMAT))[_HEAD.size :],)


def unpack(items: Items) -> Sequence[int] | None:
    """The ints that these items are; `None` if they are not small ints, or not many."""
    count = len(items.lengths)
    if count < 2 or items.lengths[0] != SIZE or len(items.payload) != SIZE * count:
        return None
    data = b"".join((_HEAD.pack(_LIST, count), items.payload))
    if items.lengths != array("I", [SIZE]) * count or data[_HEAD.size :: SIZE] != INT * count:
        return None
    ints: list[int] = loads(data)
    return ints
