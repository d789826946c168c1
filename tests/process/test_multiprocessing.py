"""What a user of multiprocessing expects of connections, `wait`, contexts and pools, and what goes beyond it."""

from __future__ import annotations

import array
import asyncio
import errno
import multiprocessing
import os
import pickle
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import pool
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
from support import PATIENCE, Crew, every_method, fork, reap, until
from workers import (
    die,
    die_once,
    fork_and_close,
    own_id,
    send_all,
    signal_in_vain,
    square,
    take_one,
    use_received,
)

from fiberq import Pipe, Queue, SimpleQueue, SimpleQueuePull, codec, get_context, wait
from fiberq.errors import ClosedError, DirectionError, FiberqError, ItemError

pytestmark = pytest.mark.usefixtures("transport")

on_both = pytest.mark.parametrize("pipe", [Pipe, multiprocessing.Pipe], ids=["fiberq", "multiprocessing"])
"""The test holds for multiprocessing's connections, too."""

BIG = 1_000_000

# -- bytes --


def view_of_mutable(data: bytes) -> memoryview:
    return memoryview(bytearray(data))


def array_of(data: bytes) -> Any:
    return array.array("B", data)


@on_both
@pytest.mark.parametrize("length", [0, 1, BIG])
@pytest.mark.parametrize("make", [bytes, bytearray, view_of_mutable, array_of])
def test_a_message_of_bytes_arrives_as_bytes(pipe: Any, length: int, make: Callable[[bytes], Any]) -> None:
    if length == BIG and pipe is not Pipe:
        pytest.skip("multiprocessing's pipe blocks until a large message is read")
    a, b = pipe()
    sent = os.urandom(length)
    a.send_bytes(make(sent))
    got = b.recv_bytes()
    assert type(got) is bytes
    assert got == sent


@on_both
def test_a_part_of_a_buffer_is_sent(pipe: Any) -> None:
    a, b = pipe()
    numbers = array.array("i", [1, 2, 3])
    for data, part in (("abcdef", (2,)), ("abcdef", (2, 3)), ("abcdef", (6,)), ("abcdef", (6, 0))):
        a.send_bytes(data.encode(), *part)
        assert b.recv_bytes().decode() == data[part[0] :][: part[1] if len(part) > 1 else None]
    a.send_bytes(numbers, 4, 4)
    assert b.recv_bytes() == numbers.tobytes()[4:8]
    for wrong in ((7,), (-1,), (3, 4), (3, -1)):
        with pytest.raises(ValueError, match=r".+"):
            a.send_bytes(b"abcdef", *wrong)


@on_both
def test_a_message_of_bytes_that_is_a_pickle_is_an_object_and_the_other_way_round(pipe: Any) -> None:
    a, b = pipe()
    for obj in ({"any": ["object"]}, b"bytes", 7):
        a.send_bytes(pickle.dumps(obj))
        assert b.recv() == obj
        a.send(obj)
        assert pickle.loads(b.recv_bytes()) == obj


def test_a_pickle_with_large_buffers_is_received_as_one() -> None:
    numpy = pytest.importorskip("numpy")
    a, b = Pipe()
    for obj in (numpy.arange(BIG), "x" * BIG, bytes(BIG)):
        a.send(obj)
        assert numpy.array_equal(pickle.loads(b.recv_bytes()), obj)


@on_both
def test_a_message_goes_into_a_buffer(pipe: Any) -> None:
    a, b = pipe()
    room = array.array("i", [0] * 4)
    a.send_bytes(array.array("i", [1, 2]))
    assert b.recv_bytes_into(room, 4) == 8
    assert list(room) == [0, 1, 2, 0]
    for wrong in (-1, 17):
        with pytest.raises(ValueError, match=r".+"):
            b.recv_bytes_into(room, wrong)
    a.send_bytes(b"too long a message")
    with pytest.raises(multiprocessing.BufferTooShort) as caught:
        b.recv_bytes_into(bytearray(5))
    assert caught.value.args == (b"too long a message",)
    a.send_bytes(b"next")
    assert b.recv_bytes() == b"next"


@on_both
@pytest.mark.parametrize("duplex", [True, False])
def test_too_long_a_message_ends_receiving(pipe: Any, duplex: bool) -> None:
    b, a = pipe(duplex)
    a.send_bytes(b"12345")
    assert b.recv_bytes(5) == b"12345"
    with pytest.raises(ValueError, match="negative"):
        b.recv_bytes(-1)
    a.send_bytes(b"123456")
    with pytest.raises(OSError, match="bad message length"):
        b.recv_bytes(5)
    assert b.closed is not duplex
    with pytest.raises(OSError, match=r".+"):
        b.recv()
    if duplex:
        assert not b.readable
        b.send("the other way")
        assert a.recv() == "the other way"


