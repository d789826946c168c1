"""Shared memory between one process and itself: what is written is read, and nothing else is taken for it."""

from __future__ import annotations

import fcntl
import gc
import os
import pickle
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fiberq import memory
from fiberq.abc import MAX_PARTS
from fiberq.codec import decode, encode
from fiberq.errors import ItemError, ProtocolError
from fiberq.memory import Borrowed, Vault, borrow, make_vault, prove, share
from fiberq.protocol.lent import REFERENCE, Lent, Reference

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memfd is Linux's")

HERE = os.getpid()


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def vault() -> Vault:
    made = make_vault(4)
    assert made is not None
    return made


@pytest.fixture
def pipe() -> Iterator[int]:
    ends = os.pipe()
    yield ends[0]
    for end in ends:
        os.close(end)


@pytest.fixture(autouse=True)
def nothing_is_left_open(vault: Vault, pipe: int) -> Iterator[None]:  # noqa: ARG001 - they are open before
    before = descriptors()  # the vault's own included
    yield
    assert descriptors() == before


def reference_of(shared: bytes) -> Reference:
    return Reference(*REFERENCE.unpack(shared))


def taken(vault: Vault, item: tuple[bytes, ...]) -> Lent:
    shared = share(item)
    assert shared is not None
    held = vault.adopt(HERE, reference_of(shared))
    assert isinstance(held, Lent)
    return held


parts = st.lists(st.binary(max_size=200), min_size=1, max_size=8)


@given(parts)
@settings(deadline=None, max_examples=50)
def test_what_is_shared_is_what_is_loaded(item: list[bytes]) -> None:
    vault = make_vault(1)
    assert vault is not None
    held = taken(vault, tuple(item))
    assert list(map(bytes, held.load())) == item
    assert list(map(bytes, borrow(HERE, held.reference).load())) == item


def test_as_many_parts_as_a_message_has(vault: Vault) -> None:
    item = tuple(b"%d" % number for number in range(MAX_PARTS))
    assert tuple(map(bytes, taken(vault, item).load())) == item


def test_memory_that_is_not_contiguous_bytes() -> None:
    import array

    numbers = array.array("d", range(1000))
    shared = share((memoryview(numbers), b"end"))
    assert shared is not None
    assert [bytes(part) for part in Borrowed(shared.memory, shared.size).load()] == [numbers.tobytes(), b"end"]  # type: ignore[arg-type]


def test_the_buffers_of_a_pickle_can_be_written_to() -> None:
    item = encode(pickle.PickleBuffer(bytearray(1 << 20)))
    assert isinstance(item, tuple)
    shared = share(item)
    assert shared is not None
    got = decode(Borrowed(shared.memory, shared.size))  # type: ignore[arg-type]
    got[0] = 7
    assert (len(got), got[0], got[1]) == (1 << 20, 7, 0)


def test_memory_outlives_the_object_that_was_sent(vault: Vault) -> None:
    held = taken(vault, (b"item",))  # what `share` returned is gone
    borrowed = borrow(HERE, held.reference)
    del held
    assert vault.held == 0
    assert borrowed.load() == [b"item"]


def test_what_was_closed_meanwhile_cannot_be_read(vault: Vault) -> None:
    held = taken(vault, (b"item",))
    reference = held.reference
    del held
    with pytest.raises(ItemError, match="another process"):
        borrow(HERE, reference).load()
    other = taken(vault, (b"others",))  # perhaps under the same number
    assert other.reference.inode != reference.inode
    with pytest.raises(ItemError, match="another process"):
        borrow(HERE, reference._replace(descriptor=other.reference.descriptor)).load()


def test_what_there_is_no_room_for_is_copied(vault: Vault) -> None:
    held = [taken(vault, (b"item",)) for _ in range(4)]
    shared = share((b"one", b"more"))
    assert shared is not None
    assert vault.adopt(HERE, reference_of(shared)) == [b"one", b"more"]
    held.pop()
    assert isinstance(vault.adopt(HERE, reference_of(shared)), Lent)


def test_who_is_admitted(vault: Vault) -> None:
    proof = prove(*vault.place)
    assert vault.admits(HERE, proof.descriptor)
    shared = share((bytes(64),))
    assert shared is not None
    assert not vault.admits(HERE, reference_of(shared).descriptor)
    assert not vault.admits(HERE, 1 << 20)
    assert not vault.admits(1 << 30, 3)
    assert not vault.admits(-1, -1)
    other = make_vault(1)
    assert other is not None
    assert not other.admits(HERE, proof.descriptor)


def test_a_node_without_room_shares_nothing() -> None:
    assert make_vault(0) is None
    assert make_vault(-5) is None


def test_what_is_no_sealed_memory_is_not_adopted(vault: Vault, pipe: int, tmp_path: os.PathLike[str]) -> None:
    with pytest.raises(ProtocolError, match="no memory"):
        vault.adopt(HERE, Reference(pipe, os.fstat(pipe).st_ino, 0))
    with open(os.path.join(tmp_path, "file"), "w+b") as file:
        file.write(b"secret")
        file.flush()
        found = os.fstat(file.fileno())
        with pytest.raises(ProtocolError, match=r"cannot be opened|still change"):
            vault.adopt(HERE, Reference(file.fileno(), found.st_ino, found.st_size))
    with pytest.raises(ProtocolError, match="cannot be opened"):
        vault.adopt(HERE, Reference(1 << 20, 1, 1))
    unsealed = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    try:
        with pytest.raises(ProtocolError, match="still change"):
            vault.adopt(HERE, Reference(unsealed, os.fstat(unsealed).st_ino, 0))
        with pytest.raises(ProtocolError, match="not what it referred to"):
            vault.adopt(HERE, Reference(unsealed, os.fstat(unsealed).st_ino, 5))
    finally:
        os.close(unsealed)
    assert vault.held == 0


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 8, b"\1", b"\xff" * 64, (1).to_bytes(8, "little") + (1 << 63).to_bytes(8, "little") + bytes(48)],
)
def test_sealed_memory_that_is_no_item_is_refused_when_it_is_read(vault: Vault, content: bytes) -> None:
    made = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    try:
        os.write(made, content)
        fcntl.fcntl(made, fcntl.F_ADD_SEALS, memory._SEALS)
        held = vault.adopt(HERE, Reference(made, os.fstat(made).st_ino, len(content)))
        assert isinstance(held, Lent)
        with pytest.raises(ProtocolError):
            held.load()
    finally:
        os.close(made)


def test_a_system_that_has_no_more_memory_shares_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "writev", full)
    assert share((b"item",)) is None


def test_a_forked_child_closes_nothing_of_its_parents() -> None:
    shared = share((b"item",))
    assert shared is not None
    descriptor = reference_of(shared).descriptor
    child = os.fork()
    if not child:
        status = 1
        try:
            del shared
            gc.collect()
            os.fstat(descriptor)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
