"""Shared memory between one process and itself: what is written is read, and nothing else is taken for it."""

from __future__ import annotations

import gc
import os
import pickle
import resource
import struct
import sys
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fiberq import memory
from fiberq.abc import MAX_PARTS, Buffer
from fiberq.codec import decode, encode
from fiberq.errors import HandleError, ProtocolError
from fiberq.memory import (
    LATELY,
    MOMENT,
    REST,
    SHARE_FROM,
    SHEET,
    Borrowed,
    Opened,
    Pool,
    Vault,
    fetch,
    make_vault,
    prove,
)
from fiberq.protocol.frames import ALONE
from fiberq.protocol.lent import Lent, Reference, Shared, read_generations, read_references

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


@pytest.fixture(autouse=True, params=["x86_64", "aarch64"])
def mapped(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether sheets are mapped: on a machine of this kind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "uname", lambda: SimpleNamespace(machine=request.param))
        yield request.param == "x86_64"


@pytest.fixture
def per_sheet(mapped: bool) -> int:
    """Descriptors that a sheet takes of who made it: before Python 3.13, a mapping has one of its own."""
    return 2 if mapped and sys.version_info < (3, 13) else 1


@pytest.fixture(autouse=True)
def nothing_is_left_open(vault: Vault, pipe: int) -> Iterator[None]:  # noqa: ARG001 - it is open before
    before = descriptors()  # the vault's own included
    yield
    vault.tidy(2 * REST)
    assert descriptors() == before


def reference_of(shared: bytes) -> Reference:
    (reference,) = read_references(memoryview(shared))
    return reference


def share(item: Sequence[Buffer], pool: Pool | None = None) -> Shared:
    shared = (pool or Pool()).share(item, 0.0)
    assert shared is not None
    shared.sent = True
    return shared


def asked() -> Sequence[Buffer]:
    raise HandleError("asked the node")


def borrow(reference: Reference) -> Borrowed:
    return Borrowed(HERE, reference, Opened(), asked)


def taken(vault: Vault, item: Sequence[bytes], pool: Pool | None = None) -> Lent:
    shared = share(item, pool)
    held = vault.adopt("lender", HERE, reference_of(shared), 0.0)
    assert isinstance(held, Lent)
    return held


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=8))
@settings(deadline=None, max_examples=50)
def test_what_is_shared_is_what_is_loaded(item: list[bytes]) -> None:
    vault = make_vault(1)
    assert vault is not None
    held = taken(vault, item)
    assert list(map(bytes, held.load())) == item
    assert list(map(bytes, borrow(held.reference).load())) == item


def test_as_many_parts_as_a_message_has(vault: Vault) -> None:
    item = [b"%d" % number for number in range(MAX_PARTS)]
    assert list(map(bytes, taken(vault, item).load())) == item


def test_memory_of_other_types_than_bytes() -> None:
    numbers = array("d", range(1000))
    shared = share((memoryview(numbers), b"end"))
    assert [bytes(part) for part in borrow(reference_of(shared)).load()] == [numbers.tobytes(), b"end"]


def test_the_buffers_of_a_pickle_can_be_written_to() -> None:
    item = encode(pickle.PickleBuffer(bytearray(1 << 20)))
    assert isinstance(item, tuple)
    shared = share(item)
    got = decode(borrow(reference_of(shared)))
    got[0] = 7
    assert (len(got), got[0], got[1]) == (1 << 20, 7, 0)


def test_the_node_has_an_item_for_longer_than_who_put_it(vault: Vault) -> None:
    assert taken(vault, (b"item",)).load() == [b"item"]  # what `share` returned is gone, and its pool


@pytest.mark.parametrize("size", [100, SHEET])
def test_memory_is_used_again_when_its_item_has_ended(vault: Vault, size: int) -> None:
    pool = Pool()
    held = taken(vault, (b"first", bytes(size)), pool)
    other = taken(vault, (b"second", bytes(size)), pool)
    before = held.reference
    assert before[1:3] != other.reference[1:3]
    assert (before.inode == other.reference.inode) == (size < SHEET), "small ones share a sheet"
    del held
    assert vault.ended == {"lender": [1]}
    pool.ended(1)
    third = taken(vault, (b"third", bytes(2 * size)), pool)
    assert third.reference[1:3] == before[1:3]
    assert third.load() == [b"third", bytes(2 * size)]
    assert other.load() == [b"second", bytes(size)]
    with pytest.raises(HandleError, match="asked the node"):
        borrow(before._replace(descriptor=third.reference.descriptor)).load()
    with pytest.raises(HandleError, match="asked the node"):
        fetch(HERE, before, Opened(), asked).load()  # type: ignore[union-attr]
    assert fetch(HERE, third.reference, Opened(), asked) == third.load()
    pool.ended(77)  # of which it does not know


