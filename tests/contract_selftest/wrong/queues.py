"""Wrong about push queues (PUSH), pull queues (PULL), pipes (PIPE), what queues have in common (QUEUE), and what only
`Queue` and `JoinableQueue` can do (BOUND).

fiberq sends again what is lost and drops what comes twice; so what is only lost or doubled is hardly noticed there.
These look into the frames that they carry, keep each session's numbers whole, and change, hold or drop what is in them.
"""

from __future__ import annotations

import os
import time
from array import array
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from fiberq.abc import Buffer, Message, PeerLost
from fiberq.errors import ConnectError, ProtocolError
from fiberq.protocol import frames
from fiberq.protocol.frames import (
    ACK,
    DELIVER,
    ENDED,
    GRANT,
    PUT,
    READY,
    RELEASE,
    REPLY,
    REQUEST,
    WANT,
    Frame,
    Received,
)

from .right import Client, Right, Server, length

LARGE = 2_000_000
"""Bytes of an item that few tests put."""


def look(parts: Sequence[Buffer]) -> Received | None:
    """The frame that a message carries; `None` for any other message."""
    try:
        return frames.decode(parts)
    except (ProtocolError, TypeError):
        return None


def wire(frame: Received) -> Sequence[Buffer]:
    """The message that carries the frame."""
    return frames.encode(
        Frame(frame.kind, frame.channel, (frame.body,), frame.parts), frame.flags, frame.seq, frame.ack
    )


def hollow(frame: Received) -> Received:
    """The frame with its number and nothing else: what was in it is lost."""
    return frame._replace(kind=ACK, channel=0, body=memoryview(b""), parts=())


def split(frame: Received) -> tuple[bytes, list[bytes]]:
    """A PUT's or a DELIVER's small items, and what stands before them; no items if it has a large one."""
    start = 9 if frame.kind == DELIVER else 0
    items = frames.read_items(frame.body[start:], frame.parts)
    return bytes(frame.body[:start]), [] if items.parts else [bytes(each) for each in frames.split(items)]


def join(frame: Received, head: bytes, items: Sequence[bytes]) -> Received:
    """The frame with other items."""
    body = frames.pack_items(array("I", map(len, items)).tobytes(), items)
    return frame._replace(body=memoryview(b"".join([head, *body])))


def count(frame: Received) -> int:
    """The items of a PUT or a DELIVER."""
    return len(split(frame)[1]) or 1


class Use(NamedTuple):
    """What one process does with one queue, or one direction of a pipe."""

    peer: Hashable
    channel: int


