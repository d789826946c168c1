"""What the child processes of `test_bounded` run. Nothing here imports pytest."""

from __future__ import annotations

import time
from typing import Any

from fiberq import ShutDown

PATIENCE = 10.0


def get_and_tell(q: Any, told: Any, count: int = 1 << 30) -> None:
    """Get items, and tell each, by another way."""
    for _ in range(count):
        told.put(q.get())


def get_many_and_stay(q: Any, told: Any, count: int) -> None:
    """Get `count` items, all of which this process then holds."""
    told.put(len(q.get_many(count)))
    time.sleep(PATIENCE)


def put_and_stay(q: Any, told: Any, count: int) -> None:
    """Put quickly, tell how many there are, and stay until killed."""
    for number in range(count):
        q.put(number)
    q.flush()
    told.put(q.qsize())
    time.sleep(PATIENCE)


def take_and_do(tasks: Any, done: Any) -> None:
    while True:
        done.put(tasks.get())
        tasks.task_done()


def join_and_tell(tasks: Any, told: Any) -> None:
    told.put("waits", sync=True)
    told.put(tasks.join(PATIENCE))


def put_until_shut(q: Any, told: Any) -> None:
    """Put, until that is not possible any more; tell how often it was."""
    number = 0
    try:
        while True:
            q.put(number)
            number += 1
    except ShutDown:
        told.put(number)


def count_until_shut(q: Any, told: Any) -> None:
    told.put(sum(1 for _ in q))
