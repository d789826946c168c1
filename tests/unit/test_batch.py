"""Runs behave like plain lists of items, however they are cut, dealt and put back."""

from __future__ import annotations

from array import array
from collections import deque
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from fiberq.protocol.batch import Run, body, count, gather, put_in_place
from fiberq.protocol.frames import Items, read_items, split

settings.register_profile("steady", deadline=None)  # a loaded machine is no failure
settings.load_profile("steady")

ITEMS = st.lists(st.binary(max_size=6), min_size=1, max_size=12)


def _run(items: list[bytes], place: int = 0) -> Run:
    return Run.of(Items(array("I", map(len, items)), b"".join(items), ()), place)


def _large(item: bytes, place: int = 0) -> Run:
    return Run.of(Items(array("I"), b"", (item[:1], item[1:])), place)


def _contents(run: Run) -> list[bytes]:
    if run.batch.parts:
        return [b"".join(run.batch.parts)]
    return [bytes(item) for item in split(Items(run.lengths(), run.payload(), ()))]


def _placed(run: Run) -> list[tuple[int, bytes]]:
    return [(run.place + index * run.stride, item) for index, item in enumerate(_contents(run))]


@given(ITEMS, st.data())
def test_a_part_of_a_part_is_a_slice_of_a_slice(items: list[bytes], data: Any) -> None:
    run, model = _run(items, 10), list(enumerate(items, 10))
    for _ in range(3):
        start = data.draw(st.integers(0, len(run) - 1))
        stop = data.draw(st.integers(start + 1, len(run)))
        run.deaths, run.deliveries = 1, 3
        run.failures = 2
        run, model = run.part(start, stop), model[start:stop]
        assert _placed(run) == model
        assert (len(run), run.size) == (len(model), sum(len(item) for _, item in model))
        assert (run.deaths, run.deliveries, run.failures) == (1, 3, 2)


@given(ITEMS, st.integers(1, 6), st.integers(1, 6))
def test_dealing_gives_every_way_each_of_its_items(items: list[bytes], ways: int, again: int) -> None:
    dealt = _run(items, 5).dealt(ways)
    model = list(enumerate(items, 5))
    assert [_placed(run) for run in dealt] == [model[way::ways] for way in range(min(ways, len(items)))]
    for run in dealt:
        assert [_placed(one) for one in run.dealt(again)] == [
            _placed(run)[way::again] for way in range(min(again, len(run)))
        ]


@given(ITEMS, st.integers(1, 15), st.integers(0, 40), st.integers(0, 5))
def test_fitting_is_the_longest_start_that_fits_and_at_least_one(
    items: list[bytes], wanted: int, size: int, skipped: int
) -> None:
    start = min(skipped, len(items) - 1)
    model = items[start:]
    fits = [n for n in range(1, min(wanted, len(model)) + 1) if sum(map(len, model[:n])) <= size]
    assert _run(items).part(start, len(items)).fitting(wanted, size) == max(fits, default=1)


@given(
    st.lists(st.tuples(ITEMS, st.booleans(), st.booleans()), min_size=1, max_size=6),
    st.integers(1, 20),
    st.integers(1, 40),
)
def test_gather_takes_a_frame_from_the_head_and_leaves_the_rest(
    batches: list[tuple[list[bytes], bool, bool]], wanted: int, size: int
) -> None:
    queue: deque[Run] = deque()
    model: list[tuple[bytes, object]] = []
    for index, (items, suspect, large) in enumerate(batches):
        run = _large(items[0] + b"!") if large else _run(items)
        run.deaths = int(suspect)
        queue.append(run)
        mark: object = index if large else suspect
        model += [(item, (large, mark)) for item in _contents(run)]
    runs = gather(queue, wanted, size)
    taken = [item for run in runs for item in _contents(run)]
    expected: list[bytes] = []
    for item, mark in model:
        if expected and (mark != model[0][1] or len(expected) == wanted or sum(map(len, expected)) + len(item) > size):
            break
        expected.append(item)
    assert taken == expected[: len(taken)]
    assert 1 <= len(taken) == count(runs) <= wanted
    # It may stop at the end of a run that fills the frame exactly, before items of no bytes.
    assert b"".join(taken) == b"".join(expected)
    assert [item for run in queue for item in _contents(run)] == [item for item, _ in model[len(taken) :]]
    pieces, parts = body(runs)
    read = read_items(memoryview(b"".join(pieces)), parts)
    assert ([b"".join(read.parts)] if read.parts else split(read)) == taken


@given(st.lists(ITEMS, min_size=1, max_size=5), st.data())
def test_what_is_put_back_stands_in_its_old_place(batches: list[list[bytes]], data: Any) -> None:
    queue: deque[Run] = deque()
    place = 0
    for items in batches:
        queue.append(_run(items, place))
        place += len(items)
    model = [pair for run in queue for pair in _placed(run)]
    out: list[Run] = []
    while queue and data.draw(st.booleans()):
        out += gather(queue, data.draw(st.integers(1, 5)), 1000)
    while out:
        number = data.draw(st.integers(1, len(out)))
        back = [out.pop(data.draw(st.integers(0, len(out) - 1))) for _ in range(number)]
        put_in_place(queue, back)
        missing = {pair for run in out for pair in _placed(run)}
        assert [pair for run in queue for pair in _placed(run)] == [pair for pair in model if pair not in missing]


def test_a_copy_keeps_nothing_of_the_frame_that_its_items_came_in() -> None:
    run = _run([b"one", b"two", b"three"], place=7)
    part = run.part(1, 2)
    part.deliveries = 3
    copy = part.copy()
    assert (_placed(copy), copy.deliveries) == ([(8, b"two")], 3)
    assert bytes(copy.batch.payload) == b"two"
    assert run.copy() is run
    large = _large(b"large")
    assert large.copy() is large


def test_a_small_part_does_not_keep_a_large_batch() -> None:
    run = _run([bytes(1000)] * 1000, place=7)
    small, large = run.part(10, 12).apart(), run.part(0, 500)
    assert len(small.batch.payload) == 2000
    assert _placed(small) == [(17, bytes(1000)), (18, bytes(1000))]
    assert large.apart() is large
    assert run.apart() is run
    few = _run([b"one", b"two", b"three"] * 10).part(0, 1)
    assert few.apart() is few, "the batch is not large"