class Looks(Server):
    """Knows the queues and pipes, and who uses them."""

    def set_up(self) -> None:
        self.kinds: defaultdict[int, str] = defaultdict(str)
        self.makers: dict[int, Hashable] = {}
        self.closed_by_maker: set[int] = set()
        self.writers: defaultdict[int, set[Hashable]] = defaultdict(set)
        self.readers: defaultdict[int, set[Hashable]] = defaultdict(set)
        self.put: Counter[Use] = Counter()
        self.delivered: Counter[Use] = Counter()
        self.started: Counter[Use] = Counter()
        self.sent: dict[Hashable, tuple[int, float]] = {}
        """The number of the oldest frame that a peer has not acknowledged, perhaps, and when the next one was sent."""
        self.coming: list[tuple[Hashable, Received | None, Message | PeerLost]] = []
        self.leaving: list[tuple[Hashable, Received, Sequence[Buffer]]] = []

    # -- what a wrong one overrides --

    def incoming(self, peer: Hashable, frame: Received) -> Received:  # noqa: ARG002
        """What arrives instead of the frame."""
        return frame

    def outgoing(self, peer: Hashable, frame: Received) -> Received:  # noqa: ARG002
        """What leaves instead of the frame."""
        return frame

    def keeps(self, peer: Hashable, frame: Received | None) -> bool:  # noqa: ARG002
        """Whether the frame, or without one the loss of the peer, does not arrive yet."""
        return False

    def holds(self, peer: Hashable, frame: Received) -> bool:  # noqa: ARG002
        """Whether the frame does not leave yet."""
        return False

    def lost(self, peer: Hashable) -> Hashable | None:
        """Whose loss is reported instead of the peer's."""
        return peer

    # -- the socket --

    def recv(self, timeout: float | None) -> Message | PeerLost | None:
        until = float("inf") if timeout is None else time.monotonic() + timeout
        while True:
            self.release()
            event = self.next_event()
            if event is not None:
                return event
            now = time.monotonic()
            wakes = min(until, now + 0.001) if self.coming or self.leaving else until
            event = super().recv(None if wakes == float("inf") else max(0.0, wakes - now))
            if isinstance(event, Message):
                frame = look(event.parts)
                if frame is not None:
                    self.learn(event.peer, frame)
                    changed = self.incoming(event.peer, frame)
                    if changed is not frame:
                        frame, event = changed, event._replace(parts=wire(changed))
                self.coming.append((event.peer, frame, event))
            elif event is not None:
                peer = self.lost(event.peer)
                if peer != event.peer:
                    self.forget(event.peer)
                if peer is not None:
                    self.coming.append((peer, None, PeerLost(peer)))
            elif time.monotonic() >= until:
                return None

    def next_event(self) -> Message | PeerLost | None:
        kept: set[Hashable] = set()
        for place, (peer, frame, event) in enumerate(self.coming):
            if peer in kept or ((frame or isinstance(event, PeerLost)) and self.keeps(peer, frame)):
                kept.add(peer)
            else:
                del self.coming[place]
                if isinstance(event, PeerLost):
                    self.forget(peer)
                return event
        return None

    def replace(self, place: int, frame: Received) -> None:
        """Let another frame come instead."""
        peer = self.coming[place][0]
        self.coming[place] = peer, frame, Message(peer, wire(frame))

    def send(self, peer: Hashable, parts: Sequence[Buffer]) -> None:
        frame = look(parts)
        if frame is None:
            super().send(peer, parts)
            return
        changed = self.outgoing(peer, frame)
        if frame.kind == DELIVER:
            self.delivered[Use(peer, frame.channel)] += count(frame)
        self.leaving.append((peer, changed, parts if changed is frame else wire(changed)))
        self.release()

    def release(self) -> None:
        """Send what is not held."""
        if not self.leaving:
            return
        waiting, self.leaving = self.leaving, []
        held: set[Hashable] = set()
        for peer, frame, parts in waiting:
            if peer in held or self.holds(peer, frame):
                held.add(peer)
                self.leaving.append((peer, frame, parts))
            else:
                if frame.seq and peer not in self.sent:
                    self.sent[peer] = frame.seq, time.monotonic()
                super().send(peer, parts)

    def learn(self, peer: Hashable, frame: Received) -> None:
        if peer in self.sent and frame.ack >= self.sent[peer][0]:
            del self.sent[peer]
        use = Use(peer, frame.channel)
        if frame.kind == REQUEST:
            request = frames.read_json(frame.body)
            if request.get("op") == "create":
                self.kinds[request["channel"]] = request["kind"][0]
                self.makers[request["channel"]] = peer
        elif frame.kind == PUT:
            self.writers[frame.channel].add(peer)
            self.put[use] += count(frame)
        elif frame.kind == READY:
            self.readers[frame.channel].add(peer)
            self.started[use] = frames.read_ready(frame.body).started
        elif frame.kind == RELEASE:
            if b"r" in bytes(frame.body):
                self.readers[frame.channel].discard(peer)
            if peer == self.makers.get(frame.channel):
                self.closed_by_maker.add(frame.channel)

    def forget(self, peer: Hashable) -> None:
        self.sent.pop(peer, None)
        self.leaving = [each for each in self.leaving if each[0] != peer]
        for peers in (*self.writers.values(), *self.readers.values()):
            peers.discard(peer)

    # -- questions --

    def read_by(self, peer: Hashable, *kinds: str) -> list[int]:
        return [channel for channel, peers in self.readers.items() if peer in peers and self.kinds[channel] in kinds]

    def written_by(self, peer: Hashable, *kinds: str) -> list[int]:
        return [channel for channel, peers in self.writers.items() if peer in peers and self.kinds[channel] in kinds]

    def silent_for(self, peer: Hashable) -> float:
        """Seconds for which the peer has not acknowledged what was sent to it."""
        return time.monotonic() - self.sent[peer][1] if peer in self.sent else 0.0


