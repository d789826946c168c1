"""Large items in shared memory, on each transport: what comes out, that nothing is left, who gets bytes instead."""

from __future__ import annotations

import asyncio
import os
import pickle
import queue
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from support import PATIENCE, Crew, Program, every_method, until

from fiberq import JoinableQueue, Pipe, Queue, SimpleQueue, SimpleQueuePull, SimpleQueuePush, config, tree
from fiberq.errors import HandleError, ItemError, NodeError
from fiberq.memory import MOST, Pool
from fiberq.protocol import frames
from fiberq.protocol.frames import Frame, pack_references
from fiberq.protocol.lent import Reference, Shared

pytestmark = [
    pytest.mark.usefixtures("transport"),
    pytest.mark.skipif(sys.platform != "linux", reason="memfd is Linux's"),
]

LARGE = 1_200_000
"""Bytes of an item that has memory of its own; in a sheet there are several of `SMALLER`."""

SMALLER = 70_000


def text(number: int, size: int = LARGE) -> bytes:
    return b"%d:" % number + bytes(size)


def node() -> int:
    """The process that is this test's node."""
    return tree._started[tree.endpoint().address].process.pid


def lent(process: int | None = None) -> int:
    """How many large items a process has open in shared memory, by default the node."""
    directory = f"/proc/{process or node()}/fd"
    found = 0
    for name in os.listdir(directory):
        with suppress(OSError):
            found += os.readlink(f"{directory}/{name}") == "/memfd:fiberq (deleted)"
    return found


def nothing_left() -> None:
    until(lambda: lent() == 0)


@pytest.fixture(params=[SimpleQueuePull, SimpleQueuePush, Queue, JoinableQueue])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


def shares(q: Any) -> bool:
    link = q._channel.attach()
    until(lambda: link._near.answer is not None)
    return type(link.share((bytes(LARGE),), waits=False)) is Shared


def put_some(q: Any, count: int) -> None:
    for number in range(count):
        q.put(text(number))
    q.flush()


