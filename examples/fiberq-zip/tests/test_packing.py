"""Packed and unpacked, a message is the same; whatever else is unpacked is refused, and costs no memory."""

from __future__ import annotations

import random
import tracemalloc
import zlib

import pytest
from fiberq_zip import packing
from fiberq_zip.packing import Malformed, pack, unpack

from fiberq.abc import MAX_PARTS, Buffer

TEXT = b"a text that repeats itself " * 1000
NOISE = random.Random(1).randbytes(20_000)


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [b""],
        [b"", b""],
        [b"small"],
        [TEXT],
        [NOISE],
        [NOISE, TEXT, b"", TEXT],
        [TEXT] * MAX_PARTS,
        [bytearray(TEXT), memoryview(TEXT)[5:], memoryview(bytes(8000)).cast("I")],
    ],
)
def test_a_message_stays_the_same(parts: list[Buffer]) -> None:
    packed = pack(parts)
    assert len(packed) == len(parts)
    assert [bytes(each) for each in unpack(packed)] == [bytes(each) for each in parts]


def test_what_can_be_compressed_is_and_what_cannot_be_travels_as_it_is() -> None:
    text, noise = pack([TEXT, NOISE])
    assert memoryview(text).nbytes < len(TEXT) // 10
    assert noise is NOISE
    assert pack([b"head", TEXT[: packing.SMALLEST - 1]])[1] == TEXT[: packing.SMALLEST - 1]


def test_parts_that_the_receiver_would_refuse_to_inflate_are_not_deflated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "LARGEST", 2 * len(TEXT))
    packed = pack([b"head", TEXT, TEXT, TEXT])
    assert packed[3] is TEXT
    assert [bytes(each) for each in unpack(packed)] == [b"head", TEXT, TEXT, TEXT]


def marked(flags: int, *parts: bytes) -> list[bytes]:
    """A packed message with these flags, whatever its parts are."""
    return [flags.to_bytes(8, "big") + parts[0], *parts[1:]]


@pytest.mark.parametrize(
    "packed",
    [
        [b""],
        [b"1234567"],
        marked(0b10, b"a part that is not there is deflated"),
        marked(0b1, b"no zlib"),
        marked(0b1, zlib.compress(TEXT)[:-1]),
        marked(0b1, zlib.compress(TEXT) + b"more"),
        marked(0b1, b""),
    ],
)
def test_garbage_is_refused(packed: list[bytes]) -> None:
    with pytest.raises(Malformed):
        unpack(packed)


@pytest.mark.parametrize("parts", [1, MAX_PARTS])
def test_a_bomb_is_refused_before_it_fills_the_memory(parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "LARGEST", 1 << 20)
    bomb = zlib.compress(bytes((64 << 20) // parts), 9)
    tracemalloc.start()
    try:
        with pytest.raises(Malformed):
            unpack(marked((1 << parts) - 1, *[bomb] * parts))
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
