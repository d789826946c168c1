"""Queues do what multiprocessing's do, between real processes, and share the work as each kind promises."""

from __future__ import annotations

import os
import pickle
import queue
import signal
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import pytest
from support import NOISE, PATIENCE, Crew, Program, every_method, fork, interrupted, reap, until
from workers import (
    count_items,
    echo,
    hold,
    put_all,
    put_and_die,
    put_at_odd_times,
    put_pickled,
    relay,
    supervise,
    time_gets,
    work_until_none,
)

from fiberq import JoinableQueue, Queue, SimpleQueue, SimpleQueuePull, SimpleQueuePush, ZConnection, config
from fiberq.driven import HEARTBEAT
from fiberq.errors import ClosedError, DirectionError, HandleError, ItemError

pytestmark = pytest.mark.usefixtures("transport")

Kind = type[SimpleQueuePull[Any]] | type[SimpleQueuePush[Any]]


@pytest.fixture(params=[SimpleQueuePull, SimpleQueuePush], ids=["pull", "push"])
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param  # type: ignore[no-any-return]


# -- the face --


@pytest.mark.parametrize("push", [False, True])
def test_config_decides_which_kind_of_queue_simplequeue_makes(push: bool) -> None:
    config.use_push_queue = push
    try:
        q: SimpleQueue[str] = SimpleQueue()
    finally:
        del config.use_push_queue
    assert type(q) is (SimpleQueuePush if push else SimpleQueuePull)
    q.put("an item")
    assert q.get() == "an item"


def test_a_program_without_settings_works_as_with_multiprocessing(method: str, program: type[Program]) -> None:
    running = program(f"""
from multiprocessing import get_context
from fiberq import SimpleQueue, config

def work(tasks, results):
    while (task := tasks.get()) is not None:
        results.put(task * task)

if __name__ == "__main__":
    for config.use_push_queue in (False, True):
        tasks, results = SimpleQueue(), SimpleQueue()
        workers = [get_context({method!r}).Process(target=work, args=(tasks, results)) for _ in range(2)]
        for worker in workers:
            worker.start()
        for task in range(100):
            tasks.put(task)
        print(sum(results.get() for _ in range(100)))
        # Of a push queue a reader gets every other item, or all if it is the only one yet: stop them one by one.
        for worker in workers:
            tasks.put(None)
        for worker in workers:
            worker.join(5 if not config.use_push_queue else 0.01)
            worker.terminate()
            worker.join()
""")
    for _ in range(2):
        assert running.read() == str(sum(n * n for n in range(100)))
    running.wait()


def test_writer_and_reader_are_the_queues_connections(kind: Kind) -> None:
    q = kind()
    writer, reader = q.writer, q.reader
    assert isinstance(writer, ZConnection)
    assert (writer.handle[0], reader.handle[0]) == ("w", "r")
    assert (writer.readable, writer.writable, reader.readable, reader.writable) == (False, True, True, False)
    writer.send(1)
    assert reader.recv() == 1
    q.put(2)
    assert reader.recv() == 2
    writer.send(3)
    assert q.get() == 3
    with pytest.raises(DirectionError):
        writer.recv()
    with pytest.raises(DirectionError):
        reader.send(4)


# -- between processes --


@every_method
def test_what_a_child_put_before_it_ended_arrives_in_order(kind: Kind, crew: Crew) -> None:
    q = kind()
    crew.start(put_all, q, range(1000))
    crew.finish()
    assert [q.get(timeout=PATIENCE) for _ in range(1000)] == list(range(1000))
    assert q.empty()


def test_items_of_one_writer_stay_in_order(kind: Kind, crew: Crew) -> None:
    q = kind()
    for child in range(3):
        crew.start(put_all, q, [(child, number) for number in range(2000)])
    got = [q.get(timeout=PATIENCE) for _ in range(6000)]
    for child in range(3):
        assert [number for writer, number in got if writer == child] == list(range(2000))
    crew.finish()


def test_a_push_queue_gives_each_of_four_readers_the_same_number(crew: Crew) -> None:
    q: SimpleQueuePush[Any] = SimpleQueuePush()
    ready: SimpleQueue[int] = SimpleQueue()
    counts: SimpleQueue[int] = SimpleQueue()
    for _ in range(4):
        crew.start(count_items, [q], ready, counts)
    for _ in range(4):
        ready.get(timeout=PATIENCE)
    put_all(q, chain(range(2400), [None] * 4))
    assert [counts.get(timeout=PATIENCE) for _ in range(4)] == [600] * 4
    crew.finish()


