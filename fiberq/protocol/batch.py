"""How items are kept: a run of consecutive items is one buffer and the items' lengths, however many they are.

A queued item so costs its bytes and four more. Runs are split and joined without a Python object for each item, except
where a push queue deals a run out among several readers.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Final

from fiberq.abc import Buffer
from fiberq.protocol.frames import ALONE, MAX_FRAME, Items, pack_items, pack_references, split
from fiberq.protocol.lent import Lent

SMALL_PART: Final = 8
"""Times as many bytes as some of its items that a batch must have at least to let them go."""


class Batch:
    """The memory behind one or more runs: what one frame brought. Never changed."""

    __slots__ = ("_ends", "large", "lengths", "lent", "parts", "payload")

    def __init__(self, items: Items, lent: Lent | None = None) -> None:
        self.lengths, self.payload, self.parts, _ = items
        self.lent = lent
        self.large = bool(self.parts) or self.lent is not None  # it is one item
        self._ends: array[int] | None = None

    def offset(self, index: int) -> int:
        """Where item number `index` begins in the payload."""
        if not index:
            return 0
        if index == len(self.lengths):
            return len(self.payload)
        if self._ends is None:
            self._ends = array("Q", accumulate(self.lengths))
        return self._ends[index - 1]


class Run:
    """Consecutive items of one batch, with their places in their queue: item i stands at `place + i * stride`."""

    __slots__ = ("batch", "deaths", "deliveries", "end", "failures", "first", "group", "place", "returned", "stride")

    def __init__(self, batch: Batch, first: int, end: int, place: int = 0, stride: int = 1) -> None:
        self.batch = batch
        self.first = first
        self.end = end
        self.place = place
        self.stride = stride
        self.returned = False  # another reader had it, and gave it back unstarted
        self.deliveries = 0  # readers that had it, and may have started it
        self.deaths = 0  # readers that died while they had it
        self.group = 1  # how many suspects may be delivered together
        self.failures = 0  # of its deliveries: a reader died while it had it alone, or gave it back as failed

    @classmethod
    def of(cls, items: Items, place: int = 0) -> Run:
        return cls(Batch(items), 0, len(items.lengths) or 1, place)

    @classmethod
    def large(cls, item: Lent | Sequence[Buffer], place: int) -> Run:
        """One large item: in shared memory, or its parts."""
        lent, parts = (item, ()) if isinstance(item, Lent) else (None, item)
        return cls(Batch(Items(array("I"), b"", parts), lent), 0, 1, place)

    @property
    def suspect(self) -> bool:
        """Whether a reader died while it had it."""
        return self.deaths > 0

    def __len__(self) -> int:
        return self.end - self.first

    def __lt__(self, other: Run) -> bool:
        return self.place < other.place

    @property
    def size(self) -> int:
        """Bytes of the items."""
        batch = self.batch
        if batch.large:
            return batch.lent.size if batch.lent is not None else sum(map(len, batch.parts))
        if self.end - self.first == len(batch.lengths):
            return len(batch.payload)
        return batch.offset(self.end) - batch.offset(self.first)

    def part(self, start: int, stop: int) -> Run:
        """The items from `start` up to `stop`, counted from this run's first."""
        if start == 0 and stop == self.end - self.first:
            return self
        run = Run(self.batch, self.first + start, self.first + stop, self.place + start * self.stride, self.stride)
        return run._marked(self)

    def copy(self) -> Run:
        """The same items, with memory of their own, where there is more in the batch than these."""
        batch = self.batch
        if batch.large or len(self) == len(batch.lengths):
            return self
        run = Run(Batch(Items(self.lengths(), bytes(self.payload()), ())), 0, len(self), self.place, self.stride)
        return run._marked(self)

    def apart(self) -> Run:
        """The same items, with memory of their own if they are a small part of a large batch, which would be kept for
        as long as a slow reader has them, or nobody wants them."""
        whole = len(self.batch.payload)
        return self.copy() if whole > MAX_FRAME and whole > SMALL_PART * self.size else self

    def singly(self) -> Iterator[Run]:
        """Each item as a run of its own."""
        return (self.part(index, index + 1) for index in range(len(self)))

    def fitting(self, count: int, size: int) -> int:
        """How many of the first `count` items come to at most `size` bytes; at least 1."""
        count = min(count, len(self))
        batch = self.batch
        if batch.large or len(batch.payload) <= size:
            return count
        base = batch.offset(self.first)
        low, high = 1, count
        while low < high:
            middle = (low + high + 1) // 2
            if batch.offset(self.first + middle) - base <= size:
                low = middle
            else:
                high = middle - 1
        return low

    def lengths(self) -> array[int]:
        return self.batch.lengths[self.first : self.end]

    def payload(self) -> Buffer:
        batch = self.batch
        if self.end - self.first == len(batch.lengths):
            return batch.payload
        return memoryview(batch.payload)[batch.offset(self.first) : batch.offset(self.end)]

    def dealt(self, ways: int) -> list[Run]:
        """Deal the items out like cards, into at most `ways` runs: the first gets items 0, `ways`, 2 * `ways`, ..."""
        if ways == 1 or len(self) == 1:
            return [self]
        lengths = self.lengths()
        items = split(Items(lengths, self.payload(), ()))
        runs = []
        for way in range(min(ways, len(items))):
            mine = lengths[way::ways]
            batch = Batch(Items(mine, b"".join(items[way::ways]), ()))
            run = Run(batch, 0, len(mine), self.place + way * self.stride, self.stride * ways)
            runs.append(run._marked(self))
        return runs

    def like(self, other: Run) -> bool:
        """Whether both may travel in one frame."""
        return self is other or (
            self.deliveries == other.deliveries
            and self.deaths == other.deaths
            and self.group == other.group
            and self.batch.large == other.batch.large
            and not (self.batch.parts or other.batch.parts)
        )

    def _marked(self, origin: Run) -> Run:
        self.returned = origin.returned
        self.deliveries = origin.deliveries
        self.deaths = origin.deaths
        self.group = origin.group
        self.failures = origin.failures
        return self