class Doubles(Looks):
    """Now and then gives a reader what another one got, instead of what is for it."""

    def set_up(self) -> None:
        super().set_up()
        self.last: dict[int, tuple[Hashable, bytes]] = {}
        self.deliveries: Counter[int] = Counter()  # since it last did that

    def doubles(self, peer: Hashable, channel: int) -> bool:
        raise NotImplementedError

    def outgoing(self, peer: Hashable, frame: Received) -> Received:
        if frame.kind != DELIVER:
            return frame
        head, items = split(frame)
        if not items:
            return frame
        self.deliveries[frame.channel] += 1
        other, item = self.last.get(frame.channel, (peer, b""))
        self.last[frame.channel] = peer, items[-1]
        if other == peer or self.deliveries[frame.channel] < 10 or not self.doubles(peer, frame.channel):
            return frame
        self.deliveries[frame.channel] = 0
        return join(frame, head, [item, *items[1:]])


class DealsToTwoOfThree(Right):
    """Now and then one of three readers of a push queue gets what another got, instead of what is dealt to it."""

    breaks = "PUSH-1"

    class Server(Doubles):
        def doubles(self, peer: Hashable, channel: int) -> bool:  # noqa: ARG002
            return self.kinds[channel] == "push" and len(self.readers[channel]) == 3


class DealsToAWriter(Right):
    """An item of a push queue goes to another process that puts into it but never gets."""

    breaks = "PUSH-2"
    also = frozenset({"QUEUE-5"})

    class Server(Looks):
        def outgoing(self, peer: Hashable, frame: Received) -> Received:
            writers = self.writers[frame.channel]
            if frame.kind == DELIVER and self.kinds[frame.channel] == "push" and len(writers) == 2 and peer in writers:
                head, items = split(frame)
                if peer == self.makers.get(frame.channel) and self.readers[frame.channel] == {peer} and len(items) > 1:
                    (other,) = writers - {peer}
                    super(Looks, self).send(other, wire(frame._replace(seq=0)))  # which takes it for a stray
                    return join(frame, head, items[:-1])
            return frame


class GivesANewcomerTheOldOnesItems(Right):
    """Who joins a push queue when another reader has got items gets one that is the other's, instead of its own."""

    breaks = "PUSH-3"

    class Server(Doubles):
        def set_up(self) -> None:
            super().set_up()
            self.late: set[Use] = set()

        def learn(self, peer: Hashable, frame: Received) -> None:
            readers = self.readers[frame.channel]
            newcomer = frame.kind == READY and readers and peer not in readers
            if newcomer and frame.channel in self.last and self.kinds[frame.channel] == "push":
                self.late.add(Use(peer, frame.channel))
            super().learn(peer, frame)

        def outgoing(self, peer: Hashable, frame: Received) -> Received:
            if Use(peer, frame.channel) in self.late:
                self.deliveries[frame.channel] = 9
            return super().outgoing(peer, frame)

        def doubles(self, peer: Hashable, channel: int) -> bool:
            late = Use(peer, channel) in self.late
            self.late.discard(Use(peer, channel))
            return late


class RepeatsWhatIsInherited(Right):
    """Of what a push queue's reader inherits beside its own, every fifth delivery carries the one before again."""

    breaks = "PUSH-4"

    class Server(Looks):
        def set_up(self) -> None:
            super().set_up()
            self.own: set[Use] = set()
            self.inherited: defaultdict[Use, list[bytes]] = defaultdict(list)

        def outgoing(self, peer: Hashable, frame: Received) -> Received:
            if frame.kind != DELIVER or self.kinds[frame.channel] != "push":
                return frame
            use, is_inherited = Use(peer, frame.channel), frame.body[8]
            if not is_inherited:
                self.own.add(use)
            if not is_inherited or use not in self.own:
                return frame
            head, items = split(frame)
            inherited = self.inherited[use]
            inherited += items[:1]
            return frame if len(inherited) % 5 or not items else join(frame, head, [inherited[-2], *items[1:]])


class WaitsForTheStopped(Right):
    """While a reader of a push queue leaves something unacknowledged for 50 ms, the others are sent nothing."""

    breaks = "PUSH-5"

    class Server(Looks):
        def holds(self, peer: Hashable, frame: Received) -> bool:
            if frame.kind != DELIVER or self.kinds[frame.channel] != "push":
                return False
            return any(self.silent_for(each) > 0.05 for each in self.readers[frame.channel] - {peer})


