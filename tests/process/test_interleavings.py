"""Things that come between others at a bad moment: another thread's call, a close, a signal's handler, a fork."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

import pytest
from support import PATIENCE, Crew, Program, every_method, until

from fiberq import JoinableQueue, Pipe, Queue, SimpleQueue, SimpleQueuePull, SimpleQueuePush
from fiberq.channel import Channel
from fiberq.errors import ClosedError, FiberqError, HandleError
from fiberq.link import Link
from fiberq.protocol.slots import Permits

pytestmark = pytest.mark.usefixtures("transport")


def run(target: Callable[[], object]) -> None:
    """In a thread."""
    thread = threading.Thread(target=target)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def hold_in_two_threads(q: Any, ready: Any) -> None:
    stay = threading.Event()
    held = threading.Semaphore(0)

    def hold(get: Callable[[], object]) -> None:
        get()
        held.release()
        stay.wait()

    for get in (lambda: q.get_many(5), q.get):
        threading.Thread(target=hold, args=(get,), daemon=True).start()
        held.acquire()
    ready.put("both hold", sync=True)
    q.qsize()  # tells the node how far this process is
    ready.put("and the node knows", sync=True)
    stay.wait()


@every_method
def test_what_one_thread_got_many_of_stays_held_when_another_gets(crew: Crew) -> None:
    with SimpleQueuePull[Any]() as q, SimpleQueuePull[str]() as ready:
        q.put_many(range(6))
        process = crew.start(hold_in_two_threads, q, ready)
        assert [ready.get(timeout=PATIENCE) for _ in range(2)] == ["both hold", "and the node knows"]
        crew.kill(process)
        assert [q.get(timeout=PATIENCE) for _ in range(6)] == list(range(6))


def leave_a_task_to_the_next_thread(q: Any) -> None:
    def fail() -> None:
        q.get()

    def succeed() -> None:
        q.get()
        q.task_done()

    run(fail)
    run(succeed)  # most systems give it the number of the first


@every_method
def test_a_task_is_not_done_by_a_later_thread_with_the_same_number(crew: Crew) -> None:
    with JoinableQueue[str]() as q:
        q.put("failed")
        q.put("done")
        crew.finish(crew.start(leave_a_task_to_the_next_thread, q))
        assert q.get(timeout=PATIENCE) == "failed"
        q.task_done()
        assert q.join(PATIENCE)


def test_join_without_a_timeout_knows_what_was_just_done() -> None:
    with JoinableQueue[int]() as q:
        for number in range(20):
            q.put(number)
            q.get()
            q.task_done()
            assert q.join(0)


def test_a_coroutine_that_waits_for_room_does_no_harm_when_its_handle_is_closed_and_another_opened() -> None:
    async def main() -> None:
        name = f"room {os.getpid()} {id(main)}"
        first = Queue[int](1, name=name)
        first.put(0)
        first.flush()
        task = asyncio.ensure_future(first.aput(1))
        await asyncio.sleep(0)
        first.close()
        second = Queue[int](1, name=name)
        with pytest.raises(ClosedError):
            await task
        assert second.get(timeout=PATIENCE) == 0
        second.close()

    with SimpleQueue[int]() as other:
        other.put(1)
        asyncio.run(main())
        assert other.get(timeout=PATIENCE) == 1


class Struck(Exception):
    pass


def test_a_handler_that_raises_amid_a_put_takes_no_slot_away(monkeypatch: pytest.MonkeyPatch) -> None:
    def handler(_number: int, _frame: FrameType | None) -> None:
        raise Struck

    take = Permits.take

    def struck(permits: Permits) -> bool:
        got = take(permits)
        if got:
            os.kill(os.getpid(), signal.SIGALRM)
        return got

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with Queue[int](1) as q:
            q.qsize()
            with monkeypatch.context() as patch:
                patch.setattr(Permits, "take", struck)
                with pytest.raises(Struck):
                    q.put(1)
            if q.qsize():  # it was put before the handler ran
                assert q.get(timeout=PATIENCE) == 1
            q.put(2, timeout=PATIENCE)
            assert q.get(timeout=PATIENCE) == 2
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("closing", [False, True], ids=["two threads", "and a close"])
def test_a_handle_that_two_threads_use_first_at_the_same_time_is_held_once(
    closing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SimpleQueue[int]() as q:
        handle = Channel(q._channel.endpoint, q._channel.number, "r")
        meet = threading.Barrier(3)
        hold = Link.hold

        def slow(link: Link, *args: Any) -> None:
            hold(link, *args)
            meet.wait(PATIENCE)

        def use() -> None:
            with suppress(ClosedError):
                handle.attach()

        link = q._channel.attach()
        with monkeypatch.context() as patch:
            patch.setattr(Link, "hold", slow)
            threads = [threading.Thread(target=use) for _ in range(2)]
            for thread in threads:
                thread.start()
            if closing:
                handle.close()
            meet.wait(PATIENCE)
            for thread in threads:
                thread.join(PATIENCE)
        handle.close()
        link.settle_drops()
        assert (handle.number, "r") not in link._handles


def test_two_threads_that_ask_for_a_descriptor_first_share_one_bell() -> None:
    for _ in range(20):
        q: SimpleQueue[int] = SimpleQueue()
        link, reader = q._channel.attach(), q._channel._attached_reader(q._channel.attach())
        threads = [threading.Thread(target=q.fileno) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert link._polled == {reader: 1}
        q.close()
        assert not link._polled


def test_a_fork_and_a_close_in_another_thread_leave_the_child_its_handle(program: type[Program]) -> None:
    running = program("""
