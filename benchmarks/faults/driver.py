"""Runs one system once: lets items pass, injects faults amid them, waits until all is drained, and has it judged."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from benchmarks.faults.checker import Figures, Snapshot, check
from benchmarks.faults.crew import Crew, TooManyErrors, Worker
from benchmarks.faults.garbage import Strangers
from benchmarks.faults.plan import Fault, Size, deal
from benchmarks.faults.probes import Probe
from benchmarks.faults.services import Node, Relay, ServiceFailed
from benchmarks.faults.systems import System

GLANCE: Final = 0.001
"""Seconds between two looks at the processes."""

QUIET: Final = 0.2
"""Seconds without anything got after which all may be drained."""

TRIES: Final = 4
"""How often a fault waits for traffic before it is put off."""


@dataclass
class Outcome:
    """What came of a run."""

    name: str
    figures: Figures = field(default_factory=Figures)
    faults: dict[str, int] = field(default_factory=dict)
    wedged: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    told: int = 0
    journal: list[str] = field(default_factory=list)
    drained: bool = False
    node_kb: int = 0
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        """Whether something was lost, invented, wedged or left behind."""
        figures = self.figures
        return bool(figures.lost or figures.unexpected or self.wedged or self.errors or not self.drained)


class Run:
    """One run. `node`, `relay` and `strangers` are `None` for a system that has no node."""

    def __init__(
        self,
        system: System,
        size: Size,
        weights: dict[Fault, int],
        crew: Crew,
        probe: Probe,
        rng: random.Random,
        advance: Callable[[float], None],
        node: Node | None = None,
        relay: Relay | None = None,
        strangers: Strangers | None = None,
    ) -> None:
        self._size, self._weights, self._crew, self._probe, self._rng = size, weights, crew, probe, rng
        self._node, self._relay, self._strangers = node, relay, strangers
        self._advance = advance
        self._hits: Counter[str] = Counter()
        self._snapshots: list[Snapshot] = []
        self._left = size.faults + size.slow_kills
        self._began = time.monotonic()
        self.outcome = Outcome(system.name)

    def go(self) -> Outcome:
        """Run to the end; always leaves no process behind."""
        outcome, crew = self.outcome, self._crew
        try:
            crew.muster()
            self._inject_all()
            crew.release(self._size.items)
            self._drain()
        except (TooManyErrors, ServiceFailed) as error:
            outcome.errors.append(f"the run was given up: {error}")
        finally:
            crew.resume(everybody=True)
            if self._node is not None:
                self._node.resume(at_once=True)
            crew.end()
        outcome.seconds = time.monotonic() - self._began
        outcome.faults = dict(self._hits)
        outcome.errors += crew.errors
        outcome.wedged += crew.wedged
        outcome.told = crew.told
        outcome.figures = check(crew.written(), list(crew.read()), self._snapshots)
        return outcome

    def _note(self, text: str) -> None:
        crew = self._crew
        passed = time.monotonic() - self._began
        text = f"{passed:7.2f} {text}, {crew.got} of {crew.attempted} got"
        self.outcome.journal.append(text)

    # -- faults --

    def _inject_all(self) -> None:
        """All faults of the plan; one that found no traffic is tried again at the end, as often as it is there."""
        crew = self._crew
        crew.release(self._slice() // 2)
        self._until(lambda: crew.got > 0, 10.0)
        plan = deal(self._weights, self._size.faults, self._rng)
        slow = set(self._rng.sample(range(len(plan)), min(1, len(plan)))) if self._size.slow_kills else set()
        missed: list[Fault] = []
        for place, fault in enumerate(plan):
            if place in slow:
                self._slow_part()
            if not self._episode(fault):
                missed.append(fault)
        for fault in missed:
            self._episode(fault)

    def _slice(self) -> int:
        """How many items the next fault may fall among."""
        left = self._size.items - self._crew.released
        return int(left / max(1, self._left + 2) * self._rng.uniform(0.4, 1.6))

    def _episode(self, fault: Fault) -> bool:
        """Let some items pass, and inject a fault amid them; return whether it hit."""
        crew = self._crew
        for _ in range(TRIES):
            some = self._slice()
            among = self._attempted if fault in (Fault.KILL_WRITER, Fault.STOP_WRITER) else self._got
            target = among() + some * self._rng.random() * 0.8
            crew.release(some)
            self._until(lambda among=among, aim=target: among() >= aim, 0.4)  # type: ignore[misc]
            if not self._inject(fault):
                continue
            self._hit(fault)
            self._until(lambda: False, self._rng.uniform(0.0, 2 * self._size.pause))
            return True
        return False

    def _got(self) -> int:
        return self._crew.got

    def _attempted(self) -> int:
        """Readers may be far behind: a writer is to be hit amid its own work."""
        return self._crew.attempted

    def _hit(self, fault: Fault) -> None:
        self._hits[fault.value] += 1
        self._left -= 1
        self._advance(1 - self._left / (self._size.faults + self._size.slow_kills))

    def _inject(self, fault: Fault) -> bool:
        """Do it, if there is somebody at work to do it to."""
        rng, crew, size = self._rng, self._crew, self._size
        before = crew.snapshot()
        hit = False
        if fault in (Fault.CUT, Fault.CUT_AMID, Fault.STALL):
            seconds = rng.uniform(0.2, 0.8) * size.session_grace
            how = {Fault.CUT: "cut", Fault.CUT_AMID: "amid", Fault.STALL: "stall"}[fault]
            hit = self._relay is not None and self._relay.hit({"do": how, "seconds": seconds})
        elif fault is Fault.GARBAGE:
            hit = self._strangers is not None and bool(crew.active(True)) and self._strangers.come()
        elif fault is Fault.STOP_NODE:
            hit = self._node is not None and bool(crew.active(True)) and self._node.stop(rng.uniform(0.05, 0.3))
        else:
            victim = self._victim(fault)
            if victim is not None:
                hit = self._strike(fault, victim)
        self._note(f"{fault.value}{'' if hit else ': nobody was at work'}")
        if hit:
            self._snapshots.append(before)
        return hit

    def _victim(self, fault: Fault) -> Worker | None:
        readers = fault in (Fault.KILL_READER, Fault.STOP_READER) or (
            fault is Fault.EXPIRE and Fault.KILL_READER in self._weights and self._rng.random() < 0.75
        )
        active = self._crew.active(readers)
        running = [each for each in self._crew.living(readers) if each.running]
        alone = len(running) < min(2, self._size.readers)
        if not active or (alone and fault not in (Fault.KILL_READER, Fault.KILL_WRITER)):
            return None  # somebody has to go on
        return self._rng.choice(active)

    def _strike(self, fault: Fault, victim: Worker) -> bool:
        if fault in (Fault.KILL_READER, Fault.KILL_WRITER):
            return self._crew.kill(victim)
        if fault is Fault.EXPIRE:  # the node asks after a second, and ends the session then
            return self._crew.stop(victim, self._rng.uniform(1.3, 1.8))
        return self._crew.stop(victim, self._rng.uniform(0.55, 0.85))

    def _slow_part(self) -> None:
        """Kill readers while each item takes long."""
        crew = self._crew
        crew.slow_down(True)
        self._note("slow")
        for _ in range(self._size.slow_kills):
            crew.release(self._size.readers * 40)
            started = {each.pid: each.progress[0] for each in crew.living(True)}
            self._until(lambda: False, self._rng.uniform(0.08, 0.2))
            slow = [each for each in crew.active(True) if each.progress[0] >= started.get(each.pid, 1 << 62) + 3]
            if slow:
                self._snapshots.append(crew.snapshot())
                if crew.kill(self._rng.choice(slow), slow=True):
                    self._hit(Fault.KILL_READER)
                else:
                    self._snapshots.pop()
        crew.slow_down(False)
        self._note("fast again")

    # -- waiting --

    def _until(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Watch everybody until `condition` holds; return whether it did in `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() >= deadline:
                return False
            if self._node is not None:
                self._node.resume()
            self._crew.tick(self._node is not None and self._node.stopped_until is not None)
            time.sleep(GLANCE)
        return True

    def _drain(self) -> None:
        """All is put, and got: nothing waits, nobody holds anything, and all readers end when they are told to."""
        crew, outcome = self._crew, self.outcome
        self._note("no more faults")
        if not self._until(lambda: not crew.living(False), self._size.limit):
            crew.errors.append("not all writers ended")
            return
        self._note("all is put")
        self._until(lambda: all(each.stopped_until is None for each in crew.all), 5.0)
        began = time.monotonic()
        while not outcome.drained and time.monotonic() < max(began, crew.moved_at) + 2 * self._size.patience:
            self._until(self._is_quiet, self._size.patience)
            got = crew.got
            outcome.drained = self._probe.drained(2.0) and self._is_quiet() and crew.got == got
        self._note("drained" if outcome.drained else "not drained")
        if outcome.drained and self._probe.finish():
            crew.dismiss(self._size.patience)

    def _is_quiet(self) -> bool:
        now = time.monotonic()
        return all(each.running and now - each.moved_at > QUIET for each in self._crew.living(True))
