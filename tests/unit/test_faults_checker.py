"""The checker of the fault run notices what is wrong, and nothing where nothing is."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parents[2]))  # benchmarks are not installed

from benchmarks.faults.checker import Figures, Got, Snapshot, Written, check
from benchmarks.faults.ledger import REDELIVERED, item_of


def items(*numbers: int, writer: int = 1) -> list[int]:
    return [item_of(writer, number) for number in numbers]


def got(entries: list[int], finished: int | None = None, **more: object) -> Got:
    return Got(entries, len(entries) if finished is None else finished, **more)  # type: ignore[arg-type]


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[Written], list[Got]]:
    """A run in which all went well: each item was acknowledged, and got once, in its writer's order."""
    written = [Written(writer, count, count) for writer, count in enumerate(draw(st.lists(st.integers(1, 30))), 1)]
    readers: list[list[int]] = [[] for _ in range(draw(st.integers(1, 4)))]
    for each in written:
        for number in range(each.attempted):
            draw(st.sampled_from(readers)).append(item_of(each.writer, number))
    return written, [got(entries) for entries in readers]


def total(figures: Figures) -> tuple[int, int, int, int]:
    return figures.lost, figures.unexpected, figures.duplicated, figures.inversions


def some(data: st.DataObject, readers: list[Got]) -> tuple[list[int], int]:
    """The entries of a reader that got something, and a place among them."""
    entries = data.draw(st.sampled_from([list(each.entries) for each in readers if each.entries]))
    readers[[list(each.entries) for each in readers].index(entries)].entries = entries
    return entries, data.draw(st.integers(0, len(entries) - 1))


@given(runs())
def test_where_nothing_is_wrong_nothing_is_found(run: tuple[list[Written], list[Got]]) -> None:
    figures = check(*run)
    assert total(figures) == (0, 0, 0, 0)
    assert figures.ok == figures.acknowledged == figures.attempted == sum(each.attempted for each in run[0])
    assert figures.recovered == 0


@given(runs().filter(lambda run: bool(run[0])), st.data())
def test_a_lost_item_is_found(run: tuple[list[Written], list[Got]], data: st.DataObject) -> None:
    written, readers = run
    entries, place = some(data, readers)
    del entries[place]
    figures = check(written, readers)
    assert total(figures) == (1, 0, 0, 0)
    assert figures.ok == figures.acknowledged - 1
    assert "lost" in figures.examples[0]


@given(runs().filter(lambda run: bool(run[0])), st.data())
def test_a_duplicated_item_is_found(run: tuple[list[Written], list[Got]], data: st.DataObject) -> None:
    written, readers = run
    entries, place = some(data, readers)
    entries.append(entries[place] | REDELIVERED)
    assert total(check(written, readers)) == (0, 0, 1, 0)


@given(runs(), st.integers(1, 40), st.integers(0, 1 << 31))
def test_an_unexpected_item_is_found(run: tuple[list[Written], list[Got]], writer: int, number: int) -> None:
    written, readers = run
    beyond = {each.writer: each.attempted for each in written}.get(writer, 0) + number
    readers.append(got([item_of(writer, beyond)]))
    figures = check(written, readers)
    assert total(figures) == (0, 1, 0, 0)
    assert "unexpected" in figures.examples[0]


def test_an_unacknowledged_item_may_be_missing_or_recovered() -> None:
    figures = check([Written(1, 5, 2)], [got(items(0, 1, 3))])
    assert total(figures) == (0, 0, 0, 0)
    assert (figures.attempted, figures.acknowledged, figures.ok, figures.recovered) == (5, 2, 2, 1)


def test_an_inversion_is_found() -> None:
    figures = check([Written(1, 3, 3)], [got(items(0, 2, 1), name="somebody")])
    assert total(figures) == (0, 0, 0, 1)
    assert figures.inverted == ["somebody: its entry 2 is 1 of 1, after 2"]


@pytest.mark.parametrize(
    "readers",
    [
        [got(items(0, 2)), got(items(1))],  # two that read at the same time
        [got([*items(0, 2), item_of(1, 1) | REDELIVERED])],
        [got([item_of(1, 2) | REDELIVERED, *items(0, 1)])],
    ],
)
def test_what_is_no_inversion(readers: list[Got]) -> None:
    assert total(check([Written(1, 3, 3)], readers)) == (0, 0, 0, 0)


def test_writers_have_no_order_among_each_other() -> None:
    entries = [*items(0, writer=2), *items(0, writer=1), *items(1, writer=2), *items(1, writer=1)]
    assert total(check([Written(1, 2, 2), Written(2, 2, 2)], [got(entries)])) == (0, 0, 0, 0)


def test_what_another_gave_back_is_no_inversion() -> None:
    figures = check([Written(1, 3, 3)], [got(items(0, 2, 1)), got([], given_back=items(1))])
    assert (figures.inversions, figures.handed_on) == (0, 1)


def test_what_a_killed_reader_had_finished_and_others_got_again() -> None:
    again = [each | REDELIVERED for each in items(1, 2)]
    stamps = dict(zip(items(1, 2), (10.5, 10.25), strict=True))
    victim = got(items(0, 1, 2), 2, killed_at=10.0, slow=True)
    figures = check([Written(1, 3, 3)], [victim, got(again, stamps=stamps)])
    assert (figures.redone_slow, figures.redone_fast, figures.duplicated) == ([1], [], 2)
    assert figures.latencies == [0.25]


def test_what_others_got_before_the_death_is_not_its_doing() -> None:
    stamps = dict.fromkeys(items(0), 9.0)
    figures = check(
        [Written(1, 1, 1)],
        [got(items(0), killed_at=10.0, local=False), got([item_of(1, 0) | REDELIVERED], stamps=stamps)],
    )
    assert (figures.redone_fast, figures.latencies, figures.tcp_latencies) == ([0], [], [])


def test_items_in_flight() -> None:
    readers = [got(items(0, 2)), got(items(1, 3))]
    snapshots = [Snapshot({1: 0}, [0, 0]), Snapshot({1: 3}, [1, 0]), Snapshot({1: 9}, [2, 1]), Snapshot({1: 9}, [2, 2])]
    assert check([Written(1, 9, 4)], readers, snapshots).in_flight == [0, 2, 1, 0]


def test_the_rule_of_three() -> None:
    assert check([Written(1, 300, 300)], [got(items(*range(300)))]).bound == 0.01
    assert math.isnan(check([Written(1, 300, 300)], [got(items(*range(299)))]).bound)
