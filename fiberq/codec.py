"""Objects to item bytes and back. An item is `bytes`; a large one is a tuple of buffers, so that none is copied.

An item's first byte says what it is: 0x80, with which every pickle since protocol 2 begins; `RAW`, which is followed by
the bytes that were put; `MESSAGE`, followed by those that `send_bytes` was given; or one of `MARSHALLED`, with which a
number or a text begins in version 2 of `marshal`'s format: that is made, and read, in a quarter of a pickle's time, and
is the same in all versions of Python. The C pickler comes first, cloudpickle where that fails.
"""

from __future__ import annotations

import marshal
import pickle
import threading
from collections.abc import Callable, Sequence
from io import BytesIO
from itertools import repeat
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias, cast

from fiberq.abc import MAX_PARTS, Buffer
from fiberq.errors import ItemError
from fiberq.memory import SHARE_FROM, Borrowed
from fiberq.protocol import bunch, ints
from fiberq.protocol.bunch import GLOBAL
from fiberq.protocol.frames import ALONE
from fiberq.protocol.ints import FORMAT
from fiberq.protocol.writer import Item

if TYPE_CHECKING:
    from fiberq.link import Link

Received: TypeAlias = "Buffer | Sequence[Buffer] | Borrowed | int"
"""An item as it comes: as it was put, or in shared memory, or a small int that came with others."""

LARGE: Final = SHARE_FROM
"""Bytes from which an item is a tuple of buffers; one of `ALONE` bytes in an object is a buffer of its own."""

RAW: Final = b"B"
MESSAGE: Final = b"M"
PICKLE: Final = 0x80
"""The first byte of an item that is a pickle."""
MARSHALLED: Final = frozenset(b"NTFilgu")
"""The first bytes of items that are None, a bool, an int, a float or a str."""
_MAX_BUFFERS: Final = MAX_PARTS - 2  # a header and the pickle itself are parts, too

_CONNECTION: Final = b"multiprocessing.connection"
"""A pickle with this in it may have one, which plain pickle gets wrong."""
_HANDLE: Final = b"fiberq.channel"
"""A pickle with this in it may have a handle, which has to be announced."""


class Flight(NamedTuple):
    """A handle in an item: a process that holds what it stands for, until whoever gets the item does."""

    link: Link
    token: str
    holds: list[tuple[int, str]]


