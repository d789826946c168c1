"""`Queue` and `JoinableQueue` between real processes: exact bounds, counts that are true, tasks that are done, ends."""

from __future__ import annotations

import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from bounded_workers import (
    count_until_shut,
    get_and_tell,
    get_many_and_stay,
    join_and_tell,
    put_and_stay,
    put_until_shut,
    take_and_do,
)
from support import PATIENCE, Crew, Program, every_method, fork, reap, until
from workers import get_and_stay, put_all

from fiberq import JoinableQueue, Queue, ShutDown, SimpleQueue, SimpleQueuePush
from fiberq.errors import ClosedError, HandleError, ItemError

pytestmark = pytest.mark.usefixtures("transport")


@pytest.fixture
def q() -> Iterator[Queue[Any]]:
    with Queue() as q:
        yield q


# -- the bound --


@every_method
def test_maxsize_is_exact_for_many_that_put_and_get(crew: Crew) -> None:
    bounded: Queue[int] = Queue(3)
    told: Queue[Any] = Queue()
    for _ in range(3):
        crew.start(put_all, bounded, range(100))
    for _ in range(2):
        crew.start(get_and_tell, bounded, told)
    seen = []
    while len(seen) < 300:
        assert bounded.qsize() <= 3
        seen.append(told.get(timeout=PATIENCE))
    assert sorted(seen) == sorted([*range(100)] * 3)


def test_a_full_queue_says_so_at_once_and_after_the_timeout() -> None:
    bounded: Queue[int] = Queue(2)
    assert not bounded.full()
    assert bounded.put_many([1, 2, 3], timeout=0.05) == 2
    assert bounded.full()
    for arguments in ({"block": False}, {"timeout": 0.0}, {"timeout": -1.0}):
        with pytest.raises(queue.Full):
            bounded.put(3, **arguments)  # type: ignore[arg-type]
    started = time.monotonic()
    with pytest.raises(queue.Full):
        bounded.put(3, timeout=0.2)
    assert time.monotonic() - started >= 0.2
    assert bounded.get() == 1
    bounded.put_nowait(3)
    assert [bounded.get(), bounded.get()] == [2, 3]


def test_a_slot_that_another_process_got_for_nothing_is_there_for_who_does_not_wait(crew: Crew) -> None:
    """A process that puts quickly has slots ahead; it gives them back when another one finds none."""
    bounded: Queue[int] = Queue(100)
    told: Queue[Any] = Queue()
    crew.start(put_and_stay, bounded, told, 40)
    assert told.get(timeout=PATIENCE) == 40
    for number in range(60):
        bounded.put_nowait(number)
    with pytest.raises(queue.Full):
        bounded.put_nowait(60)


def test_slots_of_a_killed_process_are_free(crew: Crew) -> None:
    bounded: Queue[int] = Queue(100)
    told: Queue[Any] = Queue()
    writer = crew.start(put_and_stay, bounded, told, 40)
    told.get(timeout=PATIENCE)
    os.kill(writer.pid or 0, signal.SIGSTOP)  # so that it cannot give anything back
    crew.kill(writer)
    for number in range(60):
        bounded.put(number, timeout=PATIENCE)
    assert bounded.full()


def test_an_item_that_cannot_be_put_takes_no_slot() -> None:
    bounded: Queue[Any] = Queue(1)
    with pytest.raises(ItemError):
        bounded.put(threading.Lock())
    with pytest.raises(ItemError):
        bounded.put_many([1, threading.Lock()])
    bounded.put_nowait("it")
    assert bounded.get() == "it"


def test_a_put_that_waits_for_room_goes_on_when_another_process_gets(crew: Crew) -> None:
    bounded: Queue[int] = Queue(1)
    told: Queue[Any] = Queue()
    bounded.put(1)
    crew.start(get_and_tell, bounded, told)
    bounded.put(2, timeout=PATIENCE)
    bounded.put(3, timeout=PATIENCE)
    assert [told.get(timeout=PATIENCE) for _ in range(3)] == [1, 2, 3]


