"""Sets of whole numbers that are mostly consecutive, as sorted half-open ranges: what a reader holds of what it got."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence


class Ranges:
    """A set of numbers. To add or discard some at either end is quick, however many there are."""

    def __init__(self, numbers: Iterable[int] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for number in numbers:
            self.add(number, number + 1)

    def add(self, first: int, end: int) -> None:
        """Add the numbers from `first` up to `end`, of which there is one at least."""
        starts, ends = self._starts, self._ends
        low = bisect_left(ends, first)  # from here on ranges end at `first` or later,
        high = bisect_right(starts, end)  # and up to here they begin at `end` or before
        if low < high:
            first, end = min(first, starts[low]), max(end, ends[high - 1])
        starts[low:high] = (first,)
        ends[low:high] = (end,)

    def discard(self, first: int, end: int) -> None:
        """Remove those of the numbers from `first` up to `end` that are there."""
        starts, ends = self._starts, self._ends
        low, high = bisect_right(ends, first), bisect_left(starts, end)
        if low < high:
            left = [(starts[low], first)] if starts[low] < first else []
            right = [(end, ends[high - 1])] if end < ends[high - 1] else []
            starts[low:high] = [start for start, _ in (*left, *right)]
            ends[low:high] = [end for _, end in (*left, *right)]

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


def runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Numbers in ascending order as ranges."""
    if not numbers or numbers[-1] - numbers[0] == len(numbers) - 1:
        return [(numbers[0], numbers[-1] + 1)] if numbers else []
    ranges: list[tuple[int, int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number:
            ranges[-1] = (ranges[-1][0], number + 1)
        else:
            ranges.append((number, number + 1))
    return ranges
