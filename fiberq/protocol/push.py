"""A push queue: items go to the attached readers as they arrive, round-robin, whoever is fast or slow.

With k readers and no fault, n * k items give each exactly n. What comes before the first reader waits for it; what a
reader had when it left is dealt out among the others; if it is much, in pieces, which may overtake each other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final

from fiberq.protocol.batch import Run, count, put_in_place
from fiberq.protocol.device import Device, Key, Memory, Reader, Send
from fiberq.protocol.frames import MAX_FRAME
from fiberq.protocol.kinds import Kind
from fiberq.protocol.members import Member

MAX_SORTED: Final = 1000
"""Items that are put in order one by one when a reader leaves; it takes about 3 microseconds and 200 bytes for each."""

UNDER_WAY: Final = 2
FAR_UNDER_WAY: Final = 8
"""Frames of one reader that may be unacknowledged before small pieces, of which each was put in a frame of its own,
gather. Without that, 64 readers of what 64 writers put got a twentieth as much; with 8 an eighth to a fifth less than
with 2. But where a round trip takes long, pieces that come seldom would wait for it, too."""

ENOUGH: Final = 16
SMALL: Final = MAX_FRAME // ENOUGH
"""Pieces that do not gather any more, and bytes of one that never does."""


class PushDevice(Device):
    def __init__(
        self, channel: int, kind: Kind, send: Send, memory: Memory | None = None, max_deliveries: int = 5
    ) -> None:
        super().__init__(channel, kind, send, memory, max_deliveries)
        self._ring: list[Key] = []
        self._turn = 0  # whose the next item is
        self._backlog: deque[Run] = deque()  # what came while nobody was attached
        self._under_way: dict[Member, deque[int]] = {}  # the numbers of the newest frames, by reader

    def queued(self) -> Iterator[Run]:
        yield from self._backlog
        for reader in self.readers.values():
            yield from reader.queue

    def _take_queued(self) -> list[Run]:
        runs, self._backlog = list(self.queued()), deque()
        for reader in self.readers.values():
            reader.queue.clear()
        return runs

    def _add(self, runs: list[Run], now: float) -> None:
        if not self._ring:
            self._backlog.extend(runs)
            return
        dealt = {reader.key: reader for run in runs for reader in self._deal_out(run)}
        for reader in dealt.values():
            self._serve(reader, now)

    def _serve(self, reader: Reader, now: float) -> None:
        while reader.queue and (wanted := self._may_take(reader, reader.queue[0])):
            if self._lets_gather(reader):
                break
            self._deliver(reader, self._gather(reader.queue, reader, wanted), now)
            if isinstance(reader.key, Member):
                self._under_way.setdefault(reader.key, deque(maxlen=FAR_UNDER_WAY)).append(reader.key.session.last)

    def _lets_gather(self, reader: Reader) -> bool:
        """Whether small pieces for a reader, of whose callers none waits, are to leave later, and together: it has not
        acknowledged what is under way. Then `serve` is called when it acknowledges more."""
        queue, key = reader.queue, reader.key
        if reader.needs or len(queue) >= ENOUGH or max(queue[0].size, queue[-1].size) > SMALL:
            return False
        if not isinstance(key, Member):
            return False
        under_way, most = self._under_way.get(key), UNDER_WAY if reader.near else FAR_UNDER_WAY
        if under_way is None or len(under_way) < most or under_way[-most] <= key.session.acknowledged:
            return False
        key.behind[self.channel] = None
        return True

    def _attached(self, reader: Reader, now: float) -> None:  # noqa: ARG002
        self._ring.append(reader.key)
        backlog, self._backlog = self._backlog, deque()
        for run in backlog:
            self._deal_out(run)

    def _detached(self, reader: Reader, now: float) -> None:  # noqa: ARG002
        self._under_way.pop(reader.key, None)  # type: ignore[call-overload]
        gone = self._ring.index(reader.key)
        del self._ring[gone]
        if gone < self._turn:
            self._turn -= 1
        self._turn = self._turn % len(self._ring) if self._ring else 0

    def _requeue(self, reader: Reader | None, runs: list[Run], now: float) -> None:
        if reader is not None:
            put_in_place(reader.queue, runs)
            self._serve(reader, now)
        elif not runs:
            pass  # nobody's queue changes, and there may be thousands
        elif not self._ring:
            put_in_place(self._backlog, _singly(runs))
        elif count(runs) + max(count(self.readers[key].queue) for key in self._ring) <= MAX_SORTED:
            self._deal_again(runs, now)
        else:
            for key, share in zip(self._ring, self._shares(runs), strict=True):
                one = self.readers[key]
                put_in_place(one.queue, share)
                self._serve(one, now)

    def _deal_again(self, runs: list[Run], now: float) -> None:
        """Deal out items that others had, one by one, so that each reader gets those and its own in their order."""
        for run in sorted(_singly(runs)):
            self._deal_out(run)
        for one in self.readers.values():
            one.queue = deque(sorted(_singly(one.queue)))
            self._serve(one, now)

    def _shares(self, runs: list[Run]) -> list[list[Run]]:
        """What each reader gets of many items that others had: as many as the others, but in one piece. One by one, a
        death would cost much time, and each of them an object and a frame of its own from then on."""
        ways, total = len(self._ring), count(runs)
        shares: list[list[Run]] = [[] for _ in range(ways)]
        dealt = 0
        for run in runs:
            start = 0
            while start < len(run):
                place = dealt * ways // total  # whose share this is
                stop = min(len(run), start + -(-(place + 1) * total // ways) - dealt)
                shares[(self._turn + place) % ways].append(run.part(start, stop))
                dealt += stop - start
                start = stop
        self._turn = (self._turn + total) % ways
        return shares

    def _deal_out(self, run: Run) -> list[Reader]:
        """Add the items to the readers' queues, beginning with the reader whose turn it is; return who got some."""
        ways = len(self._ring)
        readers = []
        for offset, part in enumerate(run.dealt(ways)):
            reader = self.readers[self._ring[(self._turn + offset) % ways]]
            reader.queue.append(part)
            readers.append(reader)
        self._turn = (self._turn + len(run)) % ways
        return readers


def _singly(runs: Iterable[Run]) -> list[Run]:
    """Runs of which each other's items lie between, item by item, so that they can be put in order; as they are where
    they are too many for that."""
    all_runs = list(runs)
    if count(all_runs) > MAX_SORTED:
        return all_runs
    return [one for run in all_runs for one in (run.singly() if run.stride > 1 else (run,))]