def test_memory_is_waited_for_while_enough_of_its_kind_is_lent_and_some_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vault = make_vault(100)
    assert vault is not None
    monkeypatch.setattr("fiberq.memory.AMPLE", 2_000_000)
    monkeypatch.setattr("fiberq.memory.monotonic", lambda: 5.0)
    pool, large, small, own = Pool(), 1_000_000, 100_000, 3_000_000
    held = [taken(vault, (bytes(large),), pool)]
    assert not pool.lacks(large), "the sheet has another slot"
    held.append(taken(vault, (bytes(large),), pool))
    assert pool.lacks(large)
    assert not pool.lacks(own), "none of that kind is lent"
    held += [taken(vault, (bytes(small),), pool) for _ in range(32)]
    assert not pool.lacks(small), "it would not be worth while"
    assert pool.patience(large, 5.0) == 0, "nobody gets anything"
    pool.ended(3)
    assert pool.patience(large, 5.0) == 0, "this was memory of another kind"
    pool.ended(1)
    assert pool.patience(large, 5.0) == MOMENT
    assert pool.patience(large, 5.0 + LATELY) == 0
    assert not pool.lacks(large), "it came back"
    held.append(taken(vault, (bytes(large),), pool))
    assert pool.lacks(large)
    pool.expect_none(large)
    assert pool.patience(large, 5.0) == 0
    held.append(taken(vault, (bytes(own),), pool))
    assert pool.lacks(own)