def test_two_handles_of_a_process_are_one_reader(crew: Crew) -> None:
    q: SimpleQueuePush[Any] = SimpleQueuePush()
    again = pickle.loads(pickle.dumps(q))
    ready: SimpleQueue[int] = SimpleQueue()
    counts: SimpleQueue[int] = SimpleQueue()
    crew.start(count_items, [q, again], ready, counts)
    crew.start(count_items, [q], ready, counts)
    for _ in range(2):
        ready.get(timeout=PATIENCE)
    put_all(q, chain(range(1000), [None] * 2))
    assert [counts.get(timeout=PATIENCE) for _ in range(2)] == [500] * 2
    crew.finish()


@pytest.mark.parametrize("busy", ["sleep", "loop"])
def test_no_item_waits_in_a_busy_reader_while_another_reader_waits(crew: Crew, busy: str) -> None:
    longest = []
    for _ in range(3):
        q: SimpleQueuePull[Any] = SimpleQueuePull()
        times: SimpleQueue[tuple[float, int]] = SimpleQueue()
        barrier = crew.context.Barrier(3)
        readers = [crew.start(time_gets, q, barrier, times) for _ in range(2)]
        put_all(q, chain(range(8000), [(busy, 0.3)], range(3000), [(busy, 0.3)], range(500), [None, None]))
        q.flush()
        barrier.wait(PATIENCE)
        told = [times.get(timeout=PATIENCE) for _ in range(2)]
        assert sum(count for _, count in told) == 11502
        crew.finish(*readers)
        longest.append(max(seconds for seconds, _ in told))
        if longest[-1] <= 0.05:
            return
    raise AssertionError(f"items waited {longest} seconds in a busy reader")


@every_method
def test_a_process_that_only_holds_a_handle_takes_no_items(kind: Kind, crew: Crew) -> None:
    q = kind()
    ready: SimpleQueue[str] = SimpleQueue()
    release: SimpleQueue[None] = SimpleQueue()
    for _ in range(2):
        crew.start(hold, q, ready, release)
        ready.get(timeout=PATIENCE)
    put_all(q, range(300))
    assert [q.get(timeout=PATIENCE) for _ in range(300)] == list(range(300))
    put_all(release, [None] * 2)
    crew.finish()


@every_method
def test_handles_go_to_children_and_grandchildren_however_those_start(
    kind: Kind,
    crew: Crew,
) -> None:
    q, answers = kind(), SimpleQueue[Any]()
    methods = ["fork", "spawn", "forkserver"]
    q.put("for the last in the line")
    crew.start(relay, q, answers, methods)
    got = [answers.get(timeout=PATIENCE) for _ in range(4)]
    assert got[0] == ("last", "for the last in the line")
    assert [name for name, _ in got[1:]] == methods[::-1]
    assert len({pid for _, pid in got[1:]}) == 3
    crew.finish()


@every_method
def test_a_handle_goes_through_pickle_and_through_a_queue(kind: Kind, crew: Crew) -> None:
    q, carrier = kind(), kind()
    crew.start(put_pickled, pickle.dumps(q), "through pickle")
    assert q.get(timeout=PATIENCE) == "through pickle"
    crew.start(echo, carrier, q)
    carrier.put(q)
    carrier.put("stop")
    q.get(timeout=PATIENCE).put("through a queue")
    assert q.get(timeout=PATIENCE) == "through a queue"
    crew.finish()


@every_method
def test_a_started_childs_handle_lives_on_when_the_parent_drops_its_own(
    crew: Crew,
) -> None:
    inbox, outbox = SimpleQueue[Any](), SimpleQueue[Any]()
    inbox.put("hello")
    inbox.put("stop")
    child = crew.start(echo, inbox, outbox)
    inbox.close()
    del inbox
    assert outbox.get(timeout=PATIENCE) == "hello"
    crew.finish(child)


def test_a_pickle_that_is_loaded_after_the_last_holder_went_raises() -> None:
    q: SimpleQueue[int] = SimpleQueue()
    other: SimpleQueue[int] = SimpleQueue()
    pickled = pickle.dumps(q)
    q.close()
    other.put(1, sync=True)
    with pytest.raises(HandleError):
        pickle.loads(pickled).put(1)


# -- threads and forks --


