"""How a frame looks on the wire. Says nothing about when one is sent.

A message's first part is a header and a body; further parts, if any, are the buffers of one large item.

    header   magic, kind, flags (a byte each), a zero byte, u64 sequence number (0: not numbered),
             u64 acknowledgement (the last number received in order), u64 channel (0: the session itself)
    items    u32 count, then as many u32 lengths, then the items' bytes end to end; a count of 0: one large item,
             whose buffers are the message's further parts; or, if there are none, references to large items, end to
             end (see `lent`)

All integers are little-endian. Whatever cannot be parsed raises `ProtocolError`; nothing is allocated from a length
that was not checked against what arrived.
"""

from __future__ import annotations

import json
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from struct import Struct, error, iter_unpack
from typing import Any, Final, NamedTuple

from fiberq.abc import Buffer
from fiberq.errors import ProtocolError
from fiberq.protocol.lent import Reference, read_references

VERSION: Final = 1
MAGIC: Final = 0xF1

ACK_NOW: Final = 1  # a flag: the sender waits for the acknowledgement
RESEND: Final = 2  # a flag: a frame is missing, send again from the acknowledged one

# kinds. Of the session:
HELLO: Final = 1  # client: who I am, what I speak; JSON
WELCOME: Final = 2  # node: the same; JSON
REFUSED: Final = 3  # node: why not; JSON
HELLO_FIRST: Final = 4  # node: I do not know this connection
ACK: Final = 5  # either: nothing but an acknowledgement
GOODBYE: Final = 6  # client: all is done, and what I hold is finished
REQUEST: Final = 7  # client: a question with a number; JSON
REPLY: Final = 8  # node: its answer; JSON
# Of a channel:
PAUSE: Final = 9  # node: my memory is full, put nothing here
RESUME: Final = 10  # node: go on
PUT: Final = 16  # client: items
DELIVER: Final = 17  # node: items, numbered
READY: Final = 18  # client: how far I am, and how many I can take
RECALL: Final = 19  # node: give back what you have not started; client: tell me to
RETURN: Final = 20  # client: these go back
RELEASE: Final = 21  # client: I hold this end no more
ENDED: Final = 22  # node: nothing will ever come, or be taken, here again; JSON
WANT: Final = 23  # client: how many slots of a bounded queue I can use
GRANT: Final = 24  # node: slots
SURVEY: Final = 25  # node: tell me how far you are, and give back the slots that you do not use
TAKEN: Final = 26  # node: these are yours no more, though you did not give them back
USED: Final = 27  # node: these items in shared memory have ended; of the session

_KINDS: Final = frozenset(range(HELLO, RESUME + 1)) | frozenset(range(PUT, USED + 1))

HEADER: Final = Struct("<BBBxQQQ")
_COUNT: Final = Struct("<I")
_DELIVER: Final = Struct("<QB?")
_READY: Final = Struct("<QQHB")
_RANGE: Final = Struct("<QQ")
_WANT: Final = Struct("<QQIH")
_GRANT: Final = Struct("<Q")
_SURVEY: Final = Struct("<Q")

MAX_FRAME: Final = 120_000
"""Bytes of small items that go into one frame over a network, where what comes behind it has to wait."""

NEAR_FRAME: Final = 1_000_000
"""The same, for who connects by `ipc`, and to readers that share memory with the node. A frame costs 400 us of
processor time in all: with `MAX_FRAME` bytes, items of 100 bytes take a tenth longer, those of 1,000 a half, and those
of 20,000 twice as long."""

ALONE: Final = 64 * 1024
"""Bytes from which an item travels alone. One of fewer whose buffers are joined is the same item."""

WORTH_VIEWS: Final = 512
"""Bytes of an item from which it is copied out of a frame at once, and not after a copy of the frame."""

MAX_JSON: Final = 1 << 20
"""Bytes of a hello or a request: what is read from them may take thirty times as much, for a moment."""

MAX_RANGES: Final = 1 << 16
"""Ranges of items that one report names."""

