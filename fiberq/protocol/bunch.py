"""Small pickles that came together are unpickled together, a bunch at a time: that takes three quarters of the time.

A pickle that C's pickler makes in protocol 5 is a head, the code that makes the object, and `STOP`. So the code of
many, one after the other, and `APPENDS`, makes a list of all. But for two things: code that names a class may run
anything, and that is not to happen before somebody gets the item; and code that refers to what its own item made
before counts that from the beginning of the list. Where there is such code, each is unpickled alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from copyreg import _inverted_registry  # type: ignore[attr-defined]
from operator import itemgetter, methodcaller
from pickle import APPENDS, EMPTY_LIST, FRAME, MARK, MEMOIZE, PROTO, STACK_GLOBAL, STOP, loads
from typing import Any, Final

LEAST: Final = 8
"""Items that are worth it."""

SIZE: Final = 64
"""Items of a bunch. With ten times as many, their objects do not stay in the processor's caches, and there are so many
at a time that Python looks for garbage among them: then nothing is won."""

LONGEST: Final = 1024
"""Bytes of an item; a longer one takes so long that nothing is won."""

_START: Final = PROTO + b"\x05"
_FRAME: Final = _START + FRAME
_HEAD: Final = len(_FRAME) + 8
"""Bytes of a head: the frame's length has eight."""

GLOBAL: Final = STACK_GLOBAL[0]
"""A pickle without this byte names no class and no function, but for those that `copyreg` has codes for."""
_extensions: Final[dict[int, Any]] = _inverted_registry
_frame_of: Final[Callable[[bytes], bytes]] = itemgetter(slice(len(_FRAME)))
_count_made: Final[Callable[[bytes], int]] = methodcaller("count", MEMOIZE)

# What refers to an object is `BINGET` and its number, if that is below 256. A text can look so, too.
_REFERS: Final = re.compile(rb"h[\0-\x3f]")
_SHORT: Final = _HEAD + 2 * 64 + len(STOP)
"""Bytes of an item that has made 64 objects at most, for each takes two bytes or more."""
_REFERS_TO_FEW: Final = re.compile(rb"h[\0-\x1f]")
_FEW: Final = 32
"""Objects that an item has made at most: there are no letters, digits or spaces among their numbers."""


class Bunch:
    """Items with consecutive numbers, from `first` on."""

    __slots__ = ("_items", "first", "objects")

    def __init__(self, first: int, items: Sequence[bytes]) -> None:
        self.first = first
        self.objects: list[Any] | None = None
        """What `unpickle` makes of all, when one was wanted; whoever takes one removes it."""
        self._items = items

    def read(self) -> list[Any]:
        """Their objects; none if each has to be read alone."""
        self.objects = unpickle(self._items)
        return self.objects

    def item(self, number: int) -> bytes:
        """Item `number` as it came."""
        return self._items[number - self.first]


def bunches(first: int, items: Sequence[bytes]) -> list[Bunch]:
    """Items, from number `first` on, in bunches of `SIZE`; none if they are few, or the first one is no pickle."""
    if len(items) < LEAST or not items[0].startswith(_FRAME):
        return []
    return [Bunch(first + start, items[start : start + SIZE]) for start in range(0, len(items), SIZE)]


def unpickle(pickles: Sequence[bytes]) -> list[Any]:
    """The objects; none if they have to be unpickled one by one, or are no pickles."""
    if _extensions:  # then there may be codes for classes
        return []
    longest = max(map(len, pickles))
    if longest > LONGEST or set(map(_frame_of, pickles)) != {_FRAME}:
        return []
    code = b"".join([each[_HEAD:-1] for each in pickles])
    if GLOBAL in code:
        return []
    if (longest > _SHORT or _REFERS.search(code)) and (
        max(map(_count_made, pickles)) > _FEW or _REFERS_TO_FEW.search(code)
    ):
        return []
    try:
        objects: list[Any] = loads(b"".join((_START, EMPTY_LIST, MARK, code, APPENDS, STOP)))
    except Exception:  # whoever gets the item is to hear of it
        return []
    return objects if type(objects) is list and len(objects) == len(pickles) else []