@pytest.mark.parametrize("kind", [SimpleQueuePull, SimpleQueuePush, Queue, lambda: Queue(50)])
def test_numbers_and_other_items_keep_their_order_and_types(kind: Any) -> None:
    values: list[object] = []
    for number in range(300):
        values += [number, -number, number << 24, number % 2 == 0, None, number / 2, "text", b"i123", (number,)][
            : 1 + number % 9
        ]
    with kind() as q:

        def feed() -> None:
            for start in range(0, len(values), 20):
                for value in values[start : start + 10]:
                    q.put(value)
                q.put_many(values[start + 10 : start + 20])
                q.put_many([1, 2, 3])
            q.put(None)
            q.flush()

        feeder = threading.Thread(target=feed)
        feeder.start()
        wanted: list[object] = []
        for start in range(0, len(values), 20):
            wanted += [*values[start : start + 20], 1, 2, 3]
        wanted.append(None)
        got: list[object] = []
        while len(got) < len(wanted):
            got.append(q.get())
            if len(got) < len(wanted):
                got += q.get_many(7)
        feeder.join()
        assert got == wanted
        assert list(map(type, got)) == list(map(type, wanted))


def test_one_handle_serves_many_threads(kind: Kind) -> None:
    q = kind()
    got: list[Any] = []
    each = 1500

    def get() -> None:
        while (item := q.get(timeout=PATIENCE)) is not None:
            got.append(item)

    putters = [threading.Thread(target=put_all, args=(q, [(n, i) for i in range(each)])) for n in range(4)]
    getters = [threading.Thread(target=get) for _ in range(4)]
    for thread in (*putters, *getters):
        thread.start()
    for thread in putters:
        thread.join(PATIENCE)
    put_all(q, [None] * 4)
    for thread in getters:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert Counter(got) == Counter((n, i) for n in range(4) for i in range(each))
    assert q.empty()