class ForgetsTheLossOfTheOnlyReader(Right):
    """The loss of a push queue's only reader, with a hundred items that it has not started, is not reported."""

    breaks = "PUSH-6"

    class Server(Looks):
        def lost(self, peer: Hashable) -> Hashable | None:
            for channel in self.read_by(peer, "push"):
                use = Use(peer, channel)
                if len(self.readers[channel]) == 1 and self.delivered[use] >= self.started[use] + 100:
                    return None
            return peer


class SendsTheFortiethToAnother(Right):
    """Every 40th item that one of three readers of a pull queue waits for goes to another, which drops it."""

    breaks = "PULL-1"

    class Server(Looks):
        def set_up(self) -> None:
            super().set_up()
            self.singly: Counter[int] = Counter()

        def outgoing(self, peer: Hashable, frame: Received) -> Received:
            if frame.kind != DELIVER or self.kinds[frame.channel] != "pull":
                return frame
            channel, readers = frame.channel, self.readers[frame.channel]
            self.singly[channel] += 1 if count(frame) == 1 and len(readers) == 3 else -1000
            if self.singly[channel] <= 0 or self.singly[channel] % 40:
                return frame
            super(Looks, self).send(next(iter(readers - {peer})), wire(frame._replace(seq=0)))
            return hollow(frame)


class WaitsForTheSlow(Right):
    """While a reader of a pull queue leaves something unacknowledged for 100 ms, the others are sent nothing."""

    breaks = "PULL-2"

    class Server(Looks):
        def holds(self, peer: Hashable, frame: Received) -> bool:
            if frame.kind != DELIVER or self.kinds[frame.channel] != "pull":
                return False
            return any(self.silent_for(each) > 0.1 for each in self.readers[frame.channel] - {peer})


class DropsWhatCrossesACancel(Right):
    """Every tenth time that an item crosses, within 1 ms, the word that nobody waits for it any more, it is dropped."""

    breaks = "PULL-3"

    class Server(Looks):
        def set_up(self) -> None:
            super().set_up()
            self.leaves_at: dict[tuple[Hashable, int], float] = {}
            self.crossed: Counter[Use] = Counter()

        def holds(self, peer: Hashable, frame: Received) -> bool:
            if frame.kind != DELIVER or self.kinds[frame.channel] != "pull" or count(frame) > 1:
                return False
            now = time.monotonic()
            return now < self.leaves_at.setdefault((peer, frame.seq), now + 0.001)

        def learn(self, peer: Hashable, frame: Received) -> None:
            super().learn(peer, frame)
            if frame.kind != READY:
                return
            report = frames.read_ready(frame.body)
            for place, (other, each, _) in enumerate(self.leaving):
                if (other, each.channel, each.kind) != (peer, frame.channel, DELIVER):
                    continue
                if report.limit == report.started and not report.waiting:
                    self.crossed[Use(peer, frame.channel)] += 1
                    if self.crossed[Use(peer, frame.channel)] % 10 == 0:
                        self.leaving[place] = peer, hollow(each), wire(hollow(each))


class TellsLate(Looks):
    """Reports some losses 1.1 s late."""

    def set_up(self) -> None:
        super().set_up()
        self.told_at: dict[Hashable, float] = {}

    def is_late(self, peer: Hashable) -> bool:
        """Whether the peer's loss is to be reported late."""
        raise NotImplementedError

    def lost(self, peer: Hashable) -> Hashable | None:
        self.told_at[peer] = time.monotonic() + 1.1 * self.is_late(peer)
        return peer

    def keeps(self, peer: Hashable, frame: Received | None) -> bool:
        return frame is None and time.monotonic() < self.told_at[peer]


class TellsAPullReadersLossLate(Right):
    """The loss of a reader that has got one item of a pull queue is reported 1.1 s late."""

    breaks = "PULL-4"

    class Server(TellsLate):
        def is_late(self, peer: Hashable) -> bool:
            return any(self.delivered[Use(peer, channel)] == 1 for channel in self.read_by(peer, "pull"))


class GivesAnItemTwice(Right):
    """Now and then one of two readers of a pull queue with two writers gets what the other got, instead of its own."""

    breaks = "PULL-5"

    class Server(Doubles):
        def doubles(self, peer: Hashable, channel: int) -> bool:  # noqa: ARG002
            readers, writers = self.readers[channel], self.writers[channel]
            return self.kinds[channel] == "pull" and len(readers) == len(writers) == 2 and not readers & writers


