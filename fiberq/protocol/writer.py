"""One process's side of putting into one queue: items leave at once while few frames are under way, else they gather.

That is natural batching: a lone item is not delayed, and in a stream each acknowledgement releases one frame with all
that has gathered since.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import deque
from itertools import accumulate
from marshal import dumps as marshal
from typing import Any, Final, TypeAlias

from fiberq.abc import Buffer
from fiberq.protocol import ints
from fiberq.protocol.frames import MAX_FRAME, NEAR_FRAME, PUT, Frame, pack_items, pack_references
from fiberq.protocol.kinds import Kind
from fiberq.protocol.lent import Shared
from fiberq.protocol.session import Session
from fiberq.protocol.slots import Permits

Item: TypeAlias = "bytes | tuple[Buffer, ...] | int"
"""One item: bytes as it travels, or for a large one the buffers that become parts of a message; or a small int."""

UNDER_WAY: Final = 3
"""Frames of one writer that may be unacknowledged. Past 2 throughput hardly grew; more only makes batches smaller."""

LOOK: Final = 0.004
"""Seconds for which items only gather, though some could leave: where a thread is busy, no other one sees to that. With
1 ms small items cost a fifth more processor time in all."""

SMALL: Final = 4096
"""Bytes below which gathered items are counted, and not their bytes."""

MAX_ITEMS: Final = 8192
"""Items in one frame."""

MAX_GATHERED: Final = 4096
"""Small items that gather in a process before `put` waits."""

MAX_BULK: Final = 16 << 20
"""Bytes of larger items that a process has put, and the node has not accepted, before `put` waits."""

MAX_UNDER_WAY: Final = 16
"""Frames of one writer that are under way, because reports follow each other faster than the node takes in results,
before `put` waits."""

MAX_SHARED: Final = 64
"""Items in shared memory that one frame refers to."""

SHARE: Final = 64
"""Part of the bytes which the node takes in all that one frame may have, or refer to: it says that it is full only when
it has got more. But `MAX_FRAME` bytes, or one item, it may have always."""


def size(item: Item) -> int:
    """Bytes of an item."""
    if type(item) is Shared:
        return item.size
    if type(item) is tuple:
        return sum([len(part) if type(part) is bytes else memoryview(part).nbytes for part in item])
    return ints.SIZE if isinstance(item, int) else len(item)


class Writer:
    """Small items may be appended to `items` by any thread at any time; all else is called by one at a time."""

    def __init__(self, channel: int, kind: Kind, near: bool = False, room: int = 1 << 62) -> None:
        """`near`: the node is on this host; `room`: the bytes that it takes in all."""
        self.channel = channel
        self._most_bytes = min(NEAR_FRAME, max(MAX_FRAME, room // SHARE)) if near else MAX_FRAME
        self._most_shared = room // SHARE
        self.permits = Permits(channel) if kind.maxsize else None
        self.items: list[Item] = []  # gathered
        self.under_way: deque[int] = deque()  # the numbers of frames that were unacknowledged when last looked at
        self.bulk = 0  # bytes of the items that are not small, gathered or under way
        self._bulks: deque[int] = deque()  # what of it each frame under way has
        self.full = False  # items only gather now
        self._enough = 0  # while frames are under way, so many items make another: in a stream a small one is waste
        self._most = MAX_ITEMS  # so many items the next frame may have: not many more than it has room for
        self.look_at = 0.0  # when, at the latest, one who puts is to look whether gathered items can leave
        self.lingers = True  # the end of the process waits until all was accepted
        self.paused = False  # the node has no room for more of this
        self.overdrawn = False  # and got some all the same: a result has to leave before the end of its task is told
        self.ended: str | None = None  # why nothing can be put any more

    def add(self, item: Item) -> None:
        """Let an item gather."""
        self.items.append(item)
        bytes_of_it = size(item)
        if bytes_of_it >= SMALL:
            self.bulk += bytes_of_it

    def pump(self, session: Session, now: float, urgent: bool = False, everything: bool = False) -> None:
        """Hand gathered items to the session while frames may leave; with `everything`, all of them."""
        under_way = self.under_way
        self.look_at = now + LOOK
        while under_way and under_way[0] <= session.acknowledged:
            under_way.popleft()
            self.bulk -= self._bulks.popleft()
        # `full` goes down before `items` is looked at: a thread that appends looks at `full` afterwards, so that one
        # of the two sees the other's doing.
        self.full = len(under_way) >= UNDER_WAY
        while self.items and (everything or not self.full):
            if under_way and len(self.items) < self._enough and not (everything or urgent):
                self.full = True
                break
            frame, taken = self._frame()
            under_way.append(session.send(frame, now, urgent))
            self._bulks.append(sum(filter(SMALL.__le__, map(size, self.items[:taken]))) if self.bulk else 0)
            del self.items[:taken]
            self._enough = taken // 4
            self.full = len(under_way) >= UNDER_WAY
        if not self.has_room:
            self.full = False  # the next put looks closer, and waits

    @property
    def has_room(self) -> bool:
        """Whether somebody may put, rather than wait."""
        if self.overdrawn or len(self.under_way) > MAX_UNDER_WAY:
            return False
        return len(self.items) <= MAX_GATHERED and self.bulk <= MAX_BULK

    def shut_down(self, session: Session, now: float, why: str = "shut") -> None:
        """Nothing more is put; what was put before is sent."""
        self.ended = why
        self.full = False  # the next put looks closer
        while self.items:
            self.pump(session, now, everything=True)
            self.full = False  # and one that came in between did, or is looked at once more

    def end(self, why: str) -> None:
        """Nothing can be put any more, and what was put goes nowhere."""
        self.ended = why
        self.items.clear()
        self.under_way.clear()
        self._bulks.clear()
        self.bulk = 0
        self.full = False  # the next put looks closer

    @property
    def shut(self) -> bool:
        """Whether what was put is still on its way, although nothing more can be put."""
        return self.ended in ("shut", "closed")

    def settled(self, session: Session) -> bool:
        """Whether all that was put was accepted by the node."""
        return not self.items and (not self.under_way or self.under_way[-1] <= session.acknowledged)

    def _frame(self) -> tuple[Frame, int]:
        first = self.items[0]
        if isinstance(first, tuple):
            return Frame(PUT, self.channel, pack_items(b"", ()), first), 1
        if type(first) is Shared:
            shared: list[Shared] = []
            left = self._most_shared
            for item in self.items[:MAX_SHARED]:
                if type(item) is not Shared or (shared and item.size > left):
                    break
                item.sent = True
                shared.append(item)
                left -= item.size
            return Frame(PUT, self.channel, pack_references(shared)), len(shared)
        small: list[Any] = self.items[: self._most]
        types = set(map(type, small))
        if types == {int}:
            self._most = MAX_ITEMS
            return Frame(PUT, self.channel, pack_items(*ints.pack(small))), len(small)
        if int in types:
            small = [marshal(item, ints.FORMAT) if type(item) is int else item for item in small]
        if not types <= {int, bytes}:
            del small[next(index for index, item in enumerate(small) if type(item) is not bytes) :]
        lengths = array("I", map(len, small))
        self._most = MAX_ITEMS
        if sum(lengths) > self._most_bytes:
            fit = max(1, bisect_right(list(accumulate(lengths)), self._most_bytes))
            del small[fit:], lengths[fit:]
            self._most = min(2 * fit, MAX_ITEMS)
        return Frame(PUT, self.channel, pack_items(lengths.tobytes(), small)), len(small)
