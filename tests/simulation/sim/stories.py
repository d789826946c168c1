"""What the processes of a schedule mean to do: writers, readers of all manners, and the creator, who ends it all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fiberq.protocol.reader import Reader
from sim.acts import ENDED, Grip
from sim.ledger import source
from sim.processes import Process, Steps, Thread, until

if TYPE_CHECKING:
    from sim.world import Channel, World

Story = Callable[[Thread], Steps]


class Part:
    """What one process has to do with one channel, with one thread or more."""

    def __init__(self, process: Process, threads: int = 1) -> None:
        self.process = process
        self.threads = self.threads_at_first = threads
        self.opened = False
        self.released = False  # and the node knows
        process.parts += 1

    @property
    def live(self) -> bool:
        return self.threads > 0 and self.process.there

    @property
    def over(self) -> bool:
        return self.released or not self.process.there


def hold(grip: Grip, side: str) -> Steps:
    """One more handle on a side of a channel; the first asks the node."""
    process, client, number = grip.process, grip.client, grip.number
    process.handles[number, side] += 1
    if process.handles[number, side] == 1 or number not in client.kinds:
        client.opening += 1
        token = process.tokens.pop((number, side), None)
        answer = yield from process.granted(op="open", holds=[[number, side]], token=token)
        client.opening -= 1
        client.kinds[number] = grip.channel.kind
        client.over.update(dict.fromkeys(answer["shut"], "shut"))
    if side == "w":
        client.writer(number, grip.channel.kind)
    else:
        client.readers.setdefault(number, Reader(number, grip.channel.kind))


def let_go(grip: Grip, side: str) -> Steps:
    """One handle less; what was put has arrived. Return whether the node knows: a brief process leaves it to its
    goodbye, but for a pipe's end."""
    process = grip.process
    if side == "w":
        yield from grip.flush()
    process.handles[grip.number, side] -= 1
    if process.handles[grip.number, side]:
        if side == "r":
            grip.client.give_back(grip.number, process.now)
        return True
    if process.brief and grip.channel.traffic.kind != "pipe":
        return False
    yield from grip.release(side)
    return True


def writing(world: World, channel: Channel, part: Part) -> Story:
    def steps(_: Thread) -> Steps:
        traffic, random, process = channel.traffic, world.random, part.process
        grip = Grip(process, channel)
        yield from hold(grip, "w")
        part.opened = True
        yield from until(lambda: not traffic.wait_for_readers or len(channel.attached) >= traffic.readers)
        for number in range(traffic.items):
            data = world.new_item(channel, process, number, b"." * random.randint(0, traffic.padding))
            item = (data[:3], data[3:]) if random.random() < traffic.large else data
            put = None
            while put is None:
                put = yield from grip.put(item, random.choice(traffic.patience))
                if put is None:
                    yield 0.005
            if put is ENDED:
                break
            if number % traffic.burst == traffic.burst - 1:
                yield random.choice(traffic.pace)
        yield from let_go(grip, "w")
        part.threads -= 1
        part.released = True
        yield from leave(part)

    return steps


def reading(world: World, channel: Channel, part: Part, first: bool, manner: str) -> Story:
    def steps(thread: Thread) -> Steps:
        traffic, random, process = channel.traffic, world.random, part.process
        grip = Grip(process, channel)
        out = None if traffic.into is None else Grip(process, world.channels[traffic.into])
        if first:
            yield from hold(grip, "r")
            if out is not None:
                yield from hold(out, "w")
            part.opened = True
        yield from until(lambda: part.opened)
        if manner == "listen":
            grip.listen()
        goes_on, idle = True, 0.02
        while goes_on and not channel.over:
            if traffic.wait_for_readers:
                world.at(world.now + 0.01, lambda: channel.attached.add(process))
            timeout, work = random.choice(traffic.timeouts), random.choice(traffic.work)
            if manner == "lease":
                duration = random.choice(traffic.durations)
                failing = random.random() < traffic.failing
                goes_on = yield from grip.lease(timeout, duration, work, failing)
                yield random.choice((0.0, 0.001))
                continue
            if manner == "many":
                goes_on = yield from grip.get(thread, timeout, random.choice((1, 3, 100)))
            elif manner == "poll":
                found = yield from grip.poll(timeout)
                yield random.choice((0.0, 0.0, 0.003, 0.02))
                if found:
                    goes_on = yield from grip.get(thread, random.choice((0.0, None)))
            elif manner == "listen":
                while not (grip.reader.ready or grip.reader.ended or channel.over):
                    yield None
                yield random.choice((0.0, 0.0, 0.003, 0.02))
                goes_on = yield from grip.get(thread, random.choice((0.0, 0.0, timeout)))
                grip.look_at_bell()
            else:
                goes_on = yield from grip.get(thread, timeout)
            for item in thread.holds:
                yield traffic.work[source(item)[1] % len(traffic.work)] if traffic.fixed else work
                if out is not None:
                    yield from out.put(world.new_item(out.channel, process, world.next_result(), item))
            if thread.holds:
                idle = 0.02
                if grip.reader.kind.joins:
                    grip.finish(thread)
            else:
                idle = min(2 * idle, 1.0)  # nothing new is to be seen by looking more often
                yield random.choice((0.0, idle, idle))
        if manner == "listen":
            grip.silence()
        grip.finish(thread)
        if grip.reader.ended == "eof":
            world.at_eof(channel)
        part.threads -= 1
        if first:
            yield from until(lambda: not part.threads)
            if out is not None:
                yield from let_go(out, "w")
            part.released = yield from let_go(grip, "r")
            yield from leave(part)

    return steps