def test_a_slot_that_was_written_is_written_again_without_a_call(
    vault: Vault, mapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, calls = Pool(), []
    write = os.pwritev

    def counted(descriptor: int, pieces: list[Buffer], start: int) -> int:
        calls.append(start)
        return write(descriptor, pieces, start)

    monkeypatch.setattr(os, "pwritev", counted)
    for generation, size in enumerate([80_000, 80_000, 70_000, 100_000, 90_000], 1):
        item = (b"%d" % generation, os.urandom(size))
        held = taken(vault, item, pool)
        assert held.load() == list(item)
        assert list(borrow(held.reference).load()) == list(item)
        del held
        pool.ended(generation)
    # What is larger than all before has no pages there yet; a mapping cannot say that there are no more.
    assert len(calls) == (2 if mapped else 5)


def test_nobody_can_make_a_sheet_shorter(mapped: bool) -> None:
    pool = Pool()
    shared = share((b"item", bytes(SHARE_FROM)), pool)
    reference = reference_of(shared)
    with pytest.raises(PermissionError):
        os.ftruncate(reference.descriptor, 0)
    opened = Opened()
    assert (opened.find(HERE, reference, 0.0).map is not None) == mapped
    assert Borrowed(HERE, reference, opened, asked).load() == [b"item", bytes(SHARE_FROM)]


def test_what_could_be_made_shorter_is_not_mapped() -> None:
    pool = Pool()
    shared = share((b"item", bytes(SHEET)), pool)  # of its own
    reference = reference_of(shared)
    os.ftruncate(reference.descriptor, SHEET)
    assert Opened().find(HERE, reference, 0.0).map is None
    with pytest.raises(HandleError, match="asked the node"):
        borrow(reference).load()


def test_where_nothing_can_be_sealed_sheets_are_read_by_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def refuse(*_: int) -> int:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    shared = share((b"item", bytes(SHARE_FROM)))
    reference = reference_of(shared)
    opened = Opened()
    assert Borrowed(HERE, reference, opened, asked).load() == [b"item", bytes(SHARE_FROM)]
    assert opened.find(HERE, reference, 0.0).map is None


def test_no_thread_finds_memory_that_is_not_mapped_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    opened, map_it, found = Opened(), memory._map, []

    def map_late(place: Any, read_only: bool = False) -> None:
        found.extend(opened._known.values())
        map_it(place, read_only)

    shared = share((b"item", bytes(SHARE_FROM)))
    reference = reference_of(shared)
    monkeypatch.setattr(memory, "_map", map_late)
    opened.find(HERE, reference, 0.0)
    assert not found, "before Python 3.13, mapping it closes its descriptor, which another thread may be using"


def test_memory_that_is_just_being_closed_is_opened_anew() -> None:
    opened = Opened()
    shared = share((b"item", bytes(SHARE_FROM)))
    reference = reference_of(shared)
    opened.find(HERE, reference, 0.0).close()  # what another thread may see of its end
    assert Borrowed(HERE, reference, opened, asked).load() == [b"item", bytes(SHARE_FROM)]


def test_of_what_two_threads_opened_at_once_the_one_is_kept_that_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    opened, open_it, first = Opened(), memory._open, []
    shared = share((b"item", bytes(SHARE_FROM)))
    reference = reference_of(shared)

    def open_late(*key: int) -> Any:
        if not first:
            first.append(None)
            first[0] = opened.find(HERE, reference, 0.0)  # another thread is faster
        return open_it(*key)

    monkeypatch.setattr(memory, "_open", open_late)
    second = opened.find(HERE, reference, 0.0)
    assert first[0] is not second
    first.clear()
    found = opened.find(HERE, reference, 0.0)
    assert found is second
    del found, second
    monkeypatch.setattr(memory, "_open", lambda *_: pytest.fail("it is opened for each item"))
    opened.find(HERE, reference, 0.0)


def test_a_forked_child_has_nothing_mapped() -> None:
    pool, opened = Pool(), Opened()
    shared = share((b"item", bytes(SHARE_FROM)), pool)
    reference = reference_of(shared)
    mapped = opened.find(HERE, reference, 0.0).map  # as a thread has it that reads
    child = os.fork()
    if not child:
        os._exit("/memfd:fiberq" in Path("/proc/self/maps").read_text())
    assert os.waitpid(child, 0)[1] == 0
    del mapped


@pytest.mark.parametrize(("size", "count"), [(SHARE_FROM, 2 * 108), (ALONE, 2 * 32), (1 << 20, 2 * 2)])
def test_items_share_a_sheet_that_is_opened_once(vault: Vault, size: int, count: int, per_sheet: int) -> None:
    pool, opened, before = Pool(), Opened(), descriptors()
    items = [(b"%d" % number, os.urandom(size)) for number in range(count)]
    held = [taken(vault, item, pool) for item in items]
    got = [fetch(HERE, each.reference, opened, asked) for each in held]
    assert got == [each.load() for each in held] == [list(item) for item in items]
    assert descriptors() == before + 2 * (per_sheet + 2), "two sheets, each open three times"
    del held
    for generation in vault.ended["lender"]:
        pool.ended(generation)
    again = [taken(vault, item, pool) for item in items]
    assert [each.load() for each in again] == got
    assert descriptors() == before + 2 * (per_sheet + 2)
    del again
    for generation in vault.ended["lender"]:
        pool.ended(generation)
    opened.tidy(2 * monotonic())
    pool.tidy(2 * REST)
    assert vault.due == REST
    vault.tidy(REST)
    assert descriptors() == before + 2, "it was used a moment ago"
    vault.tidy(REST + 0.1)
    assert descriptors() == before
    assert vault.due == float("inf")


def test_no_more_sheets_are_kept_open_than_may(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "OPEN", 2)
    before = descriptors()
    held = [taken(vault, (b"item",), Pool()) for _ in range(4)]
    assert [each.load() for each in held] == [[b"item"]] * 4
    del held
    assert descriptors() <= before + 2


def test_what_a_process_shared_is_closed_when_it_ends(vault: Vault) -> None:
    before = descriptors()
    held = taken(vault, (b"item",))
    vault.gone(HERE + 1)
    assert descriptors() == before + 1
    vault.gone(HERE)
    assert held.load() == [b"item"]
    del held
    assert descriptors() == before


def test_memory_of_its_own_that_looks_like_a_sheet_may_grow(vault: Vault) -> None:
    pool = Pool()
    first = taken(vault, (bytes(SHEET - memory.LINE),), pool)
    assert os.fstat(first.reference.descriptor).st_size == SHEET
    inode = first.reference.inode
    del first
    pool.ended(1)
    second = taken(vault, (bytes(2 * SHEET),), pool)
    assert second.reference.inode == inode
    assert second.load() == [bytes(2 * SHEET)]


def test_memory_that_changes_while_it_is_read_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool()
    shared = share((b"first", bytes(5000)), pool)
    read = memory._read

    def read_late(place: Any, size: int, offset: int) -> bytes:
        pool.ended(1)
        share((b"other", bytes(6000)), pool)
        return read(place, size, offset)

    monkeypatch.setattr(memory, "_read", read_late)
    with pytest.raises(HandleError):
        borrow(reference_of(shared)).load()


def test_what_was_never_sent_is_used_again() -> None:
    pool = Pool()
    shared = pool.share((b"item",), 0.0)
    assert shared is not None
    inode = reference_of(shared).inode
    del shared
    assert reference_of(share((b"next",), pool)).inode == inode


def test_how_much_is_kept(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "KEEP", 3 * SHEET + 1024)
    pool, before = Pool(), descriptors()
    shared = [share((bytes(SHEET),), pool) for _ in range(10)]
    assert descriptors() == before + 10
    held = [vault.adopt("lender", HERE, reference_of(each), 0.0) for each in shared[:4]]
    del shared
    assert descriptors() == before + 3 + 4, "three are kept, and four held"
    del held
    for generation in range(1, 11):
        pool.ended(generation)
    assert descriptors() == before + 3
    pool.tidy(memory.REST)
    assert descriptors() == before + 3
    pool.tidy(memory.REST + 0.1)
    assert descriptors() == before


def test_no_more_sheets_than_may(monkeypatch: pytest.MonkeyPatch, per_sheet: int) -> None:
    monkeypatch.setattr(memory, "SHEETS", 2)
    pool, before = Pool(), descriptors()
    shared = [share((bytes(1 << 20),), pool) for _ in range(6)]
    assert len({reference_of(each).inode for each in shared}) == 4, "two in each sheet, and two alone"
    assert pool.share((bytes(SHARE_FROM),), 0.0) is None, "there is no more for smaller ones in half of the sheets"
    del shared
    for generation in (1, 2, 3, 5, 6):
        pool.ended(generation)
    smaller = [share((bytes(ALONE),), pool) for _ in range(3)]  # the sheet that is all free goes for them
    assert len({reference_of(each).inode for each in smaller}) == 1
    assert descriptors() == before + 2 * per_sheet + 2, "and memory of its own is used again"
    del smaller
    for generation in (4, 8, 9, 10):  # the seventh was for the one that got none
        pool.ended(generation)
    pool.tidy(REST + 0.1)
    assert descriptors() == before


def test_items_of_a_slow_queue_share_sheets_however_slowly_they_come(per_sheet: int) -> None:
    pool, before = Pool(), descriptors()
    slow = []
    for burst in range(20):
        now = 10.0 * burst
        some = [pool.share((bytes(ALONE),), now) for _ in range(16)]
        slow.append(some.pop())
        del some  # never sent
        pool.tidy(now + REST + 0.1)
    assert descriptors() == before + 2 * per_sheet
    del slow
    pool.tidy(1000.0)
    assert descriptors() == before


def test_what_keeps_much_more_than_itself_from_being_freed_is_copied(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "SLACK", 2 * SHEET)
    shared = [share((b"%d" % number, bytes(900))) for number in range(4)]
    held = [vault.adopt("lender", HERE, reference_of(each), 0.0) for each in shared]
    assert [type(each) for each in held] == [memory._Held] * 3 + [list]
    assert bytes(held[3][0]) == b"3"  # type: ignore[index]
    assert taken(vault, (bytes(2 * SHEET),)), "it has nothing but itself"
    assert vault.in_sheets > 0
    del held
    assert vault.in_sheets == 0
    assert taken(vault, (b"again",))


def test_what_there_is_no_room_for_is_copied(vault: Vault) -> None:
    pool = Pool()
    opened = [taken(vault, (b"item",)) for _ in range(4)]  # sheets that are still open make room
    del opened
    held = [taken(vault, (bytes(SHEET),)) for _ in range(3)]
    held += [taken(vault, (b"item",), pool) for _ in range(5)]  # in one sheet
    shared = share((b"one", b"more"))
    assert vault.adopt("another", HERE, reference_of(shared), 0.0) == [b"one", b"more"]
    assert vault.ended["another"] == [1]
    held.pop(0)
    assert isinstance(vault.adopt("another", HERE, reference_of(shared), 0.0), Lent)


def test_who_is_admitted(vault: Vault) -> None:
    proof = prove(*vault.place, "mine")
    assert vault.admits("mine", HERE, proof.descriptor)
    assert not vault.admits("another", HERE, proof.descriptor), "what one has shown is no use to another"
    assert not vault.admits("mine", *vault.place), "nor what the node itself has"
    shared = share((bytes(64),))
    assert not vault.admits("mine", HERE, reference_of(shared).descriptor)
    assert not vault.admits("mine", HERE, 1 << 20)
    assert not vault.admits("mine", 1 << 30, 3)
    assert not vault.admits("mine", -1, -1)
    assert not vault.admits("mine", 1 << 70, 1 << 70)
    other = make_vault(1)
    assert other is not None
    assert not other.admits("mine", HERE, proof.descriptor)


def test_what_is_no_memory_is_not_even_opened(vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "fifo")
    reading = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    try:
        monkeypatch.setattr(os, "open", lambda *_: pytest.fail("it was opened"))
        assert not vault.admits("mine", HERE, reading)
        with pytest.raises(ProtocolError):
            vault.adopt("lender", HERE, Reference(reading, os.fstat(reading).st_ino, 0, 0, 1), 0.0)
    finally:
        os.close(reading)


def test_a_node_without_room_shares_nothing() -> None:
    assert make_vault(0) is None
    assert make_vault(-5) is None


def test_what_is_no_such_memory_is_not_adopted(vault: Vault, pipe: int, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("secret")
    with (tmp_path / "file").open() as file:
        for descriptor in (pipe, file.fileno()):
            found = os.fstat(descriptor)
            with pytest.raises(ProtocolError, match="no memory"):
                vault.adopt("lender", HERE, Reference(descriptor, found.st_ino, 0, found.st_size, 1), 0.0)
    with pytest.raises(ProtocolError, match="cannot be opened"):
        vault.adopt("lender", HERE, Reference(1 << 20, 1, 0, 1, 1), 0.0)
    with pytest.raises(ProtocolError, match="cannot be opened"):
        vault.adopt("lender", 1 << 30, Reference(1, 1, 0, 1, 1), 0.0)
    kept = Pool()
    for item in ((b"item",), (bytes(SHEET),)):
        right = reference_of(share(item, kept))
        for wrong in (
            right._replace(inode=right.inode + 1),
            right._replace(size=SHEET + 1000),
            right._replace(offset=SHEET - right.size + 1),
            right._replace(offset=(1 << 64) - 1),
            right._replace(offset=right.offset + memory.LINE),
            right._replace(generation=right.generation + 1),
        ):
            with pytest.raises(ProtocolError):
                vault.adopt("lender", HERE, wrong, 0.0)
    del kept
    assert (vault.held, vault.ended) == (0, {})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        bytes(16),
        b"\1",
        b"\xff" * 64,
        struct.pack("<QQ", 1, 1),
        struct.pack("<QQQ", 1, 1, 1 << 63) + bytes(40),
        struct.pack("<QQQ", 1, 1 << 60, 5) + bytes(40),
        struct.pack("<QQQ", 2, 1, 5) + bytes(64),
    ],
)
def test_memory_that_has_no_item_is_refused(content: bytes) -> None:
    made = os.memfd_create("fiberq")
    try:
        os.write(made, content)
        reference = Reference(made, os.fstat(made).st_ino, 0, len(content), 1)
        with pytest.raises(ProtocolError):
            memory._load(memory._open(HERE, made), reference)
        with pytest.raises(HandleError):
            borrow(reference).load()
    finally:
        os.close(made)