import os, threading, warnings
warnings.simplefilter("ignore")
from fiberq import Queue, links

q = Queue()
q.put("item", sync=True)
forked, closed = threading.Event(), threading.Event()

def close():
    forked.wait()
    q.close()
    closed.set()

def in_parent(lifeline, original=links.ForkLifeline.in_parent):
    forked.set()
    closed.wait()
    original(lifeline)

threading.Thread(target=close).start()
links.ForkLifeline.in_parent = in_parent
there, here = os.pipe()
child = os.fork()
if child == 0:
    os.read(there, 1)
    print(q.get(timeout=5), flush=True)
    os._exit(0)
os.write(here, b"!")
assert os.waitpid(child, 0)[1] == 0
""")
    assert running.read() == "item"
    running.wait()


def die_holding(q: Any, told: Any) -> None:
    q.get()
    q.qsize()
    told.put("has it", sync=True)
    signal.pause()


@pytest.mark.parametrize("kind", [Queue, JoinableQueue, SimpleQueuePull, SimpleQueuePush])
def test_a_thread_that_has_what_killed_another_process_does_not_starve_its_neighbours(kind: Any, crew: Crew) -> None:
    with kind() as q, SimpleQueue[str]() as told:
        q.put("suspect")
        process = crew.start(die_holding, q, told)
        assert told.get(timeout=PATIENCE) == "has it"
        crew.kill(process)
        assert q.get(timeout=PATIENCE) == "suspect"
        q.put("next")
        got: list[str] = []
        run(lambda: got.append(q.get(timeout=PATIENCE)))
        assert got == ["next"]


def receive_and_stay(receiver: Any, told: Any) -> None:
    kept = receiver.recv()
    told.put("received", sync=True)
    signal.pause()
    del kept


@every_method
def test_a_handle_dies_with_the_process_that_received_it_and_did_not_use_it(crew: Crew) -> None:
    near, far = Pipe()
    left, right = Pipe()
    with SimpleQueue[str]() as told:
        process = crew.start(receive_and_stay, far, told)
        near.send(right)
        right.close()
        assert told.get(timeout=PATIENCE) == "received"
        link = left._reading().attach()
        until(lambda: not left.poll(0.05) and link.question(op="stat", channel=near._writing().number)["readers"])
        crew.kill(process)
        with pytest.raises(EOFError):
            left.recv()
        for each in (near, far, left):
            each.close()


@pytest.mark.parametrize("how", ["the interpreter's lock is held", "the process is stopped"])
def test_threads_go_on_after_none_of_them_could_run(program: type[Program], how: str) -> None:
    running = program(f"""