def test_what_is_sent_may_be_changed_afterwards() -> None:
    a, b = Pipe()
    for data in (bytearray(b"1" * BIG), memoryview(bytearray(b"1" * BIG)).toreadonly()):
        a.send_bytes(data)
        memoryview(data.obj if isinstance(data, memoryview) else data)[:] = b"2" * BIG
        assert b.recv_bytes() == b"1" * BIG


@on_both
def test_what_pickle_raises_can_be_caught(pipe: Any) -> None:
    class Stubborn:
        def __reduce__(self) -> Any:
            raise LookupError("not me")

    a, _b = pipe()
    for obj, kind in ((Stubborn(), LookupError), (sys._getframe(), TypeError)):
        with pytest.raises(kind):
            a.send([obj])


def test_an_item_error_can_be_pickled() -> None:
    a, _b = Pipe()
    with pytest.raises(ItemError) as caught:
        a.send(sys._getframe())
    again = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(again, ItemError)
    assert isinstance(again, TypeError)
    assert again.args == caught.value.args


# -- handles and other connections as messages --


@every_method
def test_a_connection_that_is_sent_stays_open_though_its_sender_closes_it_at_once(crew: Crew) -> None:
    a, b = Pipe()
    child = crew.start(use_received, b)
    r, w = Pipe(duplex=False)
    a.send(w)
    w.close()
    assert r.recv() == "through a connection that came as a message"
    r, w = Pipe(duplex=False)
    a.send(r)
    r.close()
    w.send("back")
    w.close()
    assert a.recv() == "back"
    crew.finish(child)


def test_an_object_that_could_not_be_sent_leaves_no_handle_on_its_way() -> None:
    a, _b = Pipe()
    r, w = Pipe(duplex=False)
    with pytest.raises(ItemError):
        a.send((w, sys._getframe()))
    w.close()
    assert r.poll(PATIENCE)
    with pytest.raises(EOFError):
        r.recv()


def test_sockets_and_multiprocessings_connections_are_sent() -> None:
    a, b = Pipe()
    left, right = multiprocessing.Pipe()
    a.send(right)
    with b.recv() as copy:
        left.send("across")
        assert copy.recv() == "across"
    mine, yours = socket.socketpair()
    with mine, yours:
        a.send([yours])
        with b.recv()[0] as other:
            mine.sendall(b"across")
            assert other.recv(10) == b"across"


def test_a_chain_of_forks_keeps_an_end_open_though_each_closes_its_copy(crew: Crew) -> None:
    r, w = Pipe(duplex=False)
    child = crew.start(fork_and_close, w, 3)
    w.close()
    assert r.recv() == "from the last"
    crew.finish(child)
    with pytest.raises(EOFError):
        r.recv()


def test_a_fork_leaves_the_sockets_that_it_copies_blocking() -> None:
    q: SimpleQueue[Any] = SimpleQueue()
    one, two = socket.socketpair()
    with one, two:
        socket.setdefaulttimeout(PATIENCE)
        try:
            reap(fork(lambda: q.put("here", sync=True)))
        finally:
            socket.setdefaulttimeout(None)
        assert os.get_blocking(one.fileno())
    assert q.get() == "here"


# -- while blocked --


def readers_of(connection: Any) -> int:
    """How many processes have begun to read, as the node sees it."""
    channel = connection._reads
    return int(channel.attach().ask(op="stat", channel=channel.number)["readers"])


@every_method
def test_a_receiver_that_is_killed_while_it_waits_takes_nothing_with_it(crew: Crew) -> None:
    r, w = Pipe(duplex=False)
    told: SimpleQueue[Any] = SimpleQueue()
    victims = [crew.start(take_one, r, told) for _ in range(2)]
    assert [told.get(timeout=PATIENCE) for _ in victims] == ["here"] * 2
    until(lambda: readers_of(r) == 2)
    crew.kill(victims[0])
    until(lambda: readers_of(r) == 1)
    w.send("one")
    assert told.get(timeout=PATIENCE) == "one"
    crew.finish(victims[1])
    w.send("two")
    assert r.recv() == "two"


