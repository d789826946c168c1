"""What the tests' child processes run. Nothing here imports pytest."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import signal
import time
from typing import Any

from fiberq import Pipe, SimpleQueue, ZConnection, config
from fiberq.errors import NodeError

PATIENCE = 10.0


def put_all(q: Any, items: Any) -> None:
    for item in items:
        q.put(item)


def put_and_die(q: Any, count: int) -> None:
    put_all(q, range(count))
    q.put("last", sync=True)
    os.kill(os.getpid(), signal.SIGKILL)


def put_pickled(pickled: bytes, item: object) -> None:
    pickle.loads(pickled).put(item)


def echo(inbox: Any, outbox: Any) -> None:
    """Send back what comes, until the word "stop"."""
    while True:
        item = inbox.get(timeout=PATIENCE)
        if type(item) is str and item == "stop":
            return
        outbox.put(item)


def echo_many(pairs: list[tuple[Any, Any]], count: int) -> None:
    for _ in range(count):
        for inbox, outbox in pairs:
            outbox.put(inbox.get(timeout=PATIENCE))


def relay(q: Any, answers: Any, methods: list[str]) -> None:
    """Start a child that does the same, by the first of `methods`; the last one in the line answers."""
    if not methods:
        answers.put(("last", q.get(timeout=PATIENCE)))
        return
    process: Any = multiprocessing.get_context(methods[0]).Process  # type: ignore[attr-defined]
    child = process(target=relay, args=(q, answers, methods[1:]))
    child.start()
    child.join(PATIENCE)
    assert child.exitcode == 0
    answers.put((methods[0], os.getpid()))


def attach(q: Any) -> None:
    """Become a reader of `q`."""
    try:
        raise AssertionError(f"got {q.get(block=False)!r} from an empty queue")
    except queue.Empty:
        pass


def count_items(handles: list[Any], ready: Any, counts: Any) -> None:
    """Count what comes until None, reading from the handles by turns."""
    for q in handles:
        attach(q)
    ready.put(os.getpid(), sync=True)
    got = 0
    while handles[got % len(handles)].get(timeout=PATIENCE) is not None:
        got += 1
    counts.put(got)


def time_gets(q: Any, barrier: Any, times: Any) -> None:
    """Read until None; ("sleep", s) and ("loop", s) keep this process busy. Report the longest `get` but the first."""
    barrier.wait(PATIENCE)
    longest, first, got = 0.0, True, 0
    while True:
        began = time.monotonic()
        item = q.get(timeout=PATIENCE)
        if not first:
            longest = max(longest, time.monotonic() - began)
        first = False
        if item is None:
            break
        got += 1
        if isinstance(item, tuple):
            how, seconds = item
            end = time.monotonic() + seconds
            if how == "sleep":
                time.sleep(seconds)
            while time.monotonic() < end:
                pass
    times.put((longest, got))


def work_until_none(q: Any, done: Any) -> None:
    """Process items, which are (number, seconds), until None."""
    while True:
        item = q.get(timeout=PATIENCE)
        if item is None:
            return
        number, seconds = item
        time.sleep(seconds)
        done.put(number)


def hold(q: Any, ready: Any, release: Any) -> None:
    """Hold a handle, and do nothing with it."""
    ready.put(repr(q))
    release.get(timeout=PATIENCE)


def put_at_odd_times(q: Any, count: int) -> None:
    for number in range(count):
        q.put(number)
        time.sleep((number * 7919 % 97) / 97 * 0.003)


def node_address(answers: Any, methods: list[str]) -> None:
    """Make a queue and tell on which node; then the same in a child."""
    q: Any = SimpleQueue()
    answers.put(q.reader.handle[1].partition("?")[0])
    if methods:
        process: Any = multiprocessing.get_context(methods[0]).Process  # type: ignore[attr-defined]
        child = process(target=node_address, args=(answers, methods[1:]))
        child.start()
        child.join(PATIENCE)
        assert child.exitcode == 0


def tell_error_of_get(q: Any, ready: Any, answer: Any) -> None:
    """Wait in `get`; tell through multiprocessing's connection when which error came."""
    attach(q)
    ready.set()
    try:
        q.get()
    except NodeError:
        answer.send(time.monotonic())


def get_and_stay(q: Any, told: Any, count: int = 1) -> None:
    """Get `count` items, tell the last one, and stay until killed."""
    item = None
    for _ in range(count):
        item = q.get(timeout=PATIENCE)
    told.put(item, sync=True)
    time.sleep(3 * PATIENCE)


