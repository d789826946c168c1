"""Large items in memory that processes of one host share: a copy in `put` and one in `get`, and none on the way.

Whoever puts a large item writes it into an anonymous file in memory (memfd, Linux), and sends a reference. The node
opens the file through ``/proc/PID/fd`` before it acknowledges the put, and passes a reference to its own descriptor on,
which readers open. The memory has no name, and belongs to those who have it open: it is free when the last of them
closes it or dies, so nothing is ever left behind.

Memory that is used for the first time costs several times what the copy costs. So the node tells the lender when an
item has ended, and that uses its memory again, but for what goes over `KEEP`. Each item has a number, its generation,
which is the first thing in its memory: who was stopped while another process got his item finds another one there.

To open memory costs as much as to copy 64 KiB. So items of up to half of a `SHEET` share one, each in its own slot, and
whoever has opened a sheet keeps it for a while.

Only processes that may look into each other can do this: that is what the system checks for ``/proc/PID/fd`` (see
proc_pid_fd(5) and ptrace(2)). A client shows that it can by a number that the node keeps in such memory; the node finds
that it can when it reads that from the client's. All others are sent the bytes.
"""

from __future__ import annotations

import os
import stat
import struct
import sys
from bisect import bisect_left
from collections.abc import Callable, Hashable, Sequence, Sized
from contextlib import suppress
from itertools import count
from pickle import PROTO
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from weakref import WeakSet, WeakValueDictionary

from fiberq.abc import MAX_PARTS, Buffer
from fiberq.errors import ProtocolError
from fiberq.protocol.frames import ALONE
from fiberq.protocol.lent import Lent, Reference, Shared

if TYPE_CHECKING:
    from mmap import mmap

__all__ = ["Borrowed", "Opened", "Pool", "Vault", "fetch", "make_vault", "prove"]

SHARE_FROM: Final = 16 * 1024
"""Bytes from which an item is shared."""

KEEP: Final = 256 << 20
MOST: Final = 256
"""Bytes, and pieces of memory, that a process uses again and again for items with memory of their own; it keeps them
for `REST` seconds."""

REST: Final = 2.0

ROOMS: Final = tuple((SHARE_FROM << power) + 4096 for power in range(7))
"""Bytes that a slot may have: a power of two, and what is before and between an item's parts."""

WORTH: Final = ROOMS[5]
"""The smallest of them for which it is worth while to wait: of smaller ones a new sheet has many."""

SHEET: Final = 2 * ROOMS[-1] + (120 << 10)
"""Bytes of a piece of memory with slots for several items: 2 of the largest, or 108 of the smallest."""

SHEETS: Final = 128
"""That a process has at a time."""

OPEN: Final = 64
"""Sheets of others that a process keeps open, for `REST` seconds after their last use."""

SLACK: Final = 256 << 20
"""Bytes by which the sheets that a node keeps from being freed may be larger than the items in them."""

AMPLE: Final = 64 << 20
"""Bytes that are lent of one kind of memory before it is worth while to wait for some of it, not to take more."""

LATELY: Final = 0.01
"""Seconds since memory came back for which more of it is expected."""

MOMENT: Final = 0.001
"""Seconds to wait for that, or, as the system's timer rounds up, twice as long: new memory of a megabyte takes half."""

LINE: Final = 64
"""Bytes to multiples of which the parts are aligned: a cache line, and more than any type of NumPy asks for."""

PROOF: Final = 32
"""Bytes of what a client has to read from the node's memory."""

START: Final = 1024
"""Bytes that are read at once, for the head and the parts that are small."""

_WORD: Final = struct.Struct("<Q")
_HEAD: Final = struct.Struct("<QQ")
"""The generation, and how many parts there are, whose lengths follow."""

NAME: Final = "fiberq"
"""What the system shows of such memory."""