DEFAULT_CHANNEL: Final = 2
"""The channel that a bare address names: a pipe that is always there, with its reading and its writing side."""


class Frame(NamedTuple):
    """A frame without its place in a session. `body` is the pieces that follow the header, `parts` a large item."""

    kind: int
    channel: int = 0
    body: Sequence[Buffer] = ()
    parts: Sequence[Buffer] = ()


class Received(NamedTuple):
    """A message whose header was read."""

    kind: int
    flags: int
    seq: int
    ack: int
    channel: int
    body: memoryview
    parts: Sequence[Buffer]


class Items(NamedTuple):
    """The items of a frame: either `lengths` and `payload`; or, of one large item, `parts`; or `elsewhere`, where the
    large items are."""

    lengths: array[int]
    payload: Buffer
    parts: Sequence[Buffer]
    elsewhere: Sequence[Reference] = ()


class Ready(NamedTuple):
    """A reader's whole state: `limit` items may be delivered in all, those before `started` are started, and of these
    all but `held`, ranges in order, are finished; `waiting` of its callers are blocked now. If it is `listening`,
    somebody wants to be told that there is an item, but may never come for it."""

    limit: int
    started: int
    waiting: int
    held: Sequence[tuple[int, int]] = ()
    listening: bool = False


class Want(NamedTuple):
    """A writer's whole state, on a bounded queue: of the slots it has `seen` come it gave back `returned`; `ahead` more
    are welcome, and `waiting` of its callers are blocked for want of one."""

    seen: int
    returned: int
    ahead: int
    waiting: int


def encode(frame: Frame, flags: int, seq: int, ack: int) -> tuple[Buffer, ...]:
    """The message that carries `frame`."""
    head = HEADER.pack(MAGIC, frame.kind, flags, seq, ack, frame.channel)
    return (b"".join((head, *frame.body)), *frame.parts)


def decode(parts: Sequence[Buffer]) -> Received:
    """Read a message's header."""
    if not parts or len(parts[0]) < HEADER.size:
        raise ProtocolError("a message is too short to be a frame")
    magic, kind, flags, seq, ack, channel = HEADER.unpack_from(parts[0])
    if magic != MAGIC or kind not in _KINDS:
        raise ProtocolError("a message is not a frame of this protocol")
    return Received(kind, flags, seq, ack, channel, memoryview(parts[0])[HEADER.size :], parts[1:])


def pack_json(value: Mapping[str, Any]) -> tuple[bytes]:
    return (json.dumps(value, separators=(",", ":")).encode(),)


def read_json(body: memoryview, longest: int | None = None) -> dict[str, Any]:
    if longest is not None and len(body) > longest:
        raise ProtocolError("a frame's body is too long")
    try:
        value = json.loads(bytes(body))
    except (ValueError, RecursionError) as error:
        raise ProtocolError("a frame's body is not JSON") from error
    if not isinstance(value, dict):
        raise ProtocolError("a frame's body is not a JSON object")
    return value