def test_threads_that_wait_for_room_all_get_it() -> None:
    bounded: Queue[int] = Queue(2)
    threads = [threading.Thread(target=put_all, args=(bounded, range(20))) for _ in range(8)]
    for thread in threads:
        thread.start()
    got = [bounded.get(timeout=PATIENCE) for _ in range(160)]
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert sorted(got) == sorted([*range(20)] * 8)


def test_a_forked_child_has_slots_of_its_own() -> None:
    bounded: Queue[int] = Queue(50)
    for number in range(20):
        bounded.put(number)
    bounded.flush()
    reap(fork(lambda: (put_all(bounded, range(20, 50)), bounded.flush())))
    assert bounded.full()
    assert [bounded.get() for _ in range(50)] == [*range(50)]


def test_a_connection_to_a_bounded_queue_waits_for_room_too() -> None:
    bounded: Queue[int] = Queue(1)
    writer = bounded.writer
    writer.send(1)
    thread = threading.Thread(target=writer.send, args=(2,))
    thread.start()
    assert bounded.qsize() == 1
    assert [bounded.get(timeout=PATIENCE), bounded.get(timeout=PATIENCE)] == [1, 2]
    thread.join(PATIENCE)


# -- what is there --


def test_counts_are_true_the_moment_another_process_has_got(crew: Crew) -> None:
    """It tells by another way, so that nothing of it comes through the queue before the question."""
    for _ in range(5):
        q: Queue[int] = Queue(6)
        told: Any = crew.context.Queue()
        for number in range(6):
            q.put(number)
        process = crew.start(get_and_tell, q, told, 6)
        for _ in range(6):
            told.get(timeout=PATIENCE)
        assert q.qsize() == 0
        assert q.empty()
        assert not q.full()
        q.put_nowait(0)
        q.close()
        crew.finish(process)


def test_get_nowait_finds_what_another_process_was_sent_ahead(crew: Crew) -> None:
    q: Queue[int] = Queue()
    told: Queue[Any] = Queue()
    q.put_many(range(3000))
    crew.start(get_and_stay, q, told, 2000)
    assert told.get(timeout=PATIENCE) == 1999
    assert q.qsize() == 1000
    assert sorted(q.get_nowait() for _ in range(1000)) == [*range(2000, 3000)]
    with pytest.raises(queue.Empty):
        q.get_nowait()


def test_get_many_returns_what_is_there_in_order(q: Queue[int]) -> None:
    assert q.put_many(range(5000)) == 5000
    got: list[int] = []
    while len(got) < 5000:
        some = q.get_many(700, timeout=PATIENCE)
        assert 1 <= len(some) <= 700
        got += some
    assert got == [*range(5000)]
    with pytest.raises(queue.Empty):
        q.get_many(5, block=False)


def test_get_many_keeps_what_cannot_be_read_for_the_next_call(q: Queue[Any]) -> None:
    q.put_many([1, 2, Unreadable(), 4])
    assert until(lambda: q.qsize() == 4)
    assert q.get_many(10) == [1, 2]
    with pytest.raises(ZeroDivisionError):
        q.get_many(10)
    assert q.get_many(10) == [4]


class Unreadable:
    def __reduce__(self) -> tuple[Any, ...]:
        return (divmod, (1, 0))


def test_what_get_many_returned_is_redelivered_if_its_process_dies(crew: Crew) -> None:
    q: Queue[int] = Queue()
    told: Queue[Any] = Queue()
    q.put_many(range(10), timeout=PATIENCE)
    process = crew.start(get_many_and_stay, q, told, 10)
    assert told.get(timeout=PATIENCE) == 10
    crew.kill(process)
    assert sorted(q.get(timeout=PATIENCE) for _ in range(10)) == [*range(10)]


# -- tasks --


@every_method
def test_join_ends_when_all_tasks_are_done(crew: Crew) -> None:
    tasks: JoinableQueue[int] = JoinableQueue()
    done: SimpleQueue[int] = SimpleQueue()
    for _ in range(3):
        crew.start(take_and_do, tasks, done)
    tasks.put_many(range(200))
    assert tasks.join(PATIENCE)
    assert done.qsize() == 200
    assert tasks.join()


