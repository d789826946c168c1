"""Processes are killed and stopped in the middle of things: nothing that was accepted is lost, and the others go on."""

from __future__ import annotations

import os
import queue
import signal
import time
from typing import Any

import pytest
from support import PATIENCE, Crew, Program, every_method, until
from workers import get_and_stay, mark_each, put_all, put_then_stay, report_each

from fiberq import SimpleQueue, SimpleQueuePull, SimpleQueuePush

pytestmark = pytest.mark.usefixtures("transport")

Kind = type[SimpleQueuePull[Any]] | type[SimpleQueuePush[Any]]


@pytest.fixture(params=[SimpleQueuePull, SimpleQueuePush], ids=["pull", "push"])
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param  # type: ignore[no-any-return]


@every_method
def test_what_a_killed_reader_held_goes_to_another(kind: Kind, crew: Crew) -> None:
    q = kind()
    told: SimpleQueue[Any] = SimpleQueue()
    q.put("precious")
    reader = crew.start(get_and_stay, q, told)
    assert told.get(timeout=PATIENCE) == "precious"
    with pytest.raises(queue.Empty):
        q.get(timeout=0.05)
    crew.kill(reader)
    assert q.get(timeout=PATIENCE) == "precious"


def test_what_a_killed_reader_finished_stays_finished(kind: Kind, crew: Crew) -> None:
    q = kind()
    told: SimpleQueue[Any] = SimpleQueue()
    put_all(q, range(5))
    reader = crew.start(get_and_stay, q, told, 5)
    assert told.get(timeout=PATIENCE) == 4
    until(lambda: q.qsize() == 0)  # the node knows how far the reader is
    crew.kill(reader)
    assert q.get(timeout=PATIENCE) == 4
    with pytest.raises(queue.Empty):
        q.get(timeout=0.05)


def test_a_reader_killed_amid_many_loses_nothing(kind: Kind, crew: Crew) -> None:
    q = kind()
    done: SimpleQueue[int] = SimpleQueue()
    total = 1200
    readers = [crew.start(report_each, q, done) for _ in range(4)]
    put_all(q, range(total))
    seen: set[int] = set()
    for victim in readers[:3]:
        target = len(seen) + 100
        while len(seen) < target:
            seen.add(done.get(timeout=PATIENCE))
        crew.kill(victim)
    while len(seen) < total:
        seen.add(done.get(timeout=PATIENCE))
    assert seen == set(range(total))
    q.put(None)
    crew.finish()


@every_method
def test_what_a_killed_writer_flushed_arrives_and_others_go_on(
    kind: Kind,
    crew: Crew,
) -> None:
    q = kind()
    told: SimpleQueue[str] = SimpleQueue()
    other = crew.start(put_all, q, [("other", number) for number in range(500)])
    writer = crew.start(put_then_stay, q, told, 500)
    assert told.get(timeout=PATIENCE) == "flushed"
    crew.kill(writer)
    crew.finish(other)
    q.put("the end")
    got = []
    while (item := q.get(timeout=PATIENCE)) != "the end":
        got.append(item)
    got += iter_now(q)
    mine = [item for item in got if not isinstance(item, tuple)]
    assert mine[:500] == list(range(500))
    assert mine == sorted(set(mine))
    assert [item for item in got if isinstance(item, tuple)] == [("other", number) for number in range(500)]


def iter_now(q: Any) -> list[Any]:
    """What else is in `q`."""
    got = []
    try:
        while True:
            got.append(q.get(timeout=0.2))
    except queue.Empty:
        return got


