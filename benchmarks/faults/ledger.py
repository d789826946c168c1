"""What each process notes of what it does, in a mapped file of its own: a store costs nothing and outlives SIGKILL.

A writer notes how far it has attempted before it puts, and how far it is acknowledged after `flush`. A reader notes
what it got before it gets again. The driver reads along while they run. The control page is the driver's: how much each
writer may put, and whether readers are to be slow.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from typing import Final

ATTEMPTED: Final = 0
ACKNOWLEDGED: Final = 1
COUNT: Final = 2
FINISHED: Final = 3
STAMPS: Final = 4
GIVEN_BACK: Final = 5
ENTRIES: Final = 8

SLOW: Final = 0
ALLOWED: Final = 1

MAX_STAMPS: Final = 1 << 16
"""Redelivered items of which a reader notes when it got them."""

REDELIVERED: Final = 1 << 63
"""Marks an entry whose delivery said that another reader may have had the item."""

WRITER_SHIFT: Final = 32


class Page:
    """A file of `size` unsigned words, shared by whoever maps it."""

    def __init__(self, path: str, size: int, create: bool = False) -> None:
        descriptor = os.open(path, os.O_RDWR | (os.O_CREAT | os.O_EXCL if create else 0), 0o600)
        try:
            if create:
                os.ftruncate(descriptor, size * 8)
            self.map = mmap.mmap(descriptor, size * 8)
        finally:
            os.close(descriptor)
        self.words = memoryview(self.map).cast("Q")


class Ledger(Page):
    """The file of one process: eight counters, the stamps, the entries, and what was given back."""

    def __init__(self, path: str, capacity: int, create: bool = False) -> None:
        self.capacity = capacity
        super().__init__(path, ENTRIES + 2 * MAX_STAMPS + 2 * capacity, create)
        self.stamps = self.words[ENTRIES : ENTRIES + 2 * MAX_STAMPS]
        start = ENTRIES + 2 * MAX_STAMPS
        self.entries = self.words[start : start + capacity]
        self._given_back = self.words[start + capacity :]

    def stamp(self, item: int, now: float) -> None:
        """Note when a redelivered item was got."""
        number = self.words[STAMPS]
        if number < MAX_STAMPS:
            self.stamps[2 * number] = item
            self.stamps[2 * number + 1] = int(now * 1e9)
            self.words[STAMPS] = number + 1

    def stamped(self) -> dict[int, float]:
        """When each redelivered item was got first."""
        found: dict[int, float] = {}
        for number in range(self.words[STAMPS]):
            found.setdefault(self.stamps[2 * number], self.stamps[2 * number + 1] / 1e9)
        return found

    def give_back(self, items: Sequence[int]) -> None:
        """Note what was sent ahead to this process, and is given back unstarted."""
        number = self.words[GIVEN_BACK]
        for place, item in enumerate(items[: self.capacity - number], number):
            self._given_back[place] = item
        self.words[GIVEN_BACK] = min(self.capacity, number + len(items))

    def given_back(self) -> memoryview:
        return self._given_back[: self.words[GIVEN_BACK]]


def item_of(writer: int, number: int) -> int:
    """What the writer with this number puts as its item `number`; both can be read from it."""
    return writer << WRITER_SHIFT | number
