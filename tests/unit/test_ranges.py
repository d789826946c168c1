"""Ranges of numbers, against sets of numbers."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from fiberq.protocol.ranges import Ranges, runs, without

NUMBERS = st.lists(st.integers(0, 20))


def numbers(ranges: object) -> list[int]:
    return [number for start, end in ranges for number in range(start, end)]  # type: ignore[attr-defined]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 20), st.integers(1, 6))))
def test_ranges_are_a_set_in_order_and_as_few_as_can_be(steps: list[tuple[bool, int, int]]) -> None:
    ranges: Ranges = Ranges()
    model: set[int] = set()
    for adds, first, count in steps:
        (ranges.add if adds else ranges.discard)(first, first + count)
        (model.update if adds else model.difference_update)(range(first, first + count))
        assert numbers(ranges) == sorted(model)
        assert all(one[1] < other[0] for one, other in pairwise(ranges))
        assert bool(ranges) == bool(model)


@given(st.sets(st.integers(0, 20)))
def test_runs_are_those_numbers_in_as_few_ranges_as_can_be(some: set[int]) -> None:
    assert runs(sorted(some)) == list(Ranges(some))


@given(NUMBERS, NUMBERS)
def test_without_is_the_difference(some: list[int], others: list[int]) -> None:
    left = list(without(Ranges(some), list(Ranges(others))))
    assert numbers(left) == sorted(set(some) - set(others))
    assert all(start < end for start, end in left)
