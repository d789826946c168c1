"""Large items that lie in memory of their own on the node's host: frames then carry references, and no bytes.

What memory that is, and how one gets at it, is `fiberq.memory`'s business; here it is passed on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from struct import Struct
from typing import Final, NamedTuple

from fiberq.abc import Buffer

__all__ = ["REFERENCE", "Lent", "Reference", "Shared"]


class Reference(NamedTuple):
    """What a process needs to get at another one's memory. `descriptor` is the lender's; `inode` and `size` tell
    whether that is still the same memory."""

    descriptor: int
    inode: int
    size: int

    def pack(self) -> bytes:
        return REFERENCE.pack(*self)


REFERENCE: Final = Struct("<IQQ")


class Shared(bytes):
    """A large item that this process shares, as it travels: a packed reference. `memory` lasts as long as this does, so
    until the node has acknowledged the frame."""

    size: int
    memory: object

    @classmethod
    def of(cls, reference: Reference, memory: object) -> Shared:
        self = cls(reference.pack())
        self.size = reference.size
        self.memory = memory
        return self


class Lent(ABC):
    """A large item in memory that this process has, for as long as this object lives."""

    reference: Reference

    @property
    def size(self) -> int:
        return self.reference.size

    @abstractmethod
    def load(self) -> Sequence[Buffer]:
        """Its parts, copied. Blocks for as long as that takes."""
