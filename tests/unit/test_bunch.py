"""What is unpickled together is what it would be if each were unpickled alone."""

from __future__ import annotations

import copyreg
import pickle
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fiberq.protocol.bunch import LEAST, LONGEST, SIZE, bunches, unpickle

settings.register_profile("steady", deadline=None)  # a loaded machine is no failure
settings.load_profile("steady")


def pickled(obj: object) -> bytes:
    return pickle.dumps(obj, 5)


def shapes(obj: Any, seen: dict[int, int]) -> Iterator[Any]:
    """What an object is, and where the same list, dict, set or tuple is in it again."""
    if isinstance(obj, (list, tuple, dict, set, frozenset, bytearray)):
        yield seen.setdefault(id(obj), len(seen))
    yield type(obj)
    if isinstance(obj, dict):
        for key, value in obj.items():
            yield from shapes(key, seen)
            yield from shapes(value, seen)
    elif isinstance(obj, (list, tuple)):
        for each in obj:
            yield from shapes(each, seen)
    else:
        yield repr(obj)


@st.composite
def objects(draw: st.DrawFn) -> Any:
    """Containers, with some things in them again and again."""
    pool: list[Any] = draw(
        st.lists(
            st.one_of(
                st.none(),
                st.booleans(),
                st.integers(),
                st.floats(allow_nan=False),
                st.text("hj \t\nq\u0094", max_size=4),
                st.binary(max_size=4),
                st.sampled_from([[], ["h"], {"h": []}, (), ("j", []), {1, 2}, frozenset("h"), bytearray(b"h\1")]),
            ),
            min_size=1,
            max_size=8,
        )
    )
    for _ in range(draw(st.integers(0, 4))):
        some = draw(st.lists(st.sampled_from(pool), max_size=6))
        pool.append(draw(st.sampled_from([some, tuple(some), dict(enumerate(some)), {"h": some, "again": some}])))
    return pool[-1]


@given(st.lists(objects(), min_size=1, max_size=12))
def test_together_they_are_what_each_is_alone(objs: list[Any]) -> None:
    pickles = [pickled(obj) for obj in objs]
    assert [list(shapes(obj, {})) for obj in unpickle(pickles)] in (
        [],
        [list(shapes(pickle.loads(each), {})) for each in pickles],
    )


@pytest.mark.parametrize(
    "obj",
    [
        {"id": 1, "name": "one", "tags": ["a", "b"]},
        {"a text": "with words that go through, each of them"},
        {"h\1"[0]: 1.5, "k": (1, 2)},
        [1, 2.5, None, b"raw", {"set"}],
        ("job", 17),
        {f"key {number}": f"value number {number}" for number in range(15)},
    ],
)
def test_what_can_be_unpickled_together(obj: object) -> None:
    assert unpickle([pickled(obj)] * LEAST) == [obj] * LEAST


SHARED = ["twice"]


@pytest.mark.parametrize(
    "item",
    [
        pickled({"a": SHARED, "b": SHARED}),
        pickled([*([number] for number in range(60)), SHARED, SHARED]),
        pickled([*([number] for number in range(300)), SHARED, SHARED]),
        pickled({"class": Decimal(1)}),
        pickled({"key": "x" * LONGEST}),
        pickled({}),
        b"\x80\x05\x95too short",
        pickled([1, 2])[:-3],
        pickled([1, 2]) + b"more",
        pickle.dumps([1, 2], 2),
        b"i\x01\x00\x00\x00",
        b"B what was N.",
        b"",
    ],
)
def test_what_has_to_be_unpickled_alone(item: bytes) -> None:
    good = pickled(["good"])
    assert unpickle([good, item, good]) == []


def test_a_bunch_has_the_items_of_its_numbers() -> None:
    objs = [{"number": number} for number in range(2 * SIZE + 3)]
    made = bunches(100, [pickled(obj) for obj in objs])
    assert [one.first for one in made] == [100, 100 + SIZE, 100 + 2 * SIZE]
    for number, obj in enumerate(objs):
        one = made[number // SIZE]
        assert one.item(100 + number) == pickled(obj)
        assert one.read()[number % SIZE] == obj
        assert one.objects is not None
    assert not bunches(0, [pickled(1.5)] * (LEAST - 1)), "few"
    assert not bunches(0, [b"i\x01\x00\x00\x00"] * 100), "no pickles"
    (one,) = bunches(7, [*[pickled([1])] * LEAST, b"N"])
    assert one.read() == one.objects == []
    assert one.item(7 + LEAST) == b"N"


class Coded:
    """A class that a pickle names by a number."""


def test_a_class_that_has_a_code_is_a_class() -> None:
    items = [pickled([Coded()])] * LEAST
    assert unpickle(items) == []
    plain = [pickled([1])] * LEAST
    copyreg.add_extension(__name__, "Coded", 0x7FFFFF)
    try:
        assert b"\x93" not in pickled(Coded)
        assert unpickle([pickled([Coded])] * LEAST) == []
        assert unpickle(plain) == [], "there may be such a code"
    finally:
        copyreg.remove_extension(__name__, "Coded", 0x7FFFFF)
    assert unpickle(plain) == [[1]] * LEAST