def report_each(q: Any, done: Any) -> None:
    """Get items until None; each is reported for good before the next is got."""
    while True:
        item = q.get(timeout=PATIENCE)
        if item is None:
            return
        done.put(item, sync=True)


def put_then_stay(q: Any, told: Any, count: int) -> None:
    """Put numbers, flush, tell it, and go on putting until killed."""
    for number in range(count):
        q.put(number)
    assert q.flush(PATIENCE)
    told.put("flushed", sync=True)
    while True:
        count += 1
        q.put(count)
        time.sleep(0.0005)


def mark_each(q: Any, marks: Any, count: Any) -> None:
    """Mark what comes in shared memory."""
    while True:
        try:
            item = q.get(timeout=2.0)
        except queue.Empty:
            return
        marks[item] = 1
        count.value += 1


def die_of_poison(q: Any, done: Any) -> None:
    """Report each item; the item "poison" kills."""
    while True:
        item = q.get(timeout=PATIENCE)
        if item == "poison":
            os.kill(os.getpid(), signal.SIGKILL)
        if item is None:
            return
        done.put(item, sync=True)


# -- pipes --


def do_nothing(*_: object) -> None:
    """End, without having used what was passed."""


def answer_once(connection: Any) -> None:
    connection.send(("answer", connection.recv()))


def answer_through_handle(transport: str, handle: tuple[str, str]) -> None:
    config.transport = transport
    connection = ZConnection(handle)
    connection.send(("answer", connection.recv()))


def forward(source: Any, target: Any, count: int) -> None:
    """Receive `count` messages from one connection and send them on, with this process's id."""
    for _ in range(count):
        target.send((os.getpid(), source.recv()))


def send_all(connection: Any, items: Any) -> None:
    for item in items:
        connection.send(item)


def send_and_stay(connection: Any, told: Any, item: object) -> None:
    connection.send(item)
    connection.flush()
    told.put("sent")
    time.sleep(3 * PATIENCE)


def receive_until_end(connection: Any, told: Any, other: Any) -> None:
    """Receive until EOFError; tell what came. `other` is the end that is the parent's, but was passed on, too."""
    other.close()
    got = []
    try:
        while True:
            got.append(connection.recv())
    except EOFError:
        told.put(got)


def stay(connection: Any, told: Any) -> None:
    """Hold an end of a pipe, attached, until killed."""
    connection.poll(0)
    told.put("here", sync=True)
    time.sleep(3 * PATIENCE)


def make_pipe(told: Any) -> None:
    """Make a pipe, give one end away, send, and end."""
    ours, theirs = Pipe()
    told.put(theirs)
    ours.send("from a child")
    assert ours.recv() == "from its parent"


def supervise(q: Any, answers: Any) -> None:
    """Let two forked children use, one after the other, a handle that this process itself never uses."""
    for _ in range(2):
        child = multiprocessing.get_context("fork").Process(target=relay_one, args=(q, answers))
        child.start()
        child.join(PATIENCE)


def relay_one(inbox: Any, outbox: Any) -> None:
    outbox.put(inbox.get(timeout=PATIENCE))
    inbox.close()


def square(number: int) -> int:
    return number**2


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_once(mark: str) -> str:
    """Die in the process that comes first."""
    try:
        os.mkdir(mark)
    except FileExistsError:
        return "done by another"
    die()
    raise AssertionError


def own_id(_: object = None) -> int:
    return os.getpid()


def use_received(connection: Any) -> None:
    """Send through, and receive from, connections that arrive as messages."""
    connection.recv().send("through a connection that came as a message")
    connection.send(connection.recv().recv())


def take_one(connection: Any, told: Any) -> None:
    told.put("here")
    told.put(connection.recv(), sync=True)


def signal_in_vain(connection: Any, tells: Any) -> None:
    """Wait by `poll` and by `recv`, while signals come."""
    signal.signal(signal.SIGUSR1, lambda *_: tells.send("signal"))
    tells.send("here")
    connection.poll(None)
    got = [connection.recv()]
    tells.send("here")
    got.append(connection.recv())
    connection.send(got)


def fork_and_close(connection: Any, depth: int) -> None:
    """Only the last of a chain of children sends something; each closes its copy at once."""
    if depth:
        child = multiprocessing.get_context("fork").Process(target=fork_and_close, args=(connection, depth - 1))
        child.start()
        connection.close()
        child.join()
    else:
        connection.send("from the last")
