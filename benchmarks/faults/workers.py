"""What the processes of a run do: put, or get, and note it."""

from __future__ import annotations

import faulthandler
import random
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.faults import ledger
from benchmarks.faults.ledger import REDELIVERED, Ledger, Page, item_of
from benchmarks.faults.systems import End, Ended, Expired, System, bare
from fiberq import codec
from fiberq.protocol import frames
from fiberq.protocol.reader import Reader

EXPIRED: Final = 3
"""The exit status of a process that was told that its session ended."""

BATCHES: Final = (1, 10, 100, 1000)
"""How many items a writer puts before it flushes, by lot."""

CONTROL_WORDS: Final = 16


@dataclass(frozen=True)
class Job:
    """What a process needs to know."""

    number: int  # of all processes of the run
    slot: int  # among the writers, or the readers, that live at the same time
    quota: int  # how many items a writer puts
    before: int  # and how many its predecessors attempted
    way: str
    ledger: str
    capacity: int
    control: str
    log: str
    seed: int
    slow_for: float
    limit: int


def write(system: System, job: Job) -> None:
    _guarded(_write, system, job)


def read(system: System, job: Job) -> None:
    _guarded(_read, system, job)


def _guarded(work: Any, system: System, job: Job) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.alarm(job.limit)  # whatever becomes of the driver, this process ends
    with open(job.log, "a") as log:
        faulthandler.register(signal.SIGUSR1, log)
        try:
            work(system, job, Ledger(job.ledger, job.capacity), Page(job.control, CONTROL_WORDS))
        except Expired:
            sys.exit(EXPIRED)
        except Exception:
            traceback.print_exc(file=log)
            log.flush()
            sys.exit(1)


def _write(system: System, job: Job, noted: Ledger, control: Page) -> None:
    end = system.open(job.way, reads=False)
    rng = random.Random(job.seed)
    words, allowed, place = noted.words, control.words, ledger.ALLOWED + job.slot
    number = 0
    while number < job.quota:
        some = min(rng.choice(BATCHES), job.quota - number, allowed[place] - job.before - number)
        if some <= 0:
            time.sleep(0.0005)
            continue
        words[ledger.ATTEMPTED] = number + some
        end.put([item_of(job.number, each) for each in range(number, number + some)])
        number += some
        while not end.flush():
            pass
        words[ledger.ACKNOWLEDGED] = number


def _read(system: System, job: Job, noted: Ledger, control: Page) -> None:
    marked = mark_redelivered(noted)
    end = system.open(job.way, reads=True)
    rng = random.Random(job.seed)
    most, timeout = rng.choice((1, 1, 1, 20)), rng.choice((None, None, 0.05))
    try:
        _get_all(end, most, timeout, noted, control, marked, job.slow_for)
    except Ended:
        pass


def _get_all(
    end: End, most: int, timeout: float | None, noted: Ledger, control: Page, marked: set[int], slow_for: float
) -> None:
    words, entries, slow = noted.words, noted.entries, control.words
    count = 0
    while True:
        if not end.joins:
            words[ledger.FINISHED] = count
        for item in end.get(most if not slow[ledger.SLOW] else 1, timeout):
            if marked and item in marked:
                noted.stamp(item, time.monotonic())
                entries[count] = item | REDELIVERED
            else:
                entries[count] = item
            count += 1
            words[ledger.COUNT] = count
        if slow[ledger.SLOW]:
            time.sleep(slow_for)
        if end.joins:
            for each in range(words[ledger.FINISHED], count):
                end.done()
                words[ledger.FINISHED] = each + 1


def mark_redelivered(noted: Ledger) -> set[int]:
    """From now on, the set that is returned has all items which came marked as redelivered to this process; and what
    this process was sent ahead and gives back is noted."""
    marked: set[int] = set()

    def number_of(item: Any) -> int:
        return bare(codec.decode(item))

    deliver, recalled = Reader.deliver, Reader.recalled

    def deliver_and_mark(self: Reader, frame: Any, session: Any, now: float) -> None:
        first, redelivered, _, items = frames.read_deliver(frame.body[0], frame.parts)
        if redelivered and items.elsewhere:
            marked.update(number_of(self.borrow(each, number)) for number, each in enumerate(items.elsewhere, first))
        elif redelivered:
            marked.update(map(number_of, [items.parts] if items.parts else frames.split(items)))
        deliver(self, frame, session, now)

    def note_and_return(self: Reader, session: Any, now: float) -> None:
        noted.give_back([number_of(item) for _, item in list(self.ready)])
        recalled(self, session, now)

    Reader.deliver = deliver_and_mark  # type: ignore[method-assign]
    Reader.recalled = note_and_return  # type: ignore[method-assign]
    return marked
