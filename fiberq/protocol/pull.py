"""A pull queue: a reader says that it is ready, and gets items; so each gets as many as it is fast.

Readers that wait are served first, then those that listen, then those that only ask ahead, each in the order of their
asking. Where items are scarce they are shared out. To ask ahead is to ask for what is there now: a reader that neither
waits nor listens gets nothing that comes later, so what comes later goes to those who do.

If readers wait while another sits on items that it has not started, those are recalled; a reader that does not answer
in time (it is stopped, or busy in native code) loses them without being asked. An item for which a listening reader
does not come goes round to the next one that listens, more slowly each time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

from fiberq.protocol.batch import Run, count, put_in_place
from fiberq.protocol.device import Device, Key, Memory, Reader, Send
from fiberq.protocol.frames import RECALL, TAKEN, Frame, Ready, pack_ranges
from fiberq.protocol.kinds import Kind
from fiberq.protocol.members import Member

RECALL_AFTER: Final = 0.010
RECALL_LATER: Final = 2
"""Seconds that a reader may sit on items while another waits, and so many times its lag: what is on its way to a
process that is far, or waits for a processor, would only travel again. At most `LONGEST_ROUND`."""

UNSEEN: Final = 0.2
"""Seconds from the delivery within which that time does not begin before the reader has acknowledged what was sent: it
has yet to see it. With 64 readers on two cores each of them waits so long for a processor, and items that were recalled
as soon as one got it went round and round: the last tenth of 300,000 took as long as all others."""

LONGEST_ROUND: Final = 1.0
"""Seconds that an item stays with one listening reader, at most, while another listens."""

RECALL_PATIENCE: Final = 0.5
RECALL_ROUND_TRIPS: Final = 20
LONGEST_PATIENCE: Final = 3.0
"""Seconds that a recall may stay unanswered, with so many of the reader's round trips added, up to the longest. Far
longer than a loaded machine keeps a process from running, and than TCP takes on a slow line to send a packet again that
was lost twice (three times its timeout, which is a round trip and 0.2 s: RFC 6298, as Linux has it): what such a reader
had started without having told it yet is done twice."""


class PullDevice(Device):
    def __init__(
        self, channel: int, kind: Kind, send: Send, memory: Memory | None = None, max_deliveries: int = 5
    ) -> None:
        super().__init__(channel, kind, send, memory, max_deliveries)
        self._backlog: deque[Run] = deque()
        self._count = 0  # items in it
        self._waiting: dict[Key, Reader] = {}  # readers with credit whose callers are blocked, in order of asking
        self._listening: dict[Key, Reader] = {}  # readers with credit that only want to be told
        self._round = RECALL_AFTER  # seconds that an item stays with one of those while another listens
        self._asking: dict[Key, Reader] = {}  # readers that only ask ahead, while items are dealt
        self._ahead: dict[Key, Reader] = {}  # readers that may have items which they have not started

    def queued(self) -> Iterator[Run]:
        return iter(self._backlog)

    def qsize(self) -> int:
        return self._count + sum(reader.untold() for reader in self.readers.values())

    def _take_queued(self) -> list[Run]:
        runs, self._backlog, self._count = list(self._backlog), deque(), 0
        return runs

    def ready(self, key: Key, report: Ready, now: float) -> None:
        before = self.finished
        super().ready(key, report, now)
        if self.finished > before:
            self._round = RECALL_AFTER

    def tick(self, now: float) -> None:
        super().tick(now)
        for reader in list(self._ahead.values()):
            patience = self._patience_ends(reader)
            if patience is not None and patience <= now:
                self._take_all_back(reader, now)
        late = [reader for reader in self._sitting() if self._sits_until(reader) <= now]
        if late:
            if not self._waiting:
                self._round = min(2 * self._round, LONGEST_ROUND)
            self._recall(max(late, key=Reader.unstarted), now)
        self._set_alarm()

    def recall(self, key: Key, now: float) -> None:
        reader = self.readers.get(key)
        if reader is not None and reader.recalled_at is None:
            self._ahead[key] = reader
            self._recall(reader, now)
            self._set_alarm()

    def _add(self, runs: list[Run], now: float) -> None:
        self._backlog.extend(runs)
        self._count += count(runs)
        self._deal(now)
        if self._listening or (self._waiting and self.alarm is None):
            self._set_alarm()

    def _serve(self, reader: Reader, now: float) -> None:
        if reader.seen_at > now and isinstance(reader.key, Member):
            if reader.key.session.acknowledged >= reader.frame:
                reader.seen_at = now
            else:
                reader.key.behind[self.channel] = None
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
        self._unlist(reader)
        self._ahead.pop(reader.key, None)

    def _unlist(self, reader: Reader) -> None:
        for place in (self._waiting, self._listening, self._asking):
            place.pop(reader.key, None)

    def _list(self, reader: Reader) -> None:
        """Put the reader where it belongs among those that have credit; a place once taken is kept."""
        if reader.next > reader.started:
            self._ahead[reader.key] = reader
        elif reader.recalled_at is None:
            self._ahead.pop(reader.key, None)
        mine = None
        if reader.credit > 0:
            mine = self._waiting if reader.waiting else self._listening if reader.listening else self._asking
        for place in (self._waiting, self._listening, self._asking):
            if place is mine:
                place.setdefault(reader.key, reader)
            else:
                place.pop(reader.key, None)

    def _deal(self, now: float) -> None:
        takers = len(self._waiting) + len(self._listening) + len(self._asking)
        if not takers:
            return
        share = -(-self._count // takers)
        while self._count:
            head = self._backlog[0]
            reader = self._taker(head)
            if reader is None:
                break
            runs = self._gather(self._backlog, reader, min(share, self._may_take(reader, head)))
            self._count -= count(runs)
            self._deliver(reader, runs, now)
            if isinstance(reader.key, Member) and reader.next > reader.started:
                reader.frame, reader.seen_at = reader.key.session.last, float("inf")
                reader.key.behind[self.channel] = None
            self._unlist(reader)
            self._list(reader)
        for reader in self._asking.values():
            reader.limit = reader.next
        self._asking.clear()

    def _taker(self, head: Run) -> Reader | None:
        for place in (self._waiting, self._listening, self._asking):
            for reader in place.values():
                if self._may_take(reader, head):
                    return reader
        return None

    # -- recall --

    def _starves(self, reader: Reader) -> bool:
        """Whether others have nothing, and would like what `reader` has."""
        others = (len(place) > (reader.key in place) for place in (self._waiting, self._listening))
        return not self._count and any(others)

    def _recall(self, reader: Reader, now: float) -> None:
        reader.recalled_at = now
        self._send(reader.key, Frame(RECALL, self.channel))

    def _sitting(self) -> list[Reader]:
        """The readers that have items to recall, while others starve."""
        if self._count or not (self._waiting or self._listening):
            return []
        for reader in list(self._ahead.values()):
            if reader.recalled_at is None and not reader.unstarted():
                del self._ahead[reader.key]
        asked = (reader for reader in self._ahead.values() if reader.recalled_at is None and not reader.away)
        return [reader for reader in asked if self._starves(reader)]

    def _patience_ends(self, reader: Reader) -> float | None:
        """When the recalled `reader` loses what it has unasked: never, while nobody else waits for that; and never what
        must not come out twice."""
        if reader.recalled_at is None or reader.away or not self.kind.keeps:
            return None
        if not self._starves(reader):
            return None
        patience = RECALL_PATIENCE + RECALL_ROUND_TRIPS * reader.round_trip
        return reader.recalled_at + min(patience, LONGEST_PATIENCE)

    def _sits_until(self, reader: Reader) -> float:
        """When what a reader sits on is recalled."""
        sent = reader.leases[reader.place_of(reader.started)].at
        since = min(max(sent, reader.seen_at), sent + UNSEEN)
        trips = RECALL_LATER if since == sent else RECALL_LATER - 1
        far = min(trips * reader.lag, LONGEST_ROUND)
        return since + (RECALL_AFTER if self._waiting else self._round) + far

    def _take_all_back(self, reader: Reader, now: float) -> None:
        reader.recalled_at = None
        reader.limit = reader.next
        runs = [lease.run for lease in reader.take_back(reader.started, reader.next)]
        self._send(reader.key, Frame(TAKEN, self.channel, pack_ranges([(reader.started, reader.next)])))
        for run in runs:
            run.deliveries += 1
        self._put_back(reader, runs, now)

    def _alarms(self) -> list[float]:
        if not self._ahead:
            return []
        ends = map(self._patience_ends, self._ahead.values())
        times = [end for end in ends if end is not None]
        return times + list(map(self._sits_until, self._sitting()))