import ctypes, os, subprocess, threading, time
from fiberq import Queue

q = Queue()
errors, got = [], []

def work():
    try:
        while (item := q.get()) is not None:
            got.append(item)
    except BaseException as error:
        errors.append(error)

threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for number in range(3):
    if "stopped" in {how!r}:
        subprocess.run(["sh", "-c", f"(kill -STOP {{os.getpid()}}; sleep 2.2; kill -CONT {{os.getpid()}}) &"])
        time.sleep(0.5)
    else:
        ctypes.PyDLL(None).usleep(2_200_000)  # which keeps the lock
    time.sleep(0.1)
    q.put(number)
for _ in threads:
    q.put(None)
for thread in threads:
    thread.join(10)
print(errors, sorted(got), flush=True)
""")
    assert running.read(3 * PATIENCE) == "[] [0, 1, 2]"
    running.wait()


def test_a_handler_asks_the_node_while_its_own_thread_waits(program: type[Program]) -> None:
    running = program("""
import signal, time
from fiberq import Queue

q, other = Queue(), Queue()
other.put(1, sync=True)

def handler(*_):
    started = time.monotonic()
    print(other.qsize(), other.get(), other.put(2, sync=True), time.monotonic() - started < 0.5, flush=True)
    q.put("for the one who waits", sync=True)

signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.2)
started = time.monotonic()
print(q.get(timeout=8), time.monotonic() - started < 0.8, flush=True)
""")
    assert running.read() == "1 1 None True"
    assert running.read() == "for the one who waits True"
    running.wait()


class ClosesAQueue:
    """An object whose pickling closes a queue, as another thread may."""

    def __init__(self, q: Any) -> None:
        self._q = q

    def __reduce__(self) -> Any:
        self._q.close()
        return (int, ())


def test_a_put_that_finds_its_handle_closed_takes_no_slot_away() -> None:
    first: Queue[Any] = Queue(1)
    with pickle.loads(pickle.dumps(first)) as second:
        assert second.qsize() == 0
        with pytest.raises(ClosedError):
            first.put(ClosesAQueue(first))
        second.put(1, timeout=PATIENCE)
        assert second.get(timeout=PATIENCE) == 1


def test_a_handle_that_is_closed_amid_its_first_use_says_so() -> None:
    q: SimpleQueue[int] = SimpleQueue()
    link, number = q._channel.attach(), q._channel.number
    q.close()
    for use in (link.writer, link.reader):
        with pytest.raises(ClosedError):
            use(number)


def unused(carrier: Any, _full: Any, q: Any) -> None:
    carrier.put(q)
    assert carrier.get(timeout=PATIENCE) is not None


def without_room(_carrier: Any, full: Any, q: Any) -> None:
    assert full.put_many([q], timeout=0) == 0


def cancelled(_carrier: Any, full: Any, q: Any) -> None:
    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(full.aput(q), 0.01)

    asyncio.run(main())


def refused(carrier: Any, _full: Any, q: Any) -> None:
    carrier.shutdown()
    with pytest.raises(FiberqError):
        carrier.put(q)


def dropped(carrier: Any, _full: Any, q: Any) -> None:
    carrier.put(q)
    carrier.shutdown(immediate=True)


def dropped_in_a_queue_in_a_queue(_carrier: Any, _full: Any, q: Any) -> None:
    for _ in range(3):
        outer: SimpleQueue[Any] = SimpleQueue()
        outer.put(q, sync=True)
        q.close()
        q = outer
    q.close()


@pytest.mark.parametrize("send", [unused, without_room, cancelled, refused, dropped, dropped_in_a_queue_in_a_queue])
def test_a_handle_that_was_not_put_or_not_used_holds_nothing(send: Callable[[Any, Any, Any], None]) -> None:
    with SimpleQueue[Any]() as carrier, Queue[Any](1) as full:
        full.put("first")
        full.flush()
        q: SimpleQueue[int] = SimpleQueue()
        again = Channel(q._channel.endpoint, q._channel.number, "r")
        send(carrier, full, q)
        q.close()
        gc.collect()

        def gone() -> bool:
            try:
                again.attach()
            except HandleError:
                return True
            return False

        until(gone)


def test_a_worker_whose_results_nobody_reads_waits_when_the_node_is_full(program: type[Program]) -> None:
    running = program("""
