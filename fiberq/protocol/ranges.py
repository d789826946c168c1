"""Sets of whole numbers that are mostly consecutive, as sorted half-open ranges: what a reader holds of what it got."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence


class Ranges:
    """A set of numbers. To add or discard one at either end is quick, however many there are."""

    def __init__(self, numbers: Iterable[int] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for number in numbers:
            self.add(number)

    def add(self, number: int) -> None:
        starts, ends = self._starts, self._ends
        place = bisect_right(starts, number)  # of the first range that begins later
        if place and ends[place - 1] > number:
            return
        joins_left = place > 0 and ends[place - 1] == number
        joins_right = place < len(starts) and starts[place] == number + 1
        if joins_left and joins_right:
            ends[place - 1] = ends.pop(place)
            del starts[place]
        elif joins_left:
            ends[place - 1] = number + 1
        elif joins_right:
            starts[place] = number
        else:
            starts.insert(place, number)
            ends.insert(place, number + 1)

    def discard(self, number: int) -> None:
        starts, ends = self._starts, self._ends
        place = bisect_right(starts, number) - 1
        if place < 0 or ends[place] <= number:
            return
        start, end = starts[place], ends[place]
        if end == start + 1:
            del starts[place], ends[place]
        elif number == start:
            starts[place] = number + 1
        elif number == end - 1:
            ends[place] = number
        else:
            ends[place] = number
            starts.insert(place + 1, number + 1)
            ends.insert(place + 1, end)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self._starts, self._ends, strict=True))

    def __bool__(self) -> bool:
        return bool(self._starts)


def without(ranges: Iterable[tuple[int, int]], others: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """What of `ranges` is in none of `others`; both are in order."""
    place = 0
    for start, end in ranges:
        while place < len(others) and others[place][1] <= start:
            place += 1
        later = place
        while start < end:
            other_start, other_end = others[later] if later < len(others) else (end, end)
            if start < min(other_start, end):
                yield start, min(other_start, end)
            start = max(start, other_end)
            later += 1
