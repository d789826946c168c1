"""What fiberq promises, as questions to a world: each function asserts one, some while the schedule runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from fiberq.driven import HEARTBEAT
from fiberq.protocol.batch import count
from sim.ledger import Got, contents, source
from sim.processes import Process

if TYPE_CHECKING:
    from sim.world import Channel, World

LONGEST_WAIT: Final = 0.040
"""Seconds that a reader may wait while there are items that nobody has started, beside what the network takes."""

UNTOLD: Final = HEARTBEAT + 0.1
"""Seconds for which a reader may keep to itself that an item is finished, beside what the network takes."""

SLOW: Final = 0.010
"""Seconds that an item takes at least for the end of each to be told at once."""


def check(world: World) -> None:
    """All that can be said when a schedule is over."""
    ledger = world.ledger
    repeated = [item for item, times in ledger.accepted.items() if times > 1]
    assert not repeated, f"accepted twice: {repeated[:3]}"
    invented = [item for item in ledger.receivers if item not in ledger.put]
    assert not invented, f"came from nowhere: {invented[:3]}"
    unaccepted = [
        item
        for item, process in ledger.put.items()
        if item not in ledger.accepted and process not in world.ended and world.by_name[process].alive
    ]
    unaccepted = [item for item in unaccepted if not _channel(world, item).shut]
    assert not unaccepted, f"flushed but not accepted: {unaccepted[:3]}"
    for item, receivers in ledger.receivers.items():
        _check_receivers(world, item, receivers)
    _check_redone(world)
    for channel in world.channels:
        _check_order(world, channel)
        _check_waits(world, channel)
        _check_shares(world, channel)
    _check_chains(world)
    assert not world.broker.garbage, "the node was sent garbage"
    world.settle()
    # What a process claims may arrive after its parent has told of its end, over another connection: it is kept then.
    late = tuple(f"early {process.name} " for process in world.processes if process.late is not None)
    left = [each for each in world.broker.left_of(set()) if not each.startswith(late)]
    assert not left, f"the node keeps {left[:5]}"
    assert not world.broker.memory.bytes, f"the node holds {world.broker.memory.bytes} bytes of nothing"
    assert len(world.broker._channels.known) == 1, "a queue without holders goes on"


def missing(world: World, channel: Channel, items: Iterable[bytes]) -> list[bytes]:
    """Those of the items of which nobody took care."""
    ledger = world.ledger
    if channel.number in ledger.dropped:
        return []
    keeps, by_name = channel.kind.keeps, world.by_name

    def cared(got: Got) -> bool:
        # A pipe's message is finished when it is received; what the living have they finish.
        key = got.item, got.process
        if not keeps or key in ledger.finished or key in ledger.ending:
            return True
        return by_name[got.process].alive and ledger.kept[key] > 0

    return [
        item
        for item in items
        if not any(map(cared, ledger.receivers.get(item, ())))
        and item not in ledger.perished
        and item not in ledger.buried
    ]


def _channel(world: World, item: bytes) -> Channel:
    return world.channels[int(item[: item.index(b":")]) - world.channels[0].number]


# -- once --


def _check_receivers(world: World, item: bytes, receivers: list[Got]) -> None:
    """An item comes out again only where the one before has an excuse, and never after its lease was acknowledged."""
    # What was taken from one that did not answer can come out there later, before it hears of that; so with the dead.
    forever = float("inf")
    rest = [
        got
        for got in receivers
        if (item, got.process) not in world.ledger.taken and world.ended.get(got.process, forever) > got.at
    ]
    for one, other in pairwise(rest):
        assert _excused(world, one, other.at), (
            f"{item[:20]!r} came out at {[(got.process, got.at) for got in receivers]}: {one.process} has no excuse"
        )
    settled = world.ledger.settled.get(item)
    assert settled is None or not rest or rest[-1].at <= settled, f"{item!r} was acknowledged, and came out again"


def _excused(world: World, got: Got, at: float) -> bool:
    """Whether something happened to a receiver for which the item may have come out again at that time."""
    ledger, key = world.ledger, (got.item, got.process)
    times = (
        world.ended.get(got.process),
        ledger.returned.get(key),
        ledger.leased.get(key),
    )
    return any(time is not None and time <= at for time in times)


def _check_redone(world: World) -> None:
    """What a dead process had finished is done again only if it could not have told: one item of each thread where
    items take long; and of what it finished long before, nothing."""
    if not world.plan.quiet:
        return
    ledger, latency = world.ledger, 2 * world.plan.latency
    redone: Counter[tuple[Channel, str]] = Counter()
    for item, receivers in ledger.receivers.items():
        for one, other in pairwise(receivers):
            process = world.by_name[one.process]
            finished = ledger.finished.get((item, one.process))
            if process.killed and finished is not None and finished < other.at and one.process != other.process:
                ago = process.died - finished
                assert ago <= UNTOLD + latency, f"{item!r} was finished {ago} s before {process.name} died, and redone"
                redone[_channel(world, item), one.process] += 1
    for (channel, name), number in redone.items():
        traffic = channel.traffic
        if min(traffic.work) >= max(SLOW, latency) and set(traffic.manners) <= {"get", "poll"}:
            threads = sum(part.threads_at_first for part in channel.reading if part.process.name == name)
            assert number <= threads, f"{number} finished items of {name} were redone"


# -- in order --


def _check_order(world: World, channel: Channel) -> None:
    """What one reader got of one writer is in order, but for what another one had: that comes late."""
    last: dict[tuple[str, tuple[bytes, bytes]], int] = {}
    moved = world.ledger.moved
    alone = channel.traffic.readers == 1 and len(channel.reading) == 1 and channel.traffic.threads == 1
    prefix = b"%d:" % channel.number
    if channel.traffic.kind == "push" and not alone:
        return  # what comes back is dealt out anew: only what was never redealt could be looked at
    for item, process, _ in world.ledger.got:
        if not item.startswith(prefix) or (item in moved and not _unmoved(world, alone, item)):
            continue
        writer, number = source(item)
        before = last.get((process, writer), -1)
        assert before < number, f"{process} got {item!r} after {before} of the same writer"
        last[process, writer] = number


def _unmoved(world: World, alone: bool, item: bytes) -> bool:
    """With one reader, what it gave back unstarted comes in order, too."""
    ledger = world.ledger
    if not alone or len(ledger.receivers[item]) > 1:
        return False
    return not (ledger.taken or ledger.returned or ledger.leased or world.ended)


# -- in time --


def probe(world: World, channel: Channel) -> None:
    """Note who waits although there are items: at the node, or not started by another."""
    device = world.broker.device(channel.number)
    if device is None:
        return
    queued = next(device.queued(), None) is not None
    readers = []
    sitting = set()
    for part in channel.reading:
        reader = part.process.client.readers.get(channel.number) if part.process.there else None
        if reader is not None:
            readers.append((part.process, reader))
            if len(reader.ready) > reader.waiting:
                sitting.add(reader)
    for process, reader in readers:
        # Its word to the node waits behind what the process itself puts, as all that it says does.
        waits = reader.waiting and not reader.ready and reader._report_number <= process.client.session.sent
        key = channel.number, process.number
        since, reached = world.blocked.get(key, (0.0, -1))
        if not waits or not (queued or sitting - {reader}):
            world.blocked.pop(key, None)
            continue
        if reached != reader._next:
            since = world.now
            world.blocked[key] = since, reader._next
        channel.waits.append(world.now - since)


def _check_waits(world: World, channel: Channel) -> None:
    # A waiting reader's word, the recall, what goes back and what comes: each takes at most twice the latency.
    if not world.plan.faults and "lease" not in channel.traffic.manners:
        longest, latency = max(channel.waits, default=0.0), world.plan.latency
        assert longest <= LONGEST_WAIT + 8 * latency, f"a reader waited {longest} s although there were items"


def _check_shares(world: World, channel: Channel) -> None:
    traffic = channel.traffic
    if traffic.kind == "push" and traffic.wait_for_readers and traffic.threads == 1 and not world.plan.faults:
        shares = Counter(got.process for got in world.ledger.got)
        assert set(shares.values()) == {traffic.items * traffic.writers // traffic.readers}, shares


# -- results --


def _check_chains(world: World) -> None:
    """Each item for which a result was to be put into another channel has one there, unless it was dropped."""
    for channel in world.channels:
        into, ledger = channel.traffic.into, world.ledger
        if into is None or channel.number in ledger.dropped or "lease" in channel.traffic.manners:
            continue
        results = ledger.log[world.channels[into].number]
        done = {item.split(b":", 3)[3] for item in results if source(item)[0][1]}
        lost = [item for item in ledger.log[channel.number] if item not in done and item not in ledger.buried]
        assert not lost, f"a task is finished, and its result was lost: {lost[:3]}"


# -- while it runs --


def check_bound(world: World, channel: Channel) -> None:
    """No more items are in the queue than may be; what a dead writer had not sent is not in it, nor a dead letter, and
    one that was put back does not count."""
    inside, maxsize = world.ledger.inside[channel.number], channel.kind.maxsize
    if 0 < maxsize < len(inside):
        device = world.broker.device(channel.number)
        letters = {item for letter in device.dead_letters.values() for item in contents(letter.run)} if device else ()
        sent = (item for item, writer in inside.items() if writer not in world.ended or item in world.ledger.accepted)
        there = [item for item in sent if item not in letters and item not in channel.revived]
        assert len(there) <= maxsize, f"{len(there)} items are in a queue for {maxsize}: {there[:3]}"


def check_eof(world: World, channel: Channel) -> None:
    unread = missing(world, channel, world.ledger.log[channel.number])
    assert not unread, f"the end was told before {unread[:3]} was read"


def check_join(world: World, channel: Channel, before: list[bytes]) -> None:
    """All that had been accepted when `join` was called is finished."""
    ledger = world.ledger
    if channel.number in ledger.dropped:
        return
    finished = {item for item, _ in ledger.finished}
    device = world.broker.device(channel.number)
    assert device is not None
    letters = len(device.dead_letters)
    undone = [item for item in before if item not in finished and item not in ledger.buried]
    assert len(undone) <= letters, f"join ended before {undone[:3]} was done"


def check_end(world: World, process: Process) -> None:
    """The node takes for dead only who is, or could not be reached."""
    if process.killed or world.plan.drop:
        return
    limit = min(world.plan.session_grace, world.plan.session_timeout) * 0.99
    troubled = any(start + limit <= world.now for start, _ in process.troubles)
    assert troubled, f"{process.name} was taken for dead, and could be reached"


def check_letter(world: World, channel: Channel, item: bytes, letter: dict[str, Any]) -> None:
    """A dead letter failed as often as it may, or was there when readers died."""
    limit = channel.traffic.max_deliveries or 5
    ledger = world.ledger
    failures = sum(got[0] == item for got in (*ledger.returned, *ledger.leased)) + len(world.ended)
    assert failures >= min(limit, 1), f"{item!r} is a dead letter, and did not fail: {letter}"


def check_channel(world: World, channel: Channel) -> None:
    """All is read: the node's accounts of the queue are empty."""
    device = world.broker.device(channel.number)
    assert device is not None
    assert not device.unfinished, f"{device.unfinished} items are unfinished after the end"
    assert device.accepted == len(world.ledger.log[channel.number])
    assert not device.bytes, f"{device.bytes} bytes are there after the end"
    assert not count(device.queued())
    if channel.sealed is not None and not world.plan.faults:
        assert device.accepted == channel.sealed, "an item came after the shutdown was answered"