@every_method
def test_a_signal_interrupts_neither_poll_nor_recv(crew: Crew) -> None:
    a, b = Pipe()
    told, tells = multiprocessing.Pipe(duplex=False)
    with told, tells:
        child = crew.start(signal_in_vain, b, tells)
        for goes_on in ("poll", "recv"):
            assert told.recv() == "here"
            for _ in range(3):
                os.kill(child.pid or 0, signal.SIGUSR1)
                assert told.recv() == "signal"
            a.send(goes_on)
        assert a.recv() == ["poll", "recv"]
        crew.finish(child)


# -- wait --


@every_method
def test_wait_takes_any_mix(crew: Crew) -> None:
    mine, theirs = Pipe()
    q: SimpleQueue[Any] = SimpleQueue()
    left, right = multiprocessing.Pipe()
    one, two = socket.socketpair()
    r, w = Pipe(duplex=False)
    with one, two, left, right:
        child = crew.start(take_one, r, SimpleQueue())
        everything = [mine, q, left, one, child.sentinel, q.reader]
        assert wait(everything, 0) == []
        assert wait(everything, 0.05) == []
        right.send(1)
        assert wait(everything) == [left]
        theirs.send(2)
        assert wait(everything) == [mine, left]
        q.put(3)
        two.sendall(b"4")
        w.send("so it ends")
        assert wait([child.sentinel], PATIENCE) == [child.sentinel]
        assert wait(everything) == everything
        assert (mine.recv(), q.get(), left.recv(), one.recv(1)) == (2, 3, 1, b"4")
        assert wait(everything, 0) == [child.sentinel]
        theirs.close()
        assert wait(everything) == [mine, child.sentinel]
    crew.finish(child)


def test_wait_sees_at_once_what_was_sent_before() -> None:
    ends = [Pipe(duplex=False) for _ in range(5)]
    for round_number in range(20):
        for _, w in ends:
            w.send(round_number)
        assert wait([r for r, _ in ends], 0) == [r for r, _ in ends]
        assert {r.recv() for r, _ in ends} == {round_number}
        assert wait([r for r, _ in ends], 0) == []


def test_wait_wakes_for_what_comes_later(crew: Crew) -> None:
    r, w = Pipe(duplex=False)
    assert wait([r], 0) == []
    crew.start(send_all, w, ["later"])
    assert wait([r, r], PATIENCE) == [r, r]
    assert r.recv() == "later"


def test_wait_refuses_what_cannot_be_waited_for() -> None:
    r, w = Pipe(duplex=False)
    with pytest.raises(DirectionError):
        wait([r, w], 0)
    r.close()
    with pytest.raises(ClosedError):
        wait([r], 0)


def test_a_selector_takes_connections_and_queues() -> None:
    r, w = Pipe(duplex=False)
    q: SimpleQueue[Any] = SimpleQueue()
    with selectors.DefaultSelector() as selector:
        selector.register(r, selectors.EVENT_READ)
        selector.register(q, selectors.EVENT_READ)
        assert selector.select(0.05) == []
        w.send(1)
        w.send(2)
        for expected in (1, 2):
            for _ in range(2):  # it tells again
                assert [key.fileobj for key, _ in selector.select(PATIENCE)] == [r]
            assert r.recv() == expected
        q.put(3)
        assert [key.fileobj for key, _ in selector.select(PATIENCE)] == [q]
        assert q.get() == 3
        assert selector.select(0.05) == []


def test_asyncio_reads_a_connection_when_it_is_ready() -> None:
    r, w = Pipe(duplex=False)

    async def receive(count: int) -> list[Any]:
        got: list[Any] = []
        done = asyncio.Event()

        def read() -> None:
            got.append(r.recv())
            if len(got) == count:
                done.set()

        loop = asyncio.get_running_loop()
        loop.add_reader(r, read)
        for number in range(count):
            w.send(number)
        await asyncio.wait_for(done.wait(), PATIENCE)
        loop.remove_reader(r)
        return got

    assert asyncio.run(receive(100)) == list(range(100))


# -- contexts and pools --


def test_a_context_is_multiprocessings_with_the_queues_of_fiberq(method: str) -> None:
    context = get_context(method)
    theirs = multiprocessing.get_context(method)
    assert context.get_start_method() == method
    assert isinstance(context, type(theirs))
    assert isinstance(context.SimpleQueue(), SimpleQueuePull)
    assert [type(end) for end in context.Pipe()] == [type(end) for end in Pipe()]
    assert context.Process is theirs.Process
    assert type(context.Lock()) is type(theirs.Lock())
    assert context.get_context() is context
    assert get_context(context.get_context("spawn").get_start_method()) is get_context("spawn")


