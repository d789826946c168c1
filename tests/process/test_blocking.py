"""Calls that block: Ctrl-C ends each, a timeout bounds each, threads do not hold each other up, and no program hangs at
its end because one still blocks."""

from __future__ import annotations

import os
import pickle
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support import NOISE, PATIENCE, Crew, Program, every_method, interrupted, node_of, until

import fiberq
from fiberq import JoinableQueue, Pipe, Queue, SimpleQueue
from fiberq.errors import HandleError

pytestmark = pytest.mark.usefixtures("transport")

Blocking = Callable[[float | None], object]
"""A call that finds nothing to return; it takes a timeout in seconds, or none."""


class Things:
    """A queue of each kind, an empty and a full one, and a pipe."""

    def __init__(self) -> None:
        self.simple: SimpleQueue[Any] = SimpleQueue()
        self.empty: Queue[Any] = Queue()
        self.full: Queue[Any] = Queue(1)
        self.tasks: JoinableQueue[Any] = JoinableQueue()
        self.left, self.right = Pipe()
        self.full.put("first")
        self.tasks.put("never done")

    def close(self) -> None:
        self.full.cancel_join_thread()
        for each in (self.simple, self.empty, self.full, self.tasks, self.left, self.right):
            each.close()

    def check(self) -> None:
        """All of them go on."""
        self.simple.put(1)
        assert self.simple.get(timeout=PATIENCE) == 1
        self.empty.put(2)
        assert self.empty.get(timeout=PATIENCE) == 2
        assert self.full.get(timeout=PATIENCE) == "first"
        self.full.put(3, timeout=PATIENCE)
        assert self.full.get(timeout=PATIENCE) == 3
        assert self.full.empty()
        self.left.send(4)
        assert self.right.recv() == 4
        assert not self.right.poll()
        assert self.tasks.get(timeout=PATIENCE) == "never done"
        self.tasks.task_done()
        assert self.tasks.join(PATIENCE)


@pytest.fixture
def things() -> Iterator[Things]:
    things = Things()
    yield things
    things.close()


FOREVER: dict[str, Callable[[Things], object]] = {
    "get": lambda things: things.simple.get(),
    "get of a Queue": lambda things: things.empty.get(),
    "get with a timeout": lambda things: things.empty.get(timeout=30),
    "get_many": lambda things: things.empty.get_many(5),
    "iteration": lambda things: list(things.empty),
    "put": lambda things: things.full.put(2),
    "put with a timeout": lambda things: things.full.put(2, timeout=30),
    "put_many": lambda things: things.full.put_many([2, 3, 4]),
    "join": lambda things: things.tasks.join(),
    "join with a timeout": lambda things: things.tasks.join(30),
    "recv": lambda things: things.left.recv(),
    "recv_bytes": lambda things: things.left.recv_bytes(),
    "recv_bytes_into": lambda things: things.left.recv_bytes_into(bytearray(10)),
    "poll": lambda things: things.left.poll(None),
    "wait": lambda things: fiberq.wait([things.left, things.empty]),
    "wait with a timeout": lambda things: fiberq.wait([things.left, things.empty], 30),
}


@pytest.mark.parametrize("busy", [False, True], ids=["alone", "beside a thread that waits"])
@pytest.mark.parametrize("name", FOREVER)
def test_control_c_ends_every_call_that_blocks(things: Things, name: str, busy: bool) -> None:
    with ExitStack() as stack:
        if busy:
            other: Queue[str] = Queue()
            thread = threading.Thread(target=other.get)
            thread.start()
            stack.callback(other.close)
            stack.callback(thread.join, PATIENCE)
            stack.callback(other.put, "end")
        with pytest.raises(KeyboardInterrupt):
            interrupted(lambda: FOREVER[name](things))
        things.check()


