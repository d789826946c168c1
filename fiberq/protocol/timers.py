"""When to look at whom next: found without a look at all of them, of whom there may be thousands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heappop, heappush, heapreplace
from typing import Generic, TypeVar

T = TypeVar("T")


class Timers(Generic[T]):
    """Each has at most one timer that counts: the earliest that was set. One that was set too early, because what it
    was for has happened since, is moved when its turn comes."""

    def __init__(self, due: Callable[[T], float]) -> None:
        """`due` says when to look at one in truth: never earlier than was set; infinity when not at all."""
        self._due = due
        self._heap: list[tuple[float, int, T]] = []
        self._at: dict[T, float] = {}
        self._count = 0

    def set(self, one: T, when: float) -> None:
        """Look at `one` at `when`, at the latest."""
        if when < self._at.get(one, float("inf")):
            self._at[one] = when
            self._count += 1
            heappush(self._heap, (when, self._count, one))

    def forget(self, one: T) -> None:
        self._at.pop(one, None)

    def rung(self, now: float) -> Iterator[T]:
        """Take those whose time has come."""
        heap, at = self._heap, self._at
        while heap and heap[0][0] <= now:
            when, _, one = heappop(heap)
            if at.get(one) == when:
                del at[one]
                yield one

    def next(self) -> float:
        """When the next one is due; infinity when none is."""
        heap, at = self._heap, self._at
        while heap:
            when, count, one = heap[0]
            if at.get(one) != when:
                heappop(heap)
                continue
            due = self._due(one)
            if due <= when:
                return when
            if due == float("inf"):
                del at[one]
                heappop(heap)
            else:
                at[one] = due
                heapreplace(heap, (due, count, one))
        return float("inf")

    def __iter__(self) -> Iterator[T]:
        return iter(self._at)