class LetsReportsOvertakeResults(Right):
    """What one of several readers puts, if small, falls behind its reports, and is lost if the reader is killed."""

    breaks = "PULL-6"

    class Server(Looks):
        def set_up(self) -> None:
            super().set_up()
            self.next_at: dict[Hashable, float] = {}

        def keeps(self, peer: Hashable, frame: Received | None) -> bool:
            if frame is None or frame.kind != PUT or len(frame.body) > 1000 * count(frame):
                return False
            queues = self.read_by(peer, "pull")
            if frame.channel in queues or all(len(self.readers[queue]) == 1 for queue in queues):
                return False
            if any(each is None for other, each, _ in self.coming if other == peer):
                self.replace(next(place for place, each in enumerate(self.coming) if each[0] == peer), hollow(frame))
                return True
            self.bring_report_forward(peer)
            now = time.monotonic()
            if now < self.next_at.get(peer, 0.0):
                return True
            self.next_at[peer] = now + 0.02
            return False

        def bring_report_forward(self, peer: Hashable) -> None:
            """Let a report that comes behind nothing but results come first, and keep the order of the numbers."""
            places = [
                place for place, (other, each, _) in enumerate(self.coming) if other == peer and each and each.seq
            ]
            coming = [self.coming[place][1] for place in places]
            kinds = [each.kind for each in coming if each]
            if READY not in kinds or {*kinds[: kinds.index(READY)]} != {PUT}:
                return
            numbers = [each.seq for each in coming if each]
            coming.insert(0, coming.pop(kinds.index(READY)))
            for place, number, each in zip(places, numbers, coming, strict=True):
                if each:
                    self.replace(place, each._replace(seq=number))


class SendsBackInAOneWayPipe(Right):
    """The second message into a one-way pipe goes back to its sender, if the pipe's maker has that end open, too."""

    breaks = "PIPE-1"

    class Server(Looks):
        def incoming(self, peer: Hashable, frame: Received) -> Received:
            channel = frame.channel
            if frame.kind != PUT or self.kinds[channel] != "pipe" or channel in self.closed_by_maker:
                return frame
            one_way = not self.kinds.keys() & {channel - 1, channel + 1}
            if not one_way or peer == self.makers[channel] or self.put[Use(peer, channel)] != 2:
                return frame
            super(Looks, self).send(peer, wire(frame._replace(kind=DELIVER, seq=0, ack=0)))
            return hollow(frame)


class ChangesLarge(Looks):
    """Changes the last byte of large items."""

    def changes(self, channel: int) -> bool:
        raise NotImplementedError

    def outgoing(self, peer: Hashable, frame: Received) -> Received:  # noqa: ARG002
        if frame.kind != DELIVER or not frame.parts or not self.changes(frame.channel):
            return frame
        *parts, last = map(bytes, frame.parts)
        return frame if len(last) < LARGE else frame._replace(parts=[*parts, last[:-1] + bytes([last[-1] ^ 1])])


class ChangesALargeMessageOfAPipe(Right):
    """The last byte of a pipe's message of 2 MB and more is changed."""

    breaks = "PIPE-2"

    class Server(ChangesLarge):
        def changes(self, channel: int) -> bool:
            return self.kinds[channel] == "pipe"


class TellsASendersLossLate(Right):
    """The loss of a process that has sent one message into a pipe is reported 1.1 s late."""

    breaks = "PIPE-3"

    class Server(TellsLate):
        def is_late(self, peer: Hashable) -> bool:
            return any(self.put[Use(peer, channel)] == 1 for channel in self.written_by(peer, "pipe"))


class ForgetsTheLossOfAReceiver(Right):
    """The loss of a process that has only received from a pipe is not reported."""

    breaks = "PIPE-4"

    class Server(Looks):
        def lost(self, peer: Hashable) -> Hashable | None:
            return None if self.read_by(peer, "pipe") and not self.written_by(peer, "pipe") else peer