def test_threads_of_two_processes_share_a_queue(crew: Crew) -> None:
    q, back = SimpleQueue[Any](), SimpleQueue[Any]()
    for _ in range(2):
        crew.start(echo, q, back)
    threads = [threading.Thread(target=put_all, args=(q, [(n, i) for i in range(500)])) for n in range(3)]
    got: list[Any] = []
    threads += [
        threading.Thread(target=lambda: got.extend([back.get(timeout=PATIENCE) for _ in range(500)])) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert Counter(got) == Counter((n, i) for n in range(3) for i in range(500))
    put_all(q, ["stop"] * 2)
    crew.finish()


def test_a_handle_used_before_a_fork_is_used_again_on_both_sides(kind: Kind) -> None:
    down, up = SimpleQueue[Any](), kind()
    for q in (down, up):
        q.put("warm")
        assert q.get() == "warm"
    for generation in range(5):

        def child(generation: int = generation) -> None:
            for number in range(50):
                assert down.get(timeout=PATIENCE) == (generation, number)
                up.put((generation, number))
            down.close()
            up.close()

        pid = fork(child)
        for number in range(50):
            down.put((generation, number))
        assert [up.get(timeout=PATIENCE) for _ in range(50)] == [(generation, number) for number in range(50)]
        reap(pid)


def test_a_fork_of_a_fork_goes_on_with_the_handle() -> None:
    q: SimpleQueue[Any] = SimpleQueue()
    q.put(0)
    assert q.get() == 0

    def child() -> None:
        q.put(1)
        assert q.flush(PATIENCE)
        pid = fork(grandchild)
        q.put(3)
        assert q.flush(PATIENCE)
        reap(pid)

    def grandchild() -> None:
        q.put(2)
        assert q.flush(PATIENCE)

    pid = fork(child)
    assert {q.get(timeout=PATIENCE) for _ in range(3)} == {1, 2, 3}
    reap(pid)


def test_a_fork_while_threads_use_the_handle_harms_neither_side() -> None:
    q, up = SimpleQueue[Any](), SimpleQueue[Any]()
    stop = threading.Event()
    counts = {"put": 0, "got": 0}

    def put() -> None:
        while not stop.is_set():
            if counts["put"] < counts["got"] + 5000:  # else a slow machine has more left than it gets in time
                q.put(counts["put"])
                counts["put"] += 1

    def get() -> None:
        while (item := q.get(timeout=PATIENCE)) is not None:
            assert item == counts["got"]
            counts["got"] += 1

    threads = [threading.Thread(target=put), threading.Thread(target=get)]
    for thread in threads:
        thread.start()
    try:
        for number in range(8):
            pid = fork(lambda number=number: up.put(number, sync=True))  # type: ignore[misc]
            assert up.get(timeout=PATIENCE) == number
            reap(pid)
    finally:
        stop.set()
        threads[0].join(PATIENCE)
        q.put(None)
        threads[1].join(PATIENCE)
    assert counts["got"] == counts["put"] > 0


def test_what_a_forked_child_did_not_put_is_put_once() -> None:
    q: SimpleQueue[int] = SimpleQueue()
    for number in range(20000):  # most of them have gathered when the fork comes
        q.put(number)
    pid = fork(lambda: None)
    reap(pid)
    assert [q.get(timeout=PATIENCE) for _ in range(20000)] == list(range(20000))
    with pytest.raises(queue.Empty):
        q.get(timeout=0.05)


# -- objects --


class Local:
    """Something to pickle."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return type(other) is Local and other.value == self.value

    __hash__ = None  # type: ignore[assignment]


PLAIN: list[Any] = [
    None,
    True,
    0,
    -(10**50),
    1.5,
    "",
    "text é 漢",
    "x" * 200_000,
    b"",
    b"\x80",
    b"B",
    b"bytes",
    bytes(range(256)) * 1000,
    bytearray(),
    bytearray(b"array"),
    bytearray(200_000),
    (),
    (1, ("two", [3, {"four": (5, None)}])),
    {"key": {1, 2}, None: frozenset("ab")},
    [b"x" * 70_000, bytearray(70_000), "y" * 70_000],
    list(range(50_000)),
    Local(("a", b"b")),
    os.path.join,
    Ellipsis,
]


@pytest.fixture
def through(kind: Kind, crew: Crew) -> Iterator[Callable[[Any], Any]]:
    """Sends an object to a child and returns what comes back."""
    there, back = kind(), kind()
    child = crew.start(echo, there, back)

    def send(obj: Any) -> Any:
        there.put(obj)
        return back.get(timeout=PATIENCE)

    yield send
    there.put("stop")
    crew.finish(child)


def test_objects_arrive_as_they_were_put(through: Callable[[Any], Any]) -> None:
    for obj in PLAIN:
        got = through(obj)
        assert type(got) is type(obj)
        assert got == obj


def test_twenty_megabytes_arrive(through: Callable[[Any], Any]) -> None:
    large = os.urandom(20_000_000)
    assert through(large) == large
    assert through(bytearray(large)) == large


def test_exceptions_lambdas_and_local_classes_arrive(through: Callable[[Any], Any]) -> None:
    error = through(ValueError("a reason", 3))
    assert type(error) is ValueError
    assert error.args == ("a reason", 3)
    base = 10
    assert through(lambda x: x + base)(1) == 11

    class Inner:
        value = 5

        def double(self) -> int:
            return 2 * self.value

    assert through(Inner()).double() == 10
    assert through(Inner)().double() == 10


ARRAYS: dict[str, Callable[[], Any]] = {
    "small": lambda: np.arange(5.0),
    "empty": lambda: np.zeros((0, 3)),
    "scalar": lambda: np.array(3),
    "8 MB": lambda: np.random.default_rng(1).random(1_000_000),
    "non-contiguous": lambda: np.arange(1_000_000).reshape(1000, 1000)[::2, ::3],
    "fortran": lambda: np.asfortranarray(np.arange(600_000.0).reshape(600, 1000)),
    "strings": lambda: np.array(["a", "bc"]),
    "objects": lambda: np.array([None, {"a": 1}], dtype=object),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_arrive_whole_and_writable(through: Callable[[Any], Any], name: str) -> None:
    array = ARRAYS[name]()
    before = array.copy()
    got = through(array)
    assert got.dtype == array.dtype
    assert got.shape == array.shape
    assert np.array_equal(got, before)
    assert got.flags.writeable
    got[...] = got
    assert array.flags.writeable
    array[...] = array
    nested_a, nested_b = through({"nested": [array, array]})["nested"]
    assert np.array_equal(nested_a, before)
    assert np.array_equal(nested_b, before)


def test_a_read_only_array_arrives(through: Callable[[Any], Any]) -> None:
    for size in (5, 1_000_000):
        array = np.arange(size)
        array.flags.writeable = False
        assert np.array_equal(through(array), array)


@pytest.mark.parametrize("size", [5, 5_000, 1_000_000])
def test_changing_an_array_after_put_changes_nothing_that_arrives(kind: Kind, size: int) -> None:
    q = kind()
    array = np.zeros(size)
    data = bytearray(size)
    for number in range(1, 6):
        array[:] = number
        data[:] = bytes([number]) * size
        q.put(array)
        q.put(data)
    array[:] = 99
    data[:] = bytes([99]) * size
    for number in range(1, 6):
        got = q.get(timeout=PATIENCE)
        assert got[0] == got[-1] == number
        got = q.get(timeout=PATIENCE)
        assert got[0] == got[-1] == number


def test_lambdas_and_classes_of_main_arrive_in_children(method: str, program: type[Program]) -> None:
    running = program(f"""
from multiprocessing import get_context
from fiberq import SimpleQueue

class Point:
    def __init__(self, x):
        self.x = x

def work(tasks, results):
    point, function = tasks.get(), tasks.get()
    results.put(Point(function(point.x)))
    results.put(lambda y: y + 1)
    results.put((Point(7), lambda z: z + 2))

if __name__ == "__main__":
    tasks, results = SimpleQueue(), SimpleQueue()
    child = get_context({method!r}).Process(target=work, args=(tasks, results))
    child.start()
    tasks.put(Point(20))
    tasks.put(lambda x: x * 2)
    point, function = results.get(), results.get()
    print(type(point) is Point, function(point.x))
    point, function = results.get()
    print(function(point.x))
    child.join()
""")
    assert running.read() == "True 41"
    assert running.read() == "9"
    running.wait()


def test_what_cannot_be_pickled_raises_in_put_and_the_queue_goes_on(kind: Kind) -> None:
    q = kind()
    q.put("before")
    for bad in (threading.Lock(), (n for n in "abc"), [1, {"deep": threading.Lock()}]):
        with pytest.raises(ItemError):
            q.put(bad)
    q.put("after")
    assert [q.get(timeout=PATIENCE), q.get(timeout=PATIENCE)] == ["before", "after"]


# -- ends --


@pytest.mark.parametrize("rounds", range(20))
def test_a_none_for_each_worker_ends_them_after_all_was_done(crew: Crew, rounds: int) -> None:
    q: SimpleQueue[Any] = SimpleQueue()
    done: SimpleQueue[int] = SimpleQueue()
    # This process has itself read from the queue before, and holds an item of it.
    for number in range(40):
        q.put((number, 0.0))
    for _ in range(20 + rounds % 2 * 19):
        q.get(timeout=PATIENCE)
    first = 20 + rounds % 2 * 19
    for _ in range(4):
        crew.start(work_until_none, q, done)
    for number in range(40, 400):
        q.put((number, (0.0, 0.0, 0.0, 0.0005, 0.003)[(number * 31 + rounds) % 5]))
    put_all(q, [None] * 4)
    assert sorted(done.get(timeout=PATIENCE) for _ in range(400 - first)) == list(range(first, 400))
    crew.finish()
    assert q.empty()
    assert done.empty()


@every_method
def test_a_none_for_each_worker_ends_them_however_they_were_started(crew: Crew) -> None:
    q: SimpleQueue[Any] = SimpleQueue()
    done: SimpleQueue[int] = SimpleQueue()
    for _ in range(3):
        crew.start(work_until_none, q, done)
    put_all(q, chain(((number, 0.0) for number in range(300)), [None] * 3))
    crew.finish()
    assert sorted(done.get(timeout=PATIENCE) for _ in range(300)) == list(range(300))


def test_close_lets_go_of_one_handle_only(kind: Kind) -> None:
    q = kind()
    other = pickle.loads(pickle.dumps(q))
    other.put(1)
    q.put(2)
    q.close()
    q.close()
    for use in (q.get, lambda: q.put(3), q.empty, q.qsize, lambda: pickle.dumps(q), lambda: q.get(block=False)):
        with pytest.raises(ClosedError):
            use()
    assert {other.get(timeout=PATIENCE), other.get(timeout=PATIENCE)} == {1, 2}
    with other:
        pass
    with pytest.raises(ClosedError):
        other.get()
    assert "closed" in repr(other)


@every_method
def test_put_with_sync_waits_for_what_was_put_before_it_too(crew: Crew) -> None:
    q: SimpleQueue[Any] = SimpleQueue()
    child = crew.start(put_and_die, q, 3000)
    until(lambda: not child.is_alive())
    assert [q.get(timeout=PATIENCE) for _ in range(3001)] == [*range(3000), "last"]


@every_method
def test_a_handle_lives_as_long_as_the_process_it_was_for_though_only_forked_children_use_it(crew: Crew) -> None:
    q: SimpleQueue[Any] = SimpleQueue()
    answers: SimpleQueue[Any] = SimpleQueue()
    put_all(q, "ab")
    child = crew.start(supervise, q, answers)
    q.close()
    assert [answers.get(timeout=PATIENCE) for _ in range(2)] == ["a", "b"]
    crew.finish(child)


def test_a_handle_that_is_attached_while_the_last_other_one_is_closed_holds_the_queue(
    monkeypatch: pytest.MonkeyPatch, transport: str
) -> None:
    q: SimpleQueue[Any] = SimpleQueue()
    q.put(transport)
    link: Any = q._channel._link
    ask = link.ask

    def slow_ask(**question: Any) -> Any:
        answer = ask(**question)
        if question["op"] == "open":  # the node holds it for the new handle; here that is not noted yet
            q.close()
        return answer

    monkeypatch.setattr(link, "ask", slow_ask)
    reader = q.reader
    assert q._channel.closed
    assert reader.recv() == transport


def test_what_a_closing_reader_had_not_got_goes_to_others(crew: Crew) -> None:
    q: SimpleQueue[Any] = SimpleQueue()
    back: SimpleQueue[Any] = SimpleQueue()
    put_all(q, range(500))
    mine = pickle.loads(pickle.dumps(q))
    got = [mine.get(timeout=PATIENCE) for _ in range(100)]
    mine.close()
    q.put("stop")
    child = crew.start(echo, q, back)
    got += [back.get(timeout=PATIENCE) for _ in range(400)]
    crew.finish(child)
    assert sorted(got) == list(range(500))


# -- waiting --


@pytest.mark.parametrize("timeout", [0.0, 0.001, 0.05, 0.3])
def test_get_raises_empty_at_its_deadline(kind: Kind, timeout: float) -> None:
    q = kind()
    for _ in range(5 if timeout < 0.3 else 1):
        began = time.monotonic()
        with pytest.raises(queue.Empty):
            q.get(timeout=timeout)
        assert timeout <= time.monotonic() - began < timeout + NOISE


def hold_some(q: Any, told: Any, go: Any) -> None:
    while q.get():
        told.put("holds one")
        go.get()


def test_get_without_blocking_does_not_wait_longer_because_another_thread_waits(crew: Crew) -> None:
    """Another process has not told yet that it has taken an item: the node asks it, and answers afterwards."""
    with Queue[int]() as q, Queue[int]() as others, SimpleQueue[str]() as told, SimpleQueue[str]() as go:
        process = crew.start(hold_some, q, told, go)
        thread = threading.Thread(target=others.get)
        thread.start()
        until(lambda: others._channel._link is not None and others._channel._link._driver is not None)
        took = []
        for _ in range(5):
            q.put(1)
            told.get()
            start = time.monotonic()
            with pytest.raises(queue.Empty):
                q.get(block=False)
            took.append(time.monotonic() - start)
            go.put("on")
        assert min(took) < HEARTBEAT / 2
        others.put(1)
        thread.join(PATIENCE)
        q.put(0)
        crew.finish(process)


def test_get_without_blocking_finds_what_this_process_was_just_about_to_give_back(kind: Kind) -> None:
    q = kind()
    put_all(q, range(600))
    q.flush()
    for first in range(0, 600, 3):
        assert [q.get(block=False) for _ in range(3)] == [first, first + 1, first + 2]
        wait = time.perf_counter() + 0.0100 + first % 50 * 0.0001  # about as long as a reader keeps what nobody takes
        while time.perf_counter() < wait:
            pass


def test_get_without_blocking_returns_what_is_there(kind: Kind) -> None:
    q = kind()
    for number in range(20):
        with pytest.raises(queue.Empty):
            q.get(block=False)
        q.put(number, sync=True)
        assert q.get(block=False) == number
    for number in range(20):
        q.put(number)
    assert [q.get(block=False) for _ in range(20)] == list(range(20))
    with pytest.raises(queue.Empty):
        q.get(False)


def test_timeouts_lose_nothing_when_items_come_at_the_same_moment(kind: Kind, crew: Crew) -> None:
    q = kind()
    count, got, empties = 1000, [], 0
    crew.start(put_at_odd_times, q, count)
    deadline = time.monotonic() + 2 * PATIENCE
    while len(got) < count:
        assert time.monotonic() < deadline
        try:
            got.append(q.get(timeout=(empties % 13) * 0.0002))
        except queue.Empty:
            empties += 1
    assert got == list(range(count))
    assert empties > 10
    crew.finish()


def test_timeouts_of_two_readers_lose_and_double_nothing(crew: Crew) -> None:
    q: SimpleQueue[int] = SimpleQueue()
    count, got = 1000, []
    crew.start(put_at_odd_times, q, count)
    again = pickle.loads(pickle.dumps(q))
    stop = threading.Event()

    def get(mine: Any, step: float) -> None:
        tries = 0
        while not stop.is_set():
            tries += 1
            try:
                got.append(mine.get(timeout=tries % 11 * step))
            except queue.Empty:
                pass

    threads = [threading.Thread(target=get, args=(mine, step)) for mine, step in ((q, 0.0002), (again, 0.0003))]
    for thread in threads:
        thread.start()
    try:
        until(lambda: len(got) >= count, 2 * PATIENCE)
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)
    assert sorted(got) == list(range(count))
    crew.finish()


def test_empty_and_qsize_are_true(kind: Kind) -> None:
    q = kind()
    assert q.empty()
    assert q.qsize() == 0
    for number in range(10):
        q.put(number)
        assert q.qsize() == number + 1
        assert not q.empty()
    for number in range(10):
        assert q.get(timeout=PATIENCE) == number
        assert q.qsize() == 9 - number
    assert q.empty()
    put_all(q, range(5000))
    assert q.qsize() == 5000
    for number in range(4000):
        assert q.get(timeout=PATIENCE) == number
    assert q.qsize() == 1000


def test_qsize_counts_what_another_reader_has_not_got(crew: Crew) -> None:
    q: SimpleQueue[Any] = SimpleQueue()
    done: SimpleQueue[int] = SimpleQueue()
    put_all(q, ((number, 0.0) for number in range(1000)))
    q.put((1000, 2 * PATIENCE))
    put_all(q, ((number, 0.0) for number in range(1001, 1101)))
    child = crew.start(work_until_none, q, done)
    for _ in range(1000):
        done.get(timeout=PATIENCE)
    until(lambda: q.qsize() == 100)
    got = [q.get(timeout=PATIENCE)[0] for _ in range(100)]
    assert sorted(got) == list(range(1001, 1101))
    assert q.empty()
    crew.kill(child)


def test_control_c_interrupts_get_and_the_queue_goes_on(kind: Kind) -> None:
    q = kind()
    for wait in (q.get, lambda: q.get(timeout=30), lambda: q.reader.poll(30)):
        with pytest.raises(KeyboardInterrupt):
            interrupted(wait)
        q.put("item")
        assert q.get(timeout=PATIENCE) == "item"
    assert q.empty()


def test_control_c_interrupts_a_get_while_another_thread_drives(kind: Kind) -> None:
    q, other = kind(), kind()
    thread = threading.Thread(target=other.get)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted(q.get)
        q.put("item")
        assert q.get(timeout=PATIENCE) == "item"
    finally:
        other.put("end")
        thread.join(PATIENCE)
    assert not thread.is_alive()


def test_control_c_at_any_moment_breaks_nothing_though_another_thread_takes_the_signal(kind: Kind) -> None:
    q = kind()
    go = threading.Event()

    def press() -> None:
        for number in range(50):
            if not go.wait(PATIENCE):
                return
            go.clear()
            deadline = time.monotonic() + number / 20_000  # another moment each time
            while time.monotonic() < deadline:
                pass
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    for _ in range(50):
        with pytest.raises(KeyboardInterrupt):
            _use_forever(q, go)
    thread.join(PATIENCE)
    while not q.empty():
        q.get()
    q.put("still here")
    assert q.get(timeout=PATIENCE) == "still here"


def _use_forever(q: Any, started: threading.Event) -> None:
    started.set()
    while True:
        q.put("item")
        try:
            q.get(timeout=0.1)
        except queue.Empty:
            pass  # its put was interrupted


# -- limits --


def test_put_waits_while_the_node_is_full(kind: Kind, program: type[Program]) -> None:
    running = program(
        f"""
import threading, time
from fiberq.queues import {kind.__name__} as Queue
q = Queue()
count, total = 0, 600
def put():
    global count
    for number in range(total):
        q.put(number.to_bytes(4, "big") * 25_000)
        count += 1
thread = threading.Thread(target=put)
thread.start()
before, since = -1, time.monotonic()
while time.monotonic() - since < 0.7:
    if count != before:
        before, since = count, time.monotonic()
    time.sleep(0.01)
print(0 < count < total)
print([int.from_bytes(q.get(timeout=20)[:4], "big") for _ in range(total)] == list(range(total)))
thread.join(20)
print(count == total, q.empty())
""",
        FIBERQ_MAX_BYTES="2000000",
    )
    assert running.read(30) == "True"
    assert running.read(30) == "True"
    assert running.read() == "True True"
    running.wait()


def test_a_queue_that_nobody_reads_does_not_stop_the_others_when_the_node_is_full(program: type[Program]) -> None:
    running = program(
        """
from fiberq import SimpleQueue
bulk, control = SimpleQueue(), SimpleQueue()
for _ in range(40):
    bulk.put(bytes(50_000))
print(bulk.flush(1.0))
for number in range(100):
    control.put(bytes(10_000))
    assert control.get(timeout=10) == bytes(10_000)
print([len(bulk.get(timeout=10)) for _ in range(40)] == [50_000] * 40)
print(bulk.flush(10))
""",
        FIBERQ_MAX_BYTES="1000000",
    )
    assert running.read(30) == "False"
    assert running.read(30) == "True"
    assert running.read(30) == "True"
    running.wait()


def test_a_full_node_takes_items_again_when_they_are_read(program: type[Program]) -> None:
    running = program(
        """
from multiprocessing import get_context
from fiberq import SimpleQueue
from workers import put_all
q = SimpleQueue()
children = [get_context("fork").Process(target=put_all, args=(q, [(n, b"x" * 5000)] * 500)) for n in range(3)]
for child in children:
    child.start()
got = [q.get(timeout=20)[0] for _ in range(1500)]
for child in children:
    child.join(20)
print(sorted(got) == sorted([0, 1, 2] * 500), [child.exitcode for child in children])
""",
        FIBERQ_MAX_BYTES="300000",
    )
    assert running.read(40) == "True [0, 0, 0]"
    running.wait()


def test_an_item_larger_than_the_node_takes_raises_in_put(program: type[Program]) -> None:
    running = program(
        """
from fiberq import SimpleQueue
from fiberq.errors import ItemError
q = SimpleQueue()
q.put("before")
for large in (bytes(1_000_001), bytearray(1_000_001), "x" * 1_000_001, [bytes(600_000), bytes(600_001)]):
    try:
        q.put(large)
    except ItemError as error:
        print("1000000" in str(error))
q.put("after")
print(q.get(), q.get(), q.empty())
""",
        FIBERQ_MAX_BYTES="1000000",
    )
    for _ in range(4):
        assert running.read() == "True"
    assert running.read() == "before after True"
    running.wait()


pytestmark = pytest.mark.usefixtures("transport")


def test_what_was_put_at_the_very_end_of_a_program_is_accepted(program: type[Program]) -> None:
    q: SimpleQueue[int] = SimpleQueue()
    running = program(f"""
import pickle
q = pickle.loads({pickle.dumps(q)!r})
for number in range(5000):
    q.put(number)
""")
    running.wait()
    assert [q.get(timeout=PATIENCE) for _ in range(5000)] == list(range(5000))


T = TypeVar("T")


class Mine(SimpleQueue[Any]):
    """As the standard library's can be derived from."""


class MineToo(Queue[Any]):
    pass


@every_method
@pytest.mark.parametrize("make", [Mine, MineToo, lambda: Queue["Undefined"](), lambda: Queue[T]()])
def test_a_queue_of_a_class_of_ones_own_or_of_any_type_goes_to_a_child(make: Any, crew: Crew) -> None:
    with make() as q, make() as back:
        q.put("item")
        q.put("stop")
        crew.finish(crew.start(echo, q, back))
        assert back.get(timeout=PATIENCE) == "item"


def test_a_class_derived_from_simple_queue_follows_the_setting() -> None:
    config.use_push_queue = True
    try:
        with Mine() as q:
            assert q._channel.attach().kind(q._channel.number).pushed
    finally:
        del config.use_push_queue


@pytest.mark.parametrize("kind", [SimpleQueuePull, SimpleQueuePush, Queue, JoinableQueue])
def test_small_objects_are_what_was_put_however_they_are_got(kind: Any) -> None:
    """Whole frames of them come: some can be unpickled together, some not, and threads share a reader."""
    twice = ["the same list"]
    shapes: list[Any] = [
        {"n": 0},
        [0, "text with h "],
        (0, None),
        {"a": twice, "b": twice},
        {0, 1},
        {"c": Fraction(1, 3)},
    ]
    items = [shapes[number // 500 % 6] if number % 7 else {"number": number} for number in range(9_000)]
    with kind() as q:
        for item in items:
            q.put(item)
        q.flush()
        got = [q.get(timeout=PATIENCE) for _ in range(4_000)]
        while len(got) < 6_000:
            got += q.get_many(100, timeout=PATIENCE)
        for _ in range(25):  # each of these threads ends the ownership of the one before
            thread = threading.Thread(target=lambda: got.extend([q.get(timeout=PATIENCE) for _ in range(99)]))
            thread.start()
            thread.join(PATIENCE)
        got += [q.get(timeout=PATIENCE) for _ in range(len(items) - len(got))]
        assert got == items
        shared = [each for each in got if isinstance(each, dict) and "a" in each]
        assert shared
        assert all(each["a"] is each["b"] for each in shared)
        assert len({id(each["a"]) for each in shared}) == len(shared), "but no two items have it in common"


def test_what_was_got_is_the_callers_alone() -> None:
    with SimpleQueue[Any]() as q:
        q.put_many([{"number": number} for number in range(1000)])
        alive = weakref.WeakSet[Any]()
        for number in range(1000):
            got = q.get(timeout=PATIENCE)
            assert got == {"number": number}
            got["more"] = threading.Event()
            alive.add(got["more"])
            del got
            assert not alive
