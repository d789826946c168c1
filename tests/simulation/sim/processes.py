"""A client process in virtual time: its connection, its threads, its clock. It does what `fiberq.driven` does.

It can be stopped, killed, cut off, and its clock can jump.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, TypeAlias

from fiberq.driven import HEARTBEAT, LULL
from fiberq.errors import NodeError
from fiberq.protocol.client import Client, Request
from fiberq.protocol.session import drain
from sim.network import Connection, Message

if TYPE_CHECKING:
    from sim.world import World

Steps: TypeAlias = "Generator[float | None, None, Any]"
"""A thread: it yields the seconds that it sleeps, negative ones for 'or until there is news', `None` for news only."""

ROUNDING = 1e-7
"""Seconds by which timers are late, so that they are never early."""

LONGEST_CUT = 1.0
"""Seconds that it takes at most to connect again, if nothing is in the way."""


class Thread:
    """`holds` is the item that it got last, which is its own until it gets again."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.steps: Steps
        self.turn = 0  # a wake-up for an earlier turn is stale
        self.listens = False
        self.holds: list[bytes] = []


class Process:
    def __init__(self, world: World, number: int, grace: bool, mortal: bool = True) -> None:
        self.world = world
        self.number = number
        self.name = f"process {number}"
        self.mortal = mortal
        self.grace = grace
        self.alive = True
        self.killed = False
        self.died = 0.0
        self.closed = False
        self.leaving = False
        self.client = Client(self.name, grace)
        self.threads: list[Thread] = []
        self.troubles: list[tuple[float, float]] = []  # from when till when it could not be reached
        self.connected = False
        self.parts = 0  # that it has still to play
        self.handles: Counter[tuple[int, str]] = Counter()
        self.tokens: dict[tuple[int, str], str] = {}  # of handles that it was given, and has not used
        self.brief = True  # it says goodbye, and no more
        self.late: float | None = None  # it begins so many seconds later, with handles that were in flight
        self._ahead = world.random.choice((0.0, -900.0, 1e6))  # of its clock: it is another machine's
        self._thread_count = number * 100
        self._paused_until = 0.0
        self._unreachable_until = 0.0
        self._timer = float("inf")
        self._io_at = float("inf")
        self._connection = Connection(world, self, whole=False)

    @property
    def now(self) -> float:
        return self.world.now + self._ahead

    @property
    def there(self) -> bool:
        """Whether it lives, and has not said goodbye."""
        return self.alive and not self.closed

    def begin(self) -> None:
        """It is started: connect."""
        if self.alive:
            self._connect()
            self._greet_again()
            self.look_by(self.now)

    # -- what can happen to it --

    def awake(self, action: Callable[[], None]) -> None:
        """Do something as soon as this process is not stopped, if it still lives."""
        if self.world.now < self._paused_until:
            self.world.at(self._paused_until, lambda: self.awake(action))
        elif self.alive:
            action()

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Do something at `when`, by this process's clock."""
        self.world.at(when - self._ahead + ROUNDING, lambda: self.awake(action))

    def pause(self, seconds: float) -> None:
        self._paused_until = max(self._paused_until, self.world.now + seconds)
        self._suffer(seconds)

    def jump(self, seconds: float) -> None:
        """The clock jumps forward."""
        self._ahead += seconds

    def kill(self) -> None:
        if self.there:
            self.killed = True
            self.died = self.world.now
            self.alive = False
            self.world.count("deaths")
            self._connection.cut()

    def cut(self, unnoticed: float = 0.0) -> None:
        if self._connection.whole:
            self._suffer(LONGEST_CUT + 0.020)
            self._connection.cut(unnoticed)

    def part(self, seconds: float, breaks: bool) -> None:
        """No message passes for a while; the connection may break of that."""
        self._unreachable_until = max(self._unreachable_until, self.world.now + seconds)
        self._suffer(seconds)
        self._connection.hold(self._unreachable_until)
        if breaks:
            self.cut(self.world.random.uniform(0, seconds))

    def _suffer(self, seconds: float) -> None:
        now = self.world.now
        until = max(now + seconds, self._paused_until, self._unreachable_until)
        if self.troubles and self.troubles[-1][1] >= now:
            self.troubles[-1] = (self.troubles[-1][0], max(until, self.troubles[-1][1]))
        else:
            self.troubles.append((now, until))

    def expire(self) -> None:
        """The node has taken it for dead, and told it so: all its handles raise."""
        self.alive = False
        self.world.count("expired")
        self._connection.cut()

    def close(self) -> None:
        """It has ended well."""
        self.closed = True
        self._connection.cut()

    # -- the connection --

    def disconnected(self, connection: Connection) -> None:
        if connection is self._connection and not self.closed:
            self.connected = False
            self.client.session.disconnect()
            self._connection = Connection(self.world, self, whole=False)
            least = max(0.0, self._unreachable_until - self.world.now)
            delays = (0.0, 0.0, 0.01, 0.1) if not self.mortal else (0.0, 0.01, 0.3, LONGEST_CUT)
            later = least + self.world.random.choice(delays)
            self._suffer(later)
            self.world.at(self.world.now + later, lambda: self.awake(self._connect))

    def _connect(self) -> None:
        if self.closed:
            return
        if self.world.now < self._unreachable_until:
            self.world.at(self._unreachable_until, lambda: self.awake(self._connect))
            return
        self._connection.whole = True
        self.connected = True
        self._greet()

    def _greet(self) -> None:
        self.client.hello()
        self.transmit()

    def _greet_again(self) -> None:
        if self.closed:
            return
        if self.connected and not self.client.welcomed:
            self._greet()
        self.world.at(self.world.now + 1.0, lambda: self.awake(self._greet_again))

    def message(self, message: Message) -> None:
        if self.closed:
            return
        try:
            self.client.message(message, self.now)
        except NodeError as error:
            if not self.leaving:
                if "ended while this process was away" not in str(error):
                    raise
                self.expire()
                return
            self.close()  # its goodbye had arrived
        self.transmit()
        self.news()
        if not any(reader.waiting for reader in self.client.readers.values()):
            self.look_by(self.now)  # nobody else drives

    def transmit(self) -> None:
        session, now = self.client.session, self.now
        if session.due() <= now:
            session.tick(now)
        for message in drain(session):
            self._connection.up(message)
        due = session.due()
        if due < self._timer:
            self._timer = due
            self.at(due, self._rings)

    def _rings(self) -> None:
        if self._timer <= self.now:
            self._timer = float("inf")
            self.transmit()

    def look_by(self, when: float) -> None:
        """Let the I/O thread look at the clocks of the protocol at `when`, at the latest."""
        if when < self._io_at:
            self._io_at = when
            self.at(when, self._look)

    def _look(self) -> None:
        if self._io_at > self.now + 1e-9 or self.closed:
            return
        self._io_at = float("inf")
        left = self.client.idle(self.now)
        self.client.outlived([thread.number for thread in self.threads], self.now)
        self.transmit()
        self.look_by(self.now + (LULL if left else HEARTBEAT))

    # -- threads --

    def start(self, steps: Callable[[Thread], Steps]) -> None:
        self._thread_count += 1
        thread = Thread(self._thread_count)
        thread.steps = steps(thread)
        self.threads.append(thread)
        self._wake(thread, 0.0)

    def news(self, for_all: bool = False) -> None:
        """Wake the threads that wait, if there is something for any of them."""
        changed, self.client.changed = self.client.changed, []
        if changed or for_all or self.closed:
            for thread in self.threads:
                if thread.listens:
                    thread.listens = False
                    self._wake(thread, self.world.random.choice((0.0, 0.00001, 0.0001)))

    def _wake(self, thread: Thread, after: float) -> None:
        turn = thread.turn

        def go() -> None:
            if thread.turn == turn:
                thread.turn += 1
                self._step(thread)

        self.world.at(self.world.now + after, lambda: self.awake(go))

    def _step(self, thread: Thread) -> None:
        thread.listens = False
        try:
            pause = next(thread.steps)
        except StopIteration:
            self.threads.remove(thread)
            self.transmit()
            return
        self.transmit()
        thread.listens = pause is None or pause < 0
        if pause is not None:
            self._wake(thread, abs(pause))

    # -- what threads ask --

    def ask(self, **question: Any) -> Steps:
        """The node's answer."""
        request: Request = self.client.request(self.now, **question)
        while request.answer is None:
            yield None
        return request.answer

    def granted(self, **question: Any) -> Steps:
        """The node's answer, which is no refusal."""
        answer = yield from self.ask(**question)
        assert "error" not in answer, answer
        return answer

    def arrived(self, number: int) -> Steps:
        """Wait until the node has the frame with this number."""
        yield from until(lambda: self.client.session.acknowledged >= number or self.closed)


def until(condition: Callable[[], bool]) -> Steps:
    """Look again and again, less and less often."""
    pause = 0.001
    while not condition():
        yield pause
        pause = min(2 * pause, 0.2)
