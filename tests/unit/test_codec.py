"""Objects to item bytes and back."""

from __future__ import annotations

import pickle
import threading
from http import HTTPStatus
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fiberq import codec
from fiberq.codec import LARGE, decode, decode_all, decode_bytes, encode, encode_all, encode_bytes, is_shared
from fiberq.errors import ItemError
from fiberq.protocol.writer import size

numpy = pytest.importorskip("numpy")

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
OBJECTS = st.recursive(
    PLAIN, lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner)
)


@given(OBJECTS)
def test_an_object_comes_back_as_it_was(obj: Any) -> None:
    back = decode(encode(obj))
    assert back == obj
    assert type(back) is type(obj)


@pytest.mark.parametrize(
    ("obj", "item"),
    [
        (None, b"N"),
        (True, b"T"),
        (False, b"F"),
        (-2, b"i\xfe\xff\xff\xff"),
        (1 << 40, b"l\x03\x00\x00\x00\x00\x00\x00\x00\x00\x04"),
        (0.5, b"g\x00\x00\x00\x00\x00\x00\xe0?"),
        ("h\xe9\ud800", b"u\x06\x00\x00\x00h\xc3\xa9\xed\xa0\x80"),
    ],
)
def test_numbers_and_texts_are_the_same_bytes_in_every_version_of_python(obj: object, item: bytes) -> None:
    """Processes that run different ones share queues."""
    assert encode(obj) == item
    back = decode(item)
    assert back == obj
    assert type(back) is type(obj)
    assert pickle.loads(decode_bytes(item)) == obj


@pytest.mark.parametrize("obj", ["x" * LARGE, 1 << 8 * LARGE], ids=["text", "number"])
def test_a_text_or_a_number_may_be_large(obj: object) -> None:
    assert decode(encode(obj)) == obj
    items, longest = encode_all([obj, 1])
    assert longest is None
    assert [decode(item) for item in items] == [obj, 1]


def test_a_subclass_of_a_number_is_not_taken_for_one() -> None:
    for obj in (HTTPStatus.OK, numpy.float64(0.5), numpy.bool_(True)):
        back = decode(encode(obj))
        assert back == obj
        assert type(back) is type(obj)


@pytest.mark.parametrize(
    "objs", [[], [1, 2.5, None, "text"], [{"a": 1}, (2,)], [b"raw", 1, {"a": 1}], [b"x" * LARGE, 1]]
)
def test_many_objects_come_back_as_they_were(objs: list[Any]) -> None:
    items, longest = encode_all(objs)
    assert items == [encode(obj) for obj in objs]
    assert longest == (None if any(type(item) is not bytes for item in items) else max(map(len, items), default=0))
    back: list[Any] = []
    decode_all(items, back)
    assert back == objs


@pytest.mark.parametrize("wrong", [b"\x80\x05X", b"i\xfe"])
@pytest.mark.parametrize("others", [encode(1), encode({"a": 1}), encode(b"raw")])
def test_what_comes_before_an_item_that_cannot_be_read_is_there(wrong: bytes, others: bytes) -> None:
    back: list[Any] = []
    with pytest.raises((pickle.UnpicklingError, EOFError)):
        decode_all([others, others, wrong, others], back)
    assert back == [decode(others)] * 2


@pytest.mark.parametrize("length", [0, 1, LARGE - 1, LARGE, 10 * LARGE])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_bytes_of_any_length_keep_their_type(kind: type, length: int) -> None:
    obj = kind(b"\x80" * length)
    back = decode(encode(obj))
    assert back == obj
    assert type(back) is kind


@pytest.mark.parametrize("length", [0, 1, LARGE - 1, LARGE])
@pytest.mark.parametrize("first", [b"\x80", b"B", b"M"])
def test_a_message_of_bytes_stays_one_and_is_told_from_an_object(length: int, first: bytes) -> None:
    message = (first * length)[:length]
    for item in (encode_bytes(message), encode_bytes(memoryview(message))):
        assert bytes(decode_bytes(item)) == message
    assert pickle.loads(decode_bytes(encode(message))) == message
    if first != b"\x80":
        assert decode(encode_bytes(message)) == message


def test_only_a_message_that_the_caller_can_write_to_is_shared() -> None:
    message = bytearray(2 * LARGE)
    assert is_shared(encode_bytes(memoryview(message)))
    assert not is_shared(encode_bytes(bytes(message)))
    readonly = encode_bytes(memoryview(message).toreadonly())
    message[:] = b"1" * len(message)
    assert bytes(decode_bytes(readonly)) == bytes(2 * LARGE)


def test_large_bytes_are_not_copied() -> None:
    obj = bytes(10 * LARGE)
    item = encode(obj)
    assert item[1] is obj
    assert size(item) == len(obj) + 1


@pytest.mark.parametrize("shape", [(3,), (1000, 1000)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_comes_back_writable(shape: tuple[int, ...], order: Any) -> None:
    obj = numpy.ones(shape, order=order)
    item = encode(obj)
    # What a transport receives may be memory that nobody can write to.
    received = item if isinstance(item, bytes) else tuple(bytes(part) for part in item)
    back = decode(received)
    assert (back == obj).all()
    back[...] = 2
    assert (obj == 1).all()


def test_only_memory_that_the_caller_can_write_to_is_shared() -> None:
    assert is_shared(encode(numpy.ones(LARGE)))
    assert not is_shared(encode(bytes(10 * LARGE)))
    assert not is_shared(encode("x" * 10 * LARGE))
    assert not is_shared(encode(numpy.ones(3)))


def test_a_large_buffer_travels_by_itself_in_whatever_kind_of_object(monkeypatch: pytest.MonkeyPatch) -> None:
    numpy = pytest.importorskip("numpy")
    monkeypatch.setattr(codec, "light", {dict, list})
    array = numpy.ones(LARGE)
    assert type(encode({"a": 1})) is bytes
    for obj in ({"a": array}, {"a": array}, [array, array[::2].copy()], (array,)):
        item = encode(obj)
        assert isinstance(item, tuple)
        assert len(item[0]) < 1000
        assert item[1].obj is array
    assert not codec.light
    assert type(encode({"a": 1})) is bytes
    text = encode({"a": "x" * LARGE})
    assert isinstance(text, tuple)
    assert len(text) == 1


def test_what_pickle_cannot_do_cloudpickle_does() -> None:
    factor = 3
    assert decode(encode(lambda number: number * factor))(2) == 6


def test_an_object_that_cannot_be_pickled_raises_and_names_its_type() -> None:
    class Stubborn:
        def __reduce__(self) -> Any:
            raise pickle.PicklingError("never")

    with pytest.raises(ItemError, match="Stubborn"):
        encode(Stubborn())


def test_an_item_error_is_of_the_class_that_pickle_raised_in_another_process_too() -> None:
    with pytest.raises(ItemError) as raised:
        encode(threading.Lock())
    again = pickle.loads(pickle.dumps(raised.value))
    assert isinstance(again, ItemError)
    assert isinstance(again, TypeError)
    assert str(again) == str(raised.value)
