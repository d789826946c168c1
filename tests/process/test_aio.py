"""Queues and connections in asyncio: waiting blocks no loop and needs no thread, and to be cancelled loses nothing."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from itertools import chain
from typing import Any

import pytest
from bounded_workers import get_and_tell
from support import PATIENCE, Crew
from workers import echo, get_and_stay, put_all

from fiberq import JoinableQueue, Pipe, Queue, ShutDown, SimpleQueue, SimpleQueuePush
from fiberq.errors import ConnectionEnded

pytestmark = pytest.mark.usefixtures("transport")


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 2 * PATIENCE))


async def turns(count: int = 20) -> None:
    """Let the other coroutines run."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("make", [Queue, SimpleQueue, SimpleQueuePush, JoinableQueue])
def test_items_come_as_they_were_put(make: type[Queue[int]], crew: Crew) -> None:
    q, answers = make(), make()
    crew.start(echo, q, answers)

    async def main() -> list[int]:
        for number in range(1000):
            await q.aput(number)
        return [await answers.aget() for _ in range(1000)]

    assert run(main()) == [*range(1000)]


def test_a_thousand_coroutines_wait_for_one_queue_without_a_thread_each(crew: Crew) -> None:
    q: Queue[int] = Queue()

    async def main() -> list[int]:
        tasks = [asyncio.create_task(q.aget()) for _ in range(1000)]
        await turns()
        assert threading.active_count() < 10
        spent = time.process_time()
        await asyncio.sleep(0.2)
        assert time.process_time() - spent < 0.1, "it polls"
        crew.start(put_all, q, range(1000))
        return await asyncio.gather(*tasks)

    assert sorted(run(main())) == [*range(1000)]


def test_a_coroutine_that_is_cancelled_loses_nothing_and_takes_nothing(crew: Crew) -> None:
    q: Queue[int] = Queue()

    async def main() -> list[int]:
        crew.start(put_all, q, range(300))
        got: list[int] = []
        cancelled = 0
        while len(got) < 300:
            tasks = [asyncio.create_task(q.aget()) for _ in range(5)]
            await asyncio.sleep(0.0005 * (cancelled % 7))
            for task in tasks:
                task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, int):
                    got.append(result)
                else:
                    assert isinstance(result, asyncio.CancelledError)
                    cancelled += 1
        assert cancelled
        return got

    assert sorted(run(main())) == [*range(300)]
    assert q.empty()


def test_a_timeout_loses_nothing() -> None:
    q: Queue[str] = Queue()

    async def main() -> str:
        for _ in range(3):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(q.aget(), 0.02)
        await q.aput("it")
        return await q.aget()

    assert run(main()) == "it"


def test_while_a_queue_is_full_other_coroutines_run(crew: Crew) -> None:
    q: Queue[int] = Queue(2)
    told: Queue[int] = Queue()

    async def main() -> None:
        puts = [asyncio.create_task(q.aput(number)) for number in range(10)]
        while sum(put.done() for put in puts) < 2:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        assert sum(put.done() for put in puts) == 2
        assert q.full()
        puts.pop().cancel()
        crew.start(get_and_tell, q, told)
        await asyncio.gather(*puts)

    run(main())
    assert [told.get(timeout=PATIENCE) for _ in range(9)] == [*range(9)]


def test_what_a_task_got_is_its_own_until_it_gets_again_or_ends(crew: Crew) -> None:
    q: Queue[str] = Queue()
    told: Queue[Any] = Queue()
    q.put_many("ab")

    async def hold(until: asyncio.Event) -> str:
        item = await q.aget()
        await until.wait()
        return item

    async def main() -> None:
        event = asyncio.Event()
        tasks = [asyncio.create_task(hold(event)) for _ in range(2)]
        while not q.empty():
            await asyncio.sleep(0.001)
        assert _unfinished(q) == 2
        event.set()
        assert sorted(await asyncio.gather(*tasks)) == ["a", "b"]
        while _unfinished(q):
            await asyncio.sleep(0.001)

    run(main())
    process = crew.start(get_and_stay, q, told)
    q.put("c")
    assert told.get(timeout=PATIENCE) == "c"
    crew.kill(process)
    assert run(q.aget()) == "c"


def _unfinished(q: Queue[Any]) -> int:
    """Items of `q` that are neither finished nor given back, as its node knows."""
    channel = q._channel
    return int(channel.attach().ask(op="stat", channel=channel.number)["unfinished"])


def test_async_for_ends_when_the_queue_is_shut_down() -> None:
    q: Queue[int] = Queue()

    async def main() -> list[int]:
        async def consume() -> list[int]:
            return [item async for item in q]

        tasks = [asyncio.create_task(consume()) for _ in range(3)]
        for number in range(100):
            await q.aput(number)
        q.shutdown()
        with pytest.raises(ShutDown):
            await q.aput(1)
        got = await asyncio.gather(*tasks)
        with pytest.raises(ShutDown):
            await q.aget()
        return [*chain(*got)]

    assert sorted(run(main())) == [*range(100)]


def test_task_done_is_for_what_the_asyncio_task_got() -> None:
    q: JoinableQueue[int] = JoinableQueue()

    async def work(done: list[int]) -> None:
        async for item in q:
            await turns(3)
            done.append(item)
            q.task_done()

    async def main() -> None:
        done: list[int] = []
        tasks = [asyncio.create_task(work(done)) for _ in range(4)]
        q.put_many(range(50))
        while not q.join(0):
            await asyncio.sleep(0.001)
        assert sorted(done) == [*range(50)]
        q.shutdown()
        await asyncio.gather(*tasks)

    run(main())


def test_connections_send_and_receive() -> None:
    left, right = Pipe()

    async def main() -> None:
        waits = asyncio.create_task(right.arecv())
        await turns()
        await left.asend({"any": "object"})
        assert await waits == {"any": "object"}
        waits = asyncio.create_task(right.arecv())
        await turns()
        left.close()
        with pytest.raises(EOFError):
            await waits
        with pytest.raises(ConnectionEnded):
            await right.asend(1)

    run(main())


def test_several_loops_and_threads_share_a_queue() -> None:
    q: Queue[int] = Queue()
    got: list[int] = []

    async def consume() -> None:
        async for item in q:
            got.append(item)

    def get() -> None:
        got.extend(q)

    threads = [threading.Thread(target=each) for each in (lambda: run(consume()), get) * 2]
    for thread in threads:
        thread.start()
    q.put_many(range(500))
    q.shutdown()
    for thread in threads:
        thread.join(2 * PATIENCE)
    assert sorted(got) == [*range(500)]


def test_the_nodes_death_is_an_error_for_all_that_wait(crew: Crew) -> None:  # noqa: ARG001
    q: Queue[int] = Queue()

    async def main() -> list[Any]:
        tasks = [asyncio.create_task(q.aget()) for _ in range(3)]
        await turns()
        await asyncio.sleep(0.05)
        q._channel.attach()._die("for the test")
        return await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(each).__name__ for each in run(main())] == ["NodeError"] * 3