def test_join_waits_for_what_was_got_and_not_done() -> None:
    tasks: JoinableQueue[str] = JoinableQueue()
    assert tasks.join(0.0)
    tasks.put_many("ab")
    assert not tasks.join(0.05)
    assert tasks.get_many(2) == ["a", "b"]
    assert tasks.empty()
    assert not tasks.join(0.05)
    tasks.task_done()
    assert not tasks.join(0.05)
    tasks.task_done()
    assert tasks.join(PATIENCE)
    with pytest.raises(ValueError, match="too many times"):
        tasks.task_done()


def test_join_ends_although_a_worker_was_killed_at_its_task(crew: Crew) -> None:
    tasks: JoinableQueue[int] = JoinableQueue()
    told: Queue[Any] = Queue()
    done: SimpleQueue[int] = SimpleQueue()
    tasks.put_many(range(20))
    doomed = crew.start(get_and_stay, tasks, told, 5)
    assert told.get(timeout=PATIENCE) == 4
    crew.start(take_and_do, tasks, done)
    assert not tasks.join(0.1)
    crew.kill(doomed)
    assert tasks.join(PATIENCE)
    assert sorted(done.get(timeout=PATIENCE) for _ in range(20)) == [*range(20)]


@every_method
def test_a_process_that_ends_without_having_done_its_tasks_leaves_them_to_others(crew: Crew) -> None:
    tasks: JoinableQueue[int] = JoinableQueue()
    told: Queue[Any] = Queue()
    tasks.put_many([1, 2])
    process = crew.start(get_and_tell, tasks, told, 2)
    assert [told.get(timeout=PATIENCE) for _ in range(2)] == [1, 2]
    crew.finish(process)
    assert [tasks.get(timeout=PATIENCE) for _ in range(2)] == [1, 2]
    tasks.task_done()
    tasks.task_done()
    assert tasks.join(PATIENCE)


def test_task_done_is_for_the_threads_own_oldest_task_or_else_for_the_processs() -> None:
    tasks: JoinableQueue[int] = JoinableQueue()
    tasks.put_many([1, 2, 3])
    got: list[int] = []
    thread = threading.Thread(target=lambda: got.append(tasks.get()))
    thread.start()
    thread.join(PATIENCE)
    assert [*got, tasks.get(), tasks.get()] == [1, 2, 3]
    for _ in range(3):  # two of its own, and then the other thread's
        tasks.task_done()
    assert tasks.join(PATIENCE)


def test_many_wait_for_the_same_end(crew: Crew) -> None:
    tasks: JoinableQueue[int] = JoinableQueue()
    told: Queue[Any] = Queue()
    tasks.put(1)
    for _ in range(2):
        crew.start(join_and_tell, tasks, told)
    assert [told.get(timeout=PATIENCE) for _ in range(2)] == ["waits", "waits"]
    assert told.empty()
    tasks.get()
    tasks.task_done()
    assert [told.get(timeout=PATIENCE) for _ in range(2)] == [True, True]


# -- ends --


@every_method
def test_after_shutdown_readers_get_what_is_there_and_no_process_can_put(crew: Crew) -> None:
    q: Queue[int] = Queue()
    counts: Queue[Any] = Queue()
    told: Queue[Any] = Queue()
    for _ in range(2):
        crew.start(put_until_shut, q, told)
    until(lambda: q.qsize() > 100)
    q.shutdown()
    with pytest.raises(ShutDown):
        q.put(1)
    put = sum(told.get(timeout=PATIENCE) for _ in range(2))
    for _ in range(3):
        crew.start(count_until_shut, q, counts)
    assert sum(counts.get(timeout=PATIENCE) for _ in range(3)) == put
    with pytest.raises(ShutDown):
        q.get()


@pytest.mark.parametrize("make", [Queue, SimpleQueue, SimpleQueuePush, JoinableQueue])
def test_an_immediate_shutdown_drops_what_nobody_got(make: type[Queue[int]]) -> None:
    q = make()
    q.put_many([1, 2, 3])
    assert q.get() == 1
    q.shutdown(immediate=True)
    with pytest.raises(ShutDown):
        q.get()
    with pytest.raises(ShutDown):
        q.put(4)
    if isinstance(q, JoinableQueue):
        assert not q.join(0.05)
        q.task_done()
        assert q.join(PATIENCE)


