"""Thousands of queues and handles, hundreds of threads, and forks amid all that."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import threading
from collections import deque
from contextlib import suppress
from typing import Any

import pytest
from support import PATIENCE, fork, reap, until

from fiberq import JoinableQueue, Pipe, Queue

pytestmark = pytest.mark.usefixtures("transport")


def descriptors() -> set[tuple[str, str]]:
    """What this process has open: number, and what it is."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of this listing
            found.add((name, os.readlink(f"/proc/self/fd/{name}")))
    return found


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors in /proc")
def test_two_thousand_queues_use_no_further_descriptor_or_thread() -> None:
    with Queue[int]() as first:
        first.put(0)
        assert first.get() == 0
        before, threads = descriptors(), set(threading.enumerate())  # those of an earlier test may end meanwhile
        queues: list[Queue[int]] = [(Queue, JoinableQueue)[n % 2](n % 3) for n in range(2000)]
        for n, q in enumerate(queues):
            q.put(n)
        assert descriptors() <= before
        assert set(threading.enumerate()) <= threads
        assert [q.qsize() for q in queues[::100]] == [1] * 20
        assert [q.get(timeout=PATIENCE) for q in queues] == list(range(2000))
        for q in queues:
            q.close()
        assert descriptors() <= before
        assert set(threading.enumerate()) <= threads
        first.put(1)
        assert first.get(timeout=PATIENCE) == 1


def test_a_queue_lives_as_long_as_the_last_of_two_thousand_handles() -> None:
    q: Queue[int] = Queue()
    handles: list[Queue[int]] = [pickle.loads(pickle.dumps(q)) for _ in range(2000)]
    for n, handle in enumerate(handles):
        handle.put(n)
    q.close()
    for handle in handles[:-1]:
        handle.close()
    (last,) = handles[-1:]
    assert last.get_many(3000) == list(range(2000))
    last.close()


def test_hundreds_of_threads_and_many_forks_use_the_same_handles() -> None:
    threads_count, forks, each = 200, 8, 20
    # What the children put has room when the threads have got all that they want: the children get only after that.
    with Queue[tuple[str, int, int]](forks * each) as q, Queue[Any]() as results:
        left, right = Pipe()

        def put(who: str, number: int) -> None:
            for item in range(each):
                q.put((who, number, item))

        def get() -> None:
            results.put([q.get() for _ in range(each)])

        def child(number: int) -> None:
            put("fork", number)
            get()
            left.send(number)
            for handle in (q, results, left):
                handle.close()  # `fork` ends the child without an interpreter's end
            q.join_thread()
            results.join_thread()

        threads = [threading.Thread(target=put, args=("thread", n)) for n in range(threads_count // 2)]
        threads += [threading.Thread(target=get) for _ in range(threads_count // 2)]
        for thread in threads[::2] + threads[1::2]:
            thread.start()
        children = [fork(lambda n=n: child(n)) for n in range(forks)]  # type: ignore[misc]
        for thread in threads:
            thread.join(3 * PATIENCE)
            assert not thread.is_alive()
        for pid in children:
            reap(pid)
        got = [item for _ in range(threads_count // 2 + forks) for item in results.get(timeout=PATIENCE)]
        put_ = [("thread", n, item) for n in range(threads_count // 2) for item in range(each)]
        put_ += [("fork", n, item) for n in range(forks) for item in range(each)]
        assert sorted(got) == sorted(put_)
        assert sorted(right.recv() for _ in range(forks)) == list(range(forks))
        assert q.empty()
        left.close()
        right.close()


def sizes(q: Queue[Any]) -> dict[str, int]:
    """Of all that this process keeps of its connection to the node."""
    link = q._channel.attach()
    return {
        name: len(kept)
        for each in (link, link._client, link._client.session)
        for name, kept in vars(each).items()
        if isinstance(kept, (dict, list, set, deque))
    }


def test_what_was_made_and_dropped_leaves_nothing_behind() -> None:
    async def work() -> None:
        for number in range(100):
            left, right = Pipe(False)
            with Queue[int](1) as other:
                right.send(number)
                await other.aput(await left.arecv())
                assert await other.aget() == number
            left.close()
            right.close()

    with Queue[int]() as q:
        q.put(1)
        assert q.get() == 1
        assert q.empty()
        before = sizes(q)
        asyncio.run(work())
        for _ in range(500):
            left, right = Pipe()
            del left, right
        gc.collect()
        until(lambda: q.empty() and all(size <= before[name] + 5 for name, size in sizes(q).items()))
