"""Wrong protocols: each breaks one thing, and the schedules have to notice it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final, NamedTuple
from unittest.mock import patch

from fiberq.protocol import pull, push, writer
from fiberq.protocol.batch import Run
from fiberq.protocol.broker import Broker
from fiberq.protocol.client import Client
from fiberq.protocol.device import Device, Key, Reader
from fiberq.protocol.frames import PUT, RETURN, Frame, Received, pack_ranges
from fiberq.protocol.pull import PullDevice
from fiberq.protocol.push import PushDevice
from fiberq.protocol.reader import Reader as ClientReader
from fiberq.protocol.session import Session
from fiberq.protocol.slots import Slots
from fiberq.protocol.writer import Writer
from sim import Broken, play


class Mutant(NamedTuple):
    """`certain` are faults without which it is seldom noticed."""

    apply: Callable[[], AbstractContextManager[None]]
    certain: tuple[str, ...]

    def notice(self, seeds: Iterable[int]) -> tuple[int, str] | None:
        """How many schedules it takes until one breaks a promise, and which; `None` if none does."""
        with self.apply():
            for number, seed in enumerate(seeds, 1):
                try:
                    play(seed, self.certain)
                except Broken as broken:
                    return number, str(broken).partition("\n")[0].partition(": ")[2]
        return None


MUTANTS: Final[dict[str, Mutant]] = {}


def mutant(*certain: str) -> Callable[[Callable[[], Iterator[None]]], None]:
    """The function's name is what the mutant does."""

    def add(function: Callable[[], Iterator[None]]) -> None:
        MUTANTS[function.__name__.replace("_", " ")] = Mutant(contextmanager(function), certain)

    return add


@mutant()
def an_item_is_finished_when_it_is_delivered() -> Iterator[None]:
    deliver = Device._deliver

    def wrong(self: Device, reader: Reader, runs: list[Run], now: float) -> None:
        deliver(self, reader, runs, now)
        self._discard([lease.run for lease in reader.leases])
        reader.leases.clear()
        reader.bytes = 0

    with patch.object(Device, "_deliver", wrong):
        yield


@mutant()
def an_item_is_finished_when_it_is_started() -> Iterator[None]:
    with patch.object(ClientReader, "_held", lambda *_: ()):
        yield


@mutant("cut")
def a_put_counts_as_accepted_when_it_was_sent() -> Iterator[None]:
    def wrong(self: Session, received: int, now: float) -> None:
        self.unacknowledged = deque(frame for frame in self.unacknowledged if frame.kind != PUT)
        self.sent = self.acknowledged + len(self.unacknowledged)
        connect(self, min(received, self.sent), now)

    connect = Session.connect
    with patch.object(Session, "connect", wrong):
        yield


@mutant("cut")
def nothing_is_sent_again_after_a_reconnect() -> Iterator[None]:
    with patch.object(Session, "resend", lambda *_: None):
        yield


@mutant("repeat")
def a_repeated_frame_is_taken_twice() -> Iterator[None]:
    accept = Session.accept

    def wrong(self: Session, message: Received, now: float) -> Frame | None:
        frame = accept(self, message, now)
        if frame is None and message.kind == PUT and message.seq == self.received:
            return Frame(message.kind, message.channel, (message.body,), message.parts)
        return frame

    with patch.object(Session, "accept", wrong):
        yield


@mutant()
def what_comes_back_goes_to_the_end() -> Iterator[None]:
    def wrong(queue: deque[Run], runs: Iterable[Run]) -> None:
        queue.extend(sorted(runs))

    with patch.object(pull, "put_in_place", wrong), patch.object(push, "put_in_place", wrong):
        yield


@mutant("kill", "kill")
def what_a_dead_reader_held_is_forgotten() -> Iterator[None]:
    lost = Device.lost

    def wrong(self: Device, key: Key, now: float) -> None:
        reader = self.readers.get(key)
        if reader is not None:
            self._finish(reader, reader.started, ())
        lost(self, key, now)

    with patch.object(Device, "lost", wrong):
        yield


@mutant()
def one_slot_too_many_is_granted() -> Iterator[None]:
    grant = Slots.grant

    def wrong(self: Slots, occupied: int) -> None:
        grant(self, occupied - 1)

    with patch.object(Slots, "grant", wrong):
        yield


@mutant()
def a_recall_returns_what_was_started_too() -> Iterator[None]:
    def wrong(self: ClientReader, session: Session, now: float) -> None:
        held = self._held()
        send = session.send

        def more(frame: Frame, now: float, urgent: bool = False) -> int:
            if frame.kind == RETURN and held:
                frame = frame._replace(body=(*pack_ranges(held), *frame.body))
            return send(frame, now, urgent)

        with patch.object(session, "send", more):
            recalled(self, session, now)

    recalled = ClientReader.recalled
    with patch.object(ClientReader, "recalled", wrong):
        yield


@mutant("lease")
def a_lease_does_not_run_out() -> Iterator[None]:
    with patch.object(Device, "lease_until", lambda self, key, *_: key in self.readers):
        yield


@mutant()
def the_end_of_a_pipe_is_told_too_early() -> Iterator[None]:
    with patch.object(Device, "drained", property(lambda _: True)):
        yield


@mutant()
def join_does_not_wait_for_the_last_task() -> Iterator[None]:
    unfinished = Device.unfinished.fget  # type: ignore[attr-defined]
    with patch.object(Device, "unfinished", property(lambda self: max(0, unfinished(self) - 1))):
        yield


@mutant("kill", "kill", "chain")
def a_report_overtakes_what_was_put() -> Iterator[None]:
    begin = Client.__init__

    def wrong(self: Client, name: str, grace: bool) -> None:
        begin(self, name, grace)
        self.session.before_report = None

    with patch.object(Client, "__init__", wrong), patch.object(writer, "UNDER_WAY", 1):
        yield


@mutant("cut")
def who_breaks_off_is_taken_for_dead_at_once() -> Iterator[None]:
    lost = Broker.lost

    def wrong(self: Broker, peer: Any, now: float) -> None:
        member = self._by_peer.get(peer)
        if member is not None:
            member.grace = False
        lost(self, peer, now)

    with patch.object(Broker, "lost", wrong):
        yield


@mutant("kill", "kill", "bound")
def the_slots_of_a_dead_writer_are_kept() -> Iterator[None]:
    with patch.object(Slots, "lost", lambda *_: None):
        yield


@mutant("ahead")
def nobody_is_asked_to_give_back() -> Iterator[None]:
    with patch.object(PullDevice, "_sitting", lambda _: []):
        yield


@mutant()
def what_has_gathered_for_a_reader_stays_there() -> Iterator[None]:
    lets_gather, stuck = PushDevice._lets_gather, set[Key]()

    def wrong(self: PushDevice, reader: Reader) -> bool:
        if reader.key not in stuck and lets_gather(self, reader):
            stuck.add(reader.key)
        return reader.key in stuck

    with patch.object(PushDevice, "_lets_gather", wrong):
        yield


@mutant()
def gathered_items_change_places() -> Iterator[None]:
    frame = Writer._frame

    def wrong(self: Writer) -> Sequence[Any]:
        if len(self.items) > 2:
            self.items[0], self.items[1] = self.items[1], self.items[0]
        return frame(self)

    with patch.object(Writer, "_frame", wrong):
        yield
