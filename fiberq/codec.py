"""Objects to item bytes and back. An item is `bytes`; a large one is a tuple of buffers, so that none is copied.

An item's first byte says what it is: 0x80, with which every pickle since protocol 2 begins; `RAW`, which is followed by
the bytes that were put; or `MESSAGE`, followed by those that `send_bytes` was given. The C pickler comes first,
cloudpickle where that fails.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Sequence
from io import BytesIO
from itertools import repeat
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from fiberq.abc import MAX_PARTS, Buffer
from fiberq.errors import ItemError
from fiberq.memory import Borrowed
from fiberq.protocol.writer import Item

if TYPE_CHECKING:
    from fiberq.link import Link

LARGE: Final = 64 * 1024
"""Bytes from which an item travels as buffers of its own; below, transports are faster when they copy."""

RAW: Final = b"B"
MESSAGE: Final = b"M"
PICKLE: Final = 0x80
"""The first byte of an item that is a pickle."""
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
SIMPLE: Final = frozenset({int, float, bool, type(None)})
"""Types whose pickle is the item, without a second thought."""


def encode(obj: object) -> Item | Laden:
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

    error = None
    flights: list[Flight] = []
    plain = not (_registry.users if len(_registry.reducers) == _registry.known else _registry.look())
    if plain:
        try:
            data = _dumps(obj, 5, buffer_callback=keep_in_band)
        except Exception as raised:
            error = raised
    # `in` takes four times as long as `find`.
    if not plain or error is not None or data.find(_CONNECTION) >= 0 or data.find(_HANDLE) >= 0:
        data, flights = _pickle_with_care(obj, keep_in_band, raws, error)
    item = (data, *raws) if raws or len(data) >= LARGE else data
    return Laden(item, flights) if flights else item


def encode_all(objs: Sequence[object]) -> Sequence[Item | Laden]:
    """As `encode`, for each."""
    if SIMPLE.issuperset(map(type, objs)):
        items = list(map(_dumps, objs, repeat(5)))
        if max(map(len, items), default=0) < LARGE:
            return items
    return [encode(obj) for obj in objs]


def decode(item: Buffer | Sequence[Buffer] | Borrowed) -> Any:
    """Return the object that `item` was made of; raises whatever unpickling it raises."""
    if type(item) is bytes:
        return _loads(item) if item[0] == PICKLE else item[1:]
    if type(item) is Borrowed:
        item = item.load()
    head, *buffers = cast("Sequence[Buffer]", item)
    if memoryview(head)[0] != PICKLE:
        return bytes(buffers[0])
    # What was put was writable, or pickle notes that it was not: give it memory of its own where that is read-only.
    return _loads(head, buffers=[bytearray(one) if memoryview(one).readonly else one for one in buffers])


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


def decode_bytes(item: Buffer | Sequence[Buffer] | Borrowed) -> Buffer:
    """Return the bytes that `send_bytes` was given, or a pickle of the object that `send` was given."""
    if type(item) is Borrowed:
        item = item.load()
    head, *buffers = (item,) if type(item) is bytes else cast("Sequence[Buffer]", item)
    kind = memoryview(head)[0]
    if kind == PICKLE and not buffers:
        return head
    if kind == MESSAGE[0]:
        return buffers[0] if buffers else memoryview(head)[1:]
    return _dumps(decode(item), 5)


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
        from multiprocessing.reduction import ForkingPickler

        self.reducers = ForkingPickler._extra_reducers  # type: ignore[attr-defined]
        self.known = len(self.reducers)
        modules = [str(getattr(each, "__module__", "")) for each in list(self.reducers.values())]
        self.users = any(each.partition(".")[0] != "multiprocessing" for each in modules)
        return self.users


_registry = _Registry()


def _pickle_with_care(
    obj: object,
    keep_in_band: Callable[[pickle.PickleBuffer], bool],
    raws: list[Buffer],
    error: Exception | None,
) -> tuple[bytes, list[Flight]]:
    """Pickle what plain pickle cannot, or gets wrong; and return the handles in it, too."""
    flights: list[Flight] = []
    sending.flights = flights
    try:
        return _pickle_otherwise(obj, keep_in_band, raws, error), flights
    finally:
        sending.flights = None


def _pickle_otherwise(
    obj: object,
    keep_in_band: Callable[[pickle.PickleBuffer], bool],
    raws: list[Buffer],
    first: Exception | None,
) -> bytes:
    """A pickle as multiprocessing makes it, which takes sockets, its connections, and what was registered with it; or
    cloudpickle's."""
    from multiprocessing.reduction import ForkingPickler

    raws.clear()
    try:
        file = BytesIO()
        ForkingPickler(file, 5, True, keep_in_band).dump(obj)
        return file.getvalue()
    except Exception as error:
        first = first or error
    import cloudpickle

    raws.clear()
    if sending.flights:
        sending.flights.clear()
    try:
        return cloudpickle.dumps(obj, protocol=5, buffer_callback=keep_in_band)  # type: ignore[no-any-return]
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
