"""Work of which one task in ten takes a hundred times as long: when is the last one done?

Compared to list scheduling in arrival order, the best that one can do who does not know how long a task will take.
"""

from __future__ import annotations

import time
from heapq import heapify, heapreplace
from multiprocessing.connection import Connection
from random import Random
from typing import Any, Final

from fiberq.bench.contenders import attach, connect
from fiberq.bench.crew import Crew
from fiberq.bench.values import Figures, Make, Size

WORKERS: Final = 8
SHORT: Final = 0.001
"""Seconds."""

Done = tuple[int, float, float]
"""A task, how many seconds it took, and when it was done."""


def skewed(crew: Crew, make: Make, size: Size) -> Figures:
    """Seconds from the first task's put until the last is done. Tasks sleep; what they took is measured."""
    queue = make()
    workers = [crew.start(f"worker {number}", work, queue) for number in range(WORKERS)]
    for worker in workers:
        crew.hear(worker)
    feeder = crew.start("producer 0", feed, queue, tasks(size.items))
    start = crew.hear(feeder)
    done: list[Done] = sorted(each for worker in workers for each in crew.hear(worker))
    makespan = max(end for _, _, end in done) - start
    best = list_schedule([seconds for _, seconds, _ in done], WORKERS)
    return Figures(makespan, {"of list scheduling": makespan / best})


def tasks(count: int) -> list[float]:
    """The same ones each time; one in ten is long, though not each tenth."""
    long = set(Random(1).sample(range(count), max(1, count // 10)))
    return [SHORT * (100 if number in long else 1) for number in range(count)]


def list_schedule(seconds: list[float], workers: int) -> float:
    """When the last task is done if each, in order, goes to the worker that is free first."""
    free = [0.0] * workers
    heapify(free)
    for each in seconds:
        heapreplace(free, free[0] + each)
    return max(free)


def feed(talk: Connection[Any, Any], queue: Any, todo: list[float]) -> None:
    connect(queue)
    talk.send(time.monotonic())
    for task in enumerate(todo):
        queue.put(task)
    for _ in range(WORKERS):
        queue.put(None)


def work(talk: Connection[Any, Any], queue: Any) -> None:
    attach(queue)
    talk.send("attached")
    done: list[Done] = []
    while (task := queue.get()) is not None:
        number, seconds = task
        start = time.monotonic()
        time.sleep(seconds)
        end = time.monotonic()
        done.append((number, end - start, end))
    talk.send(done)
