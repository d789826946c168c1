"""Wrong about messages (MSG) and routing (ROUTE)."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Hashable, Sequence

from fiberq.abc import MAX_PARTS, MIN_QUEUED, Buffer, Message, PeerLost
from fiberq.errors import TransportError

from .right import Client, Right, Server, length


class LosesTheLastPartOfTheMost(Right):
    """A message of MAX_PARTS parts arrives without its last one."""

    breaks = "MSG-1"

    class Client(Client):
        def send(self, parts: Sequence[Buffer]) -> None:
            super().send(parts[: MAX_PARTS - 1])


class DropsOneOfTwoEmptyParts(Right):
    """An empty last part behind another empty one does not arrive."""

    breaks = "MSG-1"

    class Server(Server):
        def send(self, peer: Hashable, parts: Sequence[Buffer]) -> None:
            super().send(peer, parts[:-1] if [*map(length, parts[-2:])] == [0, 0] else parts)


class CountsLengthsIn24Bits(Right):
    """A part of 16 MiB or more arrives without what 24 bits cannot count."""

    breaks = "MSG-2"
    also = frozenset({"MSG-8"})

    class Client(Client):
        def send(self, parts: Sequence[Buffer]) -> None:
            super().send([memoryview(part)[: length(part) % 2**24] for part in parts])


class CutsPartsAtAnEdge(Right):
    """A part of exactly 65535 bytes loses its last one on the way to the client."""

    breaks = "MSG-2"

    class Server(Server):
        def send(self, peer: Hashable, parts: Sequence[Buffer]) -> None:
            super().send(peer, [part[:-1] if length(part) == 65535 else part for part in parts])


class CountsItemsInsteadOfBytes(Right):
    """Of a memoryview of larger items than bytes, as many bytes arrive as it has items."""

    breaks = "MSG-3"

    class Client(Client):
        def send(self, parts: Sequence[Buffer]) -> None:
            super().send([memoryview(part).cast("B")[: len(part)] for part in parts])


class ReadsIntoTheSameBuffer(Right):
    """A client reads each large part into the same buffer, which the receiver of the last one still has."""

    breaks = "MSG-4"
    also = frozenset({"PIPE-2", "QUEUE-1", "QUEUE-2"})

    class Client(Client):
        def set_up(self) -> None:
            self.buffer = memoryview(bytearray(200_000))

        def recv(self, timeout: float | None) -> Sequence[Buffer] | None:
            parts = super().recv(timeout)
            if not parts or not 50_000 < length(parts[-1]) < 200_000:
                return parts
            size = length(parts[-1])
            self.buffer[:size] = parts[-1]
            return [*parts[:-1], self.buffer[:size]]


class TakesBuffersBackAtClose(Right):
    """What a client received is released when the client is closed."""

    breaks = "MSG-4"

    class Client(Client):
        views: Sequence[memoryview] = ()

        def recv(self, timeout: float | None) -> Sequence[Buffer] | None:
            parts = super().recv(timeout)
            if parts is None:
                return None
            views = [memoryview(bytes(part)) for part in parts]
            self.views = [*self.views[-100:], *views]
            return views

        def close(self) -> None:
            super().close()
            for view in self.views:
                view.release()


class DropsOneInThreeHundred(Right):
    """A client drops every 300th message of several parts."""

    breaks = "MSG-5"

    class Client(Client):
        sent = 0

        def send(self, parts: Sequence[Buffer]) -> None:
            self.sent += len(parts) > 1
            if len(parts) < 2 or self.sent % 300:
                super().send(parts)


class SendsOneInThreeHundredTwice(Right):
    """A server sends every 300th message of several parts to a peer twice."""

    breaks = "MSG-5"

    class Server(Server):
        def set_up(self) -> None:
            self.sent: Counter[Hashable] = Counter()

        def send(self, peer: Hashable, parts: Sequence[Buffer]) -> None:
            super().send(peer, parts)
            self.sent[peer] += len(parts) > 1
            if len(parts) > 1 and not self.sent[peer] % 300:
                super().send(peer, parts)


class LetsTheSmallOvertakeTheLarge(Right):
    """A small message overtakes one of 100 kB that a client sent just before."""

    breaks = "MSG-5"

    class Server(Server):
        def set_up(self) -> None:
            self.waiting: deque[Message | PeerLost] = deque()

        def recv(self, timeout: float | None) -> Message | PeerLost | None:
            event = super().recv(0 if self.waiting else timeout)
            while event is not None:
                self.waiting.append(event)
                event = super().recv(0)
            if not self.waiting:
                return None
            first = self.waiting.popleft()
            if not 100_000 <= _size(first) < 200_000:
                return first
            behind = next((each for each in self.waiting if each.peer == first.peer), None)
            if behind is None or not 0 < _size(behind) < 200:
                return first
            self.waiting.remove(behind)
            self.waiting.appendleft(first)
            return behind


def _size(event: Message | PeerLost) -> int:
    return sum(map(length, event.parts)) if isinstance(event, Message) else 0


class DropsAtAHighWaterMark(Right):
    """A server that sends MIN_QUEUED messages to a peer without receiving between them drops the last."""

    breaks = "MSG-6"

    class Server(Server):
        def set_up(self) -> None:
            self.sent: Counter[Hashable] = Counter()

        def send(self, peer: Hashable, parts: Sequence[Buffer]) -> None:
            self.sent[peer] += 1
            if self.sent[peer] < MIN_QUEUED:
                super().send(peer, parts)

        def recv(self, timeout: float | None) -> Message | PeerLost | None:
            self.sent.clear()
            return super().recv(timeout)


class BlocksAtAHighWaterMark(Right):
    """A client that sends MIN_QUEUED messages without receiving between them is blocked for a while."""

    breaks = "MSG-6"

    class Client(Client):
        sent = 0

        def send(self, parts: Sequence[Buffer]) -> None:
            self.sent += 1
            if self.sent == MIN_QUEUED and length(parts[-1]) == 256 * 1024 and len(parts) == 2:
                time.sleep(6)
            super().send(parts)

        def recv(self, timeout: float | None) -> Sequence[Buffer] | None:
            self.sent = 0
            return super().recv(timeout)


class HasOneInboxForAll(Right):
    """A server's clients share an inbox for 100 messages; what comes beyond is dropped."""

    breaks = "MSG-7"

    class Server(Server):
        def set_up(self) -> None:
            self.inbox: deque[Message | PeerLost] = deque()

        def recv(self, timeout: float | None) -> Message | PeerLost | None:
            event = super().recv(0 if self.inbox else timeout)
            while event is not None:
                if len(self.inbox) < 100 or isinstance(event, PeerLost):
                    self.inbox.append(event)
                event = super().recv(0)
            return self.inbox.popleft() if self.inbox else None


