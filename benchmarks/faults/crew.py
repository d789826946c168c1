"""The processes of a run: started, watched, stopped and killed by their ids."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from typing import Any, Final

from benchmarks.faults import ledger, workers
from benchmarks.faults.checker import Got, Snapshot, Written
from benchmarks.faults.ledger import Ledger, Page
from benchmarks.faults.plan import Size
from benchmarks.faults.systems import System
from benchmarks.faults.workers import EXPIRED, Job

ACTIVE: Final = 0.05
"""Seconds since a process was seen to move for which it counts as amid its work."""

MAX_ERRORS: Final = 10
"""Processes that may end wrongly, or be wedged, before a run is given up."""

REAP: Final = 5.0
"""Seconds that a process may take to be gone after SIGKILL."""


class TooManyErrors(Exception):
    """Processes end one after the other."""


@dataclass
class Worker:
    """One process, living or dead, and the file in which it notes what it does."""

    process: BaseProcess
    job: Job
    reads: bool
    noted: Ledger
    pid: int
    seen: tuple[int, int] = (0, 0)
    moved_at: float = 0.0
    idle_since: float = 0.0  # it has had work since then, and has not moved
    stopped_until: float | None = None
    disturbed: bool = False  # it was stopped once
    killed_at: float | None = None
    slow: bool = False
    gone: bool = False

    @property
    def progress(self) -> tuple[int, int]:
        words = self.noted.words
        if self.reads:
            return words[ledger.COUNT], words[ledger.FINISHED]
        return words[ledger.ATTEMPTED], words[ledger.ACKNOWLEDGED]

    @property
    def running(self) -> bool:
        return not self.gone and self.stopped_until is None


@dataclass
class Crew:
    """Writers and readers of one system, with a successor for each that ends."""

    system: System
    size: Size
    rng: random.Random
    directory: str
    methods: tuple[str, ...]
    bearable: int = MAX_ERRORS  # processes that may be wedged before the run is given up
    all: list[Worker] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    told: int = 0  # processes that were told that their session had ended
    wedged: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.control = Page(os.path.join(self.directory, "control"), workers.CONTROL_WORDS, create=True)
        self.share = self.size.items // self.size.writers
        self._deadline = time.monotonic() + self.size.limit

    def muster(self) -> None:
        for slot in range(self.size.readers):
            self._start(True, slot)
        for slot in range(self.size.writers):
            self._start(False, slot)

    def living(self, reads: bool) -> list[Worker]:
        return [each for each in self.all if each.reads is reads and not each.gone]

    def active(self, reads: bool) -> list[Worker]:
        """Who was at work a moment ago."""
        now = time.monotonic()
        found = [each for each in self.living(reads) if each.running and each.process.is_alive()]
        return [each for each in found if now - each.moved_at < ACTIVE]

    @property
    def released(self) -> int:
        return sum(self.control.words[ledger.ALLOWED + slot] for slot in range(self.size.writers))

    @property
    def attempted(self) -> int:
        return sum(each.progress[0] for each in self.all if not each.reads)

    @property
    def got(self) -> int:
        return sum(each.progress[0] for each in self.all if each.reads)

    @property
    def moved_at(self) -> float:
        """When a reader last got something."""
        return max((each.moved_at for each in self.all if each.reads), default=0.0)

    def release(self, items: int) -> None:
        """Let the writers put so many more, in all."""
        for slot in range(self.size.writers):
            place = ledger.ALLOWED + slot
            more = items // self.size.writers + 1
            self.control.words[place] = min(self.share, self.control.words[place] + more)

    def slow_down(self, slow: bool) -> None:
        self.control.words[ledger.SLOW] = int(slow)

    # -- faults --

    def kill(self, victim: Worker, slow: bool = False) -> bool:
        """Kill it, and start its successor; return whether it was alive until then."""
        victim.killed_at = time.monotonic()
        victim.slow = slow
        _signal(victim, signal.SIGKILL)
        victim.process.join(REAP)
        hit = victim.process.exitcode == -signal.SIGKILL
        if not hit:
            victim.killed_at = None
            self._ended(victim)
        else:
            self._succeed(victim)
        return hit

    def stop(self, victim: Worker, seconds: float) -> bool:
        """Stop it for so long; return whether it was alive until then."""
        if not _signal(victim, signal.SIGSTOP):
            return False
        victim.stopped_until = time.monotonic() + seconds
        victim.disturbed = True
        return True

    def resume(self, everybody: bool = False) -> None:
        now = time.monotonic()
        for each in self.all:
            if each.stopped_until is not None and (everybody or each.stopped_until <= now):
                each.stopped_until = None
                each.idle_since = now
                if not each.gone:
                    _signal(each, signal.SIGCONT)

    # -- watching --

    def tick(self, node_stopped: bool = False) -> None:
        """Look at everybody: who moved, who ended, who is wedged."""
        self.resume()
        now = time.monotonic()
        busy_readers = any(now - each.moved_at < 0.5 for each in self.living(True))
        for each in [each for each in self.all if not each.gone]:
            progress = each.progress
            if progress != each.seen:
                each.seen, each.moved_at, each.idle_since = progress, now, now
            elif not each.process.is_alive():
                self._ended(each)
            elif node_stopped or not each.running or not self._has_work(each, busy_readers):
                each.idle_since = now
            elif now - each.idle_since > self.size.patience:
                self._wedge(each)
        if now > self._deadline:
            raise TooManyErrors(f"the run took longer than {self.size.limit:g} s")

    def _has_work(self, each: Worker, busy_readers: bool) -> bool:
        if each.reads:
            return self.system.shares if busy_readers else self.attempted > self.got
        return each.progress[0] != each.progress[1] or self._allowed(each) > each.progress[0]

    def _allowed(self, writer: Worker) -> int:
        allowed: int = self.control.words[ledger.ALLOWED + writer.job.slot]
        return min(allowed - writer.job.before, writer.job.quota)

    def _wedge(self, each: Worker) -> None:
        """It makes no progress: note where it is, and replace it."""
        _signal(each, signal.SIGUSR1)
        time.sleep(0.3)
        self.wedged.append(f"{_name(each)} made no progress for {self.size.patience:g} s\n{_tail(each.job.log)}")
        each.disturbed = True
        self.kill(each)
        if len(self.wedged) >= self.bearable:
            raise TooManyErrors("too many processes are wedged")

    def _ended(self, each: Worker) -> None:
        """A process ended by itself."""
        status = each.process.exitcode
        if status == 0 and not each.reads and each.progress[1] == each.job.quota:
            each.gone = True
            return
        if status == EXPIRED:
            self.told += 1
            each.disturbed = True
        else:
            self.errors.append(f"{_name(each)} ended with status {status}\n{_tail(each.job.log)}")
            if len(self.errors) > MAX_ERRORS:
                raise TooManyErrors("too many processes end wrongly")
        self._succeed(each)

    def _succeed(self, each: Worker) -> None:
        each.gone = True
        each.process.join(REAP)
        each.process.close()
        self._start(each.reads, each.job.slot, each.job.before + each.progress[0])

    def _start(self, reads: bool, slot: int, before: int = 0) -> None:
        quota = 0 if reads else self.share - before
        if not reads and not quota:
            return
        number = len(self.all) + 1
        capacity = 3 * self.size.items if reads else 0
        path = os.path.join(self.directory, f"ledger{number}")
        job = Job(
            number=number,
            slot=slot,
            quota=quota,
            before=before,
            way=self.system.way(slot, self.rng),
            ledger=path,
            capacity=capacity,
            control=os.path.join(self.directory, "control"),
            log=os.path.join(self.directory, f"log{number}"),
            seed=self.rng.getrandbits(32),
            slow_for=self.size.slow_for,
            limit=int(self.size.limit) + 10,
        )
        noted = Ledger(path, capacity, create=True)
        context: Any = multiprocessing.get_context(self.rng.choice(self.methods))
        work = workers.read if reads else workers.write
        process = context.Process(target=work, args=(self.system, job), daemon=True)
        process.start()
        assert process.pid is not None
        self.all.append(Worker(process, job, reads, noted, process.pid, idle_since=time.monotonic()))

    # -- the end --

    def dismiss(self, patience: float) -> None:
        """Wait for readers that were told to end; who does not, is wedged."""
        deadline = time.monotonic() + patience
        for each in self.living(True):
            each.process.join(max(0.0, deadline - time.monotonic()))
            if each.process.exitcode is None:
                _signal(each, signal.SIGUSR1)
                time.sleep(0.3)
                self.wedged.append(f"{_name(each)} did not end\n{_tail(each.job.log)}")
            elif each.process.exitcode == EXPIRED:
                self.told += 1
            elif each.process.exitcode:
                self.errors.append(f"{_name(each)} ended with status {each.process.exitcode}\n{_tail(each.job.log)}")

    def end(self) -> None:
        """Kill who is left."""
        for each in self.all:
            if each.gone:
                continue
            each.gone = True
            _signal(each, signal.SIGKILL)
            each.process.join(REAP)

    def snapshot(self) -> Snapshot:
        return Snapshot(
            {each.job.number: each.progress[0] for each in self.all if not each.reads},
            [each.progress[0] for each in self.all if each.reads],
        )

    def written(self) -> list[Written]:
        return [Written(each.job.number, *each.progress) for each in self.all if not each.reads]

    def read(self) -> Iterator[Got]:
        for each in self.all:
            if each.reads:
                count, finished = each.progress
                entries = each.noted.entries[:count]
                name, back, stamps = _name(each), each.noted.given_back(), each.noted.stamped()
                local = each.job.way != "tcp"
                yield Got(entries, finished, name, local, each.killed_at, each.slow, each.disturbed, back, stamps)


def _signal(each: Worker, number: signal.Signals) -> bool:
    """Send a signal to a process that we started; return whether it was there."""
    try:
        if each.process.is_alive():
            os.kill(each.pid, number)
            return True
    except ProcessLookupError:  # it has just ended by itself
        pass
    return False


def _name(each: Worker) -> str:
    role = "reader" if each.reads else "writer"
    return f"{role} {each.job.number} (way {each.job.way}, pid {each.pid}, progress {each.progress})"


def _tail(path: str) -> str:
    with open(path, errors="replace") as file:
        return file.read()[-4000:]
