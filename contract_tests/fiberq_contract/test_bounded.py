"""What bounded queues and joinable queues promise, on the transport."""

from __future__ import annotations

import time
from queue import Full

import pytest

from fiberq import ShutDown

from . import workers
from .lab import PATIENCE, assert_within
from .queues_lab import Crew, every_method
from .rules import rule

LATE = 0.5
"""Seconds after which something is late; fiberq sends again after a second what got lost."""


@rule("BOUND-1")
@every_method
def test_a_bounded_queue_never_holds_more_than_it_may(crew: Crew) -> None:
    q = crew.bounded(3)
    writers = crew.workers(3, q)
    reader = crew.worker(q)
    for number, writer in enumerate(writers):
        writer.begin(workers.put_all, range(1000 * number, 1000 * number + 60))
    reader.begin(workers.get_some, 180)
    sizes = []
    while not reader.done(0.01):
        sizes.append(q.qsize())
    assert max(sizes) <= 3
    assert sorted(reader.result()) == [1000 * number + item for number in range(3) for item in range(60)]
    for writer in writers:
        writer.result()


@rule("BOUND-2")
def test_a_put_that_waits_for_room_goes_on_when_an_item_is_got(crew: Crew) -> None:
    q = crew.bounded(2)
    writer = crew.worker(q)
    writer(workers.put_all_and_flush, [1, 2])
    numbers = iter(range(3, 100))

    def put_with_a_wait() -> float:
        with pytest.raises(Full):
            q.put(0, block=False)
        number = next(numbers)
        writer.begin(workers.put_all_and_flush, [number])
        assert not writer.done(0.1), "it put into a full queue"
        started = time.monotonic()
        assert q.get(timeout=PATIENCE) == number - 2
        writer.result()
        return time.monotonic() - started

    assert_within(LATE, put_with_a_wait)


@rule("BOUND-3")
@every_method
def test_join_returns_when_all_tasks_are_done_and_not_before(crew: Crew) -> None:
    tasks = crew.joinable()
    worker, waits = crew.workers(2, tasks)
    workers.put_all(tasks, range(50))
    assert not tasks.join(0.0)
    tasks.flush()
    waits.begin(workers.join)
    assert worker(workers.get_some, 50) == [*range(50)]
    worker(workers.do_tasks, 49)
    assert not waits.done(0.1), "it ended while a task was not done"
    assert not tasks.join(0.05)
    worker(workers.do_tasks, 1)
    waits.result()
    assert tasks.join(PATIENCE)


@rule("BOUND-4")
def test_the_tasks_of_a_killed_process_are_done_by_another(crew: Crew) -> None:
    tasks = crew.joinable()
    killed, worker = crew.workers(2, tasks)
    workers.put_all(tasks, range(10))
    assert killed(workers.get_some, 4) == [*range(4)]
    killed(workers.do_tasks, 1)
    killed.kill()
    assert sorted(worker(workers.get_some, 9)) == [*range(1, 10)]
    worker(workers.do_tasks, 9)
    assert tasks.join(PATIENCE)


@rule("BOUND-5")
@every_method
def test_after_shutdown_readers_get_what_is_there_and_nobody_can_put(crew: Crew) -> None:
    queues = [crew.bounded(0) for _ in range(3)]
    writer, reader = crew.workers(2, queues)
    numbers = iter(range(3))

    def shut_down() -> float:
        number = next(numbers)
        writer(workers.put_into, number, range(300))
        reader.begin(workers.get_until_shut, number)
        started = time.monotonic()
        queues[number].shutdown()
        assert reader.result() == [*range(300)]
        assert writer(workers.error_of_put, number) == "ShutDown"
        with pytest.raises(ShutDown):
            queues[number].get()
        return time.monotonic() - started

    assert_within(LATE, shut_down)