class GivesAMessageTwice(Right):
    """Now and then one of three receivers at an end of a pipe gets what another got, instead of its own."""

    breaks = "PIPE-5"

    class Server(Doubles):
        def doubles(self, peer: Hashable, channel: int) -> bool:  # noqa: ARG002
            return self.kinds[channel] == "pipe" and len(self.readers[channel]) == 3


class LetsADirectionWaitForTheOther(Right):
    """What is sent into a pipe waits while a hundred messages wait to be received in the other direction."""

    breaks = "PIPE-6"

    class Server(Looks):
        def set_up(self) -> None:
            super().set_up()
            self.waiting: Counter[int] = Counter()

        def keeps(self, peer: Hashable, frame: Received | None) -> bool:  # noqa: ARG002
            if frame is None or frame.kind != PUT or self.kinds[frame.channel] != "pipe":
                return False
            if any(self.waiting[other] >= 100 for other in (frame.channel - 1, frame.channel + 1)):
                return True
            self.waiting[frame.channel] += count(frame)
            return False

        def outgoing(self, peer: Hashable, frame: Received) -> Received:  # noqa: ARG002
            if frame.kind == DELIVER:
                self.waiting[frame.channel] -= count(frame)
            return frame


class WakesAReceiverLate(Right):
    """What is sent to a receiver that has waited at a pipe for 50 ms leaves 0.8 s later."""

    breaks = "PIPE-7"

    class Server(Looks):
        def set_up(self) -> None:
            super().set_up()
            self.asked_at: dict[Use, float] = {}
            self.leaves_at: dict[Hashable, float] = {}

        def learn(self, peer: Hashable, frame: Received) -> None:
            super().learn(peer, frame)
            if frame.kind == READY and frames.read_ready(frame.body).waiting:
                self.asked_at[Use(peer, frame.channel)] = time.monotonic()

        def outgoing(self, peer: Hashable, frame: Received) -> Received:
            asked_at = self.asked_at.pop(Use(peer, frame.channel), float("inf"))
            if frame.kind == DELIVER and self.kinds[frame.channel] == "pipe" and time.monotonic() > asked_at + 0.05:
                self.leaves_at[peer] = time.monotonic() + 0.8
            return frame

        def holds(self, peer: Hashable, frame: Received) -> bool:  # noqa: ARG002
            return time.monotonic() < self.leaves_at.get(peer, 0.0)


class SwapsAfterTenThousand(Right):
    """From a writer's 10000th item on, the last two that come together are swapped."""

    breaks = "QUEUE-1"

    class Server(Looks):
        def incoming(self, peer: Hashable, frame: Received) -> Received:
            if frame.kind != PUT or self.kinds[frame.channel] == "pipe" or self.put[Use(peer, frame.channel)] < 10_000:
                return frame
            head, items = split(frame)
            return join(frame, head, [*items[:-2], *items[:-3:-1]]) if len(items) > 1 else frame


class ChangesALargeItem(Right):
    """The last byte of a queue's item of 2 MB and more is changed."""

    breaks = "QUEUE-2"

    class Server(ChangesLarge):
        def changes(self, channel: int) -> bool:
            return self.kinds[channel] in ("pull", "push")


class Hasty(Looks):
    """Acknowledges some items at once, and lets them arrive only 0.3 s later, or when more comes."""

    def set_up(self) -> None:
        super().set_up()
        self.until: dict[Hashable, float] = {}

    def is_hasty(self, peer: Hashable, frame: Received) -> bool:
        raise NotImplementedError

    def drops(self, behind: Received | None) -> bool:
        """Whether what was acknowledged is dropped when this, or the loss of the peer, comes behind it."""
        raise NotImplementedError

    def incoming(self, peer: Hashable, frame: Received) -> Received:
        if frame.kind == PUT and self.is_hasty(peer, frame):
            self.until[peer] = time.monotonic() + 0.3
            super(Looks, self).send(peer, frames.encode(Frame(ACK), 0, 0, frame.seq))
        return frame

    def keeps(self, peer: Hashable, frame: Received | None) -> bool:
        if frame is None or frame.kind != PUT or time.monotonic() > self.until.get(peer, 0.0):
            return False
        mine = [place for place, each in enumerate(self.coming) if each[0] == peer]
        behind = [self.coming[place][1] for place in mine[1:]]
        behind = [each for each in behind if each is None or each.seq]
        if not behind:
            return True
        if not self.drops(behind[0]):
            return False
        self.replace(mine[0], hollow(frame))
        return True