def test_shutdown_wakes_who_is_blocked(crew: Crew) -> None:
    q: Queue[int] = Queue()
    full: Queue[int] = Queue(1)
    counts: Queue[Any] = Queue()
    full.put(0)
    crew.start(count_until_shut, q, counts)
    crew.start(put_until_shut, full, counts)
    until(lambda: q._channel.attach().ask(op="stat", channel=q._channel.number)["readers"])
    q.shutdown()
    full.shutdown()
    assert sorted(counts.get(timeout=PATIENCE) for _ in range(2)) == [0, 0]


def test_a_closed_queue_says_so(q: Queue[int]) -> None:
    unused: Queue[int] = Queue()
    unused.close()
    unused.join_thread()
    assert unused.empty()
    q.put(1)
    with pytest.raises(ValueError, match="close"):
        q.join_thread()
    q.close()
    q.close()
    q.join_thread()
    for use in (lambda: q.put(1), q.get, q.qsize, q.empty, q.full, q.shutdown):
        with pytest.raises(ValueError, match=r"Queue .* is closed"):
            use()
    with pytest.raises(OSError, match="is closed"):
        q.empty()


def test_what_was_put_before_close_arrives_without_anybody_waiting_for_it(crew: Crew) -> None:
    q: Queue[int] = Queue()
    counts: Queue[Any] = Queue()
    crew.start(count_until_shut, q, counts)
    for number in range(20_000):
        q.put(number)
    q.shutdown()
    q.close()
    assert counts.get(timeout=PATIENCE) == 20_000


def test_a_thread_that_is_blocked_in_put_is_told_that_another_one_closed_the_queue() -> None:
    q: Queue[int] = Queue(1)
    q.put(1)
    errors: list[BaseException] = []

    def put() -> None:
        try:
            q.put(2)
        except ValueError as error:
            errors.append(error)

    keeper = q.reader
    thread = threading.Thread(target=put)
    thread.start()
    until(lambda: q._channel._writer is not None and q._channel._writer.permits is not None)
    q.close()
    thread.join(PATIENCE)
    assert [type(error) for error in errors] == [ClosedError]
    keeper.close()


def test_a_process_that_does_not_want_to_wait_ends_at_once_though_its_items_have_no_room(
    program: type[Program],
) -> None:
    running = program("""
import os, signal, time
from fiberq import Queue, config

config.max_bytes = 100_000
q = Queue()
child = os.fork()
if child == 0:
    for _ in range(50):
        q.put(b"x" * 3000)
    q.cancel_join_thread()
    raise SystemExit
started = time.monotonic()
os.waitpid(child, 0)
print(time.monotonic() - started < 5, flush=True)
""")
    assert running.read() == "True"
    running.wait()


@pytest.mark.parametrize("most", [1 << 33, 1 << 70])
def test_a_node_that_may_hold_very_much(transport: str, program: type[Program], most: int) -> None:
    running = program(
        f"""
from fiberq import Queue, config
config.max_bytes = {most}
config.shared_memory = False
with Queue() as q:
    q.put(bytes(3_000_000))
    print(len(q.get(timeout=20)))
""",
        FIBERQ_TRANSPORT=transport,
    )
    assert running.read() == "3000000"
    running.wait()


def test_a_fork_leaves_the_sockets_of_the_program_as_they_are() -> None:
    left, right = socket.socketpair()
    with Queue() as q, left, right:
        q.put(1)
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(0.1)
        try:
            reap(fork(lambda: None))
        finally:
            socket.setdefaulttimeout(before)
        assert os.get_blocking(left.fileno())


# -- names --


def test_the_same_name_is_the_same_queue(crew: Crew) -> None:
    one: Queue[str] = Queue(7, name="jobs")
    crew.finish(crew.start(put_all, Queue(7, name="jobs"), ["a", "b"]))
    one.close()
    again: Queue[str] = Queue(7, name="jobs")
    assert [again.get(timeout=PATIENCE), again.get(timeout=PATIENCE)] == ["a", "b"]
    for make in (
        lambda: Queue(8, name="jobs"),
        lambda: JoinableQueue(7, name="jobs"),
        lambda: SimpleQueue(name="jobs"),
    ):
        with pytest.raises(HandleError, match=r"'jobs' exists.* at most 7"):
            make()
    again.shutdown(immediate=True)
