"""Items that are held by name, and those that failed too often."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from typing import Any

import pytest
from support import PATIENCE, Crew, every_method, until

from fiberq import JoinableQueue, Queue, SimpleQueue, SimpleQueuePull, SimpleQueuePush, config
from fiberq.errors import ClosedError, HandleError, LeaseLost
from fiberq.leases import DeadLetter

pytestmark = pytest.mark.usefixtures("transport")

KINDS = [SimpleQueuePull, SimpleQueuePush, Queue, JoinableQueue]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


class Bad(Exception):
    pass


def fail(q: Any, deliveries: int | None = None) -> object:
    """Get an item, and fail with it; return it."""
    with pytest.raises(Bad), q.lease(timeout=PATIENCE) as item:  # noqa: PT012 - what is tested is a block
        assert deliveries in (None, item.deliveries)
        raise Bad("for a reason")
    return item.value


def test_a_lease_is_acknowledged_at_the_end_of_its_block(kind: Any) -> None:
    with kind() as q:
        q.put("one")
        q.put("two")
        with q.lease(timeout=PATIENCE) as item:
            assert (item.value, item.deliveries, item.redelivered) == ("one", 1, False)
            assert "one" in repr(item)
        assert "ended" in repr(item)
        with q.lease(timeout=PATIENCE) as item:
            assert item.value == "two"
            item.acknowledge()
        with pytest.raises(queue.Empty), q.lease(timeout=0.05):
            pass
        with pytest.raises(queue.Empty), q.lease(False):
            pass
        with pytest.raises(LeaseLost, match="ended already"):
            item.acknowledge()
        if kind is JoinableQueue:
            assert q.join(PATIENCE)


def test_an_item_whose_block_raises_goes_back_to_its_place(kind: Any) -> None:
    with kind() as q:
        q.put("first")
        assert fail(q, 1) == "first"
        q.put("second")
        with q.lease(timeout=PATIENCE) as item:
            assert (item.value, item.deliveries, item.redelivered) == ("first", 2, True)
        assert q.get(timeout=PATIENCE) == "second"


def test_an_item_that_failed_too_often_is_a_dead_letter(kind: Any) -> None:
    with kind(max_deliveries=3) as q:
        for value in ("good", "bad"):
            q.put(value)
        assert q.get(timeout=PATIENCE) == "good"
        if kind is JoinableQueue:
            q.task_done()
        assert [fail(q, number) for number in (1, 2, 3)] == ["bad"] * 3
        with pytest.raises(queue.Empty):
            q.get(timeout=0.05)
        (letter,) = q.dead_letters()
        assert (letter.deliveries, letter.value) == (3, "bad")
        assert letter.reason == "3 deliveries failed, the last one because Bad: for a reason"
        assert letter.reason in repr(letter)
        assert q.empty()
        if kind is JoinableQueue:
            assert q.join(PATIENCE)
        letter.put_back()
        assert not q.dead_letters()
        for again in (letter.put_back, letter.drop, lambda: letter.value):
            with pytest.raises(HandleError, match="meanwhile"):
                again()
        assert [fail(q, number) for number in (1, 2, 3)] == ["bad"] * 3
        (letter,) = q.dead_letters()
        letter.drop()
        assert not q.dead_letters()
        assert q.empty()


def test_many_dead_letters_are_listed_in_order_with_what_is_in_them() -> None:
    with Queue[Any](max_deliveries=1) as q:
        values = [*range(1200), bytes(1_000_000), lambda: 7]
        for value in values:
            q.put(value)
            fail(q)
        letters = q.dead_letters()
        assert [letter.value for letter in letters[:3]] == [0, 1, 2]
        assert letters[-2].value == bytes(1_000_000)
        assert letters[-2].size >= 1_000_000
        assert letters[-1].value() == 7
        assert len(letters) == len(values)
        for letter in letters:
            letter.drop()
        assert not q.dead_letters()


def see(letters: Any, found: Any) -> None:
    for letter in letters.dead_letters():
        found.put(letter.value)
        letter.put_back()


@every_method
def test_another_process_can_put_a_dead_letter_back(crew: Crew) -> None:
    with Queue[str](max_deliveries=1) as q, SimpleQueue[str]() as found:
        q.put("bad")
        fail(q)
        crew.finish(crew.start(see, q, found))
        assert found.get(timeout=PATIENCE) == "bad"
        assert q.get(timeout=PATIENCE) == "bad"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_is_not_the_items_fault_does_not_count_against_it(kind: Any, error: type[BaseException]) -> None:
    with kind(max_deliveries=1) as q:
        q.put("item")
        for number in (1, 2, 3):
            with pytest.raises(error), q.lease(timeout=PATIENCE) as item:  # noqa: PT012
                assert item.deliveries == number
                raise error
        assert not q.dead_letters()


def lease_and_stay(q: Any, told: Any) -> None:
    with q.lease() as item:
        told.put((item.value, item.deliveries), sync=True)
        signal.pause()


@every_method
def test_the_lease_of_a_process_that_is_killed_goes_to_another(kind: Any, crew: Crew) -> None:
    with kind() as q, SimpleQueue[Any]() as told:
        q.put("item")
        for number in (1, 2):
            process = crew.start(lease_and_stay, q, told)
            assert told.get(timeout=PATIENCE) == ("item", number)
            crew.kill(process)
        with q.lease(timeout=PATIENCE) as item:
            assert (item.value, item.deliveries, item.redelivered) == ("item", 3, True)


def test_an_item_that_kills_its_readers_is_a_dead_letter(crew: Crew) -> None:
    with Queue[str](max_deliveries=2) as q, SimpleQueue[Any]() as told:
        q.put("deadly")
        for number in (1, 2):
            process = crew.start(lease_and_stay, q, told)
            assert told.get(timeout=PATIENCE) == ("deadly", number)
            crew.kill(process)
        (letter,) = until(q.dead_letters)
        assert letter.reason == "2 deliveries failed, the last one because its reader died"
        assert letter.value == "deadly"


def test_a_lease_that_ran_out_says_so_when_it_is_acknowledged(kind: Any) -> None:
    with kind() as q:
        q.put("item")
        with pytest.raises(LeaseLost, match="ran out"), q.lease(duration=0.05) as item:  # noqa: PT012
            with q.lease(timeout=PATIENCE) as again:
                assert (again.value, again.deliveries) == ("item", 2)
            with pytest.raises(LeaseLost):
                item.extend(1)
        assert q.empty()


def test_a_lease_can_be_extended(kind: Any) -> None:
    with kind() as q:
        q.put("item")
        with q.lease(timeout=PATIENCE, duration=0.3) as item:
            item.extend(3600)
            with pytest.raises(queue.Empty):
                q.get(timeout=0.5)
        assert q.empty()


def lease_for_a_moment(q: Any, told: Any) -> None:
    try:
        with q.lease(duration=0.2) as item:
            told.put(item.value, sync=True)
            signal.pause()
    except LeaseLost:
        told.put("lost", sync=True)


def test_a_process_that_is_stopped_loses_its_lease_when_that_runs_out(crew: Crew) -> None:
    with Queue[str]() as q, SimpleQueue[str]() as told:
        q.put("item")
        process = crew.start(lease_for_a_moment, q, told)
        assert told.get(timeout=PATIENCE) == "item"
        assert process.pid is not None
        os.kill(process.pid, signal.SIGSTOP)
        try:
            assert q.get(timeout=PATIENCE) == "item"
        finally:
            os.kill(process.pid, signal.SIGCONT)
        crew.kill(process)


def test_a_lease_given_back_with_a_reason_fails_and_without_one_does_not() -> None:
    with Queue[str](max_deliveries=2) as q:
        q.put("item")
        for why in (None, None, "once", "twice"):
            with q.lease(timeout=PATIENCE) as item:
                item.give_back(why)
        assert [letter.reason for letter in q.dead_letters()] == ["2 deliveries failed, the last one because twice"]


def test_to_close_the_queue_gives_a_lease_back(kind: Any) -> None:
    name = f"closed {os.getpid()} {kind.__name__}"
    q = kind(name=name)
    q.put("item")
    with pytest.raises(ClosedError), q.lease(timeout=PATIENCE):
        q.close()
    with kind(name=name) as q, q.lease(timeout=PATIENCE) as item:
        assert (item.value, item.deliveries) == ("item", 2)


def test_a_lease_is_not_reported_done_by_another_thread() -> None:
    with JoinableQueue[str]() as q:
        q.put("leased")
        q.put("got")
        with q.lease(timeout=PATIENCE) as item:
            errors: list[ValueError] = []

            def work() -> None:
                assert q.get(timeout=PATIENCE) == "got"
                q.task_done()
                try:
                    q.task_done()
                except ValueError as error:
                    errors.append(error)

            thread = threading.Thread(target=work)
            thread.start()
            thread.join(PATIENCE)
            assert errors
            assert not q.join(0)
            assert item.value == "leased"
        assert q.join(PATIENCE)


class Unreadable:
    def __reduce__(self) -> Any:
        return (pickle.loads, (b"garbage",))


def test_an_item_that_cannot_be_unpickled_fails() -> None:
    with Queue[Any](max_deliveries=2) as q:
        q.put(Unreadable())
        for _ in range(2):
            with pytest.raises(pickle.UnpicklingError), q.lease(timeout=PATIENCE):
                pass
        (letter,) = q.dead_letters()
        assert "UnpicklingError" in letter.reason
        with pytest.raises(pickle.UnpicklingError):
            _ = letter.value
        q.put("next")
        assert q.get(timeout=PATIENCE) == "next"


def test_the_process_that_dropped_all_handles_can_do_nothing_with_a_dead_letter() -> None:
    q: Queue[str] = Queue(max_deliveries=1)
    q.put("bad")
    fail(q)
    letters: list[DeadLetter] = q.dead_letters()
    q.close()
    gc.collect()
    with pytest.raises(ClosedError):
        letters[0].put_back()


def test_coroutines_lease_items_beside_each_other(kind: Any) -> None:
    async def work(q: Any, done: list[int]) -> None:
        async with q.lease() as item:
            await asyncio.sleep(0.01)
            done.append(item.value)

    async def main() -> None:
        with kind(max_deliveries=2) as q:
            with pytest.raises(queue.Empty):
                async with q.lease(False):
                    pass
            with pytest.raises(queue.Empty):
                async with q.lease(timeout=0.05):
                    pass
            done: list[int] = []
            tasks = [asyncio.ensure_future(work(q, done)) for _ in range(20)]
            await asyncio.sleep(0.01)
            q.put_many(range(20))
            await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE)
            assert sorted(done) == list(range(20))
            task = asyncio.ensure_future(work(q, done))
            await asyncio.sleep(0.01)
            task.cancel()
            q.put(20)
            for number in (1, 2):
                with pytest.raises(Bad):  # noqa: PT012
                    async with q.lease(False) as item:
                        assert (item.value, item.deliveries) == (20, number)
                        raise Bad
            assert [letter.value for letter in q.dead_letters()] == [20]
            q.put(21)
            with pytest.raises(LeaseLost):
                async with q.lease(timeout=PATIENCE, duration=0.05):
                    assert await q.aget() == 21

    asyncio.run(main())


@pytest.mark.parametrize("wrong", [0, -1])
def test_a_wrong_number_or_duration_is_refused(wrong: int) -> None:
    with pytest.raises(ValueError, match="max_deliveries"):
        Queue(max_deliveries=wrong)
    with Queue[int]() as q, pytest.raises(ValueError, match="duration"):
        q.lease(duration=wrong)


def test_the_number_is_the_same_for_all_who_name_a_queue() -> None:
    name = f"failing {os.getpid()}"
    for number in (2, None, 2):
        Queue[int](name=name, max_deliveries=number).close()
    with pytest.raises(HandleError, match="max_deliveries 2, not 3"):
        Queue(name=name, max_deliveries=3)


def command(*arguments: str, node: str, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "fiberq", "dead-letters", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, "FIBERQ_NODE": node, "FIBERQ_TRANSPORT": config.transport},
    )
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


def test_the_command_lists_dead_letters_and_puts_them_back_or_drops_them() -> None:
    name = f"commanded {os.getpid()} {config.transport}"
    with Queue[str](name=name, max_deliveries=1) as q, Queue[str](max_deliveries=1) as nameless:
        node = q._channel.endpoint.address
        for value in ("one", "two", "three"):
            q.put(value)
            fail(q)
        nameless.put("four")
        fail(nameless)
        number = f"{nameless._channel.number:016x}"
        lines = command(node=node).splitlines()
        assert [line.split("  ")[:2] for line in lines if line.startswith((name, number))] == [
            *([name, f"item {place}"] for place in range(3)),
            [number, "item 0"],
        ]
        assert "the only delivery failed, the last one because Bad: for a reason" in lines[0]
        assert command(name, "--item", "1", "--put-back", node=node).startswith(f"{name}  item 1")
        assert q.get(timeout=PATIENCE) == "two"
        told = json.loads(command(name, "--drop", "--json", node=node))
        assert [each["place"] for each in told] == [0, 2]
        assert command(name, node=node) == "there are no dead letters\n"
        assert "no queue 'unknown'" in command("unknown", node=node, status=2)
        assert "--drop needs a queue" in command("--drop", node=node, status=2)
        assert "which node?" in command(node="", status=2)
