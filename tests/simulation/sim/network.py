"""One connection between a process and the node, and what can happen to it: it carries messages both ways in order."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from fiberq.abc import Buffer

if TYPE_CHECKING:
    from sim.processes import Process
    from sim.world import World

Message: TypeAlias = "tuple[Buffer, ...]"


class Connection:
    def __init__(self, world: World, process: Process, whole: bool = True) -> None:
        self.world = world
        self.process = process
        self.whole = whole
        self.noticed = False  # the node was told that it broke
        self._still_arriving = False  # what was on its way to the node when it broke arrives
        self._up_at = self._down_at = 0.0
        self._held_until = 0.0
        plan = world.plan
        self._drop, self._repeat, self._latency = plan.drop, 1 - plan.repeat, plan.latency

    def up(self, message: Message) -> None:
        for _ in range(self._copies()):
            self._up_at = self._later(self._up_at)
            self.world.at(self._up_at, lambda: self._arrive_up(message))

    def down(self, message: Message) -> None:
        for _ in range(self._copies()):
            self._down_at = self._later(self._down_at)
            self.world.at(self._down_at, lambda: self._arrive_down(message))

    def hold(self, until: float) -> None:
        """Nothing passes until then; then all does."""
        self._held_until = max(self._held_until, until)

    def cut(self, unnoticed: float = 0.0) -> None:
        """Break. The client notices; so does the node, but `unnoticed` seconds later. What was on its way then arrives
        late, when there is another connection already."""
        if not self.whole:
            return
        world, random = self.world, self.world.random
        self.whole = False
        self._still_arriving = bool(unnoticed) or random.random() < 0.5
        if unnoticed:
            self.hold(world.now + random.uniform(0, unnoticed))
        world.at(world.now + random.uniform(0, 0.005) + unnoticed, self._notice)
        world.at(world.now + random.uniform(0, 0.020), lambda: self.process.awake(self._client_notices))

    def _client_notices(self) -> None:
        self.process.disconnected(self)

    def _notice(self) -> None:
        def lost(now: float) -> None:
            self.noticed = True
            self.world.broker.lost(self, now)

        self.world.node.hears(lost)

    def _arrive_up(self, message: Message) -> None:
        if self.world.now < self._held_until:
            self.world.at(self._held_until, lambda: self._arrive_up(message))
        elif self.whole or self._still_arriving:

            def arrives(now: float) -> None:
                if not self.noticed:
                    self.world.broker.message(self, message, now)

            self.world.node.hears(arrives)

    def _arrive_down(self, message: Message) -> None:
        if self.world.now < self._held_until:
            self.world.at(self._held_until, lambda: self._arrive_down(message))
        else:
            self.process.awake(lambda: self._deliver(message))

    def _deliver(self, message: Message) -> None:
        if self.whole:
            self.process.message(message)

    def _later(self, at: float) -> float:
        return max(at, self.world.now + (0.2 + 1.8 * self.world.random.random()) * self._latency)

    def _copies(self) -> int:
        chance = self.world.random.random()
        if not self.whole or chance < self._drop:
            return 0
        return 2 if chance > self._repeat else 1