def pack_items(lengths: Buffer, payload: Sequence[Buffer]) -> tuple[Buffer, ...]:
    """A body of items; `lengths` is the bytes of an array of u32."""
    return (_COUNT.pack(len(lengths) // 4), lengths, *payload)


def pack_references(references: Iterable[bytes]) -> tuple[Buffer, ...]:
    """A body of large items that are elsewhere; each reference is packed."""
    return (_COUNT.pack(0), *references)


def read_items(body: memoryview, parts: Sequence[Buffer]) -> Items:
    try:
        (count,) = _COUNT.unpack_from(body)
    except error as cause:
        raise ProtocolError("a frame of items has no count") from cause
    if not count:
        if not parts and len(body) > _COUNT.size:
            return Items(array("I"), b"", (), read_references(body[_COUNT.size :]))
        if not parts or len(body) != _COUNT.size:
            raise ProtocolError("a frame of items has none")
        return Items(array("I"), b"", parts)
    start = _COUNT.size + 4 * count
    if parts or start > len(body):
        raise ProtocolError("a frame of items is shorter than its count says")
    lengths = array("I")
    lengths.frombytes(body[_COUNT.size : start])
    payload = body[start:]
    if sum(lengths) != len(payload):
        raise ProtocolError("a frame's items and their lengths differ")
    return Items(lengths, payload, ())


def pack_deliver(first: int, deliveries: int, others: bool, items: Sequence[Buffer]) -> tuple[Buffer, ...]:
    return (_DELIVER.pack(first, min(deliveries, 0xFF), others), *items)


def read_deliver(body: memoryview, parts: Sequence[Buffer]) -> tuple[int, int, bool, Items]:
    """The first item's number, how often all were delivered before, whether there are other readers, and the items."""
    try:
        first, deliveries, others = _DELIVER.unpack_from(body)
    except error as cause:
        raise ProtocolError("a delivery is too short") from cause
    return first, deliveries, others, read_items(body[_DELIVER.size :], parts)


def split(items: Items) -> list[bytes]:
    """Every item of a batch as bytes of its own."""
    payload, lengths = items.payload, items.lengths
    if len(lengths) == 1:
        return [bytes(payload)]
    width = lengths[0]
    if width and lengths.tobytes() == width.to_bytes(4, sys.byteorder) * len(lengths):
        return [item for (item,) in iter_unpack(f"{width}s", payload)]  # half the time, for items of one size
    ends = list(accumulate(lengths))
    slices = map(slice, [0, *ends], ends)
    if len(payload) > WORTH_VIEWS * len(lengths):
        return list(map(bytes, map(memoryview(payload).__getitem__, slices)))
    return list(map(bytes(payload).__getitem__, slices))


def pack_ready(ready: Ready) -> tuple[bytes, ...]:
    head = _READY.pack(ready.limit, ready.started, min(ready.waiting, 0xFFFF), ready.listening)
    return (head, *pack_ranges(ready.held)) if ready.held else (head,)


def read_ready(body: memoryview) -> Ready:
    try:
        limit, started, waiting, listening = _READY.unpack_from(body)
    except error as cause:
        raise ProtocolError("a reader's report is too short") from cause
    if len(body) == _READY.size:
        return Ready(limit, started, waiting, (), bool(listening))
    held = read_ranges(body[_READY.size :])
    if any(first >= end for first, end in held) or any(one[1] > other[0] for one, other in pairwise(held)):
        raise ProtocolError("a reader's report names items twice, or none")
    return Ready(limit, started, waiting, held, bool(listening))


def pack_want(want: Want) -> tuple[bytes]:
    return (_WANT.pack(want.seen, want.returned, want.ahead, min(want.waiting, 0xFFFF)),)


def read_want(body: memoryview) -> Want:
    return Want(*_exactly(_WANT, body))


def pack_grant(granted: int) -> tuple[bytes]:
    return (_GRANT.pack(granted),)


def read_grant(body: memoryview) -> int:
    """How many slots were granted in all."""
    return int(_exactly(_GRANT, body)[0])


def pack_survey(number: int) -> tuple[bytes]:
    return (_SURVEY.pack(number),)


def read_survey(body: memoryview) -> int:
    """The survey's number."""
    return int(_exactly(_SURVEY, body)[0])


def _exactly(struct: Struct, body: memoryview) -> tuple[Any, ...]:
    if len(body) != struct.size:
        raise ProtocolError("a frame is of the wrong length")
    return struct.unpack(body)


def pack_ranges(ranges: Sequence[tuple[int, int]]) -> tuple[bytes, ...]:
    return tuple(_RANGE.pack(first, end) for first, end in ranges)


def read_ranges(body: memoryview) -> list[tuple[int, int]]:
    if len(body) % _RANGE.size or len(body) > _RANGE.size * MAX_RANGES:
        raise ProtocolError("a frame of ranges is cut short, or too long")
    return list(_RANGE.iter_unpack(body))