import threading, time
from fiberq import SimpleQueuePull, config
config.max_bytes = 4_000_000
tasks, results = SimpleQueuePull(), SimpleQueuePull()
done = 0
def work():
    global done
    while tasks.get() is not None:
        results.put(b"x" * 2000)
        done += 1
thread = threading.Thread(target=work)
thread.start()
total = 16_000
for number in range(total):
    tasks.put(number)
before, since = -1, time.monotonic()
while time.monotonic() - since < 1:
    if done != before:
        before, since = done, time.monotonic()
    time.sleep(0.01)
there = results._channel.attach().qsize(results._channel.number)  # without waiting until all that is put is there
gathered = 4096 * 2000 + 2_000_000  # at most, with what was under way
print(there * 2000 <= config.max_bytes + gathered, flush=True)
tasks.put(None)
for _ in range(total):
    results.get(timeout=10)
thread.join(10)
print(done, flush=True)
""")
    assert running.read(3 * PATIENCE) == "True"
    assert running.read(3 * PATIENCE) == "16000"
    running.wait()


def test_an_item_stays_held_when_another_thread_comes_amid_a_get(program: type[Program]) -> None:
    """Until then its thread took items without a lock; a report made just then must not call this one finished."""
    running = program("""
import threading, time
from fiberq import SimpleQueuePull, link
q = SimpleQueuePull()
q.put_many(range(2000))
q.flush()
channel = q._channel
def ahead():
    return channel._reader is not None and len(channel._reader.ready) > 10
deadline = time.monotonic() + 20
got = 0
while not ahead() and time.monotonic() < deadline:
    q.get()
    got += 1
mine, reader = channel._link, channel._reader
assert ahead() and reader.owner == threading.get_ident()
finished = []
refresh, keep = link.Link.refresh, link.Link.keep

def another_comes(self, reader):
    refresh(self, reader)
    other = threading.Thread(target=reader.share)
    other.start()
    other.join()

def told_before(self, *args):
    self.qsize(reader.channel)
    finished.append(q.stats()["finished"])
    keep(self, *args)

link.Link.refresh, link.Link.keep = another_comes, told_before
reader.fresh_until = 0.0
item = q.get()
link.Link.refresh, link.Link.keep = refresh, keep
assert reader.owner is None
q.qsize()  # makes this process tell how far it is
finished.append(q.stats()["finished"])
print(item == got, max(finished) <= got, flush=True)
""")
    assert running.read() == "True True"
    running.wait()


def test_a_handler_can_fork_while_the_first_queue_is_made(program: type[Program]) -> None:
    running = program("""
import os, signal
from fiberq import Queue, links

make = links.Link

def handler(*_):
    if os.fork() == 0:
        os._exit(0)
    os.wait()

def interrupted(*args):
    os.kill(os.getpid(), signal.SIGALRM)
    return make(*args)

import warnings
warnings.simplefilter("ignore")
signal.signal(signal.SIGALRM, handler)
links.Link = interrupted
q = Queue()
q.put(1)
print(q.get(), flush=True)
""")
    assert running.read() == "1"
    running.wait()