class SendsTheRestWhenCalledAgain(Right):
    """What a client sends right behind a large message leaves with the next call only."""

    breaks = "MSG-8"

    class Client(Client):
        def set_up(self) -> None:
            self.rest: list[Sequence[Buffer]] = []
            self.large_at = -1.0

        def send(self, parts: Sequence[Buffer]) -> None:
            self.flush()
            if time.monotonic() < self.large_at + 0.2:
                self.rest.append(parts)
            else:
                super().send(parts)
            if sum(map(length, parts)) > 10_000_000:
                self.large_at = time.monotonic()

        def recv(self, timeout: float | None) -> Sequence[Buffer] | None:
            self.flush()
            return super().recv(timeout)

        def flush(self) -> None:
            while self.rest:
                super().send(self.rest.pop(0))


class LetsALargeMessagesTailGoToTheNext(Right):
    """While a large message to one peer is leaving, one for another peer goes to the first."""

    breaks = "ROUTE-1"
    also = frozenset({"PIPE-2", "QUEUE-2"})

    class Server(Server):
        leaving: Hashable = None

        def send(self, peer: Hashable, parts: Sequence[Buffer]) -> None:
            peer, self.leaving = self.leaving or peer, None
            super().send(peer, parts)
            if sum(map(length, parts)) > 3_500_000:
                self.leaving = peer

        def recv(self, timeout: float | None) -> Message | PeerLost | None:
            self.leaving = None
            return super().recv(timeout)