class AcknowledgesTooEarly(Right):
    """What comes to a pull queue behind a large item is acknowledged, and dropped if its sender dies at once."""

    breaks = "QUEUE-3"

    class Server(Hasty):
        def set_up(self) -> None:
            super().set_up()
            self.large: set[Use] = set()

        def is_hasty(self, peer: Hashable, frame: Received) -> bool:
            use = Use(peer, frame.channel)
            behind = use in self.large
            if frame.parts and self.kinds[frame.channel] == "pull":
                self.large.add(use)
            else:
                self.large.discard(use)
            return behind

        def drops(self, behind: Received | None) -> bool:
            return behind is None


class DropsTheLastBeforeGoodbye(Right):
    """What a process puts last into a pull queue, after a hundred others of 20 kB, is dropped if it ends at once."""

    breaks = "QUEUE-4"

    class Server(Hasty):
        def is_hasty(self, peer: Hashable, frame: Received) -> bool:
            if self.kinds[frame.channel] != "pull" or peer == self.makers[frame.channel]:
                return False
            size = len(frame.body) + sum(map(length, frame.parts))
            return size > 20_000 and 100 <= self.put[Use(peer, frame.channel)] <= 200

        def drops(self, behind: Received | None) -> bool:
            return behind is not None and behind.kind in (RELEASE, frames.GOODBYE)


class CountsSevenAsSix(Right):
    """An answer that tells of a queue of seven items arrives with a six."""

    breaks = "QUEUE-5"

    class Server(Looks):
        def outgoing(self, peer: Hashable, frame: Received) -> Received:  # noqa: ARG002
            if frame.kind != REPLY:
                return frame
            answer = frames.read_json(frame.body)
            if answer.get("qsize") != 7:
                return frame
            return frame._replace(body=memoryview(frames.pack_json({**answer, "qsize": 6})[0]))


forks = 0
"""Between this process and the one that imported this module."""


def count_forks() -> None:
    global forks
    forks += 1


os.register_at_fork(after_in_child=count_forks)


class WorksInOneForkOnly(Right):
    """A client cannot connect in the fork of a fork."""

    breaks = "QUEUE-6"
    also = frozenset({"PROC-2"})

    class Client(Client):
        def connect(self, address: str, timeout: float | None) -> None:
            if forks > 1:
                raise ConnectError(f"{self.transport.name}: cannot connect to {address}")
            super().connect(address, timeout)


class ForgetsTheLossOfTheLastHolder(Right):
    """The loss of a process that gets from a queue which its maker has closed is not reported."""

    breaks = "QUEUE-7"

    class Server(Looks):
        def lost(self, peer: Hashable) -> Hashable | None:
            return None if self.closed_by_maker & {*self.read_by(peer, "pull", "push")} else peer


class PutsIntoAnother(Right):
    """Every 50th time that a process puts into one of several queues, it goes to the one that it put into before."""

    breaks = "QUEUE-8"

    class Server(Looks):
        def set_up(self) -> None:
            super().set_up()
            self.last: dict[Hashable, int] = {}
            self.several: Counter[Hashable] = Counter()

        def incoming(self, peer: Hashable, frame: Received) -> Received:
            if frame.kind != PUT or peer == self.makers.get(frame.channel):
                return frame
            before, self.last[peer] = self.last.get(peer, frame.channel), frame.channel
            if len(self.written_by(peer, "pull", "push")) > 2 and before != frame.channel:
                self.several[peer] += 1
                if self.several[peer] % 50 == 0:
                    return frame._replace(channel=before)
            return frame


class DelaysOneInThreeHundred(Right):
    """Every 300th lone item that a pull queue sends to a reader leaves 0.8 s late."""

    breaks = "QUEUE-9"

    class Server(Looks):
        def set_up(self) -> None:
            super().set_up()
            self.singly: Counter[Use] = Counter()
            self.leaves_at: dict[Hashable, float] = {}

        def outgoing(self, peer: Hashable, frame: Received) -> Received:
            if frame.kind == DELIVER and self.kinds[frame.channel] == "pull" and count(frame) == 1:
                self.singly[Use(peer, frame.channel)] += 1
                if self.singly[Use(peer, frame.channel)] % 300 == 0:
                    self.leaves_at[peer] = time.monotonic() + 0.8
            return frame

        def holds(self, peer: Hashable, frame: Received) -> bool:  # noqa: ARG002
            return time.monotonic() < self.leaves_at.get(peer, 0.0)


