"""Large items in memory that processes of one host share: a copy in `put` and one in `get`, and none on the way.

Whoever puts a large item writes it into an anonymous file in memory (memfd, Linux), seals that, and sends a reference.
The node opens the file through ``/proc/PID/fd`` before it acknowledges the put, and passes a reference to its own
descriptor on; a reader opens that when it arrives. The memory has no name, and belongs to those who have it open: it is
free when the last of them closes it or dies, so nothing is ever left behind.

Only processes that may look into each other can do this: that is what the system checks for ``/proc/PID/fd`` (see
proc_pid_fd(5) and ptrace(2)). A client shows that it can by a number that the node keeps in such memory; the node finds
that it can when it reads that from the client's. All others are sent the bytes.
"""

from __future__ import annotations

import fcntl
import os
import stat
import sys
from collections.abc import Callable, Sequence
from pickle import PROTO
from struct import Struct
from typing import Final

from fiberq.abc import MAX_PARTS, Buffer
from fiberq.errors import ItemError, ProtocolError
from fiberq.protocol.lent import Lent, Reference, Shared

__all__ = ["Borrowed", "Vault", "borrow", "make_vault", "prove", "share"]

SHARE_FROM: Final = 256 * 1024
"""Bytes from which an item is shared; below, the system calls cost more than the copies."""

LINE: Final = 64
"""Bytes to multiples of which the parts are aligned: a cache line, and more than any type of NumPy asks for."""

PROOF: Final = 32
"""Bytes of what a client has to read from the node's memory."""

_COUNT: Final = Struct("<Q")
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE if sys.platform == "linux" else 0
"""What is read stays as it is (fcntl(2))."""