def test_a_system_that_has_no_more_memory_shares_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwritev", full)
    assert Pool().share((b"item",), 0.0) is None


def test_a_process_that_has_no_more_descriptors_asks_the_node() -> None:
    shared = share((b"item",))
    borrowed = Borrowed(HERE, reference_of(shared), Opened(), lambda: (b"from the node",))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors() + 2, hard))
    more = []
    try:
        with suppress(OSError):
            while True:
                more.append(os.open(os.devnull, os.O_RDONLY))
        assert borrowed.load() == (b"from the node",)
        assert Pool().share((b"item",), 0.0) is None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in more:
            os.close(descriptor)


def test_a_process_that_became_another_users_does_not_share(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, user = Pool(), os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    assert pool.share((b"item",), 0.0) is None


@pytest.mark.parametrize("data", [b"", b"1", bytes(29)])
def test_references_that_are_cut_short(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_references(memoryview(data))
    if len(data) % 8:
        with pytest.raises(ProtocolError):
            read_generations(memoryview(data))


def test_a_forked_child_keeps_nothing_of_its_parents() -> None:
    shared = share((b"item",))
    descriptor = reference_of(shared).descriptor
    child = os.fork()
    if not child:
        status = 1
        try:
            os.fstat(descriptor)
        except OSError:
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert borrow(reference_of(shared)).load() == [b"item"]
