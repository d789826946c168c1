"""A pull queue: a reader says that it is ready, and gets items; so each gets as many as it is fast.

Readers that wait are served before those that only ask ahead, each in the order of their asking. Where items are scarce
they are shared out. To ask ahead is to ask for what is there now: a reader that does not wait gets nothing that comes
later, so what comes later goes to those who wait.

If readers wait while another sits on items that it has not started, those are recalled; a reader that does not answer
in time (it is stopped, or busy in native code) loses them without being asked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

from fiberq.protocol.batch import Run, count, gather, put_in_place
from fiberq.protocol.device import Device, Key, Memory, Reader, Send
from fiberq.protocol.frames import MAX_FRAME, RECALL, TAKEN, Frame, pack_ranges
from fiberq.protocol.kinds import Kind

RECALL_AFTER: Final = 0.010
"""Seconds that a reader may sit on items while another waits."""

RECALL_PATIENCE: Final = 0.5
"""Seconds that a recall may stay unanswered. Far longer than a loaded machine keeps a process from running: what such a
reader had started without having told it yet (a millisecond's work) is done twice."""


class PullDevice(Device):
    def __init__(
        self, channel: int, kind: Kind, send: Send, memory: Memory | None = None, max_deliveries: int = 5
    ) -> None:
        super().__init__(channel, kind, send, memory, max_deliveries)
        self._backlog: deque[Run] = deque()
        self._count = 0  # items in it
        self._waiting: dict[Key, Reader] = {}  # readers with credit whose callers are blocked, in order of asking
        self._asking: dict[Key, Reader] = {}  # readers that only ask ahead, while items are dealt
        self._ahead: dict[Key, Reader] = {}  # readers that may have items which they have not started

    def queued(self) -> Iterator[Run]:
        return iter(self._backlog)

    def qsize(self) -> int:
        return self._count + sum(reader.untold() for reader in self.readers.values())

    def _take_queued(self) -> list[Run]:
        runs, self._backlog, self._count = list(self._backlog), deque(), 0
        return runs

    def tick(self, now: float) -> None:
        for reader in list(self._ahead.values()):
            patience = self._patience_ends(reader)
            if patience is not None and patience <= now:
                self._take_all_back(reader, now)
        slow = self._slowest() if self._starving else None
        if slow is not None and self._sat_since(slow) + RECALL_AFTER <= now:
            self._recall(slow, now)
        super().tick(now)

    def recall(self, key: Key, now: float) -> None:
        reader = self.readers.get(key)
        if reader is not None and reader.recalled_at is None:
            self._ahead[key] = reader
            self._recall(reader, now)
            self._set_alarm()

    def _add(self, run: Run, now: float) -> None:
        self._backlog.append(run)
        self._count += len(run)
        self._deal(now)

    def _serve(self, reader: Reader, now: float) -> None:
        self._list(reader)
        self._deal(now)
        self._set_alarm()

    def _requeue(self, reader: Reader | None, runs: list[Run], now: float) -> None:
        for run in runs:
            run.returned = True
        put_in_place(self._backlog, runs)
        self._count += count(runs)
        if reader is not None:
            self._list(reader)
        self._deal(now)
        self._set_alarm()

    def _detached(self, reader: Reader, now: float) -> None:  # noqa: ARG002
        self._waiting.pop(reader.key, None)
        self._asking.pop(reader.key, None)
        self._ahead.pop(reader.key, None)

    def _list(self, reader: Reader) -> None:
        """Put the reader where it belongs among those that have credit; a place once taken is kept."""
        if reader.next > reader.started:
            self._ahead[reader.key] = reader
        elif reader.recalled_at is None:
            self._ahead.pop(reader.key, None)
        waits = reader.credit > 0 and reader.waiting > 0
        asks = reader.credit > 0 and not waits
        for listed, place in ((waits, self._waiting), (asks, self._asking)):
            if listed:
                place.setdefault(reader.key, reader)
            else:
                place.pop(reader.key, None)

    def _deal(self, now: float) -> None:
        takers = len(self._waiting) + len(self._asking)
        share = -(-self._count // takers) if takers else 0
        while self._count:
            head = self._backlog[0]
            reader = self._taker(head)
            if reader is None:
                break
            runs = gather(self._backlog, min(share, self._may_take(reader, head)), MAX_FRAME)
            self._count -= count(runs)
            self._deliver(reader, runs, now)
            self._waiting.pop(reader.key, None)
            self._asking.pop(reader.key, None)
            self._list(reader)
        for reader in self._asking.values():
            reader.limit = reader.next
        self._asking.clear()

    def _taker(self, head: Run) -> Reader | None:
        for place in (self._waiting, self._asking):
            for reader in place.values():
                if self._may_take(reader, head):
                    return reader
        return None

    # -- recall --

    @property
    def _starving(self) -> bool:
        return bool(self._waiting) and not self._count

    def _recall(self, reader: Reader, now: float) -> None:
        reader.recalled_at = now
        self._send(reader.key, Frame(RECALL, self.channel))

    def _slowest(self) -> Reader | None:
        """The reader with the most items to recall."""
        for reader in list(self._ahead.values()):
            if reader.recalled_at is None and not reader.unstarted():
                del self._ahead[reader.key]
        asked = (reader for reader in self._ahead.values() if reader.recalled_at is None and not reader.away)
        return max(asked, key=Reader.unstarted, default=None)

    def _patience_ends(self, reader: Reader) -> float | None:
        """When the recalled `reader` loses what it has unasked: never, while nobody else waits for that; and never what
        must not come out twice."""
        if reader.recalled_at is None or reader.away or not self.kind.keeps:
            return None
        if not self._starving or self._waiting.keys() <= {reader.key}:
            return None
        return reader.recalled_at + RECALL_PATIENCE

    def _sat_since(self, reader: Reader) -> float:
        return reader.leases[reader.place_of(reader.started)].at

    def _take_all_back(self, reader: Reader, now: float) -> None:
        reader.recalled_at = None
        reader.limit = reader.next
        runs = [lease.run for lease in reader.take_back(reader.started, reader.next)]
        self._send(reader.key, Frame(TAKEN, self.channel, pack_ranges([(reader.started, reader.next)])))
        for run in runs:
            run.deliveries += 1
        self._put_back(reader, runs, now)

    def _alarms(self) -> list[float]:
        ends = map(self._patience_ends, self._ahead.values())
        times = [end for end in ends if end is not None]
        if self._starving and (slow := self._slowest()) is not None:
            times.append(self._sat_since(slow) + RECALL_AFTER)
        return times
