"""What a push queue promises, on the transport: items are dealt out in turn to the readers that are attached."""

from __future__ import annotations

import pytest

from . import workers
from .lab import eventually
from .queues_lab import Crew, every_method
from .rules import rule


@rule("PUSH-1")
@pytest.mark.parametrize("size", [4, 20_000], ids=["small", "large"])
def test_items_are_dealt_exactly_in_turn(crew: Crew, size: int) -> None:
    q = crew.push()
    readers = crew.workers(3, q)
    for reader in readers:
        reader(workers.attach)
    total = 900 if size == 4 else 150
    for reader in readers:
        reader.begin(workers.get_numbers, total // 3)
    workers.put_blobs(q, range(total), size)
    shares = sorted(reader.result() for reader in readers)
    assert shares == [list(range(first, total, 3)) for first in range(3)]
    eventually(q.empty, "the queue is empty")


@rule("PUSH-1")
@every_method
def test_items_of_several_writers_are_dealt_exactly_in_turn(crew: Crew) -> None:
    q = crew.push()
    readers = crew.workers(2, q)
    for reader in readers:
        reader(workers.attach)
        reader.begin(workers.get_some, 400)
    writer = crew.worker(q)
    writer.begin(workers.put_all_and_flush, [("there", number) for number in range(400)])
    workers.put_all_and_flush(q, [("here", number) for number in range(400)])
    writer.result()
    shares = [reader.result() for reader in readers]
    assert sorted(shares[0] + shares[1]) == [(name, number) for name in ("here", "there") for number in range(400)]
    for share in shares:
        for name in ("here", "there"):
            mine = [item for item in share if item[0] == name]
            assert mine == sorted(mine)
    eventually(q.empty, "the queue is empty")


@rule("PUSH-2")
def test_a_process_that_never_gets_is_dealt_nothing(crew: Crew) -> None:
    q = crew.push()
    idle = crew.worker(q)
    idle(workers.put_all_and_flush, ["it uses the queue, but does not get"])
    assert idle(workers.qsize) == 1
    workers.put_all(q, range(200))
    assert workers.get_some(q, 201) == ["it uses the queue, but does not get", *range(200)]
    workers.put_all(q, range(200))
    assert workers.get_some(q, 200) == list(range(200))
    eventually(lambda: idle(workers.qsize) == 0, "the queue is empty")


@rule("PUSH-3")
def test_a_reader_that_joins_later_gets_its_share_of_what_is_put_then(crew: Crew) -> None:
    q = crew.push()
    first, second = crew.workers(2, q)
    first(workers.attach)
    workers.put_all_and_flush(q, range(100))
    eventually(lambda: q.qsize() == 100, "all is put")
    second(workers.attach)
    workers.put_all_and_flush(q, range(100, 300))
    of_second = second(workers.get_some, 100)
    of_first = first(workers.get_some, 200)
    assert of_first[:100] == list(range(100)), "what was dealt stays where it is"
    assert sorted((of_first[100:], of_second)) == [list(range(first, 300, 2)) for first in (100, 101)]
    eventually(q.empty, "the queue is empty")


def leftovers(crew: Crew, how: str) -> None:
    """Two readers; one leaves after it got 10 items of its share. The other gets the rest."""
    q = crew.push()
    leaver, stayer = crew.workers(2, q)
    leaver(workers.attach)
    stayer(workers.attach)
    workers.put_all_and_flush(q, range(300))
    got = leaver(workers.get_some, 10)
    eventually(lambda: q.qsize() == 290, "the node knows how far the leaver is")
    if how == "closes":
        leaver(workers.close)
    else:
        leaver.kill()
        got.pop()  # it had not finished the last one
    theirs = stayer(workers.get_some, 300 - len(got))
    assert sorted([*got, *theirs]) == list(range(300))
    for parity in (0, 1):  # what it was dealt, and what it inherited
        one_share = [number for number in theirs if number % 2 == parity]
        assert one_share == sorted(one_share)
    assert stayer(workers.get_at_most_one, 0.02) == []
    eventually(q.empty, "the queue is empty")


@rule("PUSH-4")
def test_what_a_reader_that_closes_had_not_got_goes_to_another(crew: Crew) -> None:
    leftovers(crew, "closes")


@rule("PUSH-4")
@every_method
def test_what_a_killed_reader_had_not_got_goes_to_another(crew: Crew) -> None:
    leftovers(crew, "is killed")


@rule("PUSH-5")
def test_a_stopped_reader_keeps_its_share_and_delays_nobody(crew: Crew) -> None:
    q = crew.push()
    stopped, other = crew.workers(2, q)
    stopped(workers.attach)
    other(workers.attach)
    stopped.stop()
    # More than the system's buffers between the node and the stopped process hold.
    workers.put_blobs(q, range(200), 64_000)
    of_other = other(workers.get_numbers, 100)
    assert of_other == list(range(of_other[0], 200, 2))
    assert other(workers.get_at_most_one, 0.1) == []
    eventually(lambda: q.qsize() == 100, "only the stopped reader's share is left")
    stopped.resume()
    of_stopped = stopped(workers.get_numbers, 100)
    assert of_stopped == list(range(1 - of_other[0], 200, 2))
    eventually(q.empty, "the queue is empty")


@rule("PUSH-6")
def test_what_is_put_while_nobody_is_attached_waits_for_the_first_reader(crew: Crew) -> None:
    q = crew.push()
    workers.put_all_and_flush(q, range(300))
    first, second = crew.workers(2, q)
    assert first(workers.get_some, 100) == list(range(100))
    eventually(lambda: q.qsize() == 200, "the node knows how far the first reader is")
    first.kill()
    # The last one was not finished; nobody is attached now.
    eventually(lambda: q.qsize() == 201, "the first reader's death is known")
    assert second(workers.get_some, 201) == list(range(99, 300))
    eventually(q.empty, "the queue is empty")