class _Memory:
    """An open descriptor, closed with this object by the process that opened it: in one that was forked from that, the
    number may stand for something else by then."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._pid = os.getpid()

    def __del__(self, close: Callable[[int], None] = os.close, getpid: Callable[[], int] = os.getpid) -> None:
        if self._pid == getpid():
            close(self.descriptor)


def share(item: Sequence[Buffer]) -> Shared | None:
    """Write a large item into shared memory; `None` if the system has no more of that, or no more descriptors."""
    views = [memoryview(part).cast("B") for part in item]
    head = b"".join(map(_COUNT.pack, (len(views), *map(len, views))))
    pieces, size = [], 0
    for view in (memoryview(head), *views):
        pieces += [view, memoryview(bytes(-len(view) % LINE))]
        size += len(view) + -len(view) % LINE
    try:
        memory = _Memory(os.memfd_create("fiberq", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
        _write(memory.descriptor, pieces)
        fcntl.fcntl(memory.descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except OSError:
        return None
    reference = Reference(memory.descriptor, os.fstat(memory.descriptor).st_ino, size)
    return Shared.of(reference, memory)


def _write(descriptor: int, pieces: list[memoryview]) -> None:
    while pieces:
        written = os.writev(descriptor, pieces[: 2 * MAX_PARTS])
        while pieces and written >= len(pieces[0]):
            written -= len(pieces.pop(0))
        if written:
            pieces[0] = pieces[0][written:]


def _open(pid: int, descriptor: int, reference: Reference | None = None) -> _Memory:
    """Open what another process shares. Raises `OSError`, or `ProtocolError` if it is not what was referred to."""
    # Not blocking: whatever the other process has there, this one is not to wait for it.
    memory = _Memory(os.open(f"/proc/{pid}/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
    found = os.fstat(memory.descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise ProtocolError("what a process shares is no memory")
    if reference is not None and (found.st_ino, found.st_size) != (reference.inode, reference.size):
        raise ProtocolError("what a process shares is not what it referred to")
    return memory


def _read(memory: _Memory, size: int, offset: int) -> bytes:
    """Exactly `size` bytes: one copy of them, but of more than 2 GiB, which Linux does not read at once."""
    data = os.pread(memory.descriptor, size, offset)
    return data if len(data) == size else bytes(_read_into(bytearray(size), memory, offset))


def _read_into(data: bytearray, memory: _Memory, offset: int) -> bytearray:
    view = memoryview(data)
    while view:
        count = os.preadv(memory.descriptor, [view], offset)
        if not count:
            raise ProtocolError("a shared item is cut short")
        view = view[count:]
        offset += count
    return data


def _load(memory: _Memory, size: int) -> list[Buffer]:
    """The parts of a shared item; behind a pickle, such as can be written to. Raises `ProtocolError` if it is none."""
    count = _COUNT.unpack(_read(memory, _COUNT.size, 0))[0]
    if not 0 < count <= MAX_PARTS:
        raise ProtocolError("a shared item has no parts, or too many")
    head = _COUNT.size * (count + 1)
    lengths = [length for (length,) in _COUNT.iter_unpack(_read(memory, head, 0)[_COUNT.size :])]
    parts: list[Buffer] = []
    offset = head + -head % LINE
    for length in lengths:
        if offset + length > size:
            raise ProtocolError("a shared item is cut short")
        if parts and bytes(memoryview(parts[0])[:1]) == PROTO:
            parts.append(_read_into(bytearray(length), memory, offset))
        else:
            parts.append(_read(memory, length, offset))
        offset += length + -length % LINE
    return parts


# -- clients --


def prove(node: int, descriptor: int) -> _Memory:
    """Show that this process can read the node's memory: return memory of its own with what is there. Raises `OSError`
    or `ProtocolError` if it cannot."""
    return _memory_with(_read(_open(node, descriptor), PROOF, 0))


def _memory_with(data: bytes) -> _Memory:
    memory = _Memory(os.memfd_create("fiberq's proof", os.MFD_CLOEXEC))
    _write(memory.descriptor, [memoryview(data)])
    return memory


class Borrowed:
    """A large item that has arrived. It is read when it is got."""

    def __init__(self, memory: _Memory | None, size: int) -> None:
        self._memory = memory
        self._size = size

    def load(self) -> Sequence[Buffer]:
        """Its parts, copied. Raises `ItemError` if it had been given to another process before it came here."""
        if self._memory is None:
            raise ItemError("an item cannot be read: by the time that it came, it had been given to another process")
        return _load(self._memory, self._size)


def borrow(node: int, reference: Reference) -> Borrowed:
    """What the node, a process, has delivered."""
    try:
        return Borrowed(_open(node, reference.descriptor, reference), reference.size)
    except (OSError, ProtocolError):  # the node has closed it meanwhile: this reader is not its owner any more
        return Borrowed(None, reference.size)


# -- the node --


class _Held(Lent):
    """A large item that the node holds."""

    def __init__(self, vault: Vault, memory: _Memory, size: int, inode: int) -> None:
        self._vault = vault
        self._memory = memory
        self.reference = Reference(memory.descriptor, inode, size)
        vault.held += 1

    def __del__(self) -> None:
        self._vault.held -= 1

    def load(self) -> Sequence[Buffer]:
        return _load(self._memory, self.size)


class Vault:
    """What a node's clients share with it: at most `room` items at a time, for each takes a descriptor."""

    def __init__(self, room: int) -> None:
        self.held = 0
        self._room = room
        self._proof = os.urandom(PROOF)
        self._memory = _memory_with(self._proof)
        self.place = (os.getpid(), self._memory.descriptor)
        """The process and the descriptor that clients are to read."""

    def admits(self, pid: int, descriptor: int) -> bool:
        """Whether a process has what clients are to read: then it and this one can share memory, and may."""
        try:
            return _read(_open(pid, descriptor), PROOF, 0) == self._proof
        except (OSError, ProtocolError):
            return False

    def adopt(self, pid: int, reference: Reference) -> Lent | Sequence[Buffer]:
        """Take over an item from the process that shares it; copied, when there is no room for more. Raises
        `ProtocolError` if there is none such."""
        try:
            memory = _open(pid, reference.descriptor, reference)
            if fcntl.fcntl(memory.descriptor, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
                raise ProtocolError("what a process shares it could still change")
        except ProtocolError:  # which is an OSError, too
            raise
        except OSError as error:
            raise ProtocolError(f"what a process shares cannot be opened: {error.strerror}") from None
        if self.held >= self._room:
            return _load(memory, reference.size)
        return _Held(self, memory, reference.size, reference.inode)


def make_vault(room: int) -> Vault | None:
    """A node's vault; `None` where there can be none."""
    if sys.platform != "linux" or not hasattr(os, "memfd_create") or room < 1:
        return None
    try:
        made = Vault(room)
        return made if made.admits(*made.place) else None
    except OSError:  # no memory of this kind, or no /proc
        return None