def test_a_context_has_multiprocessings_default_method() -> None:
    assert get_context().get_start_method() == multiprocessing.get_start_method()
    with pytest.raises(ValueError, match="teleport"):
        get_context("teleport")


def test_a_pool_works_on_a_context(method: str) -> None:
    with get_context(method).Pool(2) as workers:
        assert workers.map(square, range(100)) == [number**2 for number in range(100)]
        assert sorted(workers.imap_unordered(square, range(10))) == [number**2 for number in range(10)]
        with pytest.raises(TypeError):
            workers.apply(square, ("no number",))
        workers.close()
        workers.join()


def test_the_workers_of_a_pool_are_replaced_after_their_tasks(method: str) -> None:
    with pool.Pool(1, maxtasksperchild=1, context=get_context(method)) as workers:
        assert len({workers.apply(own_id) for _ in range(3)}) == 3
        workers.close()
        workers.join()


def test_a_pool_with_tasks_left_is_terminated(method: str) -> None:
    with get_context(method).Pool(2) as workers:
        result = workers.map_async(time.sleep, [100] * 20, chunksize=1)
        workers.terminate()
        workers.join()
    assert not result.ready()


def test_the_task_of_a_worker_that_was_killed_is_done_by_another(method: str, tmp_path: Path) -> None:
    with get_context(method).Pool(1) as workers:
        result = workers.apply_async(die_once, (str(tmp_path / "mark"),))
        assert result.get(PATIENCE) == "done by another"


def test_an_executor_works_on_a_context(method: str) -> None:
    with ProcessPoolExecutor(2, mp_context=get_context(method)) as executor:
        assert list(executor.map(square, range(20))) == [number**2 for number in range(20)]
        assert executor.submit(raise_ours).exception(PATIENCE) is not None


def raise_ours() -> None:
    raise FiberqError("on purpose")


def test_an_executor_whose_worker_dies_is_broken(method: str) -> None:
    with ProcessPoolExecutor(2, mp_context=get_context(method)) as executor:
        with pytest.raises(BrokenProcessPool):
            executor.submit(die).result(PATIENCE)
        with pytest.raises(BrokenProcessPool):
            executor.submit(square, 2)


class Counted:
    def __init__(self, number: int) -> None:
        self.number = number


def _reduce_counted(counted: Counted) -> tuple[type[Counted], tuple[int]]:
    return Counted, (counted.number * 2,)


def test_what_is_registered_with_multiprocessings_pickler_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ForkingPickler, "_extra_reducers", {**ForkingPickler._extra_reducers})  # type: ignore[attr-defined]
    monkeypatch.setattr("fiberq.codec.registry.known", -1)
    ForkingPickler.register(Counted, _reduce_counted)
    try:
        with Queue[Any]() as q:
            q.put([Counted(3)])
            assert q.get(timeout=PATIENCE)[0].number == 6
    finally:
        monkeypatch.undo()
        codec.registry.look()


def test_each_direction_has_the_error_of_multiprocessing() -> None:
    for end, use in (("read", lambda c: c.recv()), ("write", lambda c: c.send(1))):
        left, right = Pipe()
        right.close()
        with pytest.raises(EOFError if end == "read" else BrokenPipeError) as raised:
            use(left)
        assert isinstance(raised.value, OSError) == (end == "write")
        assert end == "read" or raised.value.errno == errno.EPIPE  # type: ignore[attr-defined]
        left.close()


def get_and_tell(q: Any, told: Any, waits: bool) -> None:
    if waits:
        assert wait([q], PATIENCE) == [q]
    told.put(q.get(timeout=PATIENCE))


@every_method
@pytest.mark.parametrize("waits", [False, True], ids=["get", "wait"])
def test_who_waited_for_a_queue_once_takes_no_item_away_from_others(crew: Crew, waits: bool) -> None:
    with Queue[str]() as q, SimpleQueue[str]() as told:
        assert wait([q], 0) == []
        process = crew.start(get_and_tell, q, told, waits)
        q.put("item")
        assert told.get(timeout=PATIENCE) == "item"
        crew.finish(process)
        q.put("mine")
        assert wait([q], PATIENCE) == [q]
        assert q.get(timeout=PATIENCE) == "mine"