@pytest.mark.parametrize("resume", [False, True], ids=["killed", "continued"])
def test_what_a_stopped_reader_was_sent_ahead_goes_to_others(crew: Crew, resume: bool) -> None:
    q: SimpleQueue[int] = SimpleQueue()
    total = 60_000
    marks = crew.context.RawArray("b", total)
    count = crew.context.RawValue("i", 0)
    reader = crew.start(mark_each, q, marks, count)
    put_all(q, range(total))
    until(lambda: count.value > 2000, pause=0.0005)
    assert reader.pid is not None
    os.kill(reader.pid, signal.SIGSTOP)
    assert count.value < total, "the machine is too fast for this test: raise `total`"
    mine = set()
    deadline = time.monotonic() + PATIENCE
    try:
        while len(mine) + count.value < total - 1:  # the item that it holds is still its own
            assert time.monotonic() < deadline, (len(mine), count.value)
            try:
                mine.add(q.get(timeout=0.1))
            except queue.Empty:
                pass
    finally:
        os.kill(reader.pid, signal.SIGCONT)
        if not resume:
            crew.kill(reader)
    if resume:
        q.put(total - 1)
        crew.finish(reader)
    mine.update(iter_now(q))
    lost = [number for number in range(total) if number not in mine and not marks[number]]
    assert not lost


def test_a_task_that_another_did_meanwhile_is_not_silently_done(transport: str, program: type[Program]) -> None:
    running = program(
        """
import os, signal, threading, time
from multiprocessing import get_context
from fiberq import JoinableQueue, SimpleQueue
from fiberq.errors import LeaseLost, NodeError
context = get_context("fork")
def work(tasks, told):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCONT])
    told.put(tasks.get(), sync=True)
    threading.Thread(target=tasks.get, daemon=True).start()  # it is sent the second
    time.sleep(0.2)
    told.put("waits", sync=True)
    link = tasks._channel.attach()
    receive, link._receive = link._receive, lambda *_: None  # what has come meanwhile is seen late
    signal.sigwait([signal.SIGCONT])
    threading.Timer(0.3, lambda: setattr(link, "_receive", receive)).start()
    try:
        tasks.task_done()
        print("done", flush=True)
    except (LeaseLost, NodeError) as error:
        print(error, flush=True)
tasks, told = JoinableQueue(), SimpleQueue()
worker = context.Process(target=work, args=(tasks, told))
worker.start()
tasks.put("first")
assert told.get(timeout=30) == "first"
assert told.get(timeout=30) == "waits"
os.kill(worker.pid, signal.SIGSTOP)
tasks.put("second")
for task in "first", "second":
    assert tasks.get(timeout=30) == task
    tasks.task_done()
assert tasks.join(30)
os.kill(worker.pid, signal.SIGCONT)
worker.join(30)
""",
        FIBERQ_TRANSPORT=transport,
        FIBERQ_SESSION_TIMEOUT="1.0",
    )
    assert "it had not finished was given to others" in running.read()
    running.wait()


def test_a_poisoned_item_kills_a_few_workers_and_no_other_item_is_lost(kind: Kind, program: type[Program]) -> None:
    running = program(
        f"""
import time
from multiprocessing import get_context
from fiberq.queues import SimpleQueue, {kind.__name__} as Queue
from workers import die_of_poison
context = get_context("fork")
q, done = Queue(), SimpleQueue()
def start():
    worker = context.Process(target=die_of_poison, args=(q, done))
    worker.start()
    return worker
workers = [start(), start()]
for number in range(200):
    q.put("poison" if number == 50 else number)
seen, deaths, deadline = set(), 0, time.monotonic() + 30
while (len(seen) < 199 or deaths < 3) and time.monotonic() < deadline:
    for place, worker in enumerate(workers):
        if not worker.is_alive():
            deaths += 1
            workers[place] = start()
    try:
        seen.add(done.get(timeout=0.02))
    except OSError:
        raise
    except Exception:
        pass
settled = time.monotonic() + 1
while time.monotonic() < settled:
    for place, worker in enumerate(workers):
        if not worker.is_alive():
            deaths += 1
            workers[place] = start()
    time.sleep(0.01)
print(len(seen), deaths, sorted(set(range(200)) - seen))
for worker in workers:
    worker.terminate()
    worker.join()
""",
        FIBERQ_MAX_DELIVERIES="3",
    )
    # Three times, or four, if it was far behind what the first had told of.
    assert running.read(45) in ("199 3 [50]", "199 4 [50]")
    running.wait()