def body(runs: Sequence[Run], near: bool = False) -> tuple[tuple[Buffer, ...], Sequence[Buffer]]:
    """The body and the further parts of a frame that carries `runs`. A large item travels alone. But who is `near` gets
    references to all that are elsewhere; for another, several of these (`small_lent`) are copied, and travel as small
    items do."""
    batch = runs[0].batch
    if batch.lent is not None:
        lent = [run.batch.lent for run in runs if run.batch.lent is not None]
        if near:
            return pack_references(each.reference.pack() for each in lent), ()
        if len(lent) > 1:
            items = [b"".join(each.load()) for each in lent]
            return pack_items(array("I", map(len, items)).tobytes(), items), ()
    if batch.large:
        return pack_items(b"", ()), large_parts(batch)
    if len(runs) == 1:
        return pack_items(runs[0].lengths().tobytes(), (runs[0].payload(),)), ()
    return pack_items(b"".join(run.lengths().tobytes() for run in runs), [run.payload() for run in runs]), ()


def large_parts(batch: Batch) -> Sequence[Buffer]:
    """The bytes of a large item."""
    return batch.parts if batch.lent is None else batch.lent.load()


def count(runs: Iterable[Run]) -> int:
    return sum(map(len, runs))


def gather(queue: deque[Run], wanted: int, size: int) -> list[Run]:
    """Remove from the head of `queue` what makes one frame: at most `wanted` items, `size` bytes (but one item always),
    all alike in their marks; a large item alone, unless it is elsewhere."""
    runs: list[Run] = []
    head = queue[0]
    while wanted and queue and queue[0].like(head):
        run = queue[0]
        taken = run.fitting(wanted, size)
        part = run.part(0, taken)
        if runs and part.size > size:
            break
        queue.popleft()
        if taken < len(run):
            queue.appendleft(run.part(taken, len(run)).apart())
        runs.append(part)
        size -= part.size
        wanted -= taken
        if run.batch.parts or size <= 0:
            break
    return runs


def small_lent(queue: Iterable[Run], size: int) -> int:
    """How many items at the head of `queue` are elsewhere, but small enough to travel with others, in a frame of `size`
    bytes."""
    found = 0
    for run in queue:
        if run.batch.lent is None or run.size >= ALONE or size <= 0:
            break
        found += 1
        size -= run.size
    return found


def put_in_place(queue: deque[Run], runs: Iterable[Run]) -> None:
    """Insert runs that were taken from the head of `queue` at their old places."""
    back = list(runs)
    last = max((run.place for run in back), default=0)
    while queue and queue[0].place < last:
        back.append(queue.popleft())
    queue.extendleft(sorted(back, reverse=True))