def leave(part: Part) -> Steps:
    """The process's last part is over: it says goodbye."""
    process = part.process
    process.parts -= 1
    if process.parts:
        return
    yield from until(lambda: not process.client.session.busy or process.closed)
    process.leaving = True
    number = process.client.goodbye(process.now)
    yield from process.arrived(number)
    process.close()


# -- the creator, for each channel --


def conducting(world: World, channel: Channel, part: Part) -> Story:
    """See that all is put, done and read, end the channel, and look that nothing of it is left."""

    def steps(_: Thread) -> Steps:
        traffic, creator = channel.traffic, world.creator
        grip = Grip(creator, channel)
        parts = [*channel.writing, *channel.reading]
        yield from until(lambda: all(each.opened or not each.process.there for each in parts))
        if traffic.kind == "pipe" and not channel.sources:
            yield from let_go(grip, "w")
        if traffic.shut_early:
            yield world.random.choice((0.0, 0.005, 0.05))
            yield from shut_down(grip)
        yield from until(
            lambda: not any(each.live for each in channel.writing) and all(each.finished for each in channel.sources)
        )
        if traffic.kind == "pipe" and channel.sources:
            yield from let_go(grip, "w")
        if traffic.kind == "joinable":
            before = list(world.ledger.log[channel.number])
            yield from creator.granted(op="join", channel=channel.number)
            world.at_join(channel, before)
        if traffic.end != "stop" and not channel.shut:
            yield from shut_down(grip)
        yield from drained(world, grip, final=False)
        yield from until(lambda: all(each.over for each in channel.reading))
        channel.relieved = True
        yield from drained(world, grip, final=True)
        world.at_end(channel)
        channel.finished = True
        for side in "r" if traffic.kind == "pipe" else "rw":
            yield from let_go(grip, side)
        part.released = True
        yield from leave(part)

    return steps


def drained(world: World, grip: Grip, final: bool) -> Steps:
    """Wait until each item is done with, and let the readers stop; dead letters are put back once."""
    channel = grip.channel
    while True:
        pause = 0.005
        while not world.all_done(channel, final):
            if final and not any(each.live for each in channel.reading):
                relieve(world, channel)
            yield pause
            pause = min(2 * pause, 0.2)
        if channel.traffic.kind != "pipe" and (channel.traffic.end == "stop" or final):
            channel.over = True
        if final:
            channel.over = True
        for process in world.processes:
            process.awake(lambda process=process: process.news(for_all=True))  # type: ignore[misc]
        if not final:
            return
        yield from until(lambda: all(each.over for each in channel.reading))
        if world.all_done(channel, final):
            return
        channel.over = False
        yield 0.005


def relieving(world: World, channel: Channel) -> Story:
    """When nobody is left who reads, the creator does; and it sees to the dead letters."""

    def steps(_: Thread) -> Steps:
        grip = Grip(world.creator, channel)
        while not channel.finished:
            device = world.broker.device(channel.number)
            assert device is not None
            if device.dead_letters:
                yield from settle_letters(world, grip)
            needed = device.unfinished and not (channel.relieved or channel.over)
            if needed and not any(each.live for each in channel.reading):
                relieve(world, channel)
            yield 0.05

    return steps


def relieve(world: World, channel: Channel) -> None:
    part = Part(world.creator)
    channel.over = False
    channel.reading.append(part)
    world.creator.start(reading(world, channel, part, True, "get"))


def settle_letters(world: World, grip: Grip) -> Steps:
    creator, number, ledger = grip.process, grip.number, world.ledger
    answer = yield from creator.granted(op="dead letters", channel=number)
    for letter in answer["letters"]:
        place = letter["place"]
        request = creator.client.request(creator.now, op="dead letter", channel=number, place=place, what="show")
        while request.answer is None:
            yield None
        item = b"".join(request.parts)
        world.at_letter(grip.channel, item, letter)
        again = item not in grip.channel.revived
        grip.channel.revived.add(item)
        if not again:
            ledger.buried.add(item)
        answer = yield from creator.ask(
            op="dead letter", channel=number, place=place, what="put back" if again else "drop"
        )
        if answer.get("code") == "shut":
            ledger.buried.add(item)
            yield from creator.granted(op="dead letter", channel=number, place=place, what="drop")


def shut_down(grip: Grip) -> Steps:
    """As `Link.shut_down`."""
    channel, process, drop = grip.channel, grip.process, grip.channel.traffic.end == "drop"
    channel.shut = True
    if drop:
        process.world.ledger.dropped.add(channel.number)
    grip.client.shut_down(channel.number, process.now)
    yield from process.granted(op="shutdown", channel=channel.number, drop=drop)
    process.world.at_shut(channel)