class GivesCreditForReplies(Right):
    """A request entitles to 500 replies; what the server sends beyond is dropped."""

    breaks = "ROUTE-2"

    class Server(Server):
        def set_up(self) -> None:
            self.owed: Counter[Hashable] = Counter()

        def send(self, peer: Hashable, parts: Sequence[Buffer]) -> None:
            self.owed[peer] += 1
            if self.owed[peer] <= 500:
                super().send(peer, parts)

        def recv(self, timeout: float | None) -> Message | PeerLost | None:
            event = super().recv(timeout)
            if event is not None:
                self.owed[event.peer] = 0
            return event


class Renames(Server):
    """Calls peers what `rename` says, and knows whom that means."""

    def set_up(self) -> None:
        self.outer: dict[Hashable, Hashable] = {}
        self.real: dict[Hashable, Hashable] = {}

    def rename(self, count: int) -> Hashable:
        """The name of the `count`-th peer."""
        return count

    def recv(self, timeout: float | None) -> Message | PeerLost | None:
        event = super().recv(timeout)
        if event is None:
            return None
        if event.peer not in self.outer:
            self.call(event.peer, self.rename(len(self.outer)))
        return event._replace(peer=self.outer[event.peer])

    def call(self, real: Hashable, name: Hashable) -> None:
        self.outer[real] = name
        self.real[name] = real

    def send(self, peer: Hashable, parts: Sequence[Buffer]) -> None:
        super().send(self.real[peer], parts)


class CountsPeersInAByte(Right):
    """The 257th peer of a server has the name of the first."""

    breaks = "ROUTE-3"

    class Server(Renames):
        def rename(self, count: int) -> Hashable:
            return count % 256


class RefusesToSendToTheLost(Right):
    """A message to a peer whose loss was reported raises."""

    breaks = "ROUTE-4"

    class Server(Server):
        def set_up(self) -> None:
            self.lost: set[Hashable] = set()

        def recv(self, timeout: float | None) -> Message | PeerLost | None:
            event = super().recv(timeout)
            if isinstance(event, PeerLost):
                self.lost.add(event.peer)
            return event

        def send(self, peer: Hashable, parts: Sequence[Buffer]) -> None:
            if peer in self.lost:
                raise TransportError(f"{self.transport.name}: no such peer: {peer!r}")
            super().send(peer, parts)


class SendsWhatIsForTheLostToTheNewest(Right):
    """A message to a peer whose loss was reported goes to the one that came last."""

    breaks = "ROUTE-4"

    class Server(Server):
        newest: Hashable = None

        def set_up(self) -> None:
            self.known: set[Hashable] = set()
            self.lost: set[Hashable] = set()

        def recv(self, timeout: float | None) -> Message | PeerLost | None:
            event = super().recv(timeout)
            if isinstance(event, PeerLost):
                self.lost.add(event.peer)
            elif event is not None and event.peer not in self.known:
                self.known.add(event.peer)
                self.newest = event.peer
            return event

        def send(self, peer: Hashable, parts: Sequence[Buffer]) -> None:
            super().send(self.newest if peer in self.lost else peer, parts)


class RenamesAPeerAfterAThousandMessages(Right):
    """A peer has another name from its 1000th message on."""

    breaks = "ROUTE-5"

    class Server(Renames):
        def set_up(self) -> None:
            super().set_up()
            self.heard: Counter[Hashable] = Counter()

        def recv(self, timeout: float | None) -> Message | PeerLost | None:
            event = super().recv(timeout)
            if isinstance(event, Message):
                self.heard[event.peer] += 1
                if self.heard[event.peer] == 1000:
                    self.call(self.real[event.peer], ("again", event.peer))
                    return event._replace(peer=("again", event.peer))
            return event