@pytest.mark.parametrize("waits", [0, 1, 1_000_000])
def test_a_large_item_waits_for_memory_only_for_a_moment(
    kind: Any, waits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, vain = [], []

    def lacks(*_: object) -> bool:
        asked.append(None)
        return len(asked) <= waits

    monkeypatch.setattr(Pool, "lacks", lacks)
    monkeypatch.setattr(Pool, "expect_none", lambda *_: vain.append(None))
    with kind() as q:
        assert shares(q)
        assert not asked
        q.put(text(1))
        assert len(vain) == (waits > 10)
        asked.clear()
        q._channel.put(text(2), timeout=PATIENCE)
        q._channel.put_many([text(3)], timeout=PATIENCE)
        asyncio.run(q.aput(text(4)))
        assert not asked, "these do not wait longer than they were told to"
        assert [q.get(timeout=PATIENCE) for _ in range(4)] == [text(number) for number in range(1, 5)]


@pytest.mark.parametrize("gets", [False, True])
def test_who_waits_for_memory_is_woken_when_it_comes_back(gets: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though another thread of this process may drive the connection, as it waits in `get`."""
    monkeypatch.setattr("fiberq.memory.AMPLE", 1)
    monkeypatch.setattr("fiberq.memory.LATELY", 1e9)
    monkeypatch.setattr("fiberq.memory.MOMENT", 0.0)
    with SimpleQueuePull() as q, SimpleQueuePull() as other:
        assert shares(q)
        pool, put = q._channel.attach()._pool, 3
        for number in range(put):
            q.put(text(number))
        for number in range(2):  # by the second the first is finished
            assert q.get(timeout=PATIENCE) == text(number)
        until(lambda: not pool.lacks(LARGE))
        while not pool.lacks(LARGE):
            q.put(text(put))
            put += 1
        monkeypatch.setattr("fiberq.memory.MOMENT", 1e6)
        monkeypatch.setattr("fiberq.driven.HEARTBEAT", 1e3)  # each second all would look, woken or not
        waiter = threading.Thread(target=other.get, daemon=True)
        if gets:
            waiter.start()
            until(lambda: q._channel.attach()._driver is not None)
        waits = threading.Thread(target=q.put, args=(text(put),), daemon=True)
        waits.start()
        until(lambda: pool in waiting_for(q))
        for number in range(2, put):
            assert q.get(timeout=PATIENCE) == text(number)
        # That what came before is finished is told by this `get`, or was: of items in hand, that may wait for a report.
        assert q.get(timeout=PATIENCE) == text(put)
        waits.join(PATIENCE)
        assert not waits.is_alive()
        if gets:
            other.put(0)
            waiter.join(PATIENCE)


def waiting_for(q: Any) -> list[object]:
    """The pools whose memory somebody waits for, on a queue's link."""
    link = q._channel.attach()
    targets = [*link._parked, *(driver.target for driver in link._polling)]
    return [target.__self__ for target in targets if hasattr(target, "__self__")]


@every_method
def test_large_items_of_other_processes(kind: Any, crew: Crew) -> None:
    with kind() as q:
        assert shares(q)
        crew.finish(crew.start(put_some, q, 20))
        assert lent() > 10, "what a process put that has ended"
        for number in range(20):
            assert q.get(timeout=PATIENCE) == text(number)
            if kind is JoinableQueue:
                q.task_done()
        if kind is not JoinableQueue:
            with pytest.raises(queue.Empty):
                q.get(timeout=0)
        nothing_left()


def put_both(q: Any, count: int) -> None:
    for number in range(count):
        q.put(text(number, SMALLER))
        if not number % 10:
            q.put(text(number))
    q.flush()


@pytest.mark.parametrize("while_it_lives", [True, False])
def test_items_in_sheets_of_other_processes(kind: Any, crew: Crew, while_it_lives: bool) -> None:
    count = 100
    with kind() as q:
        assert shares(q)
        writer = crew.start(put_both, q, count)
        if not while_it_lives:
            crew.finish(writer)
            assert 10 <= lent() <= 10 + count // 8, "sheets, and what has memory of its own"
        for number in range(count):
            assert q.get(timeout=PATIENCE) == text(number, SMALLER)
            if kind is JoinableQueue:
                q.task_done()
            if not number % 10:
                assert q.get(timeout=PATIENCE) == text(number)
                if kind is JoinableQueue:
                    q.task_done()
        if while_it_lives:
            crew.finish(writer)
        with pytest.raises(queue.Empty):
            q.get(timeout=0)
        nothing_left()
        until(lambda: lent(os.getpid()) == 0)


@pytest.mark.parametrize("duplex", [True, False])
def test_a_pipes_messages(duplex: bool) -> None:
    here, there = Pipe(duplex)
    with here, there:
        until(lambda: there._writes._link._near.answer is not None)
        for round_ in range(3):
            there.send(text(round_))
            there.send_bytes(text(round_ + 1))
            assert here.poll(PATIENCE)
            assert here.recv() == text(round_)
            assert here.recv_bytes() == text(round_ + 1)
            there.send_bytes(pickle.dumps(text(1)))
            assert here.recv() == text(1)
        nothing_left()


def test_arrays_can_be_changed_at_once_and_written_to_after_they_were_got() -> None:
    numpy = pytest.importorskip("numpy")
    with Queue[Any]() as q:
        assert shares(q)
        array = numpy.arange(100_000, dtype=float)
        expected = array.copy()
        q.put({"array": array, "more": [array[:10].copy()]})
        array[:] = 0  # `put` has copied it
        got = q.get(timeout=PATIENCE)["array"]
        assert (got == expected).all()
        got[0] = 7
        q.put(got)
        assert (q.get(timeout=PATIENCE) == got).all()
        q.put_many([expected, got, 1, b"small", expected])
        for one in (expected, got, 1, b"small", expected):
            back = q.get(timeout=PATIENCE)
            assert (back == one) if isinstance(one, int | bytes) else (back == one).all()


def test_small_and_large_items_keep_their_order() -> None:
    with SimpleQueue[Any]() as q:
        assert shares(q)
        items = [bytes(size) + b"%d" % size for size in (1, LARGE, 2, 3, 70_000, LARGE, LARGE, 4, 100, 200_000, 5)]
        q.put_many(items)
        for item in items:
            q.put(item)
        assert [q.get(timeout=PATIENCE) for _ in range(2 * len(items))] == 2 * items


@pytest.mark.parametrize("shared", [True, False])
def test_items_of_all_sizes_keep_their_order(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Around the sizes from which they are shared, have memory of their own, and travel alone."""
    sizes = [1, 4_000, 16_383, 16_384, 20_000, 3, 40_000, 65_535, 65_536, 70_000, 16_384, 5_000] * 20
    items: list[Any] = [bytes([number % 256]) * size for number, size in enumerate(sizes)]
    items += [{"text": "x" * size, "number": number} for number, size in enumerate(sizes)]
    items += [bytearray(size) for size in sizes]
    with SimpleQueuePull[Any]() as q:
        if not shared:
            monkeypatch.setattr(q._channel.attach(), "_near", None)
        q.put_many(items)
        for item in items:
            q.put(item)
        for item in 2 * items:
            got = q.get(timeout=PATIENCE)
            assert got == item
            assert type(got) is type(item)


def get_and_die(q: Any) -> None:
    q.get()
    os._exit(1)


def test_a_killed_readers_item_comes_again(kind: Any, crew: Crew) -> None:
    with kind() as q:
        assert shares(q)
        q.put(text(1))
        process = crew.start(get_and_die, q)
        process.join(PATIENCE)
        with q.lease(timeout=PATIENCE) as item:
            assert (item.value, item.deliveries) == (text(1), 2)
        nothing_left()


def test_a_dead_letter_is_kept_read_and_put_back() -> None:
    with Queue[bytes](max_deliveries=1) as q:
        assert shares(q)
        q.put(text(1))
        with q.lease(timeout=PATIENCE) as item:
            item.give_back("it is wrong")
        (letter,) = q.dead_letters()
        assert letter.size >= LARGE
        assert letter.value == text(1)
        letter.put_back()
        assert q.get(timeout=PATIENCE) == text(1)


@pytest.mark.parametrize("way", ["close", "purge", "shutdown"])
def test_what_is_dropped_is_free(way: str) -> None:
    q: Queue[bytes] = Queue()
    other: Queue[bytes] = Queue()
    assert shares(q)
    put_some(q, 10)
    assert lent() == 10
    if way == "close":
        q.close()
    elif way == "purge":
        q._channel.attach().question(op="purge", channel=q._channel.number)
    else:
        q.shutdown(immediate=True)
    nothing_left()
    other.put(text(1))
    assert other.get(timeout=PATIENCE) == text(1)


def test_coroutines(kind: Any) -> None:
    async def main() -> None:
        with kind() as q:
            assert shares(q)
            await q.aput(text(1))
            assert await q.aget() == text(1)
            await asyncio.sleep(0)

    asyncio.run(main())


def get_without(q: Any, told: Any) -> None:
    config.shared_memory = False
    item = q.get()
    told.put((item[:2], len(item), q._channel.attach()._near))


@every_method
def test_who_cannot_share_gets_the_bytes(kind: Any, crew: Crew) -> None:
    with kind() as q, SimpleQueue[Any]() as told:
        assert shares(q)
        put_some(q, 3)
        process = crew.start(get_without, q, told)
        assert told.get(timeout=PATIENCE) == (b"0:", len(text(0)), None)
        crew.finish(process)


def test_a_node_that_does_not_share(transport: str, program: type[Program]) -> None:
    running = program(
        f"""
from fiberq import Queue
with Queue() as q:
    q.put(bytes({LARGE}))
    print(len(q.get(timeout=10)), q._channel.attach()._near)
""",
        FIBERQ_TRANSPORT=transport,
        FIBERQ_SHARED_MEMORY="no",
    )
    assert running.read() == f"{LARGE} None"
    running.wait()


def become_another(q: Any, told: Any) -> None:
    """As a process that gives up rights, and can look into the node no more."""
    q._channel.attach()
    told.put("attached", sync=True)
    os.readlink = refuse
    told.put((q.get()[:2], q.get()[:2]), sync=True)


def refuse(*_: object) -> str:
    raise PermissionError(13, "Permission denied")


def test_a_reader_that_can_look_into_the_node_no_more_asks_for_the_bytes(kind: Any, crew: Crew) -> None:
    with kind() as q, SimpleQueue[Any]() as told:
        assert shares(q)
        process = crew.start(become_another, q, told)
        assert told.get(timeout=PATIENCE) == "attached"
        put_some(q, 2)
        assert told.get(timeout=PATIENCE) == (b"0:", b"1:")
        crew.finish(process)


def spoil(q: Any, size: int) -> None:
    """Put an item, and write into its memory afterwards, as no honest process does."""
    q.put(text(1, size))
    q.flush()
    (slot,) = q._channel.attach()._pool._lent.values()
    q.put(text(2, size), sync=True)
    os.pwrite(slot.memory.descriptor, bytes(100), slot.offset)
    q.put("good", sync=True)


@pytest.mark.parametrize("size", [SMALLER, LARGE])
def test_memory_that_is_spoiled_harms_nobody_else(crew: Crew, size: int) -> None:
    with Queue[Any]() as q, SimpleQueue[Any]() as told:
        assert shares(q)
        crew.finish(crew.start(spoil, q, size))
        process = crew.start(get_one_without, q, told)
        assert told.get(timeout=PATIENCE) == text(2, size)
        crew.finish(process)
        (letter,) = q.dead_letters()
        assert "cannot be read" in letter.reason
        with pytest.raises(HandleError, match="cannot be read"):
            _ = letter.value
        letter.drop()


def get_one_without(q: Any, told: Any) -> None:
    config.shared_memory = False
    told.put(q.get())


def fork_and_stay(q: Any, told: Any, go: Any) -> None:
    shares(q)
    for number in range(5):
        q.put(text(number))
    q.flush()
    child = os.fork()
    if not child:
        go.get()
        os._exit(0)
    told.put(child, sync=True)
    os.waitpid(child, 0)


def test_a_forked_child_keeps_no_memory(crew: Crew) -> None:
    with SimpleQueue[bytes]() as q, SimpleQueue[Any]() as told, SimpleQueue[Any]() as go:
        process = crew.start(fork_and_stay, q, told, go)
        child = told.get(timeout=PATIENCE)
        until(lambda: lent(child) == 0)
        for number in range(5):
            assert q.get(timeout=PATIENCE) == text(number)
        go.put("on")
        crew.finish(process)


def test_an_item_as_large_as_the_node_takes(transport: str, program: type[Program]) -> None:
    running = program(
        """
from fiberq import Queue
with Queue() as q:
    q.put(bytes(999_999))
    print(len(q.get(timeout=10)))
    try:
        q.put(bytes(1_000_000))
    except ValueError as error:
        print(error)
""",
        FIBERQ_TRANSPORT=transport,
        FIBERQ_MAX_BYTES="1000000",
    )
    assert running.read() == "999999"
    assert "1000001 bytes cannot be put" in running.read()
    running.wait()


def test_a_writer_that_is_stopped_while_its_items_are_read_goes_on(transport: str, program: type[Program]) -> None:
    running = program(
        f"""
import os, signal, time
from multiprocessing import get_context
from fiberq import Queue
def write(q, told):
    for _ in range(3):
        q.put(bytes({LARGE}))
    q.flush()
    told.put(os.getpid())
    time.sleep(2.5)
    q.put(b"once more", sync=True)
q, told = Queue(), Queue()
writer = get_context("fork").Process(target=write, args=(q, told))
writer.start()
pid = told.get(timeout=20)
os.kill(pid, signal.SIGSTOP)
for _ in range(3):
    assert len(q.get(timeout=10)) == {LARGE}
try:
    q.get(timeout=2.0)
except Exception:
    pass
os.kill(pid, signal.SIGCONT)
print(q.get(timeout=20))
""",
        FIBERQ_TRANSPORT=transport,
        FIBERQ_SESSION_TIMEOUT="1.0",
    )
    assert running.read(30) == "b'once more'"
    running.wait()


def test_too_large_an_item_is_refused_before_it_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    with Queue[bytes]() as q:
        assert shares(q)
        pool = q._channel.attach()._pool
        pool.tidy(float("inf"))
        monkeypatch.setattr(q._channel.attach()._client, "max_bytes", LARGE - 1)
        with pytest.raises(ItemError, match="cannot be put"):
            q.put(text(1))
        assert not any(pool._free.values())


def test_a_bounded_queue_that_is_full_keeps_no_memory() -> None:
    with Queue[bytes](1) as q:
        assert shares(q)
        q.put(text(1))
        q.flush()
        before = lent(os.getpid())
        for _ in range(20):
            with pytest.raises(queue.Full):
                q.put_nowait(text(2))
        assert lent(os.getpid()) <= before + 1, "what the second item was written into is used again"
        assert q.get(timeout=PATIENCE) == text(1)


def test_writers_keep_little_of_what_was_accepted() -> None:
    with SimpleQueue[bytes]() as q:
        assert shares(q)
        put_some(q, 50)
        assert lent() == 50
        assert lent(os.getpid()) <= MOST
        for number in range(50):
            assert q.get(timeout=PATIENCE) == text(number)
        with pytest.raises(queue.Empty):
            q.get(timeout=0)
        until(lambda: lent(os.getpid()) == 0, PATIENCE)  # it rests


def test_threads(kind: Any) -> None:
    with kind() as q:
        assert shares(q)
        got: list[bytes] = []

        def work() -> None:
            for _ in range(10):
                got.append(q.get(timeout=PATIENCE)[:8])
                if kind is JoinableQueue:
                    q.task_done()

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        put_some(q, 40)
        for thread in threads:
            thread.join(PATIENCE)
        assert sorted(got) == sorted(text(number)[:8] for number in range(40))


def forge(q: Any, how: Callable[[], Reference]) -> None:
    config.shared_memory = how is not of_what_it_was_not_asked_for
    link = q._channel.attach()
    with link._lock:
        link._client.session.send(Frame(frames.PUT, q._channel.number, pack_references([how().pack()])), 0.0, True)
        link._transmit(0.0)
    try:
        until(lambda: q.qsize() < 0)
    except NodeError as error:
        if "shares" in str(error):
            return
        raise
    raise AssertionError("the node took it")


def admit(q: Any) -> None:
    """Ask to share memory, and show what others have."""
    link = q._channel.attach()
    pid, descriptor = link._client.memory
    others = os.getppid()
    proofs = [name for name in os.listdir(f"/proc/{others}/fd") if "proof" in link_of(others, name)]
    assert proofs
    for place in [(pid, descriptor), *((others, int(name)) for name in proofs)]:
        assert not link.question(op="near", pid=place[0], descriptor=place[1])["near"]


def link_of(process: int, name: str) -> str:
    try:
        return os.readlink(f"/proc/{process}/fd/{name}")
    except OSError:
        return ""


def admit_without(q: Any) -> None:
    config.shared_memory = False
    admit(q)


def test_what_others_have_shown_lets_nobody_in(crew: Crew) -> None:
    with Queue[Any]() as q:
        assert shares(q)
        crew.finish(crew.start(admit_without, q))


def of_nothing() -> Reference:
    return Reference(1 << 20, 1, 0, 1, 1)


def of_a_file() -> Reference:
    descriptor = os.open("/etc/passwd", os.O_RDONLY)
    found = os.fstat(descriptor)
    return Reference(descriptor, found.st_ino, 0, found.st_size, 1)


def of_what_it_was_not_asked_for() -> Reference:
    shared = os.memfd_create("forged")
    return Reference(shared, os.fstat(shared).st_ino, 0, 0, 1)


@pytest.mark.parametrize("how", [of_nothing, of_a_file, of_what_it_was_not_asked_for])
def test_a_forged_reference_ends_its_process_session_and_nothing_else(how: Any, crew: Crew) -> None:
    with Queue[Any]() as q:
        assert shares(q)
        crew.finish(crew.start(forge, q, how))
        q.put(text(1))
        assert q.get(timeout=PATIENCE) == text(1)