class _Memory:
    """An open descriptor, closed with this object."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.inode = 0
        self.size = 0
        self.used_at = 0.0
        self.map: mmap | None = None
        self.backed: dict[int, int] = {}  # offset -> bytes that were written there by a call, which, unlike a mapping,
        # fails where the system has no more memory
        _alive.add(self)

    @property
    def closed(self) -> bool:
        return self.descriptor < 0 and self.map is None

    def close(self) -> None:
        self.map = None
        self.close_descriptor()

    def close_descriptor(self) -> None:
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    __del__ = close


_alive: WeakSet[_Memory] = WeakSet()


def _close_inherited() -> None:
    """What a forked child has of its parent's memory is no use to it, and would be kept for as long as it lives."""
    for memory in list(_alive):
        if memory.map is not None:
            with suppress(BufferError):
                memory.map.close()  # another thread of the parent may have been about to read it
        memory.close()


os.register_at_fork(after_in_child=_close_inherited)


def _make(name: str = NAME) -> _Memory:
    memory = _Memory(os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    memory.inode = os.fstat(memory.descriptor).st_ino
    return memory


def _make_sheet() -> _Memory:
    """Memory of `SHEET` bytes that nobody can make shorter: who has mapped it would die of that."""
    from fcntl import F_ADD_SEALS, F_SEAL_SHRINK, fcntl

    memory = _make()
    os.ftruncate(memory.descriptor, SHEET)
    memory.size = SHEET
    with suppress(OSError):
        fcntl(memory.descriptor, F_ADD_SEALS, F_SEAL_SHRINK)
    _map(memory)
    return memory


def _map(memory: _Memory, read_only: bool = False) -> None:
    """Map a sheet, if that can be: a copy from or to it takes a seventh to a half of what the system calls take.

    It can where the processor keeps the order in which memory is read and written: whoever reads must find the new
    generation of a slot before anything else that is new there.
    """
    if os.uname().machine != "x86_64":
        return
    from fcntl import F_GET_SEALS, F_SEAL_SHRINK, fcntl
    from mmap import PROT_READ, PROT_WRITE, mmap

    with suppress(OSError, ValueError):
        if fcntl(memory.descriptor, F_GET_SEALS) & F_SEAL_SHRINK:
            access = PROT_READ if read_only else PROT_READ | PROT_WRITE
            if sys.version_info >= (3, 13):
                memory.map = mmap(memory.descriptor, SHEET, prot=access, trackfd=False)
                return
            memory.map = mmap(memory.descriptor, SHEET, prot=access)
            if read_only:
                memory.close_descriptor()  # the mapping has one of its own


def _write(memory: _Memory, pieces: list[Buffer], size: int, start: int = 0) -> None:
    """Write all pieces, which have `size` bytes, in their order, from `start` on."""
    mapped = memory.map
    if mapped is not None and size <= memory.backed.get(start, 0):
        for piece in pieces:
            end = start + len(piece)
            mapped[start:end] = piece
            start = end
        return
    written = os.pwritev(memory.descriptor, pieces, start)
    while written < size:  # Linux does not write more than 2 GiB at once
        left, skip = [], written
        for piece in pieces:
            left.append(memoryview(piece)[min(skip, len(piece)) :])
            skip -= len(piece) - len(left[-1])
        written += os.pwritev(memory.descriptor, left, start + written)
    memory.size = max(memory.size, start + size)
    memory.backed[start] = size


def _open(pid: int, descriptor: int, inode: int | None = None) -> _Memory:
    """Open what another process shares. Raises `OSError`, or `ProtocolError` if it is not what was referred to."""
    path = f"/proc/{pid:d}/fd/{descriptor:d}"
    if not os.readlink(path).startswith(f"/memfd:{NAME}"):  # before it is opened: that may do something to it
        raise ProtocolError("what a process shares is no memory for that")
    memory = _Memory(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY))
    found = os.fstat(memory.descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink or inode not in (None, found.st_ino):
        raise ProtocolError("what a process shares is not the memory that it referred to")
    memory.inode, memory.size = found.st_ino, found.st_size
    return memory


def _read(memory: _Memory, size: int, offset: int) -> bytes:
    """Exactly `size` bytes: one copy of them, but of more than 2 GiB, which Linux does not read at once."""
    data = _peek(memory, size, offset)
    return data if len(data) == size else bytes(_read_into(bytearray(size), memory, offset))


def _peek(memory: _Memory, size: int, offset: int) -> bytes:
    """At most `size` bytes."""
    mapped = memory.map
    if mapped is not None:
        return mapped[offset : offset + size]
    return os.pread(memory.descriptor, size, offset)


def _read_writable(memory: _Memory, size: int, offset: int) -> bytearray:
    mapped = memory.map
    if mapped is not None:
        return bytearray(memoryview(mapped)[offset : offset + size])
    return _read_into(bytearray(size), memory, offset)


def _read_into(data: bytearray, memory: _Memory, offset: int) -> bytearray:
    view = memoryview(data)
    while view:
        count = os.preadv(memory.descriptor, [view], offset)
        if not count:
            raise ProtocolError("a shared item is cut short")
        view = view[count:]
        offset += count
    return data


def _generation(memory: _Memory, offset: int) -> int:
    head = _peek(memory, _WORD.size, offset)
    return int.from_bytes(head, "little")


def _load(memory: _Memory, reference: Reference) -> list[Buffer]:
    """The parts of a shared item; behind a pickle, such as can be written to. Raises `ProtocolError` if it is none, or
    not the one that was referred to."""
    base = reference.offset
    start: Any = memory.map
    origin = base
    if start is None:
        start, origin = os.pread(memory.descriptor, START, base), 0  # one call for all that is small
    there = min(len(start) - origin, reference.size, START)
    generation, parts_there = _HEAD.unpack_from(start, origin) if there >= _HEAD.size else (0, 0)
    if generation != reference.generation:
        raise ProtocolError("the memory of a shared item is used for another one")
    place = _HEAD.size + _WORD.size * parts_there
    if not 0 < parts_there <= MAX_PARTS or there < place:
        raise ProtocolError("a shared item has no parts, or too many")
    lengths = struct.unpack_from(f"<{parts_there}Q", start, origin + _HEAD.size)
    writable, parts = False, list[Buffer]()
    for length in lengths:
        place += -place % LINE
        if place + length > min(reference.size, memory.size - base):
            raise ProtocolError("a shared item is cut short")
        part: Buffer
        if place + length <= there:
            part = start[origin + place : origin + place + length]
        elif writable:
            part = _read_writable(memory, length, base + place)
        else:
            part = _read(memory, length, base + place)
        writable = writable or part[:1] == PROTO
        parts.append(part)
        place += length
    if _generation(memory, base) != generation:  # which changes first
        raise ProtocolError("the memory of a shared item was used for another one meanwhile")
    return parts


class Opened:
    """What this process has open of others' memory, for what else comes in it; sheets are mapped, if it `maps`. Used by
    any thread at any time."""

    def __init__(self, maps: bool = True) -> None:
        self._maps = maps
        self._known: WeakValueDictionary[tuple[int, int, int], _Memory] = WeakValueDictionary()
        self._kept: dict[tuple[int, int, int], _Memory] = {}  # sheets

    def find(self, pid: int, reference: Reference, now: float) -> _Memory:
        """Raises as `_open` does."""
        key = pid, reference.descriptor, reference.inode
        memory = self._known.get(key)
        if memory is None or memory.closed:  # it is found for a moment longer than it lives
            memory = _open(*key)
            if self._maps and memory.size == SHEET:
                _map(memory, read_only=True)
            self._known[key] = memory  # not before it stays as it is: another thread may read from it at once
        elif memory.map is None and reference.offset + reference.size > memory.size:  # it has grown
            memory.size = os.fstat(memory.descriptor).st_size
        memory.used_at = now
        if memory.size == SHEET and self._kept.get(key) is not memory:  # two threads may have opened it
            if key not in self._kept and len(self._kept) >= OPEN:
                oldest = min(list(self._kept.items()), key=lambda each: each[1].used_at)[0]
                self._kept.pop(oldest, None)
            self._kept[key] = memory
        return memory

    def tidy(self, now: float) -> float:
        """Close what was not used for a while; return when to ask again, infinity for never."""
        for key, memory in list(self._kept.items()):
            if now > memory.used_at + REST:
                self._kept.pop(key, None)
        return now + REST if self._kept else float("inf")

    def forget(self, pid: int | None = None) -> None:
        """Close what nobody uses of what a process shared, or everybody."""
        for key in list(self._kept):
            if pid in (None, key[0]):
                self._kept.pop(key, None)


# -- clients --


def prove(node: int, descriptor: int, session: str) -> _Memory:
    """Show that this process can read the node's memory: return memory of its own with what only they know who can, and
    which is no use to another session. Raises `OSError` or `ProtocolError` if it cannot."""
    memory = _make(f"{NAME} proof")
    _write(memory, [_proof(_read(_open(node, descriptor), PROOF, 0), session)], PROOF)
    return memory


def _proof(secret: bytes, session: str) -> bytes:
    try:
        from _sha2 import sha256  # type: ignore[import-not-found]  # as `random` does: `hashlib` takes 2 ms to import
    except ImportError:  # before Python 3.12, or not CPython
        from hashlib import sha256

    return bytes(sha256(secret + session.encode()).digest())


class _Slot(NamedTuple):
    """Where an item lies: in a sheet, with so much room; or, with a room of 0, in memory of its own."""

    memory: _Memory
    offset: int
    room: int


class Pool:
    """The memory that a process shares over one link. Each method may be called by any thread at any time."""

    def __init__(self) -> None:
        self._free: dict[int, list[_Slot]] = {room: [] for room in (0, *ROOMS)}
        self._lent: dict[int, _Slot] = {}  # by generation
        self._sheets: WeakSet[_Memory] = WeakSet()
        self._generations = count(1)
        self._user = os.geteuid()
        self._used_at = 0.0
        self._expected = dict.fromkeys(self._free, 0.0)  # until when, by room, more is expected to come back

    def lacks(self, size: int) -> bool:
        """Whether an item of `size` bytes has to lie in new memory, though enough of that kind is lent. What was used
        just now is in the processor's caches, and mapped: to write to new memory takes ten times as long, or more."""
        room = _room_for(size)
        if 0 < room < WORTH or self._free[room]:
            return False
        lent = (slot for slot in list(self._lent.values()) if slot.room == room)
        return sum(slot.room or slot.memory.size for slot in lent) >= AMPLE

    def patience(self, size: int, now: float) -> float:
        """Seconds to wait for memory of that kind: none, unless some came back lately, and nobody has waited in vain
        since."""
        return MOMENT if now < self._expected[_room_for(size)] else 0.0

    def expect_none(self, size: int) -> None:
        """Somebody waited for memory of that kind in vain."""
        self._expected[_room_for(size)] = 0.0

    def share(self, item: Sequence[Buffer], now: float) -> Shared | None:
        """Write a large item into shared memory; `None` if the system has no more of that, or no more descriptors, or
        this process is another user's since it connected: then the node could not open it. Also if it has
        less than `ALONE` bytes, and half of the sheets are in use and have no room: the others are for larger ones."""
        if os.geteuid() != self._user:
            return None
        self._used_at = now
        views = [part if type(part) is bytes else memoryview(part).cast("B") for part in item]
        lengths = list(map(len, views))
        generation = next(self._generations)
        # The generation is written before all else: who still reads what was there finds another one afterwards.
        pieces: list[Buffer] = [_WORD.pack(generation), struct.pack(f"<{len(lengths) + 1}Q", len(lengths), *lengths)]
        end = _HEAD.size + _WORD.size * len(lengths)
        for view, length in zip(views, lengths, strict=True):
            gap = -end % LINE
            pieces += (bytes(gap), view)
            end += gap + length
        try:
            slot = self._slot(end)
            if slot is None:
                return None
            _write(slot.memory, pieces, end, slot.offset)
        except OSError:
            return None
        if _may_keep(slot, self._lent):  # else it is closed when the node has opened it
            self._lent[generation] = slot
        reference = Reference(slot.memory.descriptor, slot.memory.inode, slot.offset, end, generation)
        return Shared.of(reference, sum(lengths), slot, self.ended)

    def _slot(self, size: int) -> _Slot | None:
        room = _room_for(size)
        try:
            return self._free[room].pop()
        except IndexError:
            pass
        if not room:
            return _Slot(_make(), 0, 0)
        if size < ALONE and len(self._sheets) >= SHEETS // 2:
            return None
        if len(self._sheets) >= SHEETS:
            if any(self._free[other] for other in ROOMS):
                self._drop_free_sheets()
            if len(self._sheets) >= SHEETS:  # it has memory of its own, which goes when the item does
                return _Slot(_make(), 0, 0)
        memory = _make_sheet()
        self._sheets.add(memory)
        first, *others = (_Slot(memory, offset, room) for offset in range(0, SHEET - room + 1, room))
        self._free[room] += others
        return first

    def ended(self, generation: int) -> None:
        """An item has ended: its memory can be used again."""
        slot = self._lent.pop(generation, None)
        if slot is not None and _may_keep(slot, self._free[0]):
            self._free[slot.room].append(slot)
            self._expected[slot.room] = monotonic() + LATELY

    def forget(self) -> None:
        """What the node had to tell of items that have ended may be lost: their memory is not used again."""
        self._lent.clear()

    def tidy(self, now: float) -> None:
        """Let go of what was not used for a while."""
        if now > self._used_at + REST:
            self._free[0].clear()
            self._drop_free_sheets()

    def _drop_free_sheets(self) -> None:
        """Let go of the sheets in which no item is. What is free in others is for the next items: else a slow queue's
        would get a sheet each."""
        lent = {slot.memory for slot in list(self._lent.values())}
        for slots in (self._free[room] for room in ROOMS):
            for _ in range(len(slots)):
                try:
                    slot = slots.pop(0)
                except IndexError:  # another thread has taken it
                    break
                if slot.memory in lent:
                    slots.append(slot)


def _room_for(size: int) -> int:
    return ROOMS[bisect_left(ROOMS, size)] if size <= ROOMS[-1] else 0


def _may_keep(slot: _Slot, others: Sized) -> bool:
    """Whether a slot may be kept beside `others`. For memory of its own that is reckoned as if all were of its size: to
    add them up would need a lock."""
    return bool(slot.room) or (len(others) < MOST and slot.memory.size * (len(others) + 1) <= KEEP)


class Borrowed:
    """A large item that has arrived. It is read when it is got. Where it cannot be opened (a process may have no more
    descriptors, or fewer rights than when it connected), `otherwise` asks the node for the bytes."""

    def __init__(
        self, node: int, reference: Reference, opened: Opened, otherwise: Callable[[], Sequence[Buffer]]
    ) -> None:
        self._node = node
        self._reference = reference
        self._opened = opened
        self._otherwise = otherwise

    def load(self) -> Sequence[Buffer]:
        """Its parts, copied. Raises `HandleError` if the item has been given to another process meanwhile, and
        `NodeError`."""
        return self.look() or self._otherwise()

    def look(self) -> Sequence[Buffer] | None:
        """Its parts, if they can be read here."""
        try:
            return _load(self._opened.find(self._node, self._reference, monotonic()), self._reference)
        except (OSError, OverflowError):  # a ProtocolError is an OSError, too
            return None


def fetch(
    node: int, reference: Reference, opened: Opened, otherwise: Callable[[], Sequence[Buffer]]
) -> Borrowed | Sequence[Buffer]:
    """An item that has arrived, read at once if that can be."""
    borrowed = Borrowed(node, reference, opened, otherwise)
    return borrowed.look() or borrowed


# -- the node --


class _Held(Lent):
    """A large item that the node holds."""

    def __init__(self, vault: Vault, lender: Hashable, memory: _Memory, reference: Reference) -> None:
        self._vault = vault
        self._lender = lender
        self._memory = memory
        self._lent_as = reference.generation
        self.reference = reference._replace(descriptor=memory.descriptor)
        self._in_sheet = reference.size if memory.size == SHEET else 0
        vault.held += 1
        vault.in_sheets += self._in_sheet

    def __del__(self) -> None:
        self._vault.held -= 1
        self._vault.in_sheets -= self._in_sheet
        self._vault.give_back(self._lender, self._lent_as)

    def load(self) -> Sequence[Buffer]:
        return _load(self._memory, self.reference)


class Vault:
    """What a node's clients share with it: in at most `room` pieces at a time, for each takes a descriptor."""

    def __init__(self, room: int) -> None:
        self.held = 0
        self.in_sheets = 0
        """Items, and the bytes of those that have a slot in a sheet."""
        self.ended: dict[Hashable, list[int]] = {}
        """The generations of the items that have ended, by lender; to be told, and removed."""
        self.due = float("inf")
        """When to `tidy`, in seconds."""
        self._room = room
        self._opened = Opened(maps=False)  # it reads little, and has no more descriptors than it needs
        self._pieces: WeakSet[_Memory] = WeakSet()
        self._sheets: WeakSet[_Memory] = WeakSet()  # those of them that are
        self._secret = os.urandom(PROOF)
        self._memory = _make(f"{NAME} secret")
        _write(self._memory, [self._secret], PROOF)
        self.place = (os.getpid(), self._memory.descriptor)
        """The process and the descriptor that clients are to read."""

    def admits(self, session: str, pid: int, descriptor: int) -> bool:
        """Whether a process shows that it has read the node's memory: then it and the node can share some, and may."""
        try:
            return _read(_open(pid, descriptor), PROOF, 0) == _proof(self._secret, session)
        except (OSError, OverflowError):
            return False

    def adopt(self, lender: Hashable, pid: int, reference: Reference, now: float) -> Lent | Sequence[Buffer]:
        """Take over an item from the process that shares it; copied, when there is no room for more. Raises
        `ProtocolError` if there is none such."""
        try:
            memory = self._opened.find(pid, reference, now)
        except ProtocolError:  # which is an OSError, too
            raise
        except OSError as error:
            raise ProtocolError(f"what a process shares cannot be opened: {error.strerror}") from None
        self.due = min(self.due, now + REST)
        try:
            generation = _generation(memory, reference.offset)
        except (OSError, OverflowError):
            generation = 0
        if reference.offset + reference.size > memory.size or generation != reference.generation:
            raise ProtocolError("what a process shares is not the item that it referred to")
        if memory not in self._pieces:
            if not self._has_room_for(memory):
                self._opened.forget()
            if not self._has_room_for(memory):
                parts = _load(memory, reference)
                self.give_back(lender, reference.generation)
                return parts
            self._pieces.add(memory)
            if memory.size == SHEET:
                self._sheets.add(memory)
        return _Held(self, lender, memory, reference)

    def _has_room_for(self, memory: _Memory) -> bool:
        """Whether one more piece may be held. An item holds all of its sheet, also when its process has ended, which
        could have used the rest again."""
        slack = len(self._sheets) * SHEET - self.in_sheets
        return len(self._pieces) < self._room and (memory.size != SHEET or slack <= SLACK)

    def tidy(self, now: float) -> None:
        """Close what was not used for a while."""
        self.due = self._opened.tidy(now)

    def gone(self, pid: int) -> None:
        """A process that shared memory has ended: nothing more comes in that."""
        self._opened.forget(pid)

    def give_back(self, lender: Hashable, generation: int) -> None:
        """The node has no use for an item any more, or never had."""
        self.ended.setdefault(lender, []).append(generation)


def make_vault(room: int) -> Vault | None:
    """A node's vault; `None` where there can be none."""
    if sys.platform != "linux" or not hasattr(os, "memfd_create") or room < 1:
        return None
    try:
        made = Vault(room)
        _open(*made.place)
        return made
    except OSError:  # no memory of this kind, or no /proc
        return None
