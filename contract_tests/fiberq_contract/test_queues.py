"""What both kinds of queue promise, on the transport."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable

import pytest

from fiberq.errors import HandleError

from . import workers
from .lab import PATIENCE, assert_within, eventually
from .queues_lab import Crew, every_method
from .rules import rule

LATE = 0.5
"""Seconds after which an item is late; fiberq sends again after a second what got lost."""

SIZES = [0, 1, 100, 65_535, 65_536, 65_537, 1_000_000, 8_000_000]


@rule("QUEUE-1")
def test_the_items_of_each_writer_come_in_order(crew: Crew, kind: str) -> None:
    q = crew.queue(kind)
    # Large ones among small ones: a transport that treats them differently must not let one overtake another.
    sizes = [(4, 40, 3000, 4, 4, 90_000, 4)[number % 7] for number in range(350)]
    writers = crew.workers(2, q)
    for number, writer in enumerate(writers):
        writer.begin(workers.put_sizes, number, sizes)
    got = workers.get_some(q, 2 * len(sizes))
    for number, writer in enumerate(writers):
        writer.result()
        assert [item[1:] for item in got if item[0] == number] == [
            (place, workers.blob(place, size)) for place, size in enumerate(sizes)
        ]
    assert q.empty()


@rule("QUEUE-1")
@every_method
def test_many_small_items_come_in_order_from_a_forked_or_spawned_writer(crew: Crew, kind: str) -> None:
    q = crew.queue(kind)
    writer = crew.worker(q)
    writer.begin(workers.put_all, range(20_000))
    assert workers.get_some(q, 20_000) == list(range(20_000))
    writer.result()
    assert q.empty()


@rule("QUEUE-2")
def test_items_of_any_size_arrive_intact(crew: Crew, kind: str) -> None:
    there, back = crew.queue(kind), crew.queue(kind)
    worker = crew.worker(there, back)
    items = [b"" if size == 0 else b"x" if size == 1 else workers.blob(size, size) for size in SIZES]
    worker.begin(workers.answer_items, len(items))
    workers.put_all(there, items)
    expected = [each for item in items for each in (workers.digest(item), item)]
    assert workers.get_some(back, len(expected)) == expected
    worker.result()


@rule("QUEUE-3")
@pytest.mark.parametrize("how", [workers.put_all_and_flush, workers.put_with_sync], ids=["flush", "sync"])
def test_what_was_accepted_outlives_its_killed_writer(crew: Crew, kind: str, how: Callable[..., None]) -> None:
    q = crew.queue(kind)
    writer = crew.worker(q)
    items = [*range(1000), b"large" * 200_000, "last"]
    writer(how, items)
    writer.kill()
    assert workers.get_some(q, len(items)) == items
    assert q.empty()


@rule("QUEUE-4")
@every_method
def test_what_was_put_before_a_process_ended_is_accepted(crew: Crew, kind: str) -> None:
    q = crew.queue(kind)
    writer = crew.worker(q)
    # More than is under way at once: some of it leaves only while the process ends.
    writer.begin(workers.put_blobs, range(200), 30_000)
    writer.result()
    writer.finish()
    assert workers.get_numbers(q, 200) == list(range(200))
    assert q.empty()


@rule("QUEUE-5")
def test_qsize_and_empty_are_true_whoever_puts_and_gets(crew: Crew, kind: str) -> None:
    q = crew.queue(kind)
    worker = crew.worker(q)
    assert q.empty()
    for number in range(1, 11):
        (q.put if number % 2 else lambda item: worker(workers.put_all_and_flush, [item]))(number)
        assert q.qsize() == worker(workers.qsize) == number
        assert not q.empty()
    assert worker(workers.get_some, 4) == [1, 2, 3, 4]
    eventually(lambda: q.qsize() == 6, "six items are left")
    worker(workers.close)
    assert q.qsize() == 6
    for number in range(5, 11):
        assert q.get(timeout=PATIENCE) == number
        assert q.qsize() == 10 - number
    assert q.empty()


@rule("QUEUE-6")
def test_handles_pass_to_grandchildren(crew: Crew, kind: str, method: str) -> None:
    q = crew.queue(kind)
    worker = crew.worker(q)
    worker(workers.put_from_grandchild, [method], "from a grandchild")
    assert q.get(timeout=PATIENCE) == "from a grandchild"
    worker(workers.put_all_and_flush, ["from its parent"])
    assert q.get(timeout=PATIENCE) == "from its parent"


@rule("QUEUE-6")
def test_a_handle_passes_through_a_queue(crew: Crew, kind: str) -> None:
    there, back, q = crew.queue(kind), crew.queue(kind), crew.queue(kind)
    worker = crew.worker(there, back)
    worker.begin(workers.pass_through_in_turn, 1)
    there.put(q)
    worker.result()
    other = back.get(timeout=PATIENCE)
    other.put("through the handle that came back", sync=True)
    other.close()
    assert q.get(timeout=PATIENCE) == "through the handle that came back"


@rule("QUEUE-7")
def test_a_queue_lives_until_its_last_holder_has_closed_it_or_died(crew: Crew, kind: str) -> None:
    q = crew.queue(kind)
    pickled = pickle.dumps(q)
    holder, closer = crew.workers(2, q)
    for worker in (holder, closer):
        worker(workers.qsize)
    q.put("kept", sync=True)
    q.close()
    closer(workers.close)
    assert holder(workers.get_some, 1) == ["kept"]
    again = pickle.loads(pickled)
    again.put("kept, too", sync=True)
    again.close()
    assert holder(workers.qsize) == 1
    holder.kill()

    def gone() -> bool:
        try:
            with pickle.loads(pickled) as late:
                late.qsize()
        except HandleError:
            return True
        return False

    eventually(gone, "the queue goes with its last holder")


@rule("QUEUE-8")
def test_several_queues_over_one_connection_do_not_disturb_each_other(crew: Crew) -> None:
    queues = [crew.queue(kind) for kind in ("pull", "push") * 4]
    pairs = list(zip(queues[::2], queues[1::2], strict=True))
    worker = crew.worker(*queues)
    worker.begin(workers.pass_through_in_turn, 100)
    for number in range(100):
        for place, (inbox, _) in enumerate(pairs):
            inbox.put((place, number, bytes((3, 30, 3000, 60_000)[(place + number) % 4])))
    for place in (3, 1, 0, 2):
        got = workers.get_some(pairs[place][1], 100)
        assert [item[:2] for item in got] == [(place, number) for number in range(100)]
        assert [len(item[2]) for item in got] == [(3, 30, 3000, 60_000)[(place + number) % 4] for number in range(100)]
    worker.result()
    eventually(lambda: all(q.empty() for q in queues), "all queues are empty")


@rule("QUEUE-8")
def test_a_queue_that_nobody_reads_does_not_hold_up_another(crew: Crew, kind: str) -> None:
    unread, there, back = crew.queue(kind), crew.queue(kind), crew.queue(kind)
    worker = crew.worker(there, back)
    worker.begin(workers.pass_through)
    for number in range(100):
        unread.put(workers.blob(number, 50_000))
        there.put(number)
        assert back.get(timeout=PATIENCE) == number
    there.put(None)
    worker.result()
    assert unread.qsize() == 100
    assert workers.get_numbers(unread, 100) == list(range(100))


@rule("QUEUE-9")
def test_an_item_comes_at_once_to_a_reader_that_waits(crew: Crew, kind: str) -> None:
    there, back = crew.queue(kind), crew.queue(kind)
    worker = crew.worker(there, back)
    worker.begin(workers.pass_through)

    def longest() -> float:
        took = 0.0
        for number in range(500):
            started = time.monotonic()
            there.put(number)
            assert back.get(timeout=PATIENCE) == number
            took = max(took, time.monotonic() - started)
            if took > LATE:
                break
        return took

    assert_within(LATE, longest)
    there.put(None)
    worker.result()


@rule("QUEUE-9")
@pytest.mark.slow
def test_an_item_of_a_process_that_does_nothing_else_comes_at_once(crew: Crew) -> None:
    q = crew.pull()
    worker = crew.worker(q)

    def longest() -> float:
        took = 0.0
        for number in range(1100):
            started = time.monotonic()
            worker.begin(workers.put_all, [number])
            assert q.get(timeout=PATIENCE) == number
            worker.result()
            took = max(took, time.monotonic() - started)
            if took > LATE:
                break
        return took

    assert_within(LATE, longest)


@rule("QUEUE-10")
@every_method
def test_the_death_of_some_disturbs_no_others(crew: Crew, kind: str) -> None:
    there, back = crew.queue(kind), crew.queue(kind)
    worker = crew.worker(there, back)
    worker.begin(workers.pass_through)
    elsewhere = crew.queue(kind)
    for number in range(4):
        # The newcomers connect while the others' connections are just being given up.
        newcomers = crew.workers(2, elsewhere)
        for newcomer in newcomers:
            newcomer(workers.put_all_and_flush, [number])
            newcomer.kill()
        for item in range(50):
            there.put(item)
            assert back.get(timeout=PATIENCE) == item
    assert workers.get_some(elsewhere, 8) == [0, 0, 1, 1, 2, 2, 3, 3]
    there.put(None)
    worker.result()