class TakesOneForAnother(Right):
    """The loss of a process that only puts is reported as that of one which gets from a pull queue and puts as well."""

    breaks = "QUEUE-10"

    class Server(Looks):
        def lost(self, peer: Hashable) -> Hashable | None:
            if self.read_by(peer, "pull", "push") or not self.written_by(peer, "pull", "push"):
                return peer
            for channel in [channel for channel, kind in self.kinds.items() if kind == "pull"]:
                for other in self.readers[channel] - {peer, self.makers[channel]}:
                    if {*self.written_by(other, "pull")} - {channel}:
                        return other
            return peer


class GrantsOneMore(Right):
    """Where three processes put into a bounded queue, each is granted one item more than the node says."""

    breaks = "BOUND-1"

    class Server(Looks):
        def outgoing(self, peer: Hashable, frame: Received) -> Received:  # noqa: ARG002
            if frame.kind != GRANT or len(self.writers[frame.channel]) < 3:
                return frame
            return frame._replace(body=memoryview(frames.pack_grant(frames.read_grant(frame.body) + 1)[0]))


class WakesAWriterLate(Right):
    """What a process is told that has waited for room in a queue for 50 ms leaves 0.8 s later."""

    breaks = "BOUND-2"

    class Server(Looks):
        def set_up(self) -> None:
            super().set_up()
            self.asked_at: dict[Use, float] = {}
            self.leaves_at: dict[Hashable, float] = {}

        def learn(self, peer: Hashable, frame: Received) -> None:
            super().learn(peer, frame)
            if frame.kind == WANT and frames.read_want(frame.body).waiting:
                self.asked_at[Use(peer, frame.channel)] = time.monotonic()

        def outgoing(self, peer: Hashable, frame: Received) -> Received:
            if frame.kind == GRANT and time.monotonic() > self.asked_at.pop(Use(peer, frame.channel), 1e99) + 0.05:
                self.leaves_at[peer] = time.monotonic() + 0.8
            return frame

        def holds(self, peer: Hashable, frame: Received) -> bool:  # noqa: ARG002
            return time.monotonic() < self.leaves_at.get(peer, 0.0)


class SaysDoneTooEarly(Right):
    """A process that asks when all tasks are done is told at once that they are."""

    breaks = "BOUND-3"

    class Server(Looks):
        def set_up(self) -> None:
            super().set_up()
            self.asked: set[tuple[Hashable, int]] = set()

        def incoming(self, peer: Hashable, frame: Received) -> Received:
            if frame.kind != REQUEST:
                return frame
            request = frames.read_json(frame.body)
            if request.get("op") != "join" or "at_once" in request:
                return frame
            self.asked.add((peer, request["id"]))
            return frame._replace(body=memoryview(frames.pack_json({**request, "at_once": True})[0]))

        def outgoing(self, peer: Hashable, frame: Received) -> Received:
            if frame.kind != REPLY:
                return frame
            answer = frames.read_json(frame.body)
            if (peer, answer["id"]) not in self.asked:
                return frame
            return frame._replace(body=memoryview(frames.pack_json({**answer, "finished": True})[0]))


class ForgetsTheLossOfWhoHasATask(Right):
    """The loss of a process that gets from a joinable queue is not reported."""

    breaks = "BOUND-4"

    class Server(Looks):
        def lost(self, peer: Hashable) -> Hashable | None:
            return None if self.read_by(peer, "joinable") else peer


class TellsTheEndLate(Right):
    """That a queue is at its end leaves 0.8 s late."""

    breaks = "BOUND-5"

    class Server(Looks):
        def set_up(self) -> None:
            super().set_up()
            self.leaves_at: dict[Hashable, float] = {}

        def outgoing(self, peer: Hashable, frame: Received) -> Received:
            if frame.kind == ENDED and self.kinds[frame.channel] != "pipe":
                self.leaves_at[peer] = time.monotonic() + 0.8
            return frame

        def holds(self, peer: Hashable, frame: Received) -> bool:  # noqa: ARG002
            return time.monotonic() < self.leaves_at.get(peer, 0.0)
