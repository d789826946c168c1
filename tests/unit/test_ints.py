"""Small ints that travel together are the items that each of them would be."""

from __future__ import annotations

import marshal
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fiberq.codec import decode, decode_all, decode_bytes, encode, encode_all
from fiberq.protocol import ints
from fiberq.protocol.frames import Items, read_items, split
from fiberq.protocol.ints import LEAST, MOST
from fiberq.protocol.kinds import Kind
from fiberq.protocol.session import Session
from fiberq.protocol.writer import Item, Writer

SMALL = st.integers(LEAST, MOST) | st.sampled_from([LEAST, -1, 0, 1, MOST])


def items_of(lengths: bytes, payload: bytes) -> Items:
    return Items(array("I", lengths), payload, ())


@given(st.lists(SMALL, min_size=1, max_size=50))
def test_together_or_each_alone_they_are_the_same_items(some: list[int]) -> None:
    lengths, (payload,) = ints.pack(some)
    items = items_of(lengths, bytes(payload))
    assert split(items) == [encode(each) for each in some]
    assert ints.unpack(items) == (some if len(some) > 1 else None)
    assert ints.are_small(some)


@given(st.lists(st.integers(-(1 << 70), 1 << 70) | SMALL, min_size=1, max_size=9))
def test_small_is_what_is(some: list[int]) -> None:
    assert ints.are_small(some) == all(LEAST <= each <= MOST for each in some)


@pytest.mark.parametrize("other", ["", b"1234", b"i123", 1.5, True, MOST + 1])
def test_what_only_looks_like_one_is_none(other: object) -> None:
    encoded = [encode(1), encode(other), encode(2)]
    data = b"".join(encoded)  # type: ignore[arg-type]
    items = items_of(array("I", map(len, encoded)).tobytes(), data)  # type: ignore[arg-type]
    assert ints.unpack(items) is None
    assert [decode(each) for each in split(items)] == [1, other, 2]


def test_lengths_that_only_add_up() -> None:
    data = encode(1) + encode(2)  # type: ignore[operator]
    assert ints.unpack(items_of(array("I", [4, 6]).tobytes(), data)) is None
    assert ints.unpack(items_of(array("I", [5, 5]).tobytes(), data)) == [1, 2]


@given(st.lists(SMALL | st.text(max_size=3) | st.binary(max_size=9) | st.integers(), max_size=30))
def test_what_gathers_leaves_in_its_order(some: list[object]) -> None:
    gathered: list[Item] = [one if type(one) is int and LEAST <= one <= MOST else encode(one) for one in some]  # type: ignore[misc]
    writer, session = Writer(1, Kind("pull")), Session()
    for item in gathered:
        writer.add(item)
    assert writer.bulk == 0
    writer.pump(session, 0.0, everything=True)
    sent = [split(read_items(memoryview(b"".join(frame.body)), ())) for frame in session.waiting]
    assert [decode(bytes(item)) for frame in sent for item in frame] == some
    assert len(sent) == bool(some)


def test_ints_that_follow_long_items_fill_their_frames() -> None:
    writer, session = Writer(1, Kind("pull")), Session()
    for _ in range(2):
        writer.add(bytes(59_999))
    for number in range(20_000):
        writer.add(number)
    writer.pump(session, 0.0, everything=True)
    counts = [len(read_items(memoryview(b"".join(frame.body)), ()).lengths) for frame in session.waiting]
    assert sum(counts) == 20_002
    assert len(counts) <= 7


def test_all_ways_to_read_one() -> None:
    items, longest = encode_all([3, LEAST, MOST])
    assert (list(items), longest) == ([3, LEAST, MOST], ints.SIZE)
    back: list[object] = []
    decode_all([1, 2], back)
    decode_all([3, marshal.dumps(4, 2), marshal.dumps("five", 2)], back)
    assert back == [1, 2, 3, 4, "five"]
    assert decode(0) == 0
    assert decode(decode_bytes(7)) == 7