ASKING: dict[str, Callable[[Things], object]] = {
    "qsize": lambda things: things.empty.qsize(),
    "empty": lambda things: things.simple.empty(),
    "full": lambda things: things.full.full(),
    "get_nowait": lambda things: things.empty.get_nowait(),
    "put_nowait": lambda things: things.full.put_nowait(2),
    "put and wait for the node": lambda things: things.simple.put(2, sync=True),
    "flush": lambda things: (things.simple.put(2), things.simple.flush()),
    "shutdown": lambda things: things.simple.shutdown(),
    "a new queue": lambda _: Queue(),
    "a new pipe": lambda _: Pipe(),
    "close": lambda things: (things.simple.put(2), things.simple.close()),
    "close of a connection": lambda things: (things.left.send(2), things.left.close()),
}


@pytest.mark.parametrize("name", ASKING)
def test_control_c_ends_every_call_that_waits_for_a_node_that_stands_still(
    program: type[Program], transport: str, name: str
) -> None:
    running = program(
        f"""
import sys, time
from fiberq import config
from support import interrupted
from test_blocking import ASKING, Things
config.transport, config.linger = {transport!r}, 0.1
things = Things()
print("ready", flush=True)
sys.stdin.readline()
try:
    interrupted(lambda: ASKING[{name!r}](things))
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
    )
    assert running.read() == "ready"
    node = node_of(running.pid)
    os.kill(node, signal.SIGSTOP)
    try:
        running.write("go")
        assert running.read() == "interrupted"
    finally:
        os.kill(node, signal.SIGCONT)
    running.wait()


TIMED: dict[str, Callable[[Things, float], object]] = {
    "get": lambda things, timeout: things.empty.get(timeout=timeout),
    "get_many": lambda things, timeout: things.empty.get_many(5, timeout=timeout),
    "put": lambda things, timeout: things.full.put(2, timeout=timeout),
    "put_many": lambda things, timeout: things.full.put_many([2, 3], timeout=timeout),
    "join": lambda things, timeout: things.tasks.join(timeout),
    "poll": lambda things, timeout: things.left.poll(timeout),
    "wait": lambda things, timeout: fiberq.wait([things.left, things.empty], timeout),
}


def test_a_timeout_bounds_every_call_however_many_threads_use_the_same_handles(things: Things) -> None:
    took: dict[str, list[float]] = {name: [] for name in TIMED}
    passing: Queue[int] = Queue()
    stop = threading.Event()

    def wait(name: str, timeout: float) -> None:
        for _ in range(5):
            started = time.monotonic()
            try:
                TIMED[name](things, timeout)
            except (queue.Empty, queue.Full):
                pass
            took[name].append(time.monotonic() - started - timeout)

    def pass_on() -> None:
        while not stop.is_set():
            passing.put(1)
            passing.get()

    threads = [
        threading.Thread(target=wait, args=(name, timeout)) for name in TIMED for timeout in (0.05, 0.1, 0.15, 0.2)
    ]
    busy = threading.Thread(target=pass_on)
    busy.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    stop.set()
    busy.join(PATIENCE)
    passing.close()
    assert {name: len(times) for name, times in took.items()} == dict.fromkeys(TIMED, 20)
    for name, times in took.items():
        assert min(times) > -0.001, f"{name} returned too early"
        assert max(times) < NOISE, f"{name} returned too late"
    things.check()


def test_threads_that_put_and_get_on_one_handle_all_get_their_turn() -> None:
    each, count = 300, 8
    with Queue[tuple[int, int]](4) as q:
        got: list[list[tuple[int, int]]] = [[] for _ in range(count)]

        def put(number: int) -> None:
            for item in range(each):
                q.put((number, item))

        def get(number: int) -> None:
            for _ in range(each):
                got[number].append(q.get())

        threads = [threading.Thread(target=target, args=(n,)) for n in range(count) for target in (put, get)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 3 * PATIENCE
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        assert not any(thread.is_alive() for thread in threads)
        everything = [item for some in got for item in some]
        assert sorted(everything) == [(number, item) for number in range(count) for item in range(each)]
        for some in got:
            for number in range(count):
                mine = [item for who, item in some if who == number]
                assert mine == sorted(mine)
        assert q.empty()


# -- the end of a program --

ENDS = {
    "items that nobody reads": "q.put_many(range(1000))",
    "a full queue": "full.put(1)",
    "tasks that nobody does": "tasks.put_many(range(10)); tasks.get()",
    "a daemon thread in get": "daemon(q.get)",
    "a daemon thread in put": "full.put(1); daemon(full.put, 2)",
    "a daemon thread in join": "tasks.put(1); daemon(tasks.join)",
    "a daemon thread in recv": "daemon(left.recv)",
    "a daemon thread in poll": "daemon(left.poll, None)",
    "a daemon thread in wait": "daemon(fiberq.wait, [left, q])",
    "ten daemon threads that put and get": "[daemon(forever) for _ in range(10)]",
    "an exception": "raise_at_the_end = True",
}

PRELUDE = """
import os, signal, threading, time
import fiberq
q, full, tasks = fiberq.Queue(), fiberq.Queue(1), fiberq.JoinableQueue()
left, right = fiberq.Pipe()
raise_at_the_end = False

def forever():
    while True:
        q.put(1)
        q.get()

def daemon(target, *args):
    begun = threading.Event()
    def run():
        begun.set()
        target(*args)
    threading.Thread(target=run, daemon=True).start()
    begun.wait()
    time.sleep(0.05)  # most likely it blocks by now; where not, it will amid the end
"""


@pytest.mark.parametrize("gone", [False, True], ids=["the node is there", "the node is gone"])
@pytest.mark.parametrize("what", ENDS)
def test_no_program_hangs_at_its_end(program: type[Program], what: str, gone: bool) -> None:
    running = program(
        PRELUDE
        + ENDS[what]
        + """
print("ready", flush=True)
input()
if raise_at_the_end:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    raise SystemExit("this is why")
"""
    )
    assert running.read() == "ready"
    if gone:
        node = node_of(running.pid)
        os.kill(node, signal.SIGKILL)
        # A thread that was blocked says on standard error why it ends, as it should.
    began = time.monotonic()
    running.write("go")
    running.wait(1 if what == "an exception" else 0)
    assert time.monotonic() - began < 1.0 + NOISE


def test_a_forked_child_ends_though_a_thread_of_its_parent_was_blocked(program: type[Program]) -> None:
    running = program(
        PRELUDE
        + """
daemon(q.get)
daemon(tasks.join)
full.put(1)
daemon(full.put, 2)
for _ in range(10):
    child = os.fork()
    if child == 0:
        full.qsize()
        raise SystemExit(0)
    assert os.waitpid(child, 0)[1] == 0
print("done", flush=True)
"""
    )
    assert running.read() == "done"
    running.wait()


class Joining:
    """A thread that calls `join`."""

    def __init__(self, q: JoinableQueue[int]) -> None:
        self._q = q
        self._result: object = None
        self._thread = threading.Thread(target=self._join)
        self._thread.start()
        link = q._channel.attach()
        until(
            lambda: any(
                type(target).__name__ == "Request"
                for target in [*link._parked, *(each.target for each in link._polling)]
            )
        )

    def _join(self) -> None:
        try:
            self._result = self._q.join(PATIENCE)
        except Exception as error:
            self._result = type(error)

    def result(self) -> object:
        self._thread.join(PATIENCE / 2)
        assert not self._thread.is_alive()
        return self._result


def test_a_join_ends_when_an_immediate_shutdown_drops_the_tasks() -> None:
    with JoinableQueue[int]() as q:
        q.put(1)
        joining = Joining(q)
        q.shutdown(immediate=True)
        assert joining.result() is True


def test_a_join_goes_on_when_another_thread_closes_its_handle_while_others_can_do_the_tasks() -> None:
    q: JoinableQueue[int] = JoinableQueue()
    q.put(1)
    with pickle.loads(pickle.dumps(q)) as other:
        assert other.qsize() == 1
        joining = Joining(q)
        q.close()
        assert other.get(timeout=PATIENCE) == 1
        other.task_done()
        assert joining.result() is True


def test_a_join_ends_when_the_last_handle_is_closed() -> None:
    q: JoinableQueue[int] = JoinableQueue()
    q.put(1)
    joining = Joining(q)
    q.close()
    assert joining.result() is HandleError


# -- death while blocked --


def block(q: Queue[Any], things: tuple[Any, ...], name: str) -> None:
    """In a process: call what blocks."""
    mine = Things.__new__(Things)
    mine.simple, mine.empty, mine.full, mine.tasks, mine.left, mine.right = things
    q.put(name)
    FOREVER[name](mine)


@every_method
def test_whoever_is_killed_while_it_blocks_takes_nothing_with_it(things: Things, crew: Crew) -> None:
    everything = (things.simple, things.empty, things.full, things.tasks, things.left, things.right)
    with Queue[str]() as begun:
        processes = [crew.start(block, begun, everything, name) for name in FOREVER]
        assert {begun.get(timeout=3 * PATIENCE) for _ in processes} == set(FOREVER)
        time.sleep(0.1)  # by now most of them block
        for process in processes:
            assert process.is_alive()
            crew.kill(process)
    things.check()
    things.close()  # its queues are not gone: that is, no slot and no task is lost with the killed


def test_a_timeout_holds_while_the_node_is_full(program: type[Program]) -> None:
    running = program("""
import queue, time
from fiberq import Queue, config
config.max_bytes = 1_000_000
q, bounded = Queue(), Queue(1000)
calls = [
    lambda: q.put(bytes(300_000), timeout=0.1),
    lambda: q.put(bytearray(300_000), timeout=0.1),
    lambda: q.put_nowait(bytes(300_000)),
    lambda: bounded.put(bytes(300_000), timeout=0.1),
]
for call in calls:
    for _ in range(200):
        started = time.monotonic()
        try:
            call()
        except queue.Full:
            break
    else:
        print("never full")
    assert time.monotonic() - started < 1, "late"
assert q.put_many([bytes(300_000)] * 100, timeout=0.1) == 0
assert q.qsize() > 0
assert not q.empty()
while not q.empty():
    q.get()
print("done", flush=True)
""")
    assert running.read(3 * PATIENCE) == "done"
    running.wait()


def use_first(stopped: Any, told: Any, things: tuple[Any, ...]) -> None:
    empty, full, tasks, left = things
    uses: list[Blocking] = [
        lambda timeout: empty.get(timeout=timeout),
        lambda timeout: empty.get_many(2, timeout=timeout),
        lambda timeout: full.put(2, timeout=timeout),
        lambda timeout: full.put_many([2], timeout=timeout),
        lambda timeout: tasks.join(timeout),
        lambda timeout: left.poll(timeout),
    ]
    stopped.wait()
    for use in uses:
        started = time.monotonic()
        try:
            assert not use(0.1)
        except (queue.Empty, queue.Full):
            pass
        told.send(time.monotonic() - started)
    stopped.clear()
    told.send("go on")
    stopped.wait()
    assert empty.get(timeout=0.001 + PATIENCE) == "late"
    assert not full.put_many([2], timeout=0.001)
    assert not tasks.join(0.001)
    assert not left.poll(0.001)


@every_method
def test_a_timeout_bounds_the_first_use_of_a_handle(method: str, program: type[Program]) -> None:
    running = program(f"""
import multiprocessing, os, signal, sys
import fiberq
from support import PATIENCE, node_of
from test_blocking import use_first

def main():
    context = multiprocessing.get_context({method!r})
    empty, full, tasks = fiberq.Queue(), fiberq.Queue(1), fiberq.JoinableQueue()
    left, right = fiberq.Pipe()
    full.put(1)
    tasks.put(1)
    stopped = context.Event()
    here, there = context.Pipe()
    process = context.Process(target=use_first, args=(stopped, there, (empty, full, tasks, left)))
    process.start()
    tasks.flush()
    node = node_of(os.getpid())
    os.kill(node, signal.SIGSTOP)
    try:
        stopped.set()
        for _ in range(6):
            assert here.poll(PATIENCE)
            took = here.recv()
            print(took < 0.1 + 0.5 or took, flush=True)
        assert here.poll(PATIENCE) and here.recv() == "go on"
    finally:
        os.kill(node, signal.SIGCONT)
    empty.put("late")
    stopped.set()
    process.join(PATIENCE)
    print(process.exitcode, flush=True)

if __name__ == "__main__":
    main()
""")
    assert [running.read() for _ in range(7)] == ["True"] * 6 + ["0"]
    running.wait()


def test_a_program_ends_though_its_handle_is_not_attached_yet(program: type[Program]) -> None:
    running = program("""
import os, pickle, queue, signal, subprocess, sys, time
import fiberq
from support import node_of
if len(sys.argv) == 1:
    q = fiberq.Queue()
    handle = pickle.dumps(q)
    q.flush()
    node = node_of(os.getpid())
    os.kill(node, signal.SIGSTOP)
    try:
        started = time.monotonic()
        subprocess.run([sys.executable, __file__, handle.hex()], check=True)
        print(time.monotonic() - started < 3, flush=True)
    finally:
        os.kill(node, signal.SIGCONT)
else:
    q = pickle.loads(bytes.fromhex(sys.argv[1]))
    try:
        q.get(timeout=0.1)
    except queue.Empty:
        pass
    if os.fork() == 0:
        os._exit(0)
    os.wait()
""")
    assert running.read() == "True"
    running.wait()


def test_wait_keeps_its_timeout_though_the_node_stands_still(program: type[Program]) -> None:
    running = program("""
import os, signal, sys, time
import fiberq
from support import node_of
left, right = fiberq.Pipe()
assert fiberq.wait([left], 0) == []
node = node_of(os.getpid())
os.kill(node, signal.SIGSTOP)
try:
    for timeout in (0, 0.3):
        started = time.monotonic()
        assert fiberq.wait([left], timeout) == []
        print(time.monotonic() - started < timeout + 0.7, flush=True)
finally:
    os.kill(node, signal.SIGCONT)
""")
    assert [running.read(), running.read()] == ["True", "True"]
    running.wait()


def test_threads_that_are_blocked_end_quietly_with_the_program(program: type[Program], short_dir: Path) -> None:
    running = program(
        PRELUDE
        + """
os.dup2(os.open("errors", os.O_WRONLY | os.O_CREAT), 2)
full.put(1)
for target, *args in [(q.get,), (full.put, 2), (left.recv,), (tasks.get,), (fiberq.wait, [left, q])]:
    daemon(target, *args)
print("done", flush=True)
"""
    )
    assert running.read() == "done"
    running.wait()
    assert (short_dir / "errors").read_text() == ""


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGCHLD, signal.SIGHUP], ids=str)
def test_a_handler_that_raises_for_any_usual_signal_breaks_nothing(number: signal.Signals) -> None:
    class Struck(Exception):
        pass

    def handler(_number: int, _frame: object) -> None:
        raise Struck

    started, stop = [False], threading.Event()

    def press() -> None:
        while not stop.wait(0.001):
            if started[0]:  # a handler that raises in `Thread.start` is not what this is about
                os.kill(os.getpid(), number)

    q: Queue[int] = Queue()
    thread = threading.Thread(target=press)
    thread.start()
    strikes = 0
    before = signal.signal(number, handler)
    try:
        started[0] = True
        while strikes < 100:
            try:
                while True:
                    q.put(1)
                    q.get(timeout=0.1)
            except Struck:
                strikes += 1
            except queue.Empty:
                pass  # its put was interrupted
    finally:
        while True:
            try:
                stop.set()
                thread.join()
                break
            except Struck:
                pass
        signal.signal(number, before)
    while not q.empty():
        q.get()
    q.put(2)
    assert q.get(timeout=PATIENCE) == 2
    q.close()
