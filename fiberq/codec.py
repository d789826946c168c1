"""Objects to item bytes and back. An item is `bytes`; a large one is a tuple of buffers, so that none is copied.

An item's first byte says what it is: 0x80, with which every pickle since protocol 2 begins, or `RAW`, which is followed
by the bytes that were put. The C pickler comes first, cloudpickle where that fails.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

from fiberq.abc import MAX_PARTS, Buffer
from fiberq.errors import ItemError
from fiberq.protocol.writer import Item

LARGE: Final = 64 * 1024
"""Bytes from which an item travels as buffers of its own; below, transports are faster when they copy."""

RAW: Final = b"B"
PICKLE: Final = 0x80
"""The first byte of an item that is a pickle."""
_MAX_BUFFERS: Final = MAX_PARTS - 2  # a header and the pickle itself are parts, too

_dumps = pickle.dumps
_loads = pickle.loads
SIMPLE: Final = frozenset({int, float, bool, type(None)})
"""Types whose pickle is the item, without a second thought."""


def encode(obj: object) -> Item:
    """Return the item for `obj`. Raises `ItemError`, which names the cause, if it cannot be pickled."""
    kind = type(obj)
    if kind in SIMPLE or kind is str:
        data = _dumps(obj, 5)
        return data if len(data) < LARGE else (data,)
    if kind is bytes:
        assert isinstance(obj, bytes)
        return RAW + obj if len(obj) < LARGE else (RAW, obj)
    raws: list[Buffer] = []

    def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < LARGE or len(raws) == _MAX_BUFFERS:
            return True
        raws.append(raw)
        return False

    try:
        data = _dumps(obj, 5, buffer_callback=keep_in_band)
    except Exception as error:
        raws.clear()
        data = _cloudpickle(obj, keep_in_band, error)
    return (data, *raws) if raws or len(data) >= LARGE else data


def decode(item: Buffer | Sequence[Buffer]) -> Any:
    """Return the object that `item` was made of; raises whatever unpickling it raises."""
    if type(item) is bytes:
        return _loads(item) if item[0] == PICKLE else item[1:]
    head, *buffers = cast("Sequence[Buffer]", item)
    if bytes(memoryview(head)[:1]) == RAW:
        return bytes(buffers[0])
    # What was put was writable, or pickle notes that it was not: give it memory of its own where that is read-only.
    return _loads(head, buffers=[bytearray(one) if memoryview(one).readonly else one for one in buffers])


def is_shared(item: Item) -> bool:
    """Whether `item` refers to memory that the caller may write to after `put` has returned."""
    return type(item) is tuple and any(type(one) is not bytes and not memoryview(one).readonly for one in item)


def _cloudpickle(obj: object, keep_in_band: Callable[[pickle.PickleBuffer], bool], first: Exception) -> bytes:
    import cloudpickle

    try:
        return cloudpickle.dumps(obj, protocol=5, buffer_callback=keep_in_band)  # type: ignore[no-any-return]
    except Exception as error:
        raise ItemError(f"an object of type {type(obj).__qualname__} cannot be put: {error or first}") from error
