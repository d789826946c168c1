"""Large items that lie in memory of their own on the node's host: frames then carry references, and no bytes.

What memory that is, and how one gets at it, is `fiberq.memory`'s business; here it is passed on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from struct import Struct, iter_unpack
from typing import Final, NamedTuple

from fiberq.abc import Buffer
from fiberq.errors import ProtocolError

__all__ = ["Lent", "Reference", "Shared", "pack_generations", "read_generations", "read_references"]


class Reference(NamedTuple):
    """What a process needs to get at an item in another one's memory. `descriptor` is the other one's, and `inode` what
    that stands for; the memory is used again, but `generation` is at `offset` only while the item is."""

    descriptor: int
    inode: int
    offset: int
    size: int
    """Bytes of the item, with what is before and between its parts."""
    generation: int

    def pack(self) -> bytes:
        return _REFERENCE.pack(*self)


_REFERENCE: Final = Struct("<IQQQQ")
_GENERATION: Final = Struct("<Q")


def read_references(data: memoryview) -> list[Reference]:
    """Those that are packed end to end."""
    if not data or len(data) % _REFERENCE.size:
        raise ProtocolError("references to shared memory are cut short")
    return [Reference(*each) for each in _REFERENCE.iter_unpack(data)]


class Lent(ABC):
    """A large item in memory that another process does not use for anything else while this object lives."""

    reference: Reference

    @property
    def size(self) -> int:
        return self.reference.size

    @abstractmethod
    def load(self) -> Sequence[Buffer]:
        """Its parts, copied. Blocks for as long as that takes."""


class Shared(bytes):
    """A large item of this process in shared memory, as it travels: a packed reference.

    Its `memory` lasts at least as long as this object, so until the node has acknowledged the frame. An item that was
    not `sent` by then will never be: `unsent` is called with its generation.
    """

    size: int
    generation: int
    memory: object
    sent = False
    unsent: Callable[[int], None]

    @classmethod
    def of(cls, reference: Reference, size: int, memory: object, unsent: Callable[[int], None]) -> Shared:
        self = cls(reference.pack())
        self.size = size
        self.generation = reference.generation
        self.memory = memory
        self.unsent = unsent
        return self

    def __del__(self) -> None:
        if not self.sent:
            self.unsent(self.generation)


def pack_generations(generations: Iterable[int]) -> tuple[bytes, ...]:
    """A body that names items in shared memory."""
    return tuple(map(_GENERATION.pack, generations))


def read_generations(body: memoryview) -> list[int]:
    if len(body) % _GENERATION.size:
        raise ProtocolError("a list of items in shared memory is cut short")
    return [generation for (generation,) in iter_unpack(_GENERATION.format, body)]
