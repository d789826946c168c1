"""The node's process: what `fiberq.node.serve` does, in virtual time; and it can be stopped."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from fiberq.node import BURST
from fiberq.steady import Steady
from sim.network import Connection
from sim.processes import ROUNDING

if TYPE_CHECKING:
    from sim.world import World


class Node:
    def __init__(self, world: World) -> None:
        self.world = world
        self.clock = Steady(lambda: world.now)
        self._inbox: deque[Callable[[float], None]] = deque()
        self._stopped_until = 0.0
        self._due = float("inf")
        self._timer = float("inf")  # in the world's time
        self.ran = 0

    def hears(self, event: Callable[[float], None]) -> None:
        self._inbox.append(event)
        if self.world.now >= self._stopped_until:
            self.run()

    def stop(self, seconds: float) -> None:
        self._stopped_until = max(self._stopped_until, self.world.now + seconds)
        self.world.at(self._stopped_until, self.run)

    @property
    def stopped(self) -> bool:
        return self.world.now < self._stopped_until

    def run(self) -> None:
        """Take in what has come, and send what has to be sent; wake up when the broker wants."""
        if self.stopped:
            return
        broker, clock = self.world.broker, self.clock
        while True:
            self.ran += 1
            # While nothing comes, it sleeps until its timer goes off; with something to do it looks at once.
            now = clock.advance(max(clock.now, self._due))
            for _ in range(min(BURST, len(self._inbox))):
                self._inbox.popleft()(now)
            for peer, message in broker.output(now):
                assert isinstance(peer, Connection), peer
                peer.down(message)
            self._due = broker.due()
            if not self._inbox:
                break
        timer = self._due + clock.missed + ROUNDING
        if timer < self._timer:
            self._timer = timer
            self.world.at(max(timer, self.world.now), self._rings)

    def _rings(self) -> None:
        if self._timer <= self.world.now:
            self._timer = float("inf")
            self.run()
