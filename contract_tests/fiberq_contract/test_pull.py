"""What a pull queue promises, on the transport: a reader says that it is ready, and gets an item."""

from __future__ import annotations

import os
import time
from collections import Counter
from queue import Empty

import pytest

from . import workers
from .lab import PATIENCE, assert_within, eventually
from .queues_lab import SOON, Crew, every_method
from .rules import rule


@rule("PULL-1")
def test_an_item_goes_to_the_reader_that_waits(crew: Crew) -> None:
    q = crew.pull()
    readers = crew.workers(3, q)
    for reader in readers:
        reader(workers.attach)
    for number in range(60):
        reader = readers[number % 3]
        reader.begin(workers.get_at_most_one, PATIENCE)
        q.put(number)
        assert reader.result() == [number]
    eventually(q.empty, "the queue is empty")


@rule("PULL-1")
def test_what_a_reader_was_sent_ahead_and_does_not_read_goes_to_one_that_is_ready(crew: Crew) -> None:
    q = crew.pull()
    reader = crew.worker(q)
    workers.put_all_and_flush(q, range(2000))
    # It empties quickly what it gets, so it is sent items ahead; then it is busy with something else.
    assert reader(workers.get_some, 500) == list(range(500))
    assert sorted(workers.get_some(q, 1500)) == list(range(500, 2000))
    eventually(q.empty, "the queue is empty")


@rule("PULL-2")
def test_a_slow_reader_delays_nobody(crew: Crew) -> None:
    q = crew.pull()
    slow, fast = crew.workers(2, q)
    fast.begin(workers.get_until_none)
    slow.begin(workers.get_at_most_one, PATIENCE)

    def slow_has_one() -> bool:
        q.put("taken")
        return slow.done(0.001)

    eventually(slow_has_one, "the slow reader gets an item")
    assert slow.result() == ["taken"]
    workers.put_all(q, [*range(500), None])
    assert [item for item in fast.result() if item != "taken"] == list(range(500))
    eventually(q.empty, "the queue is empty")


@rule("PULL-2")
def test_what_a_stopped_reader_was_sent_ahead_goes_to_others(crew: Crew, directory: str) -> None:
    q = crew.pull()
    reader = crew.worker(q)
    path = os.path.join(directory, "items")
    reader.begin(workers.log_items, path)
    total = 30_000
    workers.put_all(q, range(total))
    eventually(lambda: os.path.exists(path) and os.path.getsize(path) > 4 * 500, "the reader is at work")
    reader.stop()
    got: set[int] = set()

    def rest() -> bool:
        while some := workers.get_at_most_one(q, 0.1):
            got.update(some)
        return len(got) + os.path.getsize(path) // 4 >= total - 1  # it keeps the one that it is working on

    eventually(rest, "all but the stopped reader's item goes to another", 2 * PATIENCE)
    reader.resume()
    q.put(None)
    reader.result()

    def all_there() -> bool:
        got.update(workers.get_at_most_one(q, 0.05))  # what the reader gave back when it went on may come after None
        return got | set(logged(path)) == set(range(total))

    eventually(all_there, "nothing is lost")


def logged(path: str) -> list[int]:
    """What `workers.log_items` has written."""
    with open(path, "rb") as file:
        data = file.read()
    return [workers.number_of(data[place : place + 4]) for place in range(0, len(data), 4)]


@rule("PULL-3")
def test_a_get_that_times_out_loses_nothing_that_comes_at_that_moment(crew: Crew) -> None:
    q = crew.pull()
    writer = crew.worker(q)
    count, tries = 400, 0
    got: list[int] = []
    writer.begin(workers.put_at_odd_times, count)
    deadline = time.monotonic() + 2 * PATIENCE
    while len(got) < count and time.monotonic() < deadline:
        tries += 1
        try:
            got.append(q.get(timeout=tries % 13 * 0.0002))
        except Empty:
            pass
    assert got == list(range(count))
    writer.result()
    eventually(q.empty, "the queue is empty")


@rule("PULL-3")
def test_what_comes_after_a_get_timed_out_goes_to_whoever_gets_next(crew: Crew) -> None:
    q = crew.pull()
    first, second = crew.workers(2, q)
    for number in range(30):
        assert first(workers.get_at_most_one, 0.001) == []
        q.put(number)
        reader = (first, second)[number % 2]
        assert reader(workers.get_some, 1) == [number]
    eventually(q.empty, "the queue is empty")


@rule("PULL-4")
@every_method
def test_a_killed_readers_item_goes_to_another_at_once(crew: Crew) -> None:
    def measure() -> float:
        q = crew.pull()
        victim = crew.worker(q)
        q.put("precious")
        assert victim(workers.get_some, 1) == ["precious"]
        assert workers.get_at_most_one(q, 0.02) == []
        started = time.monotonic()
        victim.kill()
        assert workers.get_some(q, 1) == ["precious"]
        return time.monotonic() - started

    assert_within(SOON, measure)


@rule("PULL-4")
def test_what_a_killed_reader_had_finished_is_not_given_to_another(crew: Crew) -> None:
    q = crew.pull()
    victim, other = crew.workers(2, q)
    workers.put_all_and_flush(q, range(10))
    assert victim(workers.get_some, 5) == list(range(5))
    *_, last = other(workers.get_some, 5)
    eventually(q.empty, "the node knows how far both are")
    victim.kill()
    assert workers.get_some(q, 1) == [4]
    assert workers.get_at_most_one(q, 0.05) == []
    # The one that lives has finished all but its last.
    other.kill()
    assert workers.get_some(q, 1) == [last]
    assert workers.get_at_most_one(q, 0.05) == []


@rule("PULL-4")
@every_method
def test_what_a_reader_got_that_ended_by_itself_is_finished(crew: Crew) -> None:
    q = crew.pull()
    for number in range(3):
        reader = crew.worker(q)
        q.put(number)
        assert reader(workers.get_some, 1) == [number]
        reader.finish()
    assert workers.get_at_most_one(q, 0.1) == []


@rule("PULL-5")
@every_method
def test_each_item_of_several_writers_goes_to_one_of_several_readers(crew: Crew) -> None:
    q = crew.pull()
    readers = crew.workers(2, q)
    writer = crew.worker(q)
    for reader in readers:
        reader.begin(workers.get_until_none)
    items = [[(writer, number) for number in range(1500)] for writer in range(2)]
    writer.begin(workers.put_all_and_flush, items[0])
    workers.put_all_and_flush(q, items[1])
    writer.result()
    workers.put_all(q, [None, None])
    got = [item for reader in readers for item in reader.result()]
    assert Counter(got) == Counter(items[0] + items[1])
    eventually(q.empty, "the queue is empty")


@rule("PULL-6")
@pytest.mark.parametrize("size", [4, 3000], ids=["small", "large"])
def test_an_item_whose_reader_is_killed_is_done_by_another_if_its_result_is_not_there(crew: Crew, size: int) -> None:
    q, done = crew.pull(), crew.pull()
    victims = crew.workers(2, q, done)
    last = crew.worker(q, done)
    total = 2000
    for worker in (*victims, last):
        worker(workers.attach)  # or the first to come does it all
    for worker in (*victims, last):
        worker.begin(workers.pass_through)
    workers.put_blobs(q, range(total), size)
    results: set[int] = set()
    for victim in victims:
        enough = len(results) + total // 5
        while len(results) < enough:
            results.update(workers.get_numbers(done, 1))
        victim.kill()
    while len(results) < total:
        results.update(workers.get_numbers(done, 1))
    q.put(None)
    last.result()
    assert results == set(range(total))