class _Raws(list[Buffer]):
    """Gathers the large buffers of an object that is pickled; the small ones stay in the pickle, as does what is more
    than a message can have."""

    def __call__(self, buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < ALONE or len(self) == _MAX_BUFFERS:
            return True
        self.append(raw)
        return False


class _Sending(threading.local):
    flights: list[Flight] | None = None


sending: Final = _Sending()
"""While this thread pickles an item, `flights` gathers the handles in it."""


class Laden(NamedTuple):
    """An item with handles in it, which have to be announced before it leaves."""

    item: Item
    flights: list[Flight]


def unladen(item: Item | Laden) -> tuple[Item, Sequence[Flight]]:
    """An item and the handles in it."""
    return item if isinstance(item, Laden) else (item, ())


_dumps = pickle.dumps
_loads = pickle.loads
_marshal = marshal.dumps
_unmarshal = marshal.loads
_first: Callable[[Any], int] = itemgetter(0)
SIMPLE: Final = frozenset({int, float, bool, type(None)})
"""Types whose marshalled form is the item, without a second thought."""


light: Final[set[type]] = {dict, list, tuple, set}
"""Types of which this process has not put a large object yet: theirs are pickled without looking out for large buffers,
for that takes a quarter of the time that a small dict needs."""


def encode(obj: object) -> Item | Laden:
    """Return the item for `obj`. Raises `ItemError`, which names the cause, if it cannot be pickled."""
    kind = type(obj)
    if kind not in light:
        if kind in SIMPLE or (kind is str and len(obj) < LARGE):  # type: ignore[arg-type]
            data = _marshal(obj, FORMAT)  # type: ignore[arg-type]
            return data if len(data) < LARGE else (_dumps(obj, 5),)
        if kind is str:
            return (_dumps(obj, 5),)
        if kind is bytes:
            assert isinstance(obj, bytes)
            return RAW + obj if len(obj) < LARGE else (RAW, obj)
    if registry.users if len(registry.reducers) == registry.known else registry.look():
        return _encode_with_care(obj, None)
    raws = None if kind in light else _Raws()
    try:
        data = _dumps(obj, 5) if raws is None else _dumps(obj, 5, buffer_callback=raws)
    except Exception as error:
        return _encode_with_care(obj, error)
    return encoded(obj, data, raws or ())


def encoded(obj: object, data: bytes, raws: Sequence[Buffer] = ()) -> Item | Laden:
    """The item for `obj`, of which plain pickle made `data`, and `raws` if it was to look out for large buffers."""
    # `in` takes four times as long as `find`, but for a single byte.
    if GLOBAL in data and (data.find(_CONNECTION) >= 0 or data.find(_HANDLE) >= 0):
        return _encode_with_care(obj, None)
    if not raws and len(data) < LARGE:
        return data
    if type(obj) in light and len(data) >= ALONE:
        light.discard(type(obj))
        return encode(obj)
    return (data, *raws)


def encode_all(objs: list[Any]) -> tuple[Sequence[Item | Laden], int | None]:
    """As `encode`, for each, but small ints may be left as they are; and how many bytes the longest has, if none of the
    items is large."""
    kinds = set(map(type, objs))
    if kinds == {int} and ints.are_small(objs):
        return objs, ints.SIZE
    if kinds <= SIMPLE:
        data = list(map(_marshal, objs, repeat(FORMAT)))
        longest = max(map(len, data), default=0)
        if longest < LARGE:
            return data, longest
    items = [encode(obj) for obj in objs]
    return items, max(map(len, cast("list[bytes]", items))) if set(map(type, items)) == {bytes} else None


def decode(item: Received) -> Any:
    """Return the object that `item` was made of; raises whatever unpickling it raises."""
    if type(item) is bytes:
        kind = item[0]
        if kind == PICKLE:
            return _loads(item)
        return _unmarshal(item) if kind in MARSHALLED else item[1:]
    if type(item) is int:
        return item
    if type(item) is Borrowed:
        item = item.load()
    head, *buffers = cast("Sequence[Buffer]", item)
    if memoryview(head)[0] != PICKLE:
        return bytes(buffers[0])
    # What was put was writable, or pickle notes that it was not: give it memory of its own where that is read-only.
    return _loads(head, buffers=[bytearray(one) if memoryview(one).readonly else one for one in buffers])


def decode_all(items: Sequence[Received], objects: list[Any]) -> None:
    """Append to `objects` what `items` were made of; if one of them raises, those before it are there."""
    step: Callable[[Any], Any] = decode
    types = set(map(type, items))
    if types == {int}:
        objects += items
        return
    if types == {bytes}:
        kinds = set(map(_first, items))
        if kinds <= MARSHALLED:
            step = _unmarshal
        elif kinds == {PICKLE}:
            pickles = cast("Sequence[bytes]", items)
            joins = len(items) >= bunch.LEAST
            for start in range(0, len(items), bunch.SIZE):
                some = pickles[start : start + bunch.SIZE]
                joint = bunch.unpickle(some) if joins else []
                joins = bool(joint)
                objects.extend(joint or map(_loads, some))
            return
    objects.extend(map(step, items))


def encode_bytes(message: bytes | memoryview) -> Item:
    """Return the item for a message of `send_bytes`; a memoryview has the format "B".

    A message that begins like a pickle travels as one, so `recv` loads it, as in multiprocessing.
    """
    is_pickle = len(message) > 0 and message[0] == PICKLE
    if len(message) < LARGE:
        return bytes(message) if is_pickle else MESSAGE + message
    if type(message) is not bytes and memoryview(message).readonly:
        message = bytes(message)  # somebody else may be able to write to it
    return (message,) if is_pickle else (MESSAGE, message)


def decode_bytes(item: Received) -> Buffer:
    """Return the bytes that `send_bytes` was given, or a pickle of the object that `send` was given."""
    if type(item) is int:
        return _dumps(item, 5)
    if type(item) is Borrowed:
        item = item.load()
    head, *buffers = (item,) if type(item) is bytes else cast("Sequence[Buffer]", item)
    kind = memoryview(head)[0]
    if kind == PICKLE and not buffers:
        return head
    if kind == MESSAGE[0]:
        return buffers[0] if buffers else memoryview(head)[1:]
    return _dumps(decode(item), 5)


def together(item: tuple[Buffer, ...], size: int) -> Item:
    """An item of `size` bytes that is not in shared memory, as it is to travel."""
    return item if size >= ALONE else b"".join(item)


def is_shared(item: Item) -> bool:
    """Whether `item` refers to memory that the caller may write to after `put` has returned."""
    return type(item) is tuple and any(type(one) is not bytes and not memoryview(one).readonly for one in item)


class _Registry:
    """What is registered with multiprocessing's pickler: `known` reducers when last looked, some of the `users`."""

    def __init__(self) -> None:
        self.reducers: dict[type, Callable[..., Any]] = {}
        self.known = -1
        self.users = False

    def look(self) -> bool:
        """Whether there are some of the users."""
        from multiprocessing.reduction import ForkingPickler

        self.reducers = ForkingPickler._extra_reducers  # type: ignore[attr-defined]
        self.known = len(self.reducers)
        modules = [str(getattr(each, "__module__", "")) for each in list(self.reducers.values())]
        self.users = any(each.partition(".")[0] != "multiprocessing" for each in modules)
        return self.users


registry = _Registry()


def _encode_with_care(obj: object, error: Exception | None) -> Item | Laden:
    """As `encode`, for what plain pickle cannot do, or gets wrong; and for what may have handles in it."""
    raws = _Raws()
    flights: list[Flight] = []
    sending.flights = flights
    try:
        data = _pickle_otherwise(obj, raws, error)
    finally:
        sending.flights = None
    item = (data, *raws) if raws or len(data) >= LARGE else data
    return Laden(item, flights) if flights else item


def _pickle_otherwise(obj: object, raws: _Raws, first: Exception | None) -> bytes:
    """A pickle as multiprocessing makes it, which takes sockets, its connections, and what was registered with it; or
    cloudpickle's."""
    from multiprocessing.reduction import ForkingPickler

    try:
        file = BytesIO()
        ForkingPickler(file, 5, True, raws).dump(obj)
        return file.getvalue()
    except Exception as error:
        first = first or error
    import cloudpickle

    raws.clear()
    if sending.flights:
        sending.flights.clear()
    try:
        return cloudpickle.dumps(obj, protocol=5, buffer_callback=raws)  # type: ignore[no-any-return]
    except Exception as error:
        text = f"an object of type {type(obj).__qualname__} cannot be put: {error or first}"
        raise _item_error(type(first), text) from error


def _item_error(kind: type[Exception], text: str) -> ItemError:
    """An `ItemError` that also those catch who expect what pickle raised, as it comes from multiprocessing."""
    try:
        both: type[ItemError] = type(
            "ItemError", (ItemError, kind), {"__reduce__": lambda one: (_item_error, (kind, *one.args))}
        )
        return both(text)
    except TypeError:  # the classes do not go together
        return ItemError(text)
